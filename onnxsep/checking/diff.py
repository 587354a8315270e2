"""The differences between two texts."""

import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxsep.checking.alignment import LinePair, align
from onnxsep.checking.result import Difference, PartResult
from onnxsep.checking.structure_statements import NAME, QUOTED, Statement, split_at_commas
from onnxsep.checking.structure_words import PLAIN


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
        others = [match[0] for match in NAME.finditer(actual) if match["mark"] in ("%", "$")]
        own = [match[0] for match in NAME.finditer(expected) if match["mark"] in ("%", "$")]
        partners = iter(others if len(own) == len(others) else own)

        def replace(match: re.Match[str]) -> str:
            if match["mark"] == "@" or match["mark"] is None:
                return "" if match["mark"] else match[0]
            name, partner = match[0], next(partners)
            if name not in self.forward and partner not in self.backward and len(own) == len(others):
                self.bind(name, partner)
            return self.forward.get(name) or f'{name[0]}"{name[1:].strip(chr(34))} (of the reference)"'

        return NAME.sub(replace, expected).rstrip()


class StructureDiff:
    """The differences between two texts."""

    def __init__(self, reference: list[Statement], actual: list[Statement], ignore_names: bool) -> None:
        self._reference, self._actual, self._ignore_names = reference, actual, ignore_names
        self._owners = {id(reference): _owners(reference), id(actual): _owners(actual)}
        self.pairs = align(reference, actual, ignore_names)
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
            wanted = Statement(expected.number, self._names.translate(expected.body, actual.body))
            given = Statement(actual.number, NAME.sub(lambda m: "" if m["mark"] == "@" else m[0], actual.body).rstrip())
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
        pairs = zip(split_at_commas(expected), split_at_commas(actual), strict=False)
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

    def _where(self, side: list[Statement], index: int) -> str:
        """The statement's owners and itself, outermost first."""
        labels: list[str] = []
        owner: int | None = index
        while owner is not None:
            if not side[owner].body.startswith(("#", "graph", "device", "quantization")):
                labels.append(side[owner].label)
            owner = self._owners[id(side)][owner]
        return " > ".join(reversed(labels)) or "the model"


def _owners(statements: Sequence[Statement]) -> list[int | None]:
    """For each statement the one that it is indented under."""
    open_: list[int] = []
    owners: list[int | None] = []
    for index, statement in enumerate(statements):
        while open_ and statements[open_[-1]].depth >= statement.depth:
            open_.pop()
        owners.append(open_[-1] if open_ else None)
        open_.append(index)
    return owners


def _pair_kind(pair: LinePair) -> str:
    return "new" if pair[0] is None else "missing" if pair[1] is None else "pair"


def _changes(expected: Statement, actual: Statement) -> Iterator[str]:
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


_TYPE_TOKEN = re.compile(rf"\$(?:{QUOTED}|{PLAIN})|{QUOTED}|\.\.\.|\w+|\S")


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


def structure_part(diff: StructureDiff, *, numbered: bool) -> PartResult:
    """The differences as a part of a check; line numbers are kept where the reference is a ``numbered`` text."""
    found = diff.differences()
    if not numbered:
        found = [difference.model_copy(update={"reference_line": None}) for difference in found]
    return PartResult(name="structure", status="differs" if found else "same", differences=tuple(found))
