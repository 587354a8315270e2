"""The options of ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.data.options import DATA_GROUP, Labelled, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.evaluation.limits import Limits
from onnxsep.model.paths import DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.running.options import Running, Seeded, Telling

if TYPE_CHECKING:
    from onnxsep.data import Source
    from onnxsep.model.io import AnyModel
    from onnxsep.running.metric import Metric
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.data": ("Source",),
            "onnxsep.running.metric": ("Metric",),
            "onnxsep.model.io": ("AnyModel",),
        },
    )

_MEASURED = "What is measured"


@record
class EvaluateOptions(Limits, Running, Labelled, Preprocessed, Seeded, Telling):
    """What ``evaluate`` is asked for."""

    data: Source = option(
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        help="Folder of images (one folder per class), .npy or .npz.",
        doc="a folder of images, .npz or .npy, or arrays: see :func:`onnxsep.data.open_data`.",
    )
    metric: str | Metric | None = option(
        default=None,
        group=_MEASURED,
        typed=str,
        metavar="MODULE:FUNCTION",
        help="Your own metric instead of accuracy: (outputs by name, labels) -> a number, higher is better; the "
        "module may lie in the current folder.",
        doc="a function, or ``module:function``, instead of accuracy: outputs by name and labels (int64 [samples], or"
        " None) in, a number out; higher is better. An output is an array [samples, ...], or a list with one for each"
        " run where its rows are not the samples or its shapes differ; for these, ``batch=1``.",
    )
    reference: AnyModel | None = option(
        default=None,
        group=_MEASURED,
        reads="the reference",
        typed=Path,
        metavar="REF.onnx",
        help="A model to compare outputs with; needs no labels.",
        doc="the model that outputs are compared with.",
    )
    samples: int | None = option(
        default=None,
        minimum=1,
        group=DATA_GROUP,
        help="Use at most so many samples of the data; all by default.",
        doc="use at most so many samples, drawn with ``seed``; None: all.",
    )
    batch: int | None = option(
        default=None,
        minimum=1,
        group=_MEASURED,
        help="Samples in one run; by default 1 in timed runs and 16 in the others.",
        doc="samples in one run; None: 1 in the timed runs and 16 in the others. A model with a fixed batch size gets"
        " that one.",
    )
    runs: int | None = option(
        default=None,
        minimum=0,
        group=_MEASURED,
        help="Timed runs of each model; by default as many as it takes; 0: no latency.",
        doc="timed runs of each model; None: until the standard errors of medians and ratios are below 1 %, 1 to 10"
        " seconds of each model; 0: latency is not measured.",
    )
    memory: bool = option(
        default=True,
        group=_MEASURED,
        flag="--no-memory",
        help="Do not measure peak memory.",
        doc="whether to measure peak memory, which starts a process for each model.",
    )
    seed: int = option(
        default=0, minimum=0, help="Seed of the choice of {samples}.", doc="seed of the choice of samples."
    )

    def check(self) -> None:
        """Refuse limits on what is not measured.

        Raises:
            OptionError: one is out of range, or on what other options switch off.
        """
        super().check()
        for name in ("min_accuracy", "max_drop"):
            if getattr(self, name) is not None and self.metric is not None:
                raise OptionError(
                    f"{spelled(name)} is about top-1 accuracy, which {spelled('metric')} replaces; leave out one of"
                    " the two"
                )
        if self.max_latency_ratio is not None and self.runs == 0:
            raise OptionError(
                f"{spelled('max_latency_ratio')} needs timed runs, and {spelled('runs', 0)} switches them off; leave"
                " out one of the two"
            )
