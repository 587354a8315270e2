"""Finding patterns of nodes, stated as the expression that a block computes.

A pattern is written as its result is: what computes it, of what, down to the tensors that come from outside. A Conv
with BatchNormalization, then perhaps a product with a constant and an activation:

    x = Value("x")
    conv = Op("conv", "Conv", x, Const("weight"), Const("bias", optional=True))
    norm = Op("norm", "BatchNormalization", conv, Const("gamma"), Const("beta"), Const("mean"), Const("variance"))
    scaled = Op("scale", "Mul", norm, Const("factor"), optional=True)
    Pattern("conv-norm", Op("activation", ("Relu", "Clip"), scaled, optional=True))

- A role that comes twice means the same node or tensor both times: so branches part and join, ``Op("join", "Add", conv,
  x)`` is a residual block.
- The operands of Add, Mul and the like may stand in any order, and those of other operators where ``any_order`` is set.
- Where ``Op.optional`` is set the node may be missing: what it reads first then stands for what it makes.
- ``Either`` gives several forms of the same thing; the first that matches is taken.
- ``rest`` lets a node have operands behind those that are given, which are not looked at.

Only nodes of one graph, nested graph or function match together, and what they compute for one another must be of no
use to anyone else: it is about to go. Constants are constants whatever they are made of, and may stand in a graph
around. The work is proportional to the number of nodes that a pattern may end in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

from onnxsep.graph.expressions import Const, Either, Op, Operand, Value, ends, is_open
from onnxsep.graph.index import Index, Use
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import is_standard

__all__ = ["Const", "Either", "Found", "Match", "Op", "Pattern", "Refusal", "Value"]

_COMMUTE = frozenset({"Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor"})


@dataclass(frozen=True)
class Match:
    """Nodes that a pattern stands for.

    Attributes:
        pattern: Its name.
        scope: Where the nodes stand.
        nodes: Places by role, in the order of the graph; roles of optional nodes that are missing have none.
        values: Names of the tensors that come from outside, by role.
        constants: By role.
        output: Name of the tensor that the last node makes.
    """

    pattern: str
    scope: int
    nodes: Mapping[str, Place]
    values: Mapping[str, str]
    constants: Mapping[str, Constant]
    output: str
    _index: Index = field(repr=False, compare=False)

    @cached_property
    def shared(self) -> Mapping[str, tuple[Use, ...]]:
        """By role of a constant, what else uses it: nodes outside of the match, outputs."""
        own, found = set(self.nodes.values()), {}
        for role, constant in self.constants.items():
            uses = self._index.uses(constant.name, constant.scope)
            if others := tuple(use for use in uses if use.place not in own):
                found[role] = others
        return found


@dataclass(frozen=True)
class Refusal:
    """Nodes that have the form of a pattern, or most of it, and are not matched.

    Attributes:
        pattern: Its name.
        place: The node that the reason speaks of.
        reason: In words, with the node's name.
        nodes: Places by role, as far as they match.
        whole: Whether all of the pattern is there, so that only what else uses it is in the way.
    """

    pattern: str
    place: Place
    reason: str
    nodes: Mapping[str, Place]
    whole: bool

    def __str__(self) -> str:
        return f"{self.pattern}: {self.reason}"


@dataclass(frozen=True)
class Found:
    """The matches in the order of the graph, no two of which share a node; and what comes close, the nearest first."""

    matches: tuple[Match, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class Pattern:
    """A pattern by name.

    Attributes:
        name: For reports.
        result: What its last node computes.
        check: Looks at a whole match: None, or the reason why it is none.
    """

    name: str
    result: Operand
    check: Callable[[Index, Match], str | None] | None = None

    def find(self, index: Index) -> Found:
        """All matches in all scopes; where they overlap, the larger one, and of two alike the later one."""
        candidates = frozenset(ends(self.result))
        results: list[Match | Refusal] = []
        for scope, nodes in enumerate(index.nodes):
            for number, node in enumerate(nodes):
                if node.op_type in candidates and is_standard(node):
                    results.append(_Attempt(self, index, (scope, number)).run())
        taken: set[Place] = set()
        matches = []
        whole = [one for one in results if isinstance(one, Match)]
        for match in sorted(whole, key=lambda one: (len(one.nodes), max(one.nodes.values())), reverse=True):
            if taken.isdisjoint(match.nodes.values()):
                taken.update(match.nodes.values())
                matches.append(match)
        near = (one for one in results if isinstance(one, Refusal) and len(one.nodes) > 0)
        refused = []
        for one in sorted(near, key=lambda one: (not one.whole, -len(one.nodes) if not one.whole else len(one.nodes))):
            if taken.isdisjoint(one.nodes.values()):  # the same nodes may be refused with and without what is optional
                taken.update(one.nodes.values())
                refused.append(one)
        matches.sort(key=lambda one: min(one.nodes.values()))
        return Found(tuple(matches), tuple(refused))

    def at(self, index: Index, place: Place, **values: str) -> Match | Refusal:
        """The match that ends in a node, or why there is none.

        Args:
            index: Of the model.
            place: Of the node.
            values: Names of tensors that come from outside, by role, where they are known.
        """
        return _Attempt(self, index, place, values).run()


@dataclass(frozen=True)
class _Bound:
    """What the roles stand for so far."""

    nodes: Mapping[str, Place]
    values: Mapping[str, str]
    constants: Mapping[str, Constant]


class _Attempt:
    """One try to match a pattern that ends in a given node."""

    def __init__(self, pattern: Pattern, index: Index, end: Place, values: Mapping[str, str] | None = None) -> None:
        self._start = _Bound({}, values or {}, {})
        self._pattern, self._index, self._end, self._scope = pattern, index, end, end[0]
        self._nearest = Refusal(pattern.name, end, "", {}, whole=False)
        self._reached = -1

    def run(self) -> Match | Refusal:
        output = next(iter(self._index.node(self._end).output), "")
        for bound in self._operand(self._pattern.result, output, self._end, self._start):
            if self._end not in bound.nodes.values():
                continue  # everything is optional, and missing
            match = self._match(bound, output)
            reason = self._used_elsewhere(match)
            if reason is None and self._pattern.check is not None and (told := self._pattern.check(self._index, match)):
                reason = self._end, f"{self._index.label(self._end)} {told}"
            if reason is None:
                return match
            if not self._nearest.whole:
                self._nearest = Refusal(self._pattern.name, *reason, match.nodes, whole=True)
        return self._nearest

    # ---------------------------------------------------------------- form

    def _operand(self, pattern: Operand, name: str, reader: Place, bound: _Bound) -> Iterator[_Bound]:
        """Every way in which a tensor, which ``reader`` reads, is what the pattern says."""
        if not is_open(pattern) and not self._fits(ends(pattern), name, reader, bound):
            return
        if isinstance(pattern, Either):
            for form in pattern.forms:
                yield from self._operand(form, name, reader, bound)
        elif isinstance(pattern, Op):
            yield from self._node(pattern, name, reader, bound)
            if pattern.optional and pattern.role not in bound.nodes and pattern.operands:
                yield from self._operand(pattern.operands[0], name, reader, bound)
        elif isinstance(pattern, Const):
            constant = self._index.constant(name, self._scope)
            if constant is None:
                self._miss(bound, reader, f"reads {name!r} as its {pattern.role}, which is not constant")
            elif bound.constants.get(pattern.role, constant) != constant:
                self._miss(bound, reader, f"reads {name!r} where the {pattern.role} is another constant")
            else:
                yield _Bound(bound.nodes, bound.values, {**bound.constants, pattern.role: constant})
        elif self._index.is_constant(name, self._scope):
            self._miss(bound, reader, f"reads {name!r} as its {pattern.role}, which is constant")
        elif bound.values.get(pattern.role, name) != name:
            self._miss(bound, reader, f"reads {name!r} where {pattern.role} is {bound.values[pattern.role]!r}")
        else:
            yield _Bound(bound.nodes, {**bound.values, pattern.role: name}, bound.constants)

    def _node(self, pattern: Op, name: str, reader: Place, bound: _Bound) -> Iterator[_Bound]:
        place = self._index.place(name, self._scope)
        if place is None or place[0] != self._scope or not self._is_one_of(pattern.op_types, place):
            return
        if pattern.role in bound.nodes:
            if bound.nodes[pattern.role] == place:
                yield bound
            else:
                self._miss(bound, reader, f"reads {name!r}, which another node than the {pattern.role} computes")
            return
        node = self._index.node(place)
        if node.output[0] != name:
            return
        given = list(node.input)
        while given and not given[-1]:
            given.pop()
        told = pattern.accept(self._index, place) if pattern.accept else None
        if len(given) < pattern.least or (len(given) > len(pattern.operands) and not pattern.rest):
            told = f"has {len(given)} operands"
        if told:
            self._miss(bound, place, told, near=True)
            return
        here = _Bound({**bound.nodes, pattern.role: place}, bound.values, bound.constants)
        any_order = (pattern.any_order or node.op_type in _COMMUTE) and len(given) == len(pattern.operands)
        for names in dict.fromkeys(permutations(given)) if any_order else [tuple(given)]:
            yield from self._operands(pattern.operands, names, place, here)

    def _fits(self, op_types: tuple[str, ...], name: str, reader: Place, bound: _Bound) -> bool:
        """Whether a tensor is the first output of a node with one of the operators, in the same graph."""
        place = self._index.place(name, self._scope)
        wanted = f"where {_either(op_types)} is expected"
        if place is None:
            self._miss(bound, reader, f"reads {name!r}, which no node computes, {wanted}")
        elif not self._is_one_of(op_types, place):
            self._miss(bound, reader, f"reads what {self._index.label(place)} computes, {wanted}")
        elif place[0] != self._scope:
            words = f"reads what {self._index.label(place)} computes, outside of the nested graph"
            self._miss(bound, reader, words, near=True)
        elif self._index.node(place).output[0] != name:
            words = f"reads {name!r}, which is not the first output of {self._index.label(place)}"
            self._miss(bound, reader, words, near=True)
        else:
            return True
        return False

    def _is_one_of(self, op_types: tuple[str, ...], place: Place) -> bool:
        node = self._index.node(place)
        return node.op_type in op_types and is_standard(node)

    def _operands(
        self, patterns: tuple[Operand, ...], names: tuple[str, ...], reader: Place, bound: _Bound
    ) -> Iterator[_Bound]:
        if not patterns:
            yield bound
            return
        pattern, name = patterns[0], names[0] if names else ""
        if not name and isinstance(pattern, Const) and pattern.optional:
            found = iter([bound])
        elif not name:
            self._miss(bound, reader, "lacks an operand")
            return
        else:
            found = self._operand(pattern, name, reader, bound)
        for one in found:
            yield from self._operands(patterns[1:], names[1:], reader, one)

    def _miss(self, bound: _Bound, place: Place, reason: str, *, near: bool = False) -> None:
        """Keep the reason if no other try came as far; ``near``: all but for this the next node is there."""
        distance = len(bound.nodes) + near
        if not self._nearest.whole and distance > self._reached:
            words = f"{self._index.label(place)} {reason}"
            self._reached = distance
            self._nearest = Refusal(self._pattern.name, place, words, bound.nodes, whole=False)

    # ---------------------------------------------------------------- use

    def _match(self, bound: _Bound, output: str) -> Match:
        nodes = dict(sorted(bound.nodes.items(), key=lambda item: item[1]))
        return Match(self._pattern.name, self._scope, nodes, bound.values, bound.constants, output, self._index)

    def _used_elsewhere(self, match: Match) -> tuple[Place, str] | None:
        """What else needs something that the nodes compute for one another, with the node that computes it."""
        index, own = self._index, set(match.nodes.values())
        for place in own:
            label = index.label(place)
            for name in filter(None, index.node(place).output):
                if name == match.output:
                    continue
                for use in index.uses(name, self._scope):
                    if use.place not in own:
                        return place, f"what {label} computes, {name!r}, is {_in_words(index, use)}"
        for role, name in match.values.items():
            maker = index.place(name, self._scope)
            if maker in own and maker is not None:
                return maker, f"{index.label(maker)} computes {name!r}, which should come from outside as {role}"
        return None


def _in_words(index: Index, use: Use) -> str:
    if use.place is None:
        return use.what
    return f"also read by {index.label(use.place)}"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
