"""What a run gives to all of its steps, and the options of the run itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.compression.folder_files import WORK
from onnxsep.data.options import DATA_GROUP, Labelled
from onnxsep.finetuning.options import Training
from onnxsep.model.paths import DATA, TEST_DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.running.options import Fed, Running, Seeded, Telling

if TYPE_CHECKING:
    from onnxsep.compression.report import StepReport
    from onnxsep.data import AnyLabels, Preprocessing, Source
    from onnxsep.running.metric import Metric
    from onnxsep.running.runtime import RuntimeOptions
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.compression.report": ("StepReport",),
            "onnxsep.data": ("AnyLabels", "Source"),
            "onnxsep.running.metric": ("Metric",),
        },
    )

_MEASURING, _STEPS = "What is measured", "Finished steps"


@record
class CompressOptions(Running, Training, Labelled, Fed, Seeded, Telling):
    """What a run is asked for, beside its steps."""

    data: Source | None = option(
        default=None,
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        help="Folder of images, .npy or .npz: what steps fit, train and calibrate with.",
        doc="samples that the steps fit, train and calibrate with, as for :func:`onnxsep.data.open_data`.",
    )
    test: Source | None = option(
        default=None,
        group=_MEASURING,
        reads=TEST_DATA,
        typed=Path,
        help="Samples that each step's result is measured on, and that no step sees.",
        doc="samples to measure on; None: at most 1000 of ``data``, which the steps have seen, or random inputs.",
    )
    test_labels: AnyLabels | None = option(
        default=None,
        group=_MEASURING,
        reads="the labels of the test data",
        typed=Path,
        help="CSV file of names and classes, instead of those of {test}.",
        doc="as ``labels``, of these.",
    )
    metric: str | Metric | None = option(
        default=None,
        group=_MEASURING,
        typed=str,
        metavar="MODULE:FUNCTION",
        help="Your own metric, as for evaluate.",
        doc="a function of the outputs, or ``module:function``, instead of accuracy.",
    )
    test_samples: int | None = option(
        default=None, group=_MEASURING, minimum=1, help="Measure on at most so many samples."
    )
    runs: int | None = option(
        default=None,
        minimum=0,
        group=_MEASURING,
        help="Timed runs of each model; by default as many as it takes; 0: no latency.",
        doc="timed runs of each model; None: until the standard errors of medians and ratios are below 1 %, 1 to 10"
        " seconds of each model; 0: latency is not measured.",
    )
    seed: int = option(
        default=0, minimum=0, help="Of every step whose recipe names none.", doc="of every step that names none."
    )
    until: str | None = option(
        default=None,
        group=_STEPS,
        metavar="NAME",
        help="Stop behind the last step of this command or mode: rewrite, to stop before training.",
        doc='stop behind the last step of this command (such as "rewrite", to stop before training) or of this mode,'
        " or behind the step of this number.",
    )
    work: str | os.PathLike[str] | None = option(
        default=None,
        group=_STEPS,
        writes=WORK,
        typed=Path,
        help="Folder for finished steps, from which a run goes on; OUT.onnx.steps.",
        doc="folder in which finished steps are kept, so that the same call goes on after an interruption; it goes when"
        " the result is saved. None: all stays in memory.",
    )
    fresh: bool = option(
        default=False,
        group=_STEPS,
        help="Start again: remove the steps that an unfinished run has left.",
        doc="remove what an earlier run has left in the work folder.",
    )
    keep_steps: bool = option(
        default=False,
        group=_STEPS,
        help="Keep the work folder with the result and report of each step.",
        doc="do not remove the work folder.",
    )
    told: Callable[[StepReport], None] | None = option(
        default=None, flag=None, kept=False, help="", doc="given the report of each finished step."
    )


def _runtime() -> RuntimeOptions:
    from onnxsep.running.runtime import RuntimeOptions

    return RuntimeOptions()


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a run gives to each of its steps whose record has an option of that name."""

    data: Source | None = None
    labels: AnyLabels | None = None
    preprocessing: Preprocessing | None = None
    skip_bad: bool = False
    output: str | None = None
    inputs: str | os.PathLike[str] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    follow_links: bool = False
    device: str = "auto"
    runtime: RuntimeOptions = field(default_factory=_runtime)
