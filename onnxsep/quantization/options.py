"""The options of ``quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxsep.data.options import DATA_GROUP, Labelled, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.model.paths import DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.quantization.settings import Settings
from onnxsep.running.options import VERIFICATION, Running, Seeded, Telling, check_limit, needs_verification

if TYPE_CHECKING:
    from onnxsep.data import Source
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.data": ("Source",)})


@record
class QuantizeOptions(Settings, Running, Labelled, Preprocessed, Seeded, Telling):
    """What ``quantize`` is asked for."""

    data: Source = option(
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        per_run=True,
        help="Folder of images, .npy, .npz, or synthetic (images made up): what ranges of activations come from.",
        doc="samples to choose the ranges of activations with, as for :func:`onnxsep.data.open_data`.",
    )
    samples: int | None = option(
        default=200,
        minimum=1,
        group=DATA_GROUP,
        help="Calibrate with at most so many samples of the data.",
        doc="calibrate with at most so many samples, drawn with ``seed``; None: all. A few others, where there are any,"
        " are held out for measuring the error.",
    )
    seed: int = option(default=0, minimum=0, help="Seed of the choice of {samples}.", doc="of the choice of samples.")
    verify: Literal["full", "none"] = option(
        default="full",
        group=VERIFICATION,
        switches={"--no-verify": "none"},
        help="full: run both models, and compare outputs and latency; none.",
        doc='"full" runs both models on held-out samples and compares outputs and latency, or "none".',
    )
    max_error: float | None = option(
        default=None,
        group=VERIFICATION,
        help="Fail (status 3) above this relative error.",
        doc="fail where the relative error of an output, on the held-out samples, is larger.",
    )
    max_drop: float | None = option(
        default=None,
        group=VERIFICATION,
        help="Points of top-1 accuracy that may be lost: layers that hurt stay in float, as few as possible. Needs "
        "labels, and samples beyond those of the calibration.",
        doc="the largest loss of top-1 accuracy, in points (percent of the samples). The layers that hurt most stay in"
        " float, as few as possible. It is measured on the samples that the calibration does not use, which need"
        " labels; the accuracy of the result has to be measured on others.",
    )
    layers: bool = option(
        default=False,
        group="Output",
        help="Compare every tensor that source and result have: where does an error arise?",
        doc="compare every tensor that source and result have in common, for the report: where does the error arise?",
    )

    def check(self) -> None:
        """Refuse values that make no sense, alone or together.

        Raises:
            OptionError: one of them cannot be used.
        """
        super().check()
        check_limit(self.max_error)
        if self.max_error is not None and self.verify == "none":
            raise needs_verification(spelled("verify", "none"))
        if self.max_drop is not None and not 0 <= self.max_drop < 100:
            raise OptionError(
                f"{spelled('max_drop')} {self.max_drop} is no loss of accuracy in points; use one such as 0.5"
            )
