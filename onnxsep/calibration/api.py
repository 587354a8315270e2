"""Fitting the factors of a plan to what the user gave: data, recorded statistics, or neither."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxsep.calibration.blocks import fit_blocks, fitted_blocks
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.layerwise import calibrate
from onnxsep.calibration.recording import calibrate_from, record
from onnxsep.calibration.report import CalibrationReport, TuneReport
from onnxsep.calibration.statistics_file import load_statistics, save_statistics
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import (
    Dataset,
    Feed,
    ImageJudge,
    Partition,
    Preprocessing,
    Source,
    open_data,
    partition,
    verification_feeds,
)
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import Edit
from onnxsep.errors import CalibrationError, OptionError, spelled
from onnxsep.model.io import Model
from onnxsep.modes.base import AnyMode, Mode
from onnxsep.modes.block import BlockMode
from onnxsep.options.progress import Progress
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training import check_installed, tune, write_back

INITS = ("svd", "response", "compensated", "joint")
_BATCH = 50  # samples that are run at a time


@dataclass(frozen=True)
class Fitting:
    """What the user chose about data; the fields are the parameters of ``onnxsep.rewrite``."""

    data: Source | Dataset | None = None
    preprocessing: Preprocessing | None = None
    skip_bad: bool = False
    wanted: str | None = None
    samples: int = 500
    positions: int = 64
    seed: int = 0
    statistics: str | os.PathLike[str] | None = None
    tune: int = 0
    refine: int = 0
    dry_run: bool = False

    def init(self, mode: AnyMode) -> str:
        """The initialisation: what was asked for, or the best that the mode has for what there is."""
        if isinstance(mode, BlockMode):
            return "svd"
        return self.wanted or (mode.inits[-1] if self.data is not None or self.statistics is not None else "svd")

    def check(self, mode: AnyMode, *, images: bool) -> None:
        """Refuse options that contradict each other, before anything is read.

        Args:
            mode: the mode.
            images: whether it is said how images are read.

        Raises:
            OptionError: they do.
            MissingDependencyError: what tuning needs is not installed.
        """
        if isinstance(mode, BlockMode):
            self._check_block(mode)
        init, source = self.init(mode), self.data is not None or self.statistics is not None
        init_option, data, tune = spelled("init", init), spelled("data"), spelled("tune")
        if init not in INITS:
            raise OptionError(f"{spelled('init')} {init!r} is not one of {', '.join(INITS)}")
        if isinstance(mode, Mode) and init not in mode.inits:
            raise OptionError(f"mode {mode.name} does not offer {init_option}; it has: {', '.join(mode.inits)}")
        if init != "svd" and not source:
            raise OptionError(f"{init_option} fits the factors to data; add {data} (or {spelled('statistics')})")
        if images and self.data is None:
            raise OptionError(f"preprocessing is for the images of {data}, and there is none")
        if self.refine and (init != "joint" or self.data is None):
            raise OptionError(f"{spelled('refine')} goes with {data} and {spelled('init', 'joint')}")
        if self.tune and self.data is None:
            raise OptionError(f"{tune} needs the inputs themselves; add {data}")
        if self.tune:
            check_installed()

    def _check_block(self, mode: BlockMode) -> None:
        """A block mode computes its weights from those of the source."""
        for name, given in (("init", self.wanted), ("refine", self.refine), ("statistics", self.statistics)):
            if given:
                raise OptionError(f"mode {mode.name} fits nothing to data; leave {spelled(name)} out")
        if self.tune and mode.exact:
            raise OptionError(f"mode {mode.name} is exact, so there is nothing to tune; leave {spelled('tune')} out")


@dataclass(frozen=True)
class Fitted:
    """What was found, and what the report says about it."""

    calibrated: Calibrated = field(default_factory=Calibrated)
    report: CalibrationReport | None = None
    dataset: Dataset | None = None
    parts: Partition | None = None

    @property
    def indices(self) -> tuple[int, ...]:
        """The samples that the fit sees."""
        return () if self.parts is None else tuple(self.parts.fitted)

    def batches(self) -> Iterator[Feed]:
        """The samples that were chosen."""
        assert self.dataset is not None
        return self.dataset.feeds(self.indices, _BATCH)

    def unseen(self) -> Feeds | None:
        """What the result is verified on, where there are data.

        Raises:
            DataError: an image cannot be read.
        """
        if self.dataset is None or self.parts is None:
            return None
        return verification_feeds(self.dataset, self.parts)


def fit_plan(
    model: Model,
    sites: Sites,
    plan: Plan,
    init: str,
    fitting: Fitting,
    runtime: RuntimeOptions,
    progress: Progress | None,
) -> Fitted:
    """Fit the replacements of a plan to data or statistics; nothing where there is neither.

    Each says itself how it is fitted; ``init`` is that in words, for the report.

    Raises:
        DataError: the data do not fit the model.
        CalibrationError: they cannot be used for calibration, or the statistics belong to another model.
    """
    options = CalibrationOptions(positions=fitting.positions, seed=fitting.seed, refine=fitting.refine)
    if fitting.data is None:
        return _from_statistics(model, sites, plan, init, fitting, options, progress)
    dataset = fitting.data
    if not isinstance(dataset, Dataset):
        dataset = open_data(
            dataset,
            model,
            preprocessing=fitting.preprocessing,
            judge=ImageJudge(model, runtime),
            skip_bad=fitting.skip_bad,
        )
    parts = partition(dataset, fitting.samples, fitting.seed)
    indices = tuple(parts.fitted)
    report = CalibrationReport(
        init=init,
        source=dataset.source,
        fingerprint=dataset.fingerprint(indices),
        samples=len(indices),
        positions=options.positions,
        seed=options.seed,
        refine=options.refine,
        preprocessing=dataset.preprocessing,
        notes=dataset.notes,
    )
    fitted = Fitted(report=report, dataset=dataset, parts=parts)
    weights_alone = (row for row in plan.replacements if isinstance(row, BlockReplacement) and not row.mode.fits)
    blocks = sorted({row.mode.name for row in weights_alone})
    if blocks:
        note = f"mode {', '.join(blocks)} computes its weights from those of the source: nothing is fitted to the data"
        fitted = replace(fitted, report=report.model_copy(update={"notes": (*report.notes, note)}))
    if plan.convs:
        done = calibrate(model, sites, plan, fitted.batches(), options, runtime, progress)
        # A model of a fixed batch size may leave some samples over.
        fitted = replace(fitted, calibrated=done, report=report.model_copy(update={"samples": done.samples}))
    if found := fitted_blocks(plan):
        outcomes, samples = fit_blocks(
            model, sites, found, fitted.batches(), runtime, seed=options.seed, progress=progress
        )
        for row in found:
            outcome = outcomes[row.site.place]
            fitted.calibrated.outcomes[row.key] = outcome
            if not isinstance(outcome, str):
                fitted.calibrated.by_place[row.site.place] = outcome
        fitted = replace(fitted, report=report.model_copy(update={"samples": samples}))
    if fitting.statistics is not None and not fitting.dry_run:  # last: whoever interrupts has nothing written
        recorded = record(model, sites, fitted.batches(), options, runtime, dataset.source, progress)
        save_statistics(fitting.statistics, recorded)
    return fitted


def tune_result(
    source: Model,
    result: Model,
    edit: Edit,
    fitted: Fitted,
    fitting: Fitting,
    runtime: RuntimeOptions,
    progress: Progress | None,
) -> tuple[Model, Fitted]:
    """Tune the new weights of a result together, if that was asked for.

    Raises:
        MissingDependencyError: torch is not installed.
        UnsupportedModelError: torch cannot run the model.
    """
    if not fitting.tune or not edit.new_weights or fitted.report is None:
        return result, fitted
    assert fitted.dataset is not None
    tuned = tune(
        result,
        source,
        fitted.dataset,
        edit.new_weights,
        chosen=fitted.indices,
        steps=fitting.tune,
        seed=fitting.seed,
        runtime=runtime,
        progress=progress,
    )
    report = TuneReport(
        steps=tuned.steps,
        best_step=tuned.best_step,
        loss_before=tuned.held_out_before,
        loss_after=tuned.held_out_after,
        seconds=tuned.seconds,
        notes=tuned.notes,
    )
    changed = write_back(result, tuned.arrays) if tuned.arrays else result
    return changed, replace(fitted, report=fitted.report.model_copy(update={"tune": report}))


def _from_statistics(
    model: Model,
    sites: Sites,
    plan: Plan,
    init: str,
    fitting: Fitting,
    options: CalibrationOptions,
    progress: Progress | None,
) -> Fitted:
    if fitting.statistics is None:
        return Fitted()
    path = Path(fitting.statistics)
    recorded = load_statistics(path, model)
    try:
        fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror or error}") from error
    report = CalibrationReport(
        init=init,
        source=os.fsdecode(path),
        fingerprint=fingerprint,
        samples=recorded.samples,
        positions=recorded.positions,
        seed=recorded.seed,
        notes=(
            f"each Conv was fitted as if it were the only one replaced; {spelled('data')} also makes up for earlier"
            " losses",
        ),
    )
    return Fitted(calibrate_from(model, sites, plan, recorded, options, progress), report)
