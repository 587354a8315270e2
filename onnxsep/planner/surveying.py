"""Who measures for a plan, and what is kept of it, from its options."""

import hashlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onnxsep.engine.sites import Sites
from onnxsep.model.io import Model
from onnxsep.model.whole import inlined
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.planner.job import Job, Sent
from onnxsep.planner.kept import Kept, about
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.output_distance import TEMPERATURE
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.survey import Survey
from onnxsep.running.crew import Alone, Crew
from onnxsep.running.processes import Processes
from onnxsep.running.runtime import RuntimeOptions

_MEMORY = 2 * 2**30  # bytes of activations, of all processes of this machine together


def _is_ours(mode: Mode | BlockMode) -> bool:
    """Whether the version of onnxsep says how a mode works."""
    return type(mode).__module__.startswith("onnxsep.")


def _source(mode: Mode | BlockMode) -> str:
    """SHA-256 of the text of a mode's class, in hexadecimal: its author may change it while figures are kept."""
    try:
        return hashlib.sha256(inspect.getsource(type(mode)).encode()).hexdigest()
    except (OSError, TypeError):  # typed into an interpreter
        return ""


@contextmanager
def crew_for(options: PlanOptions) -> Iterator[Crew]:
    """Those who measure, until the end of the context.

    Raises:
        OptionError: The scheduler does not answer, or has no workers that could do it.
        MissingDependencyError: What a cluster needs is not installed.
    """
    crew: Crew = Alone()
    if options.scheduler is not None:
        from onnxsep.running.cluster import Cluster

        crew = Cluster(options.scheduler)
    elif options.workers > 1:
        crew = Processes(options.workers, threads_of_each(options))
    try:
        yield crew
    finally:
        crew.close()


def threads_of_each(options: PlanOptions) -> int:
    """How many threads each process has: those that are asked for, or one for each processor, are shared."""
    return max((options.run_with.threads or os.cpu_count() or 1) // options.workers, 1)


def survey_for(
    model: Model,
    sites: Sites,
    modes: tuple[Mode, ...],
    blocks: tuple[BlockMode, ...],
    data: PlanningData,
    options: PlanOptions,
    crew: Crew,
) -> Survey:
    """What measures for a plan.

    Args:
        model: The source.
        sites: Its layers.
        modes: The forms that they may get.
        blocks: The forms that blocks of several nodes may get.
        data: What candidates are fitted to and measured on.
        options: Those of the plan.
        crew: Who works.

    Raises:
        OptionError: Something else is in the folder of the cache.
        ModelSaveError: The folder cannot be made or written.
    """
    job = Job(model, sites, modes, data.samples, lambda around: data.walk(model, sites, around), blocks)
    kept = None
    if options.cache is not None and data.metric is None:  # what a function of the user's computes may change
        runtime, every = options.run_with, list[Mode | BlockMode]([*modes, *blocks])
        what, names = about(
            model,
            data.dataset,
            data.divided,
            {
                "positions": options.positions,
                "seed": options.seed,
                "shapes": {name: list(shape) for name, shape in sorted(options.shapes.items())},
                "provider": runtime.provider,
                "optimize": runtime.optimize,
                "as_error": data.as_error,
                "temperature": TEMPERATURE,
                "modes": {mode.name: _source(mode) for mode in every if not _is_ours(mode)},
            },
        )
        kept = Kept(Path(options.cache), what, names)
    if isinstance(crew, Alone):
        return Survey(job, kept=kept)

    def sent() -> Sent:
        here, local = options.run_with, isinstance(crew, Processes)
        threads = threads_of_each(options) if local else max(here.threads, 1)
        runtime: RuntimeOptions = replace(here, threads=threads)
        return Sent(
            model if local else inlined(model),
            options.shapes,
            modes,
            list(data.samples.fitted()),
            list(data.measured()),
            data.options,
            runtime,
            _MEMORY // (crew.count if local else 1),
            data.as_error,
            blocks,
        )

    return Survey(job, crew, sent, kept)
