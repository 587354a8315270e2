"""Options as records: what a command takes is said once, and everything else is read from it.

An option is one line in a frozen record. From the record come the signature and the documentation of the Python
function (``options.taking``), the options of the command line (``cli.derived``), the keys of a recipe's step
(``compression.options``), what a report keeps (:meth:`Options.as_json`), and which files are read and written.
"""

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from onnxsep.errors import OptionError, spell, spelled
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.files import printable
from onnxsep.model.paths import Kind, Read, file_of, read_of
from onnxsep.options.hints import hint_of, is_numpys, members
from onnxsep.options.lazy import loaded
from onnxsep.options.tomlfile import nearest

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """What tells type checkers about ``record``; nothing when the program runs."""
        return lambda function: function


_Class = TypeVar("_Class")
_Role = Literal["read", "written", "unused"]
_SPEC = "onnxsep"  # key in the metadata of a field
_MISSING: Any = dataclasses.MISSING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What is known of an option beside its name, type and default.

    Attributes:
        help: What it does, in a line for ``--help``; ``{name}`` stands for another option.
        doc: The same for Python, where more is to be said.
        group: The heading that it stands under.
        flag: On the command line, where that is not its name with dashes; ``--a/--b`` for what is on by default; None:
            it is for Python only.
        short: One letter, on the command line.
        metavar: What stands for the value in ``--help``; where there are a few choices, these do.
        proposed: What the shell's completion proposes, where there are no choices; or ``module:function`` of it.
        minimum: The smallest value.
        fits: Whether a value is in range, and the range in words.
        switches: Flags that stand for a value, by flag.
        typed: The type of what is typed on the command line, where the hint does not say.
        parse: From that to the value.
        entry: From an entry of a value that is a mapping to what is typed for it.
        expands: A record of texts that is asked for in its place, whose ``build()`` gives the value.
        reads: What messages call the file (or files, models) that it names, if it is read.
        writes: The kind of file that is written there, or ``module:name`` of it, where that module imports much.
        per_run: It belongs to a run as a whole, and is no option of a step in a recipe.
        kept: Whether a report keeps it.
    """

    help: str
    doc: str = ""
    group: str = ""
    flag: str | None = ""
    short: str | None = None
    metavar: str | None = None
    proposed: tuple[str, ...] | str = ()
    minimum: int | None = None
    fits: tuple[Callable[[Any], bool], str] | None = None
    switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    typed: Any = None
    parse: Callable[[Any], Any] | None = None
    entry: Callable[[str, Any], str] | None = None
    expands: "type[Texts] | None" = None
    reads: str | None = None
    writes: Kind | str | None = None
    per_run: bool = False
    kept: bool = True


def option(*, default: Any = _MISSING, **spec: Any) -> Any:
    """A field of a record; see :class:`Spec`. Without a default it must be given."""
    return dataclasses.field(default=default, metadata={_SPEC: Spec(**spec)})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def record(cls: type[_Class]) -> type[_Class]:
    """Make a class a record of options."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    for name, spec in specs_of(made).items():
        if spec.flag:
            positive, _, negative = spec.flag.partition("/")
            spell(name, positive)
            if negative:
                spell(name, negative, False)
            elif positive.startswith("--no-"):  # what is on by default and can only be switched off
                spell(name, positive, False)
        for flag, value in spec.switches.items():
            spell(name, flag, value)
    return made


def grouped(group: str) -> Callable[[type[_Class]], type[_Class]]:
    """Show all options of a record, those of its bases too, under one heading; the bases stay as they are."""

    def decorate(cls: type[_Class]) -> type[_Class]:
        known: dict[str, Any] = getattr(cls, "__dataclass_fields__")  # noqa: B009 - `record` has set it
        for name, spec in specs_of(cls).items():
            known[name] = copy.copy(known[name])
            known[name].metadata = {_SPEC: dataclasses.replace(spec, group=group)}
        return cls

    return decorate


def specs_of(kind: type) -> dict[str, Spec]:
    """The options of a record by name."""
    return {one.name: one.metadata[_SPEC] for one in dataclasses.fields(kind) if _SPEC in one.metadata}


def default_of(kind: type, name: str) -> Any:
    """The default of an option; ``inspect.Parameter.empty`` where it must be given."""
    found = next(one for one in dataclasses.fields(kind) if one.name == name)
    return inspect.Parameter.empty if found.default is _MISSING else found.default


class Options:
    """Base of the records of options."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Refuse, without reading anything, what no run can be made with.

        Raises:
            OptionError: a value is out of range, or two contradict each other.
        """
        for name, spec in specs_of(type(self)).items():
            value = getattr(self, name)
            words = choices(type(self), name)
            if isinstance(value, str) and words and value not in words:
                near = nearest(value, words)
                raise OptionError(f"{spelled(name)} {value!r} is not one of {', '.join(words)}{near}")
            if value is None or not isinstance(value, int | float):
                continue
            if spec.minimum is not None and not value >= spec.minimum:
                raise OptionError(f"{spelled(name)} must be {spec.minimum} or more, not {value}")
            if spec.fits is not None and not spec.fits[0](value):
                raise OptionError(f"{spelled(name)} must be {spec.fits[1]}, not {value}")

    def role(self, name: str) -> _Role:
        """Whether the file of an option that says both is read or written in this run."""
        return "written" if specs_of(type(self))[name].reads is None else "read"

    def reads(self) -> tuple[Read, ...]:
        """The files among the options that are read."""
        return tuple(self._reads())

    def _reads(self) -> Iterator[Read]:
        for name, spec in specs_of(type(self)).items():
            value = getattr(self, name)
            if spec.reads is not None and self.role(name) == "read":
                yield from read_of(spec.reads, value)

    def writes(self) -> dict[Kind, str | os.PathLike[str] | None]:
        """Where files are written, by their kind."""
        return {
            loaded(spec.writes) if isinstance(spec.writes, str) else spec.writes: getattr(self, name)
            for name, spec in specs_of(type(self)).items()
            if spec.writes is not None and self.role(name) == "written"
        }

    def as_json(self, **arguments: object) -> dict[str, Any]:
        """What was asked for, as JSON can hold it: the arguments of the command, and every option."""
        kept = [name for name, spec in specs_of(type(self)).items() if spec.kept]
        given = {**arguments, **{name: getattr(self, name) for name in kept}}
        return {name: as_json(value) for name, value in given.items()}


class Texts(Options):
    """A record of what is typed on the command line for an option that is a record itself."""

    def build(self) -> Any:
        """The value of the option."""
        raise NotImplementedError

    @classmethod
    def revived(cls, value: Any) -> Any:
        """The value of the option from what a report says of it."""
        raise NotImplementedError

    @classmethod
    def texts(cls, value: Any) -> Mapping[str, Any] | None:
        """What to type for what a report says of the option; None where that cannot be typed."""
        raise NotImplementedError


def choices(kind: type, name: str) -> tuple[str, ...]:
    """The words that an option may be, where it is one of a few."""
    if specs_of(kind)[name].typed is not None:  # it is more than a few words, and its type may import much
        return ()
    parts = members(hint_of(kind, name))
    words = [part for part in parts if _is_literal(part)]
    return tuple(word for part in words for word in get_args(part)) if len(words) and _only_words(parts) else ()


def _is_literal(part: Any) -> bool:
    return getattr(part, "__origin__", None) is Literal


def _only_words(parts: Sequence[Any]) -> bool:
    return all(_is_literal(part) or part is type(None) for part in parts)


IN_MEMORY = "in memory"
_MOST = 100  # entries of a list that a report keeps


def as_json(value: Any) -> Any:
    """A value of an option as JSON can hold it; ``{"in memory": kind}`` for what only this process has."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int | float):
        return value
    if getattr(value, "pristine", True) and (path := file_of(value)) is not None:  # or a model that was loaded from it
        return printable(path)
    if is_numpys(value, "generic"):
        return value.item()
    if isinstance(value, RankPolicy):
        return str(value)
    if isinstance(getattr(value, "name", None), str) and hasattr(value, "rank_axis"):  # a mode
        return value.name
    found: Any = None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {one.name: as_json(getattr(value, one.name)) for one in dataclasses.fields(value)}
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        found = {key: as_json(item) for key, item in value.items()}
    elif isinstance(value, list | tuple) and len(value) <= _MOST:
        found = [as_json(item) for item in value]
    if found is None or in_memory(found):
        return {IN_MEMORY: type(value).__name__}
    return found


def in_memory(value: Any) -> bool:
    """Whether a value from :func:`as_json` stands, somewhere in it, for what only that process had."""
    if isinstance(value, dict):
        return IN_MEMORY in value or any(map(in_memory, value.values()))
    return isinstance(value, list) and any(map(in_memory, value))


def python_help(spec: Spec) -> str:
    """What an option does, for Python."""
    return spec.doc or spec.help.format_map(_Names())


class _Names(dict[str, str]):
    """Spells every name that a text has in braces."""

    def __missing__(self, key: str) -> str:
        return spelled(key)


def shown_help(spec: Spec) -> str:
    """What an option does, in the words of where it is asked."""
    return spec.help.format_map(_Names())
