"""In which order Convs are calibrated, what is run in between, and what becomes of each Conv's output.

A Conv's output y is rarely used as it is. With BatchNormalization, a residual Add and an activation behind it, what
counts is act(a y + c + b s), s being the skip of the Add. ``Tail`` says what stands behind a Conv up to there.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.frontier import reads
from onnxsep.engine.matches import ConvSite
from onnxsep.graph.constants import find_constant
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, is_standard
from onnxsep.model.io import Model, read_tensor


@dataclass(frozen=True)
class Tail:
    """What counts of a Conv's output y is clip(scale y + shift + skip_scale s, low, high).

    Attributes:
        scale: [out_channels].
        shift: [out_channels].
        skip: name of the tensor s that is added, in the shape of y; None where there is none.
        skip_scale: [out_channels].
        low: 0 for Relu, minus infinity where no activation follows that clips.
        high: 6 for Relu6, infinity otherwise.
        before_skip: the part before the Add, where there is a skip.
        end: name of the tensor behind it.
    """

    scale: Array
    shift: Array
    skip: str | None
    skip_scale: Array
    low: float = -np.inf
    high: float = np.inf
    before_skip: "Tail | None" = None
    end: str = ""

    @property
    def clips(self) -> bool:
        """Whether an activation follows."""
        return self.low > -np.inf or self.high < np.inf

    @property
    def heard(self) -> NDArray[np.bool_]:
        """[out_channels], which channels the scale does not multiply by (almost) nothing."""
        size: Array = np.abs(self.scale)
        heard: NDArray[np.bool_] = size > 1e-3 * size.max(initial=0.0)
        return heard

    @property
    def unclipped(self) -> "Tail":
        """The same without its activation."""
        return replace(self, low=-np.inf, high=np.inf)


@dataclass(frozen=True)
class Step:
    """Run ``nodes`` (indices, in order), then calibrate ``site``; ``keep`` are the tensors needed then or later.

    ``before`` is the Conv whose tail ends in what this one, and nothing else, reads; its input is kept too.
    """

    site: ConvSite
    tail: Tail
    nodes: tuple[int, ...]
    keep: frozenset[str]
    before: ConvSite | None = None


def make_schedule(
    model: Model, scopes: Sequence[Scope], sites: Sequence[ConvSite], *, pairs: bool = False
) -> list[Step]:
    """Every site after the nodes that its input and its skip depend on.

    Where two branches of an Add both hold sites, one of them has to come first: its tail ends before the Add.

    Args:
        model: the source.
        scopes: its scopes.
        sites: Convs of the main graph.
        pairs: whether to look for two Convs in a row.
    """
    return _Scheduler(model, scopes, sites).run(pairs)


class _Scheduler:
    def __init__(self, model: Model, scopes: Sequence[Scope], sites: Sequence[ConvSite]) -> None:
        self._model, self._scopes = model, scopes
        self._nodes = model.proto.graph.node
        self._sites = {site.place[1]: site for site in sites}
        self._producer = {name: index for index, node in enumerate(self._nodes) for name in node.output if name}
        self._users: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self._nodes):
            for name in set(reads(node)):
                self._users[name].append(index)
        self._outputs = {value.name for value in model.proto.graph.output}
        initializers = {tensor.name for tensor in model.proto.graph.initializer}
        self._inputs = {value.name for value in model.proto.graph.input} - initializers
        self._started: set[int] = set()
        self._order: list[tuple[ConvSite, Tail]] = []

    def run(self, pairs: bool) -> list[Step]:
        for index in sorted(self._sites):
            self._visit(index)
        return self._steps(self._pairs() if pairs else {})

    def _visit(self, index: int) -> None:
        """Put a site into the order, behind all sites that it depends on."""
        waiting = [(index, False)]
        while waiting:
            place, ready = waiting.pop()
            tail = self._tail(place)
            if ready:
                if tail.skip is not None and not self._usable(tail.skip, place):
                    assert tail.before_skip is not None
                    tail = tail.before_skip
                self._order.append((self._sites[place], tail))
                continue
            if place in self._started:
                continue
            self._started.add(place)
            waiting.append((place, True))
            needed = [self._nodes[place].input[0]]
            if tail.skip is not None and place not in self._ancestors([tail.skip]):
                needed.append(tail.skip)
            before = self._ancestors(needed)
            waiting += [(other, False) for other in sorted(before, reverse=True) if other in self._sites]

    def _usable(self, skip: str, place: int) -> bool:
        """Whether the skip can be computed now: all sites before it are done, and it does not depend on this one."""
        done = {site.place[1] for site, _ in self._order}
        before = self._ancestors([skip])
        return place not in before and all(other in done for other in before if other in self._sites)

    def _ancestors(self, names: Iterable[str], known: Collection[int] = ()) -> set[int]:
        """Nodes that the tensors depend on, but for those that are known."""
        found: set[int] = set()
        stack = [self._producer[name] for name in names if name in self._producer]
        while stack:
            index = stack.pop()
            if index in found or index in known:
                continue
            found.add(index)
            stack += [self._producer[name] for name in reads(self._nodes[index]) if name in self._producer]
        return found

    def _pairs(self) -> dict[Place, ConvSite]:
        """By the place of a Conv, the one whose tail ends in what this Conv alone reads."""
        plain = {site.place: tail for site, tail in self._order if site.op_type == "Conv" and site.conv.group == 1}
        ends = {tail.end: site for site, tail in self._order if site.place in plain and tail.skip is None}
        found = {}
        for place in plain:
            name = self._nodes[place[1]].input[0]
            if name in ends and self._users[name] == [place[1]] and name not in self._outputs:
                found[place] = ends[name]
        return found

    def _steps(self, pairs: Mapping[Place, ConvSite]) -> list[Step]:
        constant = self._constants()
        repeated = {name for index in constant for name in self._nodes[index].output}
        run: set[int] = set()
        pieces: list[set[int]] = []
        for site, tail in self._order:
            wanted = [self._nodes[site.place[1]].input[0], *([tail.skip] if tail.skip else [])]
            piece = self._ancestors(wanted, run | constant)
            run |= piece
            pieces.append(piece)
        steps: list[Step] = []
        needed: set[str] = set()
        for (site, tail), piece in zip(reversed(self._order), reversed(pieces), strict=True):
            own = {self._nodes[site.place[1]].input[0], *([tail.skip] if tail.skip else [])}
            before = pairs.get(site.place)
            if before is not None:
                own.add(self._nodes[before.place[1]].input[0])
            read = {name for index in piece for name in reads(self._nodes[index])}
            # Constants are not passed on but computed again in each piece that reads them.
            nodes = sorted({*piece, *(self._ancestors(own | read, run) & constant)})
            steps.append(Step(site, tail, tuple(nodes), frozenset(needed | own), before))
            needed |= (own | read) - repeated
        return steps[::-1]

    def _constants(self) -> set[int]:
        """Nodes that depend on no input of the graph."""
        moving = set(self._inputs)
        constant: set[int] = set()
        for index, node in enumerate(self._nodes):
            if moving.isdisjoint(reads(node)) and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
                constant.add(index)
            else:
                moving.update(name for name in node.output if name)
        return constant

    def _tail(self, place: int) -> Tail:
        """Follow the output of a Conv while it has one user."""
        site = self._sites[place]
        size = site.conv.out_channels
        tail = Tail(np.ones(size), np.zeros(size), None, np.ones(size), end=self._nodes[place].output[0])
        name = tail.end
        while len(self._users[name]) == 1 and name not in self._outputs:
            node = self._nodes[self._users[name][0]]
            following = self._extended(tail, node, name, site) if is_standard(node) else None
            if following is None:
                break
            name = node.output[0]
            tail = replace(following, end=name)
            if tail.clips:
                break
        return tail

    def _extended(self, tail: Tail, node: onnx.NodeProto, name: str, site: ConvSite) -> Tail | None:
        """The tail with one more node; None where the node is none that it can hold."""
        size, dims, op_type = site.conv.out_channels, site.conv.dims, site.op_type
        if node.op_type == "Identity":
            return tail
        if node.op_type == "Relu":
            return replace(tail, low=0.0)
        if node.op_type == "Clip":
            low, high = self._bound(node, 1, "min"), self._bound(node, 2, "max")
            return None if low is None or high is None else replace(tail, low=low, high=high)
        if node.op_type == "BatchNormalization" and op_type != "MatMul":  # whose channels may lie behind other axes
            values = [self._vector(entry, size, 0) for entry in node.input[1:5]]
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            if len(node.output) > 1 or attributes.get("training_mode", 0) or any(value is None for value in values):
                return None
            gamma, beta, mean, variance = (np.asarray(value) for value in values)
            factor = gamma / np.sqrt(np.maximum(variance + attributes.get("epsilon", 1e-5), 1e-30))
            return replace(
                tail,
                scale=tail.scale * factor,
                shift=(tail.shift - mean) * factor + beta,
                skip_scale=tail.skip_scale * factor,
            )
        if node.op_type in ("Add", "Mul") and len(node.input) == 2 and node.input[0] != node.input[1]:
            other = node.input[1] if node.input[0] == name else node.input[0]
            value = self._vector(other, size, dims)
            if value is not None and node.op_type == "Add":
                return replace(tail, shift=tail.shift + value)
            if value is not None:
                return replace(
                    tail, scale=tail.scale * value, shift=tail.shift * value, skip_scale=tail.skip_scale * value
                )
            if node.op_type == "Add" and tail.skip is None and (other in self._producer or other in self._inputs):
                return replace(tail, skip=other, skip_scale=np.ones(size), before_skip=tail)
        return None

    def _bound(self, node: onnx.NodeProto, position: int, attribute: str) -> float | None:
        """A limit of Clip; infinite where it has none, None where it is not constant."""
        unbounded = -np.inf if attribute == "min" else np.inf
        for entry in node.attribute:
            if entry.name == attribute:
                return float(entry.f)
        if len(node.input) <= position or not node.input[position]:
            return unbounded
        value = self._constant(node.input[position])
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def _vector(self, name: str, size: int, dims: int) -> Array | None:
        """A constant as [size] that broadcasts along the channels of [..., size, *spatial], ``dims`` axes behind."""
        value = self._constant(name)
        if value is None:
            return None
        if value.size == 1:
            return np.full(size, float(value.reshape(-1)[0]))
        if value.size != size or value.ndim < dims + 1 or value.shape[value.ndim - 1 - dims] != size:
            return None
        vector: Array = value.reshape(-1).astype(np.float64)
        return vector

    def _constant(self, name: str) -> np.ndarray[Any, Any] | None:
        tensor = find_constant(self._scopes, 0, name)
        return None if tensor is None else read_tensor(self._model, tensor)
