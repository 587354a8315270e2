"""Running the steps one after another, each on the result of the one before it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from onnxsep.compression.given import Given
from onnxsep.compression.manifest import DoneStep, Manifest
from onnxsep.compression.report import StepReport
from onnxsep.compression.shared import Finished, Shared
from onnxsep.compression.step import Step
from onnxsep.compression.work_folder import WorkFolder
from onnxsep.data import Source
from onnxsep.errors import OnnxsepError
from onnxsep.model.content import model_hash
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce, under
from onnxsep.options.specs import as_json


@dataclass
class Done:
    """What a run has so far.

    Attributes:
        manifest: Lists the finished steps.
        models: The result of each.
        reports: What each did.
        new_initializers: Weights that may go into a data file, where the model has one.
    """

    manifest: Manifest
    models: list[Model] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)
    new_initializers: dict[str, None] = field(default_factory=dict)


class Run:
    """The steps of a run.

    Args:
        steps: In their order.
        given: What they all get.
        original: What the first of them gets.
        seed: Of steps that name none.
        named: The data as the user named them, for reports.
        folder: Where finished steps are kept; None: in memory.
        progress: Told of the progress.
        told: Told of each step that is finished.
        shared: Steps that other runs have finished, and which need not be done again.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        given: Given,
        original: Model,
        *,
        seed: int,
        named: Source | None = None,
        folder: WorkFolder | None = None,
        progress: Progress | None = None,
        told: Callable[[StepReport], None] | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._steps, self._given, self._original, self._seed = steps, given, original, seed
        self._named_data = named
        self._folder, self._progress, self._told, self._shared = folder, progress, told, shared

    def __call__(self, manifest: Manifest, *, fresh: bool = False) -> Done:
        """Do all steps that an earlier run has not finished.

        Args:
            manifest: Of the run, without any steps.
            fresh: Do not go on with what an earlier run has left.

        Raises:
            OnnxsepError: A step failed: of the class that its function raises, with the step in its message; or the
                work folder cannot be used.
            KeyboardInterrupt: Ctrl-C. What is finished stays in the work folder.
        """
        done = Done(manifest)
        if self._folder is not None:
            for found in self._folder.begin(manifest, self._planned(len(self._steps)), fresh=fresh):
                self._add(done, Finished(found.done, found.model, found.report), resumed=True)
        for number in range(len(done.models) + 1, len(self._steps) + 1):
            with self._named(number):
                self._do(done, number)
        return done

    def _do(self, done: Done, number: int) -> None:
        step, folder, started = self._steps[number - 1], self._folder, time.perf_counter()
        known = None if self._shared is None else self._shared.find(self._planned(number))
        if known is not None:
            self._take(done, known)
            return
        announce(progress := self._told_of(number), "beginning")
        result = step.run(
            done.models[-1] if done.models else self._original,
            self._given,
            original=self._original,
            seed=self._seed,
            checkpoint=None if folder is None else folder.checkpoint(number, step.name),
            progress=progress,
            planned=getattr(done.reports[-1].report, "plan", "") if step.takes_plan() and done.reports else "",
        )
        report: Any = result.report
        if "data" in report.options and self._named_data is not None and report.options["data"] is not None:
            report = report.model_copy(update={"options": {**report.options, "data": as_json(self._named_data)}})
            result = replace(cast(Any, result), report=report)
        if getattr(report, "stopped", None) == "interrupted":  # the best so far is no finished step
            raise KeyboardInterrupt
        seconds = time.perf_counter() - started
        model, file = result.model, None
        if folder is not None:
            model, file = folder.keep(number, step.name, result)
        finished = DoneStep(
            number=number,
            command=step.name,
            options=self._options(step),
            file=file,
            sha256=model_hash(model),
            seconds=seconds,
        )
        self._add(done, Finished(finished, model, report, tuple(result.new_initializers)), resumed=False)
        if folder is not None:
            folder.finish(done.manifest, number, step.name)

    def _take(self, done: Done, known: Finished) -> None:
        """A step that another run has finished: its result is kept here too."""
        folder, step = self._folder, known.done
        model, file = known.model, None
        if folder is not None:
            model, file = folder.keep(step.number, step.command, known)
        taken = replace(known, done=step.model_copy(update={"file": file}), model=model)
        self._add(done, taken, resumed=False, tell=False)
        if folder is not None:
            folder.finish(done.manifest, step.number, step.command)

    def _add(self, done: Done, found: Finished, *, resumed: bool, tell: bool = True) -> None:
        finished = found.done
        if self._shared is not None:
            self._shared.keep(self._planned(finished.number), found)
        done.new_initializers |= dict.fromkeys(found.new_initializers)
        done.manifest = done.manifest.model_copy(update={"steps": (*done.manifest.steps, finished)})
        done.models.append(found.model)
        done.reports.append(
            StepReport(
                number=finished.number,
                command=finished.command,
                given=str(self._steps[finished.number - 1]),
                options=finished.options,
                sha256=finished.sha256,
                seconds=finished.seconds,
                resumed=resumed,
                report=found.report,
            )
        )
        if tell and self._told is not None:
            self._told(done.reports[-1])

    def _planned(self, number: int) -> list[tuple[str, dict[str, Any]]]:
        """The first steps, with all their options."""
        return [(step.name, self._options(step)) for step in self._steps[:number]]

    def _options(self, step: Step) -> dict[str, Any]:
        return {name: as_json(value) for name, value in step.resolved(self._seed).items()}

    def _told_of(self, number: int) -> Progress | None:
        return under(f"step {number} of {len(self._steps)}, {self._steps[number - 1].name}", self._progress)

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Name the step in the message of an error, and say what is left of the run."""
        try:
            yield
        except OnnxsepError as error:
            name, words = self._steps[number - 1].name, str(error)
            if self._folder is not None:
                words = words.rstrip(".") + self._folder.failed(number, name, getattr(error, "report", None))
                if number > 1:
                    words += f". What the steps before it gave is in {self._folder.path}, and is not done again"
            words = f"step {number} ({name}): {words}"
            error.args = (words,)
            raise
