"""Following channels through the main graph: which channels of which tensors stand or fall together.

Every channel of a Conv's output gets a number; what a channel-wise operator makes of it bears the same number, and
where two channels meet (a residual Add, a shared weight) their numbers are united. So a class of numbers is what has
to leave the graph as a whole: filters, biases, entries of BatchNormalization, and the places at which Convs and Gemms
read them. A class that reaches an operator which cannot be followed, or an output, is frozen, with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.graph.index import Index
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import (
    Scope,
    constant_value,
    display_name,
    is_standard,
    names_within,
    scopes,
    training_names,
    used_names,
)
from onnxsep.graph.shapes import tensor_shapes
from onnxsep.model.io import Model

Ids = NDArray[np.int64]
"""Numbers of channels, one for each entry of an axis."""


@dataclass(frozen=True)
class Track:
    """The numbers along axis 1 of a tensor of known rank."""

    ids: Ids
    rank: int


@dataclass(frozen=True)
class Cut:
    """One use of a stored constant: the numbers along those of its axes that go with channels.

    ``reads`` is the axis at which a Conv, Gemm or MatMul reads them; without what stands there a channel has no effect.
    """

    constant: Constant
    axes: Mapping[int, Ids]
    reads: int | None = None


@dataclass
class Channels:
    """What was followed.

    Attributes:
        tracks: by name of each tensor of the main graph whose channels are known.
        cuts: every use of a constant that has channels along an axis.
        lengths: constants [batch, length] of Reshapes, with the numbers along that length.
        filters: by place of each Conv that was followed, the numbers of its output channels.
        depthwise: by place of each depthwise Conv, the numbers of its input channels, which are its groups.
        reasons: by place of each Conv whose filters stay for a reason of its own, that reason.
    """

    tracks: dict[str, Track] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    lengths: dict[Constant, Ids] = field(default_factory=dict)
    filters: dict[Place, Ids] = field(default_factory=dict)
    depthwise: dict[Place, Ids] = field(default_factory=dict)
    reasons: dict[Place, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)
    _frozen: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        """Numbers that nothing has yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, number: int) -> int:
        """The number that stands for the class of a number."""
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def classes(self) -> Ids:
        """The class of every number, as the number that stands for it."""
        return np.array([self.root(number) for number in range(len(self._parents))], np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """The channels of two axes of equal length stand or fall together, one by one."""
        for one, other in zip(left, right, strict=True):
            first, second = sorted((self.root(int(one)), self.root(int(other))))
            self._parents[second] = first

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels stay, for a reason; the first one is kept."""
        for number in ids:
            self._frozen.setdefault(int(number), reason)

    def frozen(self) -> dict[int, str]:
        """The classes that stay, each with a reason."""
        found: dict[int, str] = {}
        for number, reason in self._frozen.items():
            found.setdefault(self.root(number), reason)
        return found


@dataclass(frozen=True)
class Facts:
    """What following needs to know about the main graph, besides its nodes."""

    graph: onnx.GraphProto
    constants: Mapping[str, tuple[Constant, onnx.TensorProto]]
    shapes: Mapping[str, Sequence[int | str | None]]
    sites: Mapping[Place, ConvSite]
    index: Index
    pinned: frozenset[str]  # names that are used in a way that is no input of a node of the main graph


def gather_facts(model: Model, sites: Sites) -> Facts:
    """Collect what following needs.

    ``model`` is the source; small constants (axes, scales) are read from ``sites.light``.
    """
    found = scopes(sites.light)
    main = found[0]
    assert isinstance(main.body, onnx.GraphProto)
    constants = {tensor.name: (Constant(0, tensor.name), tensor) for tensor in main.body.initializer}
    for number, node in enumerate(main.body.node):
        value = constant_value(node)
        if value is not None:
            constants[node.output[0]] = Constant(0, node.output[0], ((0, number),)), value
    index = Index(sites.light, found)
    pinned = set(training_names(model.proto))
    for scope in found[1:]:
        pinned.update(name for name in used_names(scope) if index.owner(name, scope.index) == 0)
    pinned.update(_pinned_in(main))
    at = {item.place: item for item in sites.found if isinstance(item, ConvSite)}
    return Facts(main.body, constants, tensor_shapes(main.body), at, index, frozenset(pinned))


def _pinned_in(main: Scope) -> Iterable[str]:
    """Names of the main graph that annotations, or graphs in lists, refer to."""
    assert isinstance(main.body, onnx.GraphProto)
    for node in main.body.node:
        for attribute in node.attribute:
            for graph in attribute.graphs:
                yield from names_within(graph)
    for annotation in main.body.quantization_annotation:
        yield annotation.tensor_name
        yield from (entry.value for entry in annotation.quant_parameter_tensor_names)


def settle(channels: Channels, facts: Facts) -> None:
    """Unite the channels of constants that several nodes use, and freeze what something else sees too."""
    cuts: dict[Constant, list[Cut]] = {}
    for cut in channels.cuts:
        cuts.setdefault(cut.constant, []).append(cut)
    for constant, found in cuts.items():
        alike = all(cut.axes.keys() == found[0].axes.keys() for cut in found)
        if alike and len(facts.index.uses(constant.name)) == len(found) and constant.name not in facts.pinned:
            for cut in found[1:]:
                for axis, ids in cut.axes.items():
                    channels.unite(found[0].axes[axis], ids)
            continue
        for cut in found:
            for ids in cut.axes.values():
                channels.freeze(ids, f"its channels go with {constant.name!r}, which is also used in another way")
    for constant, ids in channels.lengths.items():
        if len(facts.index.uses(constant.name)) > 1 or constant.name in facts.pinned:
            channels.freeze(ids, f"their number is in {constant.name!r}, which is also used in another way")
    for name, track in channels.tracks.items():
        if name in facts.pinned:
            channels.freeze(track.ids, f"they are in {name!r}, which a nested graph or an annotation uses")
    for value in facts.graph.output:
        if value.name in channels.tracks:
            channels.freeze(channels.tracks[value.name].ids, f"they are in the output {value.name!r} of the graph")


def label(node: onnx.NodeProto) -> str:
    """A node in words."""
    domain = "" if is_standard(node) else f"{node.domain}."
    return f"{domain}{node.op_type} {display_name(node)!r}"
