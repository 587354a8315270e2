"""The work folder of a run: each finished step's result and report, so that an interrupted run can go on."""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from onnxsep.compression.folder_files import (
    LOCK,
    MANIFEST,
    WORK,
    is_own,
    names_step,
    planned_in,
    stem,
)
from onnxsep.compression.manifest import DoneStep, Manifest, difference, read_manifest
from onnxsep.compression.plan_caches import cache_of, own_caches
from onnxsep.compression.shared import Finished
from onnxsep.compression.steps import STEPS
from onnxsep.errors import ModelLoadError, ModelSaveError, OptionError, spelled
from onnxsep.model.content import model_hash
from onnxsep.model.files import write_text
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, check_paths
from onnxsep.model.saving import Savable, save
from onnxsep.reporting.records import Report

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Found:
    """A step that an earlier run has finished."""

    done: DoneStep
    model: Model
    report: Report


class WorkFolder:
    """Where a run keeps what it has finished.

    Args:
        path: The folder; it is made.
        follow_links: As for the models of the run.
    """

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path = path
        self._follow_links = follow_links
        self._held: BinaryIO | None = None
        self._planned: tuple[tuple[str, ...], ...] = ()  # the steps of the runs whose files are here

    def begin(
        self, manifest: Manifest, planned: Sequence[tuple[str, Mapping[str, Any]]], *, fresh: bool
    ) -> list[Found]:
        """Take the folder for a run, and find what an earlier run of the same kind has finished.

        Args:
            manifest: Of this run, without finished steps.
            planned: The kind and all options of each step.
            fresh: Remove what an earlier run has left: the files that its manifest names.

        Raises:
            OptionError: Something else is in the folder; or what is there belongs to another run, or is damaged.
            ModelSaveError: The folder cannot be made or written.
        """
        self._check_ours(manifest.planned)
        try:
            self.path.mkdir(exist_ok=True)
            self._lock()
        except OSError as error:
            raise ModelSaveError(
                f"the work folder {self.path} cannot be made: {error.strerror or error}; name another with"
                f" {spelled('work')}"
            ) from error
        if fresh:
            self._clear(lambda name: True)
        found: list[Found] = []
        if (self.path / MANIFEST).exists():
            old = self._read()
            self._refuse(_other_run(old, manifest, planned))
            found = [self._load(done) for done in old.steps]
        self._planned = (*self._planned, manifest.planned)
        kept = {stem(one.done.number, one.done.command) for one in found}
        self._clear(lambda name: name != MANIFEST and name.split(".")[0] not in kept and not _goes_on(name))
        self.write(manifest.model_copy(update={"steps": tuple(one.done for one in found)}))
        return found

    def release(self) -> None:
        """Let other runs use the folder."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _check_ours(self, planned: Sequence[str]) -> None:
        """Refuse what is there and was not made by a run; find out which files were."""
        check_paths(NOTHING, {WORK: self.path})
        if not self.path.exists():
            return
        self._planned = (planned_in(self.path) or (),)
        for path in self.path.iterdir():
            if names_step(path.name, planned) and not self._is_own(path):
                raise OptionError(
                    f"{path} would be overwritten, and no run has written it; name another folder with"
                    f" {spelled('work')}, or"
                    " remove it"
                )

    def _lock(self) -> None:
        """Keep the folder from other processes, until this one ends or is killed."""
        self._held = (self.path / LOCK).open("ab")
        if fcntl is None:  # Windows
            return
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise OptionError(
                f"another run is using {self.path}; wait for its end, or name another folder with {spelled('work')}"
            ) from None
        except OSError:  # a file system without locks
            return

    def _read(self) -> Manifest:
        try:
            return read_manifest(self.path / MANIFEST)
        except OptionError as error:
            raise OptionError(
                f"{error}; {spelled('fresh', True)} starts again, {spelled('work')} names another work folder"
            ) from error

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise OptionError(
                f"{self.path} holds the steps of another run: {'; '.join(differences)}. Give the same options to go on"
                f" with it, {spelled('fresh', True)} to start again (its steps are then removed), or"
                f" another folder with {spelled('work')}"
            )

    def _load(self, done: DoneStep) -> Found:
        """A finished step, if its files are as they were written."""
        path = self.path / f"{stem(done.number, done.command)}.onnx"
        try:
            model = load(path, follow_links=self._follow_links)
            same = model_hash(model) == done.sha256
        except ModelLoadError as error:
            raise OptionError(
                f"a finished step cannot be read: {error} {spelled('fresh', True)} starts again"
            ) from error
        if not same:
            raise OptionError(
                f"{path} is not what step {done.number} has written: it was changed."
                f" {spelled('fresh', True)} starts again"
            )
        report = self._report_path(done.number, done.command)
        try:
            record = STEPS[done.command].report_type().model_validate_json(report.read_text(encoding="utf-8"))
        except (OSError, ValueError, ValidationError) as error:
            raise OptionError(f"{report} is damaged or missing. {spelled('fresh', True)} starts again") from error
        return Found(done, model, record)

    def keep(self, number: int, step: str, result: Savable | Finished) -> tuple[Model, str]:
        """Write a step's result and report; it counts as finished when :meth:`finish` has written the manifest.

        Returns:
            The result as it was read again, so that a run that goes on later begins with the same; its file's name.

        Raises:
            ModelSaveError: The disk is full, or the folder is gone.
        """
        path = self.path / f"{stem(number, step)}.onnx"
        self._clear(lambda name: name.startswith(f"{path.name}."))  # weights of an attempt that did not finish
        save(result.model, path, externalize=result.new_initializers)
        write_text(self._report_path(number, step), result.report.model_dump_json(indent=1) + "\n")
        return load(path, follow_links=self._follow_links), path.name

    def finish(self, manifest: Manifest, number: int, step: str) -> None:
        """Write the manifest that lists a step; what it needed to go on is then not needed any more.

        Raises:
            ModelSaveError: It cannot be written.
        """
        self.write(manifest)
        self.checkpoint(number, step).unlink(missing_ok=True)
        self._remove_caches(lambda name: name == cache_of(Path(stem(number, step))).name)

    def failed(self, number: int, step: str, report: BaseModel | None) -> str:
        """Keep the report of a step that failed, and say so."""
        if report is None:
            return ""
        path = self.path / f"{stem(number, step)}.failed.json"
        try:
            write_text(path, report.model_dump_json(indent=1) + "\n")
        except ModelSaveError:  # the failure itself is what counts
            return ""
        return f". Its report is {path}"

    def write(self, manifest: Manifest) -> None:
        """Write the manifest.

        Raises:
            ModelSaveError: It cannot be written.
        """
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

    def checkpoint(self, number: int, step: str) -> Path:
        """Where a step may keep its state."""
        return self.path / f"{stem(number, step)}.checkpoint"

    def remove(self) -> None:
        """Remove what the run has put there, and the folder if nothing else is in it."""
        self.release()
        self._clear(lambda name: True)
        with contextlib.suppress(OSError):
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def _clear(self, wanted: Callable[[str], bool]) -> None:
        """Remove files of the runs; others stay. The manifest goes last: it says whose files these are."""
        if not self.path.is_dir():
            return
        own = [path for path in self.path.iterdir() if self._is_own(path) and wanted(path.name)]
        self._remove_caches(wanted)
        for path in sorted(own, key=lambda path: path.name == MANIFEST):
            path.unlink(missing_ok=True)

    def _remove_caches(self, wanted: Callable[[str], bool]) -> None:
        """Remove what plans of the runs have measured."""
        for path in own_caches(self.path, self._planned):
            if wanted(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _is_own(self, path: Path) -> bool:
        return any(is_own(path, planned) for planned in self._planned)

    def _report_path(self, number: int, step: str) -> Path:
        return self.path / f"{stem(number, step)}.json"


def _goes_on(name: str) -> bool:
    """Whether it is what an unfinished step goes on from."""
    return ".checkpoint" in name or name == cache_of(Path(name)).name


def _other_run(old: Manifest, new: Manifest, planned: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """How two runs differ in what the finished steps of the old one depend on."""
    found = []
    if versions := difference(old.packages | {"onnxsep": old.onnxsep}, new.packages | {"onnxsep": new.onnxsep}):
        found.append(f"versions ({versions})")
    if old.source.sha256 != new.source.sha256:
        found.append(f"the model ({old.source.path})")
    if (old.data and old.data.sha256) != (new.data and new.data.sha256):
        found.append("the data, their labels or preprocessing")
    if old.other_models != new.other_models:
        found.append("the teacher")
    if old.plans != new.plans:
        found.append("a plan")
    shared = ("output", "inputs", "input_shapes", "device", "threads", "provider", "custom_op_libraries")
    found += [spelled(name) for name in shared if getattr(old, name) != getattr(new, name)]
    for number, done in enumerate(old.steps, start=1):
        if number > len(planned) or done.command != planned[number - 1][0]:
            now = planned[number - 1][0] if number <= len(planned) else "not there"
            return [*found, f"step {number} was {done.command} and is {now}"]
        options = planned[number - 1][1]
        for key in sorted({*done.options, *options}):
            if done.options.get(key) != options.get(key):
                words = f"{done.options.get(key)!r}, now {options.get(key)!r}"
                found.append(f"step {number} ({done.command}) was done with {key.replace('_', '-')} {words}")
    return found
