"""Fitting the factors of a plan to what the user gave: data, recorded statistics, or neither."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxsep.calibration.blocks import fitted_blocks
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.memory import Needs, available, needs
from onnxsep.calibration.recording import calibrate_from, record
from onnxsep.calibration.report import CalibrationReport, TuneReport
from onnxsep.calibration.schedule import make_schedule
from onnxsep.calibration.statistics_file import load_statistics, save_statistics
from onnxsep.calibration.together import fit_together
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
from onnxsep.engine.planning import Plan, in_main_graph
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import Edit
from onnxsep.errors import CalibrationError, OptionError, spelled
from onnxsep.model.io import Model
from onnxsep.modes.base import AnyMode, Mode
from onnxsep.modes.block import LEAST_SQUARES, BlockMode
from onnxsep.modes.width import WidthMode
from onnxsep.options.progress import Progress, announce, note
from onnxsep.options.sizes import in_bytes
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training import check_installed, tune, write_back

INITS = ("svd", "response", "compensated", "joint")
_USED = 0.8  # of the memory that is free
_LARGE = 10**9  # bytes that are worth a line


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
    tune_blocks: int = 0
    refine: int = 0
    memory: int | None = None
    dry_run: bool = False

    def init(self, mode: AnyMode) -> str:
        """The initialisation: what was asked for, or the best that the mode has for what there is."""
        if not isinstance(mode, Mode):
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
        if not isinstance(mode, Mode):
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
        if self.tune_blocks and not (isinstance(mode, BlockMode) and mode.fits == LEAST_SQUARES):
            raise OptionError(
                f"{spelled('tune_blocks')} is for modes that fit whole blocks, and mode {mode.name} does not"
            )
        if self.tune_blocks and self.data is None:
            raise OptionError(f"{spelled('tune_blocks')} needs the inputs themselves; add {data}")
        if self.tune or self.tune_blocks:
            check_installed()

    def _check_block(self, mode: BlockMode | WidthMode) -> None:
        """These compute their weights from those of the source."""
        for name, given in (("init", self.wanted), ("refine", self.refine), ("statistics", self.statistics)):
            if given:
                fits = mode.fits if isinstance(mode, BlockMode) else ""
                how = f"fits its weights in one way, {fits}" if fits else "fits nothing to data"
                raise OptionError(f"mode {mode.name} {how}; leave {spelled(name)} out")
        if self.tune and isinstance(mode, WidthMode):
            raise OptionError(f"mode {mode.name} makes no new weights to tune; leave {spelled('tune')} out")
        if self.tune and isinstance(mode, BlockMode) and mode.exact:
            raise OptionError(f"mode {mode.name} is exact, so there is nothing to tune; leave {spelled('tune')} out")


@dataclass(frozen=True)
class Fitted:
    """What was found, and what the report says about it."""

    calibrated: Calibrated = field(default_factory=Calibrated)
    report: CalibrationReport | None = None
    dataset: Dataset | None = None
    parts: Partition | None = None
    needs: Needs = field(default_factory=Needs)

    @property
    def indices(self) -> tuple[int, ...]:
        """The samples that the fit sees."""
        return () if self.parts is None else tuple(self.parts.fitted)

    def batches(self) -> Iterator[Feed]:
        """The samples that were chosen."""
        assert self.dataset is not None
        return self.dataset.feeds(self.indices, self.needs.batch)

    def unseen(self) -> Feeds | None:
        """What the result is verified on, where there are data.

        Raises:
            DataError: an image cannot be read.
        """
        if self.dataset is None or self.parts is None:
            return None
        return verification_feeds(self.dataset, self.parts)


def opened(fitting: Fitting, model: Model, runtime: RuntimeOptions) -> Fitting:
    """The same with its data opened for a model, where there are some.

    Raises:
        DataError: the data do not fit the model.
    """
    if fitting.data is None or isinstance(fitting.data, Dataset):
        return fitting
    dataset = open_data(
        fitting.data,
        model,
        preprocessing=fitting.preprocessing,
        judge=ImageJudge(model, runtime),
        skip_bad=fitting.skip_bad,
    )
    return replace(fitting, data=dataset)


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
    options = CalibrationOptions(
        positions=fitting.positions, seed=fitting.seed, refine=fitting.refine, block_steps=fitting.tune_blocks
    )
    if fitting.data is None:
        return _from_statistics(model, sites, plan, init, fitting, options, progress)
    dataset = opened(fitting, model, runtime).data
    assert isinstance(dataset, Dataset)
    parts = partition(dataset, fitting.samples, fitting.seed)
    indices = tuple(parts.fitted)
    memory = _needs(model, sites, plan, dataset, parts, fitting)
    options = replace(options, needs=memory)
    report = CalibrationReport(
        init=init,
        source=dataset.source,
        fingerprint=dataset.fingerprint(indices),
        samples=len(indices),
        positions=options.positions,
        seed=options.seed,
        refine=options.refine,
        memory=memory.expected or None if plan.convs else None,  # fits of blocks are not foreseen
        preprocessing=dataset.preprocessing,
        notes=dataset.notes,
    )
    fitted = Fitted(report=report, dataset=dataset, parts=parts, needs=memory)
    weights_alone = (row for row in plan.replacements if isinstance(row, BlockReplacement) and not row.mode.fits)
    blocks = sorted({row.mode.name for row in weights_alone})
    if blocks:
        said = f"mode {', '.join(blocks)} computes its weights from those of the source: nothing is fitted to the data"
        report = report.model_copy(update={"notes": (*report.notes, said)})
        fitted = replace(fitted, report=report)
    if plan.convs:
        told = f"fitting to {len(indices)} samples: about {in_bytes(memory.expected)} of memory"
        (note if fitting.memory is not None or memory.expected > _LARGE else announce)(progress, told)
    if plan.convs or fitted_blocks(plan):
        done = fit_together(model, sites, plan, fitted.batches, options, runtime, progress)
        # A model of a fixed batch size may leave some samples over.
        fitted = replace(fitted, calibrated=done, report=report.model_copy(update={"samples": done.samples}))
    if fitting.statistics is not None and not fitting.dry_run:  # last: whoever interrupts has nothing written
        recorded = record(model, sites, fitted.batches(), options, runtime, dataset.source, progress)
        save_statistics(fitting.statistics, recorded)
    return fitted


def _needs(model: Model, sites: Sites, plan: Plan, dataset: Dataset, parts: Partition, fitting: Fitting) -> Needs:
    """What a fit needs of memory, within what was asked for or what is free."""
    limit = available() * _USED if fitting.memory is None else fitting.memory
    chosen = [row.site for row in plan.convs if in_main_graph(row.site)]
    together = dataset.batch or 1
    first = parts.fitted[:together]
    if len(first) < together or not (chosen or fitted_blocks(plan)):
        return Needs()
    steps = make_schedule(model, sites.scopes, chosen)
    feed, samples = dataset.feed(first), len(parts.fitted)
    return needs(model, steps, feed, samples, fitting.positions, limit, together)


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
        rate=tuned.rate,
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
    try:
        recorded, fingerprint = load_statistics(path, model), hashlib.sha256(path.read_bytes()).hexdigest()
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
            f"each Conv was fitted as if it were the only one replaced, to its own output: activations, sums and gates"
            f" behind it do not count, for the file holds means and covariances of what Convs read;"
            f" {spelled('data')} takes them into account, and makes up for earlier losses",
        ),
    )
    return Fitted(calibrate_from(model, sites, plan, recorded, options, progress), report)
