"""Which tensors of two models stand for the same activation.

Nodes are paired first: by their names and by the names of their tensors where these stayed, then by what they read from
nodes that are paired (the same operator, the same sizes of the weight, and of several such nodes the one behind which
the network goes on in the same way), then layers by their place between those. Tensors follow from the nodes: what
BatchNormalization gives is compared with the Conv that it was folded into, and what a Relu gives with the integers
whose range it became.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

from onnxsep.checking.alignment import common
from onnxsep.checking.network import DEPTH, LAYERS, Network, Stem, Value


@dataclass(frozen=True)
class Match:
    """The same activation in two models.

    Attributes:
        reference: In the reference.
        actual: In the model.
        rounded: Whether what was rounded to integers is to be compared; else the floats before that.
    """

    reference: Value
    actual: Value
    rounded: bool = True


def match_tensors(reference: Network, actual: Network) -> list[Match]:
    """Pair the values of two networks, in the order of the reference; graph inputs first."""
    # The plainer network is looked through, and the other one searched: what is folded in it is separate there.
    plainer = _plainness(reference) <= _plainness(actual)
    pairs = _Pairs(reference, actual) if plainer else _Pairs(actual, reference)
    matches = pairs.find()
    if not plainer:
        matches = [Match(match.actual, match.reference, match.rounded) for match in matches]
    return sorted(matches, key=lambda match: -1 if match.reference.node is None else match.reference.node)


def _plainness(network: Network) -> tuple[int, int]:
    folded = sum(node.op_type == "BatchNormalization" for node in network.nodes)
    return network.quantize_nodes, -folded


class _Pairs:
    """The search for one pair of networks; ``plain`` is the one in which less is folded."""

    def __init__(self, plain: Network, other: Network) -> None:
        self._plain, self._other = plain, other
        self._stems: dict[int, Stem] = {}  # of the other network, by the head of the plain one's
        self._taken: set[int] = set()
        self._matches: dict[tuple[int, bool], Match] = {}
        self._counterparts: dict[int, Value] = {}  # by id of the plain value
        self._matched: set[int] = set()  # ids of the other network's values

    def find(self) -> list[Match]:
        self._inputs()
        self._by_name()
        self._by_what_they_read()
        if self._by_place():
            self._by_what_they_read()
        for stem in self._plain.stems:
            self._same_names(stem)
        return list(self._matches.values())

    def _inputs(self) -> None:
        """Graph inputs of the same name, or, where no name is the same, in their order."""
        ours, theirs = (
            {value.name: value for value in network.values.values() if value.node is None}
            for network in (self._plain, self._other)
        )
        names = [(name, name) for name in ours if name in theirs]
        if not names and len(ours) == len(theirs):
            names = list(zip(ours, theirs, strict=True))
        for one, two in names:
            self._match(ours[one], theirs[two])

    def _by_name(self) -> None:
        """Heads of the same name and kind, then those of which any tensor has the same name."""
        places: dict[str, int] = {}
        unique = Counter(node.name for node in self._other.nodes)
        for index, node in enumerate(self._other.nodes):
            if node.name and unique[node.name] == 1:
                places[node.name] = index
        ours = Counter(node.name for node in self._plain.nodes)
        for stem in self._plain.stems:
            name = self._plain.nodes[stem.head].name
            index = places.get(name, -1) if ours[name] == 1 else -1
            found = self._other.stem_of.get(index)
            if found is not None and found.head == index:
                self._take(stem, found)
        replaced = {
            source: index for index, source in enumerate(self._other.sources) if source and index in self._other.stem_of
        }
        for stem in self._plain.stems:
            # The last of the nodes that onnxsep has put in place of this one.
            found = self._other.stem_of.get(replaced.get(self._plain.name(stem.head), -1))
            self._take(stem, found, alike=False)
        for stem in self._plain.stems:
            for value in reversed(stem.values):
                for alias in value.aliases:
                    there = self._other.values.get(alias)
                    if there is not None and there.node is not None:
                        self._take(stem, self._other.stem_of.get(there.node))

    def _by_place(self) -> bool:
        """Layers of the same kind and sizes, in order, between layers that are paired; whether there are any."""
        before = len(self._stems)
        paired = {head: number for number, head in enumerate(self._stems)}
        heads = {found.head: paired[head] for head, found in self._stems.items()}
        sides = []
        for network, known in ((self._plain, paired), (self._other, heads)):
            layers = [stem for stem in network.stems if stem.kind in LAYERS]
            keys = [known.get(stem.head, network.key(stem)) for stem in layers]
            sides.append((layers, keys))
        (ours, left), (theirs, right) = sides
        for i, j in common(left, right):
            self._take(ours[i], theirs[j])
        return len(self._stems) > before

    def _by_what_they_read(self) -> None:
        """All nodes in order: the tensors of those that are paired, which pair those that read them."""
        for stem in self._plain.stems:
            found = self._stems.get(stem.head) or self._reader_of_the_same(stem)
            if found is not None:
                self._pair(stem, found)

    def _reader_of_the_same(self, stem: Stem) -> Stem | None:
        """A node of the same kind that reads the same values."""
        wanted = [self._counterparts.get(id(value)) for value in self._plain.reads(stem.head)]
        if not wanted or any(value is None for value in wanted):
            return None
        first = wanted[0]
        assert first is not None
        key, readers = self._plain.key(stem), sorted(map(id, wanted))
        found = []
        for index in first.readers:
            other = self._other.stem_of.get(index)
            if other is None or other.head != index or index in self._taken or self._other.key(other) != key:
                continue
            if sorted(map(id, self._other.reads(index))) == readers:
                found.append(other)
        if len(found) > 1:
            found.sort(key=lambda other: -self._alike_behind(stem, other))
        self._take(stem, found[0] if found else None)
        return found[0] if found else None

    def _alike_behind(self, stem: Stem, other: Stem) -> int:
        """How far, in stems, both networks go on in the same way."""
        depths = range(1, DEPTH + 1)
        alike = (self._plain.behind(stem, depth) == self._other.behind(other, depth) for depth in depths)
        return sum(itertools.takewhile(bool, alike))

    def _take(self, stem: Stem, found: Stem | None, *, alike: bool = True) -> None:
        """Pair two stems, of one kind where they must be ``alike``, unless one of them is paired already."""
        if found is None or stem.head in self._stems or found.head in self._taken:
            return
        if alike and found.kind != stem.kind:
            return
        self._stems[stem.head] = found
        self._taken.add(found.head)

    def _pair(self, stem: Stem, found: Stem) -> None:
        """The tensors of two stems."""
        for one, two in zip(stem.outputs[1:], found.outputs[1:], strict=False):
            if one is not None and two is not None:
                self._match(one, two)
        first, second = stem.outputs[0], found.outputs[0]
        if first is None or second is None:
            return
        before, there = [first, *stem.affine], [second, *found.affine]
        last = there[-1]
        folds = stem.activation is not None and found.activation is None and last.quantized
        if len(before) == len(there):
            for one, two in zip(before[:-1], there[:-1], strict=True):
                self._match(one, two)
        # Where an activation has become the range of the integers, the floats before them are those before it.
        if not folds:
            self._match(before[-1], last)
        elif not last.is_integer:
            self._match(before[-1], last, rounded=False)
        if stem.activation is not None and (folds or found.activation is not None):
            self._match(stem.activation, last if folds else found.activation or last)

    def _same_names(self, stem: Stem) -> None:
        """What has the same name though other nodes compute it, as in a Conv's place the last one of several."""
        for value in stem.values:
            if id(value) not in self._counterparts:
                there = next((self._other.values[name] for name in value.aliases if name in self._other.values), None)
                if there is not None and id(there) not in self._matched:
                    self._match(value, there)

    def _match(self, one: Value, two: Value, *, rounded: bool = True) -> None:
        self._matches.setdefault((id(one), rounded), Match(one, two, rounded))
        self._counterparts.setdefault(id(one), two)
        self._matched.add(id(two))
