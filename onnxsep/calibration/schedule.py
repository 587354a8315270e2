"""In which order Convs are calibrated, what is run in between, and what becomes of each Conv's output.

A Conv's output y is rarely used as it is. With BatchNormalization, a residual Add and an activation behind it, what
counts is act(a y + c + b s), s being the skip of the Add. ``Tail`` says what stands behind a Conv up to there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.regions import Grower, Region, usable
from onnxsep.engine.matches import ConvSite
from onnxsep.errors import FactorizationError
from onnxsep.graph.clipping import clip_bounds
from onnxsep.graph.constants import read_constant
from onnxsep.graph.dependencies import Dependencies
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Const, Either, Match, Op, Pattern, Value
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import Scope, reads
from onnxsep.graph.scopes import scopes as all_scopes
from onnxsep.graph.shapes import KnownShapes, infer_shapes, skeleton
from onnxsep.model.io import Model

_Y = Value("output")  # of the Conv, or of what follows it so far
_NEXT = Pattern(
    "tail",
    Either(
        Op("same", "Identity", _Y),
        Op("clip", ("Relu", "Clip"), _Y, Const("low", optional=True), Const("high", optional=True)),
        Op("norm", "BatchNormalization", _Y, Const("gamma"), Const("beta"), Const("mean"), Const("variance")),
        Op("operand", ("Add", "Mul"), _Y, Const("operand")),
        Op("join", "Add", _Y, Value("skip")),
    ),
)


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
        more: what follows there and counts too, where something does.
    """

    scale: Array
    shift: Array
    skip: str | None
    skip_scale: Array
    low: float = -np.inf
    high: float = np.inf
    before_skip: "Tail | None" = None
    end: str = ""
    more: Region | None = None

    @property
    def skips(self) -> tuple[str, ...]:
        """Names of all tensors that come from elsewhere."""
        further = [name for name in self.more.skips if name not in self.gates] if self.more else []
        return (*([self.skip] if self.skip else []), *further)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of tensors that the Conv's own output makes in the original network."""
        return self.more.gates if self.more else ()

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
        """The same without its activation, and what follows."""
        return replace(self, low=-np.inf, high=np.inf, more=None)


@dataclass(frozen=True)
class Step:
    """Run ``nodes`` (indices, in order), then calibrate ``site``; ``keep`` are the tensors needed then or later.

    ``aside`` are the nodes that make the gates of its tail in the original network, to be run there and forgotten.
    ``before`` is the Conv whose tail ends in what this one, and nothing else, reads; its input is kept too.
    """

    site: ConvSite
    tail: Tail
    nodes: tuple[int, ...]
    keep: frozenset[str]
    before: ConvSite | None = None
    aside: tuple[int, ...] = ()


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
        self._sites = {site.place[1]: site for site in sites}
        self._index = Index(model.proto, scopes)
        self._nodes = self._index.nodes[0]
        initializers = {tensor.name for tensor in model.proto.graph.initializer}
        self._inputs = {value.name for value in model.proto.graph.input} - initializers
        self._grower = Grower(model, self._index, self._channels)
        self._dependencies = Dependencies(self._index, self._inputs)
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
                tail = replace(tail, more=usable(tail.more, partial(self._usable, place=place)))
                self._order.append((self._sites[place], tail))
                continue
            if place in self._started:
                continue
            self._started.add(place)
            waiting.append((place, True))
            needed = [self._nodes[place].input[0]]
            needed += [skip for skip in tail.skips if place not in self._dependencies.before([skip])]
            before = self._dependencies.before(needed)
            waiting += [(other, False) for other in sorted(before, reverse=True) if other in self._sites]

    @cached_property
    def _shapes(self) -> KnownShapes:
        return KnownShapes(all_scopes(infer_shapes(skeleton(self._model))))

    def _channels(self, name: str) -> int | None:
        """How many channels a tensor has; None where that is not known."""
        shape = self._shapes.of(0, name)
        return shape[1] if shape is not None and len(shape) > 1 and isinstance(shape[1], int) else None

    def _usable(self, skip: str, place: int) -> bool:
        """Whether the skip can be computed now: all sites before it are done, and it does not depend on this one."""
        if self._index.place(skip) is None and skip not in self._inputs:
            return False
        done = {site.place[1] for site, _ in self._order}
        before = self._dependencies.before([skip])
        return place not in before and all(other in done for other in before if other in self._sites)

    def _only_reader(self, name: str) -> Place | None:
        """The one node that uses a tensor; None where there are none or more, or it is an output."""
        readers = self._index.readers(name)
        return readers[0] if len(readers) == 1 and not self._index.is_output(name) else None

    def _pairs(self) -> dict[Place, ConvSite]:
        """By the place of a Conv, the one whose tail ends in what this Conv alone reads."""
        plain = {site.place: tail for site, tail in self._order if site.op_type == "Conv" and site.conv.group == 1}
        ends = {tail.end: site for site, tail in self._order if site.place in plain and not tail.skips}
        found = {}
        for place in plain:
            name = self._nodes[place[1]].input[0]
            if name in ends and self._only_reader(name) == place:
                found[place] = ends[name]
        return found

    def _steps(self, pairs: Mapping[Place, ConvSite]) -> list[Step]:
        constant = self._dependencies.constant
        repeated = {name for index in constant for name in self._nodes[index].output}
        run: set[int] = set()
        pieces: list[tuple[set[int], set[int]]] = []
        for site, tail in self._order:
            wanted = [self._nodes[site.place[1]].input[0], *tail.skips]
            piece = self._dependencies.before(wanted, run | constant)
            run |= piece
            pieces.append((piece, self._dependencies.before(tail.gates, run | constant)))
        steps: list[Step] = []
        needed: set[str] = set()
        for (site, tail), (piece, aside) in zip(reversed(self._order), reversed(pieces), strict=True):
            own = {self._nodes[site.place[1]].input[0], *tail.skips}
            before = pairs.get(site.place)
            if before is not None:
                own.add(self._nodes[before.place[1]].input[0])
            read = {name for index in piece for name in reads(self._nodes[index])}
            # Constants are not passed on but computed again in each piece that reads them.
            nodes = sorted({*piece, *(self._dependencies.before(own | read, run) & constant)})
            if aside:
                beside = {name for index in aside for name in reads(self._nodes[index])}
                own |= beside - {name for index in aside for name in self._nodes[index].output} - repeated
                aside |= self._dependencies.before(beside, run) & constant
            steps.append(Step(site, tail, tuple(nodes), frozenset(needed | own), before, tuple(sorted(aside))))
            needed |= (own | read) - repeated
        return steps[::-1]

    def _tail(self, place: int) -> Tail:
        """Follow the output of a Conv while it has one user."""
        site = self._sites[place]
        size = site.conv.out_channels
        tail = Tail(np.ones(size), np.zeros(size), None, np.ones(size), end=self._nodes[place].output[0])
        while (reader := self._only_reader(tail.end)) is not None and not tail.clips:
            match = _NEXT.at(self._index, reader, output=tail.end)
            following = self._extended(tail, match, site) if isinstance(match, Match) else None
            if following is None:
                break
            tail = replace(following, end=self._index.node(reader).output[0])
        return replace(tail, more=self._grower.region(site.conv, tail.end, last_axis=site.op_type == "MatMul"))

    def _extended(self, tail: Tail, match: Match, site: ConvSite) -> Tail | None:
        """The tail with one more node; None where the node is none that it can hold."""
        ((role, place),) = match.nodes.items()
        if role == "norm":
            return self._normalized(tail, match, place, site)
        if role == "operand":
            return self._with_operand(tail, match, place, site)
        if role == "join":
            return self._joined(tail, match.values["skip"])
        if role == "clip":
            bounds = clip_bounds(self._model, self._index, place)
            return None if bounds is None else replace(tail, low=bounds[0], high=bounds[1])
        return tail

    def _normalized(self, tail: Tail, match: Match, place: Place, site: ConvSite) -> Tail | None:
        names = ("gamma", "beta", "mean", "variance")
        values = [self._vector(match.constants[name], site.conv.out_channels, 0) for name in names]
        training = self._index.attribute(place, "training_mode", 0)
        # Behind a MatMul its channels may be other axes than these.
        if site.op_type == "MatMul" or len(self._index.node(place).output) > 1 or training:
            return None
        if any(value is None for value in values):
            return None
        gamma, beta, mean, variance = (np.asarray(value) for value in values)
        factor = gamma / np.sqrt(np.maximum(variance + self._index.attribute(place, "epsilon", 1e-5), 1e-30))
        return replace(
            tail,
            scale=tail.scale * factor,
            shift=(tail.shift - mean) * factor + beta,
            skip_scale=tail.skip_scale * factor,
        )

    def _with_operand(self, tail: Tail, match: Match, place: Place, site: ConvSite) -> Tail | None:
        constant, op_type = match.constants["operand"], self._index.node(place).op_type
        value = self._vector(constant, site.conv.out_channels, site.conv.dims)
        if value is None:
            return self._joined(tail, constant.name) if op_type == "Add" and constant.nodes else None
        if op_type == "Add":
            return replace(tail, shift=tail.shift + value)
        return replace(tail, scale=tail.scale * value, shift=tail.shift * value, skip_scale=tail.skip_scale * value)

    def _joined(self, tail: Tail, skip: str) -> Tail | None:
        computed = self._index.place(skip) is not None or skip in self._inputs
        if tail.skip is not None or skip == tail.end or not computed:
            return None
        return replace(tail, skip=skip, skip_scale=np.ones(len(tail.scale)), before_skip=tail)

    def _vector(self, constant: Constant, size: int, dims: int) -> Array | None:
        """A constant as [size] that broadcasts along the channels of [..., size, *spatial], ``dims`` axes behind."""
        try:
            value = read_constant(self._model, self._scopes, constant)
        except FactorizationError:
            return None
        if value.size == 1:
            return np.full(size, float(value.reshape(-1)[0]))
        if value.size != size or value.ndim < dims + 1 or value.shape[value.ndim - 1 - dims] != size:
            return None
        vector: Array = value.reshape(-1).astype(np.float64)
        return vector
