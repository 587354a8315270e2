"""Comparing a model with a reference: structure, weights, outputs.

A reference is an .onnx file, or the text form of :mod:`onnxsep.structure` (suffix .txt), which holds the structure
only. Structure is compared as text in both cases: lines are aligned, then each difference is reported for the node that
it belongs to. :func:`check` is what ``onnxsep check`` calls.
"""

import itertools
import math
import os
import re
import secrets
import textwrap
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
from pydantic import BaseModel, ConfigDict, computed_field

from onnxsep import io
from onnxsep.errors import FeedError, ModelLoadError, ModelSaveError, OptionError
from onnxsep.feeds import make_feeds
from onnxsep.runtime import CannotRun, Runner, RuntimeOptions
from onnxsep.structure import HEADER, INDENT, PLAIN, Structure, StructureTensor, describe

Source = str | os.PathLike[str] | onnx.ModelProto | io.Model
_TEXT_SUFFIX = ".txt"
_CHUNK = 2**20  # elements that are compared at once


class Difference(BaseModel):
    """One difference.

    Attributes:
        where: The node, weight or output that it belongs to.
        message: What differs, in one line.
        reference_line: Line in the reference text, from 1; None where the reference is no text. For something new, the
            line after which it stands.
        expected: The lines of the reference; None where it has none.
        actual: The lines of the model; None where it has none.
    """

    model_config = ConfigDict(frozen=True)

    where: str
    message: str
    reference_line: int | None = None
    expected: str | None = None
    actual: str | None = None


class PartResult(BaseModel):
    """One part of a check: ``reason`` says why it was skipped, ``notes`` what was chosen for the user."""

    model_config = ConfigDict(frozen=True)

    name: Literal["structure", "weights", "outputs", "reference"]
    status: Literal["same", "differs", "skipped", "updated"]
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()


class CheckResult(BaseModel):
    """What a check found; ``parts`` in the order structure, weights, outputs, or ``reference`` alone for an update."""

    model_config = ConfigDict(frozen=True)

    model: str
    reference: str
    parts: tuple[PartResult, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def same(self) -> bool:
        """Whether no part differs; a check that could compare nothing at all has not found the models the same."""
        statuses = {part.status for part in self.parts}
        return "differs" not in statuses and bool(statuses & {"same", "updated"})

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """0 where the model is the same as the reference, else 3."""
        return 0 if self.same else 3


def check(
    model: Source,
    reference: Source,
    *,
    ignore_names: bool = False,
    structure: bool = True,
    weights: bool = True,
    outputs: bool = True,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    output_rtol: float = 1e-3,
    output_atol: float = 1e-4,
    inputs: Path | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    seed: int = 0,
    runtime: RuntimeOptions = RuntimeOptions(),  # noqa: B008 - frozen
    update: bool = False,
    follow_links: bool = False,
) -> CheckResult:
    """Compare a model with a reference.

    Args:
        model: The model to check: a path, or a model in memory.
        reference: A .txt file in the text form of a structure, or a model.
        ignore_names: Whether names of tensors, nodes, graphs and symbolic dimensions may differ. What is connected
            with what must then still be the same.
        structure: Whether to compare nodes, operator types, attributes, edges, shapes, types and metadata.
        weights: Whether to compare the values of all weights, Constants included.
        outputs: Whether to run both models on the same inputs and compare what they compute.
        rtol: Weights are the same where ``|model - reference| <= atol + rtol * |reference|`` for each element; for
            integers and booleans without ``rtol``. Strings must be equal.
        atol: See ``rtol``.
        output_rtol: Outputs are the same where ``|model - reference| <= output_atol * largest + output_rtol *
            |reference|`` for each element; ``largest`` is the output's largest magnitude in the reference (1 where it
            is all zeros). Integers, booleans and strings must be equal.
        output_atol: See ``output_rtol``.
        inputs: An .npz or .npy file with inputs; None for random ones.
        input_shapes: Shapes for inputs with free dimensions, by the reference's input names.
        seed: Seed of random inputs.
        runtime: How to run the models.
        update: Write the reference from the model instead of comparing: the text form for .txt, else a copy.
        follow_links: Whether external data may lie behind links.

    Returns:
        The parts that were asked for. A part that cannot be compared (a text has no weights; the runtime cannot run
        the reference) is skipped with its reason.

    Raises:
        ModelLoadError: the model or the reference cannot be read, or is no reference.
        ModelSaveError: the reference cannot be written.
        OptionError: an option cannot be used, or nothing is left to compare.
        FeedError: the given inputs do not fit the reference.
    """
    for name, value in {"rtol": rtol, "atol": atol, "output_rtol": output_rtol, "output_atol": output_atol}.items():
        if not 0 <= value < math.inf:
            raise OptionError(f"{name} must be a number of 0 or more, not {value}")
    asked = {"structure": structure, "weights": weights, "outputs": outputs}
    checked = io.load(model, follow_links=follow_links)
    parts: list[PartResult]
    if update:
        parts = [_update(checked, reference)]
    elif isinstance(reference, (str, os.PathLike)) and _is_text(Path(reference)):
        parts = _against_text(checked, _existing(reference), asked, ignore_names)
    else:
        if isinstance(reference, (str, os.PathLike)):
            _existing(reference)
        other = io.load(reference, follow_links=follow_links)
        parts = _against_model(checked, other, asked, ignore_names, rtol, atol)
        if outputs:
            feeding = {"inputs": inputs, "input_shapes": input_shapes, "seed": seed}
            parts.append(_outputs(checked, other, ignore_names, feeding, runtime, output_rtol, output_atol))
    if not parts:
        raise OptionError("nothing to compare: structure, weights and outputs are all switched off")
    return CheckResult(model=_title(model), reference=_title(reference), parts=tuple(parts))


def _against_text(model: io.Model, path: Path, asked: Mapping[str, bool], ignore_names: bool) -> list[PartResult]:
    if not asked["structure"]:
        raise OptionError("nothing to compare: a text reference holds the structure only")
    diff = _StructureDiff(_read_text(path), _statements(describe(model).lines), ignore_names)
    parts = [_structure(diff, numbered=True)]
    reason = "the reference is a text: it holds the structure only"
    if asked["weights"]:
        parts.append(PartResult(name="weights", status="skipped", reason=reason))
    if asked["outputs"]:
        parts.append(PartResult(name="outputs", status="skipped", reason=reason))
    return parts


def _against_model(
    model: io.Model, reference: io.Model, asked: Mapping[str, bool], ignore_names: bool, rtol: float, atol: float
) -> list[PartResult]:
    """Structure and weights, as far as they are asked for; weights are paired by their places in the structure."""
    parts: list[PartResult] = []
    if asked["structure"] or asked["weights"]:
        expected, actual = describe(reference), describe(model)
        diff = _StructureDiff(_statements(expected.lines), _statements(actual.lines), ignore_names)
        if asked["structure"]:
            parts.append(_structure(diff, numbered=False))
        if asked["weights"]:
            pairs = _tensor_pairs(expected, actual, diff.pairs if ignore_names else None)
            parts.append(_weights(model, reference, pairs, rtol, atol))
    return parts


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == _TEXT_SUFFIX


def _existing(reference: str | os.PathLike[str]) -> Path:
    path = Path(reference)
    if not path.exists():
        raise ModelLoadError(f"the reference {str(path)!r} does not exist; write it from the model with --update")
    return path


def _title(source: Source) -> str:
    if isinstance(source, io.Model):
        source = source.path if source.path is not None else source.proto
    if isinstance(source, onnx.ModelProto):
        return "(a model in memory)"
    return os.fsdecode(source).encode("utf-8", "backslashreplace").decode("utf-8")


# References -----------------------------------------------------------------------------------------------------------


def _update(model: io.Model, reference: Source) -> PartResult:
    if isinstance(reference, (onnx.ModelProto, io.Model)):
        raise OptionError("a reference can only be updated in a file: give its path")
    path = Path(reference)
    existed = path.exists()
    if not _is_text(path):
        io.save(model, path)
        return PartResult(name="reference", status="updated", reason="rewritten" if existed else "created")
    text = describe(model).text.encode("utf-8")
    if existed and path.is_file() and path.read_bytes() == text:
        return PartResult(name="reference", status="updated", reason="was up to date")
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(text)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ModelSaveError(f"cannot write the reference {str(path)!r}: {error.strerror or error}") from error
    return PartResult(name="reference", status="updated", reason="rewritten" if existed else "created")


def _read_text(path: Path) -> list["_Statement"]:
    hint = "write it from the model with --update"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ModelLoadError(f"cannot read the reference {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"the reference {str(path)!r} is no text in UTF-8 ({error}); {hint}") from error
    lines = text.replace("\r\n", "\n").split("\n")
    first = lines[0].strip()
    if first != HEADER:
        if re.fullmatch(r"onnxsep structure, version \d+", first):
            raise ModelLoadError(
                f"the reference {str(path)!r} has the format {first!r}, and this onnxsep reads {HEADER!r}; {hint}"
            )
        raise ModelLoadError(f"{str(path)!r} is no reference of onnxsep: its first line is not {HEADER!r}; {hint}")
    return _statements(lines)


# Statements -----------------------------------------------------------------------------------------------------------

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_NAME = re.compile(rf"(?P<mark>[%@$])(?:{_QUOTED}|{PLAIN})|{_QUOTED}")
_NODE = re.compile(
    r"(?P<outputs>[^=()]+) = (?P<operator>[^(]+)\((?P<inputs>[^()]*)\)(?: \{(?P<attributes>.*)\})?(?P<name> @.*)?"
)
_DECLARATION = re.compile(
    r"(?P<keyword>(?:sparse )?(?:weight input|weight|constant|input|output)) (?P<tensor>%\S*?)"
    r"(?:: (?P<type>.*?)(?: = (?P<value>.*?))?(?: declared (?P<declared>.*?))?)?(?P<name> @.*)?"
)


@dataclass(frozen=True)
class _Statement:
    """One line of the text form, with its parts told apart."""

    number: int  # in the text, from 1
    text: str

    @cached_property
    def depth(self) -> int:
        """How often it is indented."""
        return (len(self.text) - len(self.text.lstrip(" "))) // len(INDENT)

    @cached_property
    def _halves(self) -> tuple[str, str]:
        line = self.text.strip()
        cut = _mask(line).find(" -> ")
        return (line, "") if cut < 0 else (line[:cut], line[cut + 4 :])

    @property
    def body(self) -> str:
        """The line without its inferred types."""
        return self._halves[0]

    @property
    def types(self) -> str:
        """The inferred types, which may be known in one text and not in the other."""
        return self._halves[1]

    @cached_property
    def parts(self) -> dict[str, str]:
        """What the statement says, by what a reader would call it."""
        mask = _mask(self.body)
        if mask.startswith(("%", "_")) and (node := _NODE.fullmatch(mask)):
            parts = {"output": self._cut(node, "outputs"), "operator": self._cut(node, "operator")}
            inputs = _split(self._cut(node, "inputs"))
            parts |= {f"input {index}": text for index, text in enumerate(inputs, start=1)}
            for text in _split(self._cut(node, "attributes")):
                name, _, value = text.partition(" = ")
                parts[f"attribute {name}"] = value
            parts["name"] = self._cut(node, "name")
        elif declaration := _DECLARATION.fullmatch(mask):
            parts = {key: self._cut(declaration, key) for key in declaration.groupdict()}
        else:
            parts = {"": self.body}
        return {key: value for key, value in parts.items() if value}

    def _cut(self, match: re.Match[str], group: str) -> str:
        start, end = match.span(group)
        return "" if start < 0 else self.body[start:end].strip()

    @cached_property
    def definitions(self) -> list[str]:
        """Tensors that are new here."""
        if "operator" in self.parts:
            return [name for name in _split(self.parts["output"]) if name != "_"]
        return [self.parts["tensor"]] if self.parts.get("keyword", "output") != "output" else []

    @cached_property
    def label(self) -> str:
        """What a person would point at."""
        if "operator" in self.parts:
            return f"{self.parts['operator']} {self.parts.get('name') or next(iter(self.definitions), '')}".strip()
        if "keyword" in self.parts:
            return f"{self.parts['keyword']} {self.parts['tensor']}"
        return self.body.split(" = ", 1)[0] if self.body.startswith("attribute ") else self.body.split(": graph", 1)[0]

    def key(self, precision: Literal["exact", "definition", "kind", "class"], nameless: bool) -> Hashable:
        """What two statements share that may be two versions of one; ``nameless`` leaves names out."""
        if precision == "exact":
            return (self.depth, _nameless(self.body) if nameless else self.body)
        subject = self.body.split(" = ")[0].split(": ")[0]
        if precision == "definition" and not nameless:
            return (self.depth, *(self.definitions or [subject]))
        if "operator" in self.parts:
            return (self.depth, "node" if precision == "class" else self.parts["operator"])
        if "keyword" in self.parts:
            # Another weight of the same type is likely a renamed one, of another type a new one.
            kind = "" if precision == "class" else _nameless(self.parts.get("type", ""))
            return (self.depth, self.parts["keyword"], kind)
        if precision in ("kind", "class") and not subject.startswith("#"):
            subject = subject.rpartition(" ")[0]  # "opset ai.onnx 17": the same whatever the version
        return (self.depth, _nameless(subject) if nameless else subject)


def _statements(lines: Sequence[str]) -> list[_Statement]:
    return [_Statement(number, line.rstrip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _mask(text: str) -> str:
    """The same length, with the content of quoted strings blotted out, so that signs in it mean nothing."""
    return re.sub(_QUOTED, lambda match: '"' + "x" * (len(match[0]) - 2) + '"', text)


def _split(text: str) -> list[str]:
    """Split at commas that no bracket encloses."""
    mask, depth, start, found = _mask(text), 0, 0, []
    for position, character in enumerate(mask):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append(text[start:position].strip())
            start = position + 1
    return [*found, text[start:].strip()] if text.strip() else []


def _nameless(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return match[0] if match["mark"] is None else match["mark"].replace("@", "")

    return _NAME.sub(replace, text).rstrip()


# Structure ------------------------------------------------------------------------------------------------------------

_EDITS = 300  # that the search for common lines looks ahead at once
_Path = tuple[Any, int, int, int]  # the path before, then an equal run
_Pair = tuple[int | None, int | None]  # indices of statements in the reference and in the model


def _align(reference: Sequence[_Statement], actual: Sequence[_Statement], nameless: bool) -> list[_Pair]:
    """Pair statements in order: first equal ones, then within the gaps those that are likely versions of each other."""
    levels: tuple[Literal["exact", "definition", "kind", "class"], ...] = ("exact", "definition", "kind", "class")
    pairs: list[_Pair] = []

    def gap(r0: int, r1: int, a0: int, a1: int, level: int) -> None:
        if r0 == r1 or a0 == a1 or level == len(levels) or (levels[level] == "class" and r1 - r0 != a1 - a0):
            pairs.extend((index, None) for index in range(r0, r1))
            pairs.extend((None, index) for index in range(a0, a1))
            return
        left = [statement.key(levels[level], nameless) for statement in reference[r0:r1]]
        right = [statement.key(levels[level], nameless) for statement in actual[a0:a1]]
        i = j = 0
        for i_next, j_next in [*_common(left, right), (len(left), len(right))]:
            gap(r0 + i, r0 + i_next, a0 + j, a0 + j_next, level + 1)
            if i_next < len(left) and j_next < len(right):
                pairs.append((r0 + i_next, a0 + j_next))
            i, j = i_next + 1, j_next + 1

    gap(0, len(reference), 0, len(actual), 0)
    return pairs


def _common(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Indices of a long common subsequence; what is equal at both ends first, for most changes are small."""
    shorter = min(len(left), len(right))
    start = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    end = next((i for i in range(shorter - start) if left[-1 - i] != right[-1 - i]), shorter - start)
    i_end, j_end = len(left) - end, len(right) - end
    found = [(index, index) for index in range(start)]
    # What only one side has can be left out of the search.
    here, there = set(left[start:i_end]), set(right[start:j_end])
    ours = [i for i in range(start, i_end) if left[i] in there]
    theirs = [j for j in range(start, j_end) if right[j] in here]
    one, two = [left[i] for i in ours], [right[j] for j in theirs]
    at, stop = (0, 0), (len(one), len(two))
    while at[0] < stop[0] and at[1] < stop[1]:
        at, runs = _furthest(one, two, at, stop)
        found += [(ours[x + step], theirs[y + step]) for x, y, length in runs for step in range(length)]
    return found + [(i_end + step, j_end + step) for step in range(end)]


def _furthest(
    left: Sequence[Hashable], right: Sequence[Hashable], start: tuple[int, int], stop: tuple[int, int]
) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """Myers' search (An O(ND) difference algorithm, 1986) from ``start``, as far as ``_EDITS`` edits lead.

    Its time grows with the number of differences, not with how often lines repeat; without names they repeat a lot,
    and ``difflib`` then takes minutes.

    Returns:
        Where it ended, and the equal runs on the way there: index on the left, on the right, length.
    """
    reached: dict[int, tuple[int, _Path | None]] = {}  # by diagonal: index on the left, and the way there
    for edits in range(_EDITS + 1):
        last, reached = reached, {}
        for diagonal in range(-edits, edits + 1, 2):
            ways: list[tuple[int, _Path | None]] = [(start[0], None)] if edits == 0 else []
            if diagonal + 1 in last and last[diagonal + 1][0] - diagonal + start[1] - start[0] <= stop[1]:
                ways.append(last[diagonal + 1])
            if diagonal - 1 in last and last[diagonal - 1][0] < stop[0]:
                x, path = last[diagonal - 1]
                ways.append((x + 1, path))
            if not ways:
                continue
            x, path = max(ways, key=lambda way: way[0])
            first, offset = x, start[1] - start[0] - diagonal
            while x < stop[0] and x + offset < stop[1] and left[x] == right[x + offset]:
                x += 1
            if x > first:
                path = (path, first, first + offset, x - first)
            reached[diagonal] = (x, path)
            if (x, x + offset) == stop:
                return stop, _runs(path)
    diagonal, (x, path) = max(reached.items(), key=lambda item: (2 * item[1][0] - item[0], -abs(item[0])))
    return (x, x + start[1] - start[0] - diagonal), _runs(path)


def _runs(path: "_Path | None") -> list[tuple[int, int, int]]:
    runs = []
    while path is not None:
        path, *run = path
        runs.append((run[0], run[1], run[2]))
    return runs[::-1]


@dataclass
class _Names:
    """Which name of the reference stands for which name of the model: one to one, learnt while reading both."""

    forward: dict[str, str] = field(default_factory=dict)
    backward: dict[str, str] = field(default_factory=dict)

    def bind(self, expected: str, actual: str) -> None:
        """A definition on both sides: from here on the names belong together, whatever they meant before."""
        self.backward.pop(self.forward.get(expected, ""), None)
        self.forward.pop(self.backward.get(actual, ""), None)
        self.forward[expected], self.backward[actual] = actual, expected

    def same(self, expected: str, actual: str) -> bool:
        """Whether both mean the same; names that neither side has met yet are taken to."""
        if expected not in self.forward and actual not in self.backward:
            self.bind(expected, actual)
        return self.forward.get(expected) == actual

    def translate(self, expected: str, actual: str) -> str:
        """``expected`` in the names of the model; a name without a counterpart is marked."""
        others = [match[0] for match in _NAME.finditer(actual) if match["mark"] in ("%", "$")]
        own = [match[0] for match in _NAME.finditer(expected) if match["mark"] in ("%", "$")]
        partners = iter(others if len(own) == len(others) else own)

        def replace(match: re.Match[str]) -> str:
            if match["mark"] == "@" or match["mark"] is None:
                return "" if match["mark"] else match[0]
            name, partner = match[0], next(partners)
            if name not in self.forward and partner not in self.backward and len(own) == len(others):
                self.bind(name, partner)
            return self.forward.get(name) or f'{name[0]}"{name[1:].strip(chr(34))} (of the reference)"'

        return _NAME.sub(replace, expected).rstrip()


class _StructureDiff:
    """The differences between two texts."""

    def __init__(self, reference: list[_Statement], actual: list[_Statement], ignore_names: bool) -> None:
        self._reference, self._actual, self._ignore_names = reference, actual, ignore_names
        self._owners = {id(reference): _owners(reference), id(actual): _owners(actual)}
        self.pairs = _align(reference, actual, ignore_names)
        self._names = _Names()
        self._tainted: set[str] = set()  # tensors of the model that a reported difference may have changed

    def differences(self) -> list[Difference]:
        """All differences, in the order of the text."""
        found: list[Difference] = []
        followers: list[Difference] = []
        last = 1  # the reference's line after which something new stands
        moved = {} if self._ignore_names else self._moved()
        for kind, group in itertools.groupby(self.pairs, key=_pair_kind):
            pairs = list(group)
            if kind == "pair":
                for i, j in pairs:
                    assert i is not None
                    assert j is not None
                    last = self._reference[i].number
                    self._compare(i, j, found, followers)
            elif kind == "missing":
                found += self._run([i for i, _ in pairs if i is not None and i not in moved], None)
                for i, _ in pairs:
                    if i is not None and i in moved:
                        found += self._was_moved(i, moved[i])
            else:
                found += self._run([j for _, j in pairs if j is not None and j not in moved.values()], last)
        if followers:
            message = f"the inferred types of {len(followers)} more tensor(s) differ, as a consequence of the above"
            found.append(followers[0].model_copy(update={"message": message}))
        return found

    def _compare(self, i: int, j: int, found: list[Difference], followers: list[Difference]) -> None:
        expected, actual = self._reference[i], self._actual[j]
        uses = {name for key, name in actual.parts.items() if key.startswith("input ")}
        wanted, given = expected, actual
        if self._ignore_names:
            for pair in zip(expected.definitions, actual.definitions, strict=False):
                self._names.bind(*pair)
            wanted = _Statement(expected.number, self._names.translate(expected.body, actual.body))
            given = _Statement(
                actual.number, _NAME.sub(lambda m: "" if m["mark"] == "@" else m[0], actual.body).rstrip()
            )
        changes = list(_changes(wanted, given))
        types = self._types(expected.types, actual.types)
        if changes or types:
            difference = Difference(
                where=self._where(self._actual, j),
                message="; ".join([*changes, *types]),
                reference_line=expected.number,
                expected=expected.text.strip(),
                actual=actual.text.strip(),
            )
            (found if changes or not uses & self._tainted else followers).append(difference)
            self._tainted.update(actual.definitions)

    def _types(self, expected: str, actual: str) -> list[str]:
        pairs = zip(_split(expected), _split(actual), strict=False)
        return [
            f"type is {given}, expected {wanted}"
            for wanted, given in pairs
            if not _types_match(wanted, given, self._names.same if self._ignore_names else str.__eq__)
        ]

    def _run(self, indices: list[int], after: int | None) -> list[Difference]:
        """Statements that only one side has; ``after`` is a line of the reference where they are new."""
        differences = []
        side = self._reference if after is None else self._actual
        for _, group in itertools.groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
            run = [index for _, index in group]
            self._tainted.update(name for index in run for name in side[index].definitions if after is not None)
            text = textwrap.dedent("\n".join(side[index].text for index in run))
            about = next((index for index in run if "operator" in side[index].parts), run[0])
            what = "missing" if after is None else "not in the reference"
            differences.append(
                Difference(
                    where=self._where(side, about),
                    message=what if len(run) == 1 else f"{what}: {len(run)} statements",
                    reference_line=side[run[0]].number if after is None else after,
                    expected=text if after is None else None,
                    actual=text if after is not None else None,
                )
            )
        return differences

    def _moved(self) -> dict[int, int]:
        """Statements that stand on both sides, but in another order: reference index to model index."""
        left = {i: None for i, j in self.pairs if j is None and i is not None}
        free = {j for i, j in self.pairs if i is None and j is not None}
        places = {self._actual[j].text: j for j in free if self._actual[j].definitions}
        moved: dict[int, int] = {}
        for i in left:
            if i in moved or self._reference[i].text not in places:
                continue
            j, depth = places[self._reference[i].text], self._reference[i].depth
            moved[i] = j
            while (  # what belongs to it
                (i := i + 1) in left
                and (j := j + 1) in free
                and self._reference[i].depth > depth
                and self._reference[i].text == self._actual[j].text
            ):
                moved[i] = j
        return moved

    def _was_moved(self, i: int, j: int) -> Iterator[Difference]:
        """For nodes only: weights stand where they are used, and the rest goes with its node."""
        statement = self._reference[i]
        if "operator" not in statement.parts:
            return
        before = next((self._actual[k] for k in range(j - 1, -1, -1) if "operator" in self._actual[k].parts), None)
        yield Difference(
            where=self._where(self._reference, i),
            message=f"stands in another place: {f'after {before.label}' if before else 'first'}",
            reference_line=statement.number,
            expected=statement.text.strip(),
            actual=statement.text.strip(),
        )

    def _where(self, side: list[_Statement], index: int) -> str:
        """The statement's owners and itself, outermost first."""
        labels: list[str] = []
        owner: int | None = index
        while owner is not None:
            if not side[owner].body.startswith(("#", "graph", "device", "quantization")):
                labels.append(side[owner].label)
            owner = self._owners[id(side)][owner]
        return " > ".join(reversed(labels)) or "the model"


def _owners(statements: Sequence[_Statement]) -> list[int | None]:
    """For each statement the one that it is indented under."""
    open_: list[int] = []
    owners: list[int | None] = []
    for index, statement in enumerate(statements):
        while open_ and statements[open_[-1]].depth >= statement.depth:
            open_.pop()
        owners.append(open_[-1] if open_ else None)
        open_.append(index)
    return owners


def _pair_kind(pair: _Pair) -> str:
    return "new" if pair[0] is None else "missing" if pair[1] is None else "pair"


def _changes(expected: _Statement, actual: _Statement) -> Iterator[str]:
    """In words, how two statements differ."""
    if expected.body == actual.body:
        return
    wanted, given = expected.parts, actual.parts
    keys = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
    if not keys or "" in keys:  # a kind of statement without parts, or a text that somebody damaged
        yield f"is {actual.body}, expected {expected.body}"
        return
    for key in keys:
        yield f"{key} is {given.get(key, 'none')}, expected {wanted.get(key, 'none')}"


_TYPE_TOKEN = re.compile(rf"\$(?:{_QUOTED}|{PLAIN})|{_QUOTED}|\.\.\.|\w+|\S")


def _types_match(expected: str, actual: str, same_name: Callable[[str, str], Any]) -> bool:
    """Whether two types can be the same; what one side does not know (``?``, ``[...]``) fits anything."""
    left, right = _TYPE_TOKEN.findall(expected), _TYPE_TOKEN.findall(actual)
    if ["?"] in (left, right):
        return True
    i = j = 0
    while i < len(left) and j < len(right):
        if "..." in (left[i], right[j]):
            if "]" not in left[i:] or "]" not in right[j:]:  # a text that somebody damaged
                return False
            i, j = left.index("]", i), right.index("]", j)
        elif "?" not in (left[i], right[j]):
            symbols = left[i].startswith("$") and right[j].startswith("$")
            if not (same_name(left[i], right[j]) if symbols else left[i] == right[j]):
                return False
        i, j = i + 1, j + 1
    return i == len(left) and j == len(right)


def _structure(diff: _StructureDiff, *, numbered: bool) -> PartResult:
    found = diff.differences()
    if not numbered:
        found = [difference.model_copy(update={"reference_line": None}) for difference in found]
    return PartResult(name="structure", status="differs" if found else "same", differences=tuple(found))


# Weights --------------------------------------------------------------------------------------------------------------

_TensorPair = tuple[StructureTensor | None, StructureTensor | None]


def _tensor_pairs(reference: Structure, actual: Structure, lines: list[_Pair] | None) -> Iterator[_TensorPair]:
    """Tensors that belong together: those of the same name, or where names are ignored those of aligned lines."""
    if lines is None:
        ours = {tensor.where: tensor for tensor in actual.tensors}
        for tensor in reference.tensors:
            yield tensor, ours.pop(tensor.where, None)
        yield from ((None, tensor) for tensor in ours.values())
        return
    left, right = _by_line(reference), _by_line(actual)
    for i, j in lines:
        wanted = [] if i is None else left.get(i, [])
        given = [] if j is None else right.get(j, [])
        yield from itertools.zip_longest(wanted, given)


def _by_line(structure: Structure) -> dict[int, list[StructureTensor]]:
    found: dict[int, list[StructureTensor]] = {}
    for tensor in structure.tensors:
        found.setdefault(tensor.line, []).append(tensor)
    return found


def _weights(
    model: io.Model, reference: io.Model, pairs: Iterator[_TensorPair], rtol: float, atol: float
) -> PartResult:
    found: list[Difference] = []
    for expected, actual in pairs:
        if expected is None or actual is None:
            present = expected or actual
            assert present is not None
            message = "the model has no such weight" if actual is None else "the reference has no such weight"
            found.append(Difference(where=present.where, message=message))
            continue
        message = _compare_tensors(model, actual.tensor, reference, expected.tensor, rtol, atol)
        if message:
            found.append(Difference(where=actual.where, message=message))
    return PartResult(name="weights", status="differs" if found else "same", differences=tuple(found))


def _compare_tensors(
    model: io.Model, actual: onnx.TensorProto, reference: io.Model, expected: onnx.TensorProto, rtol: float, atol: float
) -> str:
    if actual.data_type != expected.data_type:
        names = [onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in (actual, expected)]
        return f"element type is {names[0]}, expected {names[1]}"
    if actual.dims != expected.dims:
        return f"shape is {list(actual.dims)}, expected {list(expected.dims)}"
    if actual.raw_data and actual.raw_data == expected.raw_data:
        return ""
    return _compare_arrays(io.read_tensor(model, actual), io.read_tensor(reference, expected), rtol, atol)


def _compare_arrays(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    """Say how two arrays of the same shape differ, or nothing.

    Elements are the same where ``|actual - expected| <= atol + rtol * |expected|``, and NaN is the same as NaN. For
    integers and booleans ``rtol`` does not count; anything else must be equal.
    """
    a, b = actual.reshape(-1), expected.reshape(-1)
    count, largest, place = 0, -1.0, 0
    for start in range(0, a.size, _CHUNK):
        one, two = a[start : start + _CHUNK], b[start : start + _CHUNK]
        distance, allowed = _distances(one, two, rtol, atol)
        beyond = ~(distance <= allowed)
        if beyond.any():
            count += int(beyond.sum())
            here = int(np.argmax(np.where(beyond, distance, -1.0)))
            if distance[here] > largest:
                largest, place = float(distance[here]), start + here
    if not count:
        return ""
    index = [int(axis) for axis in np.unravel_index(place, actual.shape)]
    at = f" at {index}" if index else ""
    return (
        f"{count} of {a.size} elements differ; the largest difference is {largest:.4g}{at}: "
        f"{a[place]}, expected {b[place]}"
    )


def _distances(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> tuple[np.ndarray, np.ndarray]:
    """Absolute differences in double, infinite where NaN or infinity meets something else; and what is allowed."""
    different = np.asarray(actual != expected)
    if actual.dtype.kind in "OSU" or actual.dtype.kind != expected.dtype.kind:
        return np.where(different, np.inf, 0.0), np.zeros(actual.shape)
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    one, two = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(different, np.abs(one - two), 0.0)
    distance[np.isnan(distance)] = np.inf
    distance[np.isnan(one) & np.isnan(two)] = 0.0
    if actual.dtype.kind in "iub":
        # Two large integers can be the same double.
        return np.where(different, np.maximum(distance, 1.0), 0.0), np.full(actual.shape, atol)
    limits = atol + rtol * np.abs(two)
    return distance, np.where(np.isfinite(limits), limits, 0.0)


# Outputs --------------------------------------------------------------------------------------------------------------


def _outputs(
    model: io.Model,
    reference: io.Model,
    ignore_names: bool,
    feeding: Mapping[str, Any],
    runtime: RuntimeOptions,
    rtol: float,
    atol: float,
) -> PartResult:
    try:
        feeds = make_feeds(reference, **feeding)
        expected = Runner(reference, runtime)(feeds.arrays)
    except CannotRun as error:
        return PartResult(name="outputs", status="skipped", reason=f"the runtime cannot run the reference: {error}")
    except FeedError as error:
        if feeding["inputs"] is not None or feeding["input_shapes"]:
            raise
        return PartResult(name="outputs", status="skipped", reason=f"no inputs could be made: {error}")
    found: list[Difference] = []
    wanted, given = _input_names(reference), _input_names(model)
    renamed = dict(zip(wanted, given, strict=False)) if ignore_names else {name: name for name in wanted}
    if len(wanted) != len(given) or set(renamed.values()) != set(given):
        message = f"the inputs are {', '.join(given) or 'none'}; expected {', '.join(wanted) or 'none'}"
        found.append(Difference(where="inputs", message=message))
    else:
        try:
            actual = Runner(model, runtime)({renamed[name]: array for name, array in feeds.arrays.items()})
        except CannotRun as error:
            reason = f"the runtime cannot run it, though it runs the reference: {error}"
            found.append(Difference(where="the model", message=reason))
        else:
            found += _compare_outputs(actual, expected, ignore_names, rtol, atol)
    status: Literal["differs", "same"] = "differs" if found else "same"
    return PartResult(name="outputs", status=status, differences=tuple(found), notes=feeds.notes)


def _input_names(model: io.Model) -> list[str]:
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    return [value.name for value in graph.input if value.name not in given]


def _compare_outputs(
    actual: dict[str, Any], expected: dict[str, Any], ignore_names: bool, rtol: float, atol: float
) -> Iterator[Difference]:
    if ignore_names and len(actual) == len(expected):
        actual = dict(zip(expected, actual.values(), strict=True))
    ours = dict(item for name, value in actual.items() for item in _flat(f"output {name!r}", value))
    theirs = dict(item for name, value in expected.items() for item in _flat(f"output {name!r}", value))
    for where in [*theirs, *(where for where in ours if where not in theirs)]:
        if where not in ours or where not in theirs:
            message = (
                "the reference has it, the model not" if where in theirs else "the model has it, the reference not"
            )
            yield Difference(where=where, message=message)
        elif message := _compare_output(ours[where], theirs[where], rtol, atol):
            yield Difference(where=where, message=message)


def _flat(where: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an output, which may also be a sequence, a map or an empty optional."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{where}[{key!r}]", value[key])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(f"{where}[{index}]", item)
    elif value is not None:
        yield where, np.asarray(value)


def _compare_output(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    if actual.dtype != expected.dtype:
        return f"element type is {actual.dtype}, expected {expected.dtype}"
    if actual.shape != expected.shape:
        return f"shape is {list(actual.shape)}, expected {list(expected.shape)}"
    if expected.dtype.kind in "iubOSU":
        return _compare_arrays(actual, expected, 0.0, 0.0)
    finite = np.abs(expected[np.isfinite(expected)])
    largest = float(finite.max(initial=0.0)) or 1.0
    message = _compare_arrays(actual, expected, rtol, atol * largest)
    if message:
        norm = float(np.linalg.norm(expected.astype(np.float64)))
        error = float(np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64)))
        message += f"; relative error {error / norm:.4g}" if norm else ""
    return message
