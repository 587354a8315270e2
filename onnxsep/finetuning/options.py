"""The options of a run of fine-tuning, checked before anything is read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.data.options import DATA_GROUP, Labelled, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.model.paths import DATA, TEACHER
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.running.options import Running, Seeded, Telling
from onnxsep.training.choices import Augmentation, BatchNorm, Optimizer, Precision, TeacherTerm
from onnxsep.training.devices import check_device
from onnxsep.training.schedule import Schedule

if TYPE_CHECKING:
    from onnxsep.data import Source
    from onnxsep.model.io import AnyModel
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.data": ("Source",), "onnxsep.model.io": ("AnyModel",)})

TEMPERATURE = 4.0
_TRAINING, _LOSS = "Training", "Loss"
_RATES = {"adam": 1e-3, "sgd": 0.05}


@record
class Training(Preprocessed):
    """Where training runs."""

    device: str = option(
        default="auto",
        group="Runtime",
        per_run=True,
        proposed=("auto", "cpu", "cuda", "mps"),
        help="What trains: auto (a GPU where torch has one), cpu, cuda, cuda:N or mps.",
        doc='"auto" (a GPU where torch has one, else the CPU), "cpu", "cuda", "cuda:N" or "mps".',
    )

    def check(self) -> None:
        """Refuse a name that is no device's."""
        super().check()
        check_device(self.device)


@record
class FinetuneOptions(Running, Training, Labelled, Seeded, Telling):
    """What ``finetune`` is asked for."""

    data: Source = option(
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        per_run=True,
        help="Folder of images (one folder per class), .npy or .npz.",
        doc="a folder of images, an .npy or .npz file, arrays, batches or a dataset (:func:`onnxsep.data.open_data`).",
    )
    teacher: AnyModel | None = option(
        default=None,
        group=_LOSS,
        reads=TEACHER,
        typed=Path,
        metavar="ORIGINAL.onnx",
        help="A model whose outputs are learnt; needs no labels.",
        doc="a model whose outputs are to be learnt: usually the original of a rewritten or pruned one.",
    )
    loss: TeacherTerm = option(
        default="outputs",
        group=_LOSS,
        help="With a teacher: outputs (as they are, any network) or soft (softened class probabilities).",
        doc='with a teacher: "outputs" compares outputs as they are, of any network; "soft" the probabilities of'
        " classes, softened by the temperature.",
    )
    label_weight: float | None = option(
        default=None,
        group=_LOSS,
        fits=(lambda x: 0 <= x <= 1, "from 0 to 1"),
        help="Share of the labels' cross-entropy beside a teacher; 0.1 where there are labels.",
        doc="share of the cross-entropy with the labels, 0 to 1. By default 0.1 beside a teacher where there are"
        " labels, and 1 without a teacher.",
    )
    temperature: float = option(
        default=TEMPERATURE,
        group=_LOSS,
        fits=(lambda x: 0 < x < math.inf, "above 0"),
        help="Of {loss} soft.",
        doc='of "soft".',
    )
    epochs: int = option(default=10, group=_TRAINING, minimum=1, help="Passes over the data.")
    batch: int = option(default=64, group=_TRAINING, minimum=1, help="Samples in a step.")
    optimizer: Optimizer = option(default="sgd", group=_TRAINING, help="sgd (with momentum) or adam.")
    rate: float | None = option(
        default=None,
        group=_TRAINING,
        fits=(lambda x: 0 < x < math.inf, "above 0"),
        help="Largest learning rate; 0.05 for sgd, 0.001 for adam.",
    )
    schedule: Schedule = option(
        default="one-cycle",
        group=_TRAINING,
        help="one-cycle or constant.",
        doc='"one-cycle": up over a tenth of the steps and down along a cosine to zero; or "constant".',
    )
    weight_decay: float = option(
        default=1e-4,
        group=_TRAINING,
        fits=(lambda x: 0 <= x < math.inf, "0 or more"),
        help="Of the weights of layers.",
        doc="of the weights of layers; biases and norms have none.",
    )
    batch_norm: BatchNorm | None = option(
        default=None,
        group=_TRAINING,
        help="train or frozen: statistics of BatchNormalization; insert: also put it behind Convs that have none,"
        " in training only. By default insert for classifiers of 8 such Convs or more, else train; frozen where"
        " fewer than 8 samples go through the model at once.",
        doc='"train" uses each batch\'s statistics and moves the running ones, and lets Dropout drop; "frozen" leaves'
        ' the statistics. "insert" is "train", and puts BatchNormalization behind the Convs that have none, for'
        ' training only: it is folded into their weights at the end. By default "insert" for classifiers with 8 Convs'
        ' or more and no BatchNormalization, "train" where there is some, and "frozen" where that cannot be done: the'
        " model takes fewer than 8 samples at once.",
    )
    precision: Precision = option(
        default="float32",
        group=_TRAINING,
        help="Of the layers in training: float32, or bfloat16 (faster on many CPUs).",
        doc='"float32", or "bfloat16" for the layers in training: faster where the processor has it. Weights, the loss'
        " and what is measured stay in float32.",
    )
    augment: Augmentation = option(
        default="auto",
        group=_TRAINING,
        help="none, crop, flip or crop,flip of images; auto: both with a teacher, else crop.",
        doc='"crop", "flip", "crop,flip" or "none"; by default both beside a teacher, which sees the same image, and'
        " crops alone otherwise, as not every class looks the same in a mirror. Images of 16 pixels and more.",
    )
    validation: float = option(
        default=0.1,
        group=_TRAINING,
        fits=(lambda x: 0 <= x < 1, "0 or more and below 1"),
        help="Share of the samples held out; the weights best on it are kept.",
        doc="share of the samples that is held out; the weights that do best on it are kept. 0: the last ones.",
    )
    patience: int = option(
        default=0, group=_TRAINING, minimum=0, help="Stop after so many epochs that brought nothing; 0: never."
    )
    keep_zeros: bool | None = option(
        default=None,
        group=_TRAINING,
        flag="--keep-zeros/--move-zeros",
        help="Zero weights stay zero; the default for pruned models.",
        doc="whether zeros in weights stay; by default where the model is pruned.",
    )
    samples: int | None = option(
        default=None,
        minimum=1,
        group=DATA_GROUP,
        help="Use at most so many samples of the data; all by default.",
        doc="use at most so many samples of the data, drawn at random.",
    )
    checkpoint: str | os.PathLike[str] | None = option(
        default=None,
        group="Output",
        writes="onnxsep.training.checkpoint:CHECKPOINT",
        typed=Path,
        per_run=True,
        help="State after each epoch, until OUT.onnx is written; OUT.onnx.checkpoint.",
        doc="a file that holds the run's state after each epoch.",
    )
    resume: bool = option(
        default=False,
        group="Output",
        per_run=True,
        help="Go on from the checkpoint of an unfinished run.",
        doc="go on from ``checkpoint``, where it exists.",
    )
    seed: int = option(
        default=0,
        minimum=0,
        help="Of the order, the held-out share, crops, flips.",
        doc="of what is held out, the order of samples, crops and flips.",
    )

    @property
    def largest_rate(self) -> float:
        """The rate, or the optimiser's own."""
        return _RATES[self.optimizer] if self.rate is None else self.rate

    def check(self) -> None:
        """Refuse what makes no sense, alone or together.

        Raises:
            MissingDependencyError: torch is not installed.
            OptionError: a value is no choice, or out of its range; the message names the option.
        """
        from onnxsep.training import check_installed

        check_installed()
        super().check()
        soft, temperature, teacher = spelled("loss", "soft"), spelled("temperature"), spelled("teacher")
        if self.patience and not self.validation:
            raise OptionError(
                f"{spelled('patience')} needs samples that are held out; leave out {spelled('validation', 0)}"
            )
        if self.temperature != TEMPERATURE and self.loss != "soft":
            raise OptionError(f"{temperature} is for {soft}; add it, or leave out {temperature}")
        if self.teacher is None and self.loss == "soft":
            raise OptionError(f"{soft} compares with a teacher; add {teacher}, or leave it out")
        if self.resume and self.checkpoint is None:
            raise OptionError("there is nothing to resume from; name the checkpoint")
