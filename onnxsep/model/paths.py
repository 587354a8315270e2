"""What a command reads and what it writes: refused, before any work, where a file of the user's would be lost.

A command says which files it reads (:class:`Reads`), and where it writes a file of which :class:`Kind`;
:func:`check_paths` is the one check of all commands and of the Python API. A kind's module says how a file of that kind
is recognised: this one knows models and reports. Records of options name kinds, so this module imports what reads
models when one has to be read.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxsep.errors import ModelLoadError, ModelSaveError, OptionError, spelled
from onnxsep.model.files import check_target

MODEL, RECIPE, TEACHER = "the model", "the recipe", "a teacher"
DATA, TEST_DATA, LIBRARY = "the data", "the test data", "a library of operators"
PLAN_READ = "the plan"


@dataclass(frozen=True)
class Read:
    """A file or folder that is read.

    Attributes:
        words: What messages call it.
        path: Where it is, whatever the working folder is later.
        named: As the user named it.
    """

    words: str
    path: Path
    named: Path


@dataclass(frozen=True)
class Reads:
    """The files and folders that a command reads."""

    files: tuple[Read, ...] = ()

    @classmethod
    def of(cls, model: object = None, *more: Iterable[Read]) -> "Reads":
        """What a user has named. A model that was loaded stands for its file; what else is no path is no file.

        Args:
            model: The model that the command works on.
            more: What else it reads.
        """
        own = [] if model is None else list(read_of(MODEL, model))
        return cls((*own, *(one for several in more for one in several)))

    def external_data(self) -> Iterator[Read]:
        """The data files of the models that are read; a file that holds no model has none."""
        from onnxsep.model.io import data_locations

        for model in self.files:
            if model.words in (MODEL, TEACHER):
                try:
                    locations = data_locations(model.path)
                except ModelLoadError:  # loading it will say so
                    continue
                for location in locations:
                    words = f"external data of {model.words}"
                    yield Read(words, model.path.parent / location, model.named.parent / location)


NOTHING = Reads()


def read_of(words: str, source: object) -> Iterator[Read]:
    """The file that a user has named, or the files; nothing for what is in memory."""
    several = isinstance(source, list | tuple)
    for one in source if several else (source,):  # type: ignore[attr-defined]
        if (path := file_of(one)) is not None:
            yield Read(words, path.absolute(), path)


@dataclass(frozen=True)
class Kind:
    """A kind of file (or folder) that a command writes.

    Attributes:
        words: What messages call the target; or the option that names it.
        holds: What is in it.
        recognises: Whether an existing file (folder) is one, and so may be replaced.
        replaces: Words of the reads whose place it may take.
        folder: It is a folder, in which a run keeps files that it also removes.
        option: Whether ``words`` is an option.
    """

    words: str
    holds: str
    recognises: Callable[[Path], bool]
    replaces: frozenset[str] = frozenset()
    folder: bool = False
    option: bool = False

    @property
    def name(self) -> str:
        """What messages call the target."""
        return spelled(self.words) if self.option else self.words


PAGE_HEADER = "<!doctype html>\n<!-- report of onnxsep -->\n"
"""What a report begins with that is a page of HTML."""


def is_model(path: Path) -> bool:
    """Whether a file is an ONNX model."""
    from onnxsep.model.io import parse_file

    try:
        return bool(parse_file(path).opset_import)
    except ModelLoadError:
        return False


def is_report(path: Path) -> bool:
    """Whether a file is a report of one of the commands, of any version of onnxsep, as JSON or as a page."""
    if is_page(path):
        return True
    content = read_record(path)
    if isinstance(content.get("command"), str) and isinstance(content.get("schema"), int):
        return isinstance(content.get("onnxsep"), str)
    source = content.get("source")  # older ones say neither
    measured = isinstance(content.get("models"), list) and "latency_batch" in content
    return isinstance(content.get("onnxsep"), str) and (
        measured or (isinstance(source, dict) and {"producer", "opsets"} <= source.keys())
    )


def is_page(path: Path) -> bool:
    """Whether a file is a report as a page of HTML."""
    try:
        with path.open("rb") as file:
            return file.read(len(PAGE_HEADER)) == PAGE_HEADER.encode()
    except OSError:
        return False


def read_record(path: Path) -> dict[str, object]:
    """The object in a JSON file, empty where there is none."""
    try:
        with path.open("rb") as file:
            if not file.read(64).lstrip().startswith(b"{"):  # large files of another kind are not read
                return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


RESULT = Kind("the result", "ONNX model", is_model, replaces=frozenset({MODEL}))
OTHER_RESULT = Kind("the result", "ONNX model", is_model)
"""A result that does not take the place of the model that it was made from."""
REPORT = Kind("report", "report of onnxsep", is_report, option=True)


def check_paths(reads: Reads, writes: Mapping[Kind, str | os.PathLike[str] | None]) -> None:
    """Refuse targets that cannot be written, that are also read, or that hold something else. Nothing is written.

    An empty file may be a target of any kind, as the files of ``mktemp`` are. A link may be one where it leads to a
    file of the right kind, or nowhere; it is replaced.

    Args:
        reads: What the command reads.
        writes: What it writes; None: it does not.

    Raises:
        ModelSaveError: A target cannot be written: its folder is missing, it is a folder, a device, write-protected.
        OptionError: A target is also read (by this or another path, through a link or as a hard link), lies in a
            folder of data, is also another target, or exists and is not of the kind that is written there.
    """
    targets = [(kind, Path(path)) for kind, path in writes.items() if path is not None]
    for kind, target in targets:
        _check_folder(kind, target) if kind.folder else check_target(target)
    in_place = [kind for kind, target in targets if _is_in_place(kind, target, reads)]
    for number, (kind, target) in enumerate(targets):
        _check_targets(kind, target, targets[:number])
        _check_reads(kind, target, reads.files, in_place=kind in in_place)
    existing = [(kind, target) for kind, target in targets if kind not in in_place and target.exists()]
    if any(not kind.folder for kind, _ in existing):  # else nothing can be lost, and models need not be read for it
        weights = tuple(reads.external_data())
        for kind, target in existing:
            _check_reads(kind, target, weights, in_place=False)
    for kind, target in existing:
        if (kind.folder or target.stat().st_size) and not kind.recognises(target):
            what = f"a folder that is no {kind.holds}" if kind.folder else f"a file that holds no {kind.holds}"
            raise OptionError(f"{kind.name} {target} would overwrite {what}; name another one, or remove it")


def file_of(source: object) -> Path | None:
    """The path of a file or folder that a user has named; None for what is in memory."""
    if not isinstance(source, str | os.PathLike):
        from onnxsep.model.io import Model

        if isinstance(source, Model) and source.path is not None and source.base_dir is not None:
            return source.base_dir / source.path.name
        return None
    path = Path(source)
    return None if "\0" in str(path) else path  # no file can have such a name


def _check_folder(kind: Kind, path: Path) -> None:
    """Refuse what cannot become a folder, or cannot be written in."""
    there = os.path.lexists(path)
    try:
        if there and not path.is_dir():
            raise OptionError(f"{kind.name} {path} is not a folder; name another one")
        if not (there or path.parent.is_dir()):
            raise ModelSaveError(f"{kind.name} {path} cannot be made: {path.parent} is not a folder. Create it first.")
    except OSError as error:
        raise ModelSaveError(f"{kind.name} {path} cannot be made: {error.strerror or error}") from error
    if not os.access(path if there else path.parent, os.W_OK):
        raise ModelSaveError(f"{kind.name} {path} cannot be written: it is write-protected.")


def _is_in_place(kind: Kind, target: Path, reads: Reads) -> bool:
    """Whether a target is the model itself, which loading will check, and may take its place."""
    return MODEL in kind.replaces and any(one.words == MODEL and same_file(target, one.path) for one in reads.files)


def _check_targets(kind: Kind, target: Path, others: Iterable[tuple[Kind, Path]]) -> None:
    for other, place in others:
        if same_file(target, place):
            raise OptionError(f"{kind.name} {target} would overwrite {other.name} {place}; name another one")
        for (inner, path), (outer, folder) in (((kind, target), (other, place)), ((other, place), (kind, target))):
            if outer.folder and is_within(path, folder):
                raise OptionError(
                    f"{inner.name} {path} lies in {outer.name} {folder}, where the run removes files; name another one"
                )


def _check_reads(kind: Kind, target: Path, reads: Iterable[Read], *, in_place: bool) -> None:
    for one in reads:
        read = f"{one.named}, which is read as {one.words}"
        if same_file(target, one.path) and one.words not in kind.replaces:
            raise OptionError(f"{kind.name} {target} would overwrite {read}; name another one")
        if one.words in (DATA, TEST_DATA) and not in_place and is_within(target, one.path):
            raise OptionError(f"{kind.name} {target} lies in the folder {read}; name one elsewhere")
        if kind.folder and is_within(one.path, target):
            raise OptionError(f"{kind.name} {target} holds {read}, and the run removes files there; name another one")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead, or would lead, to one file: links, hard links and other spellings count."""
    try:
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    except (OSError, ValueError):  # one of them does not exist (yet), or cannot
        return False


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path lies, or leads, into a folder."""
    places = {path.parent.absolute(), Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent}
    return any(same_file(above, folder) for place in places for above in (place, *place.parents))
