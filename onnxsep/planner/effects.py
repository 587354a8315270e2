"""What replacing one layer changes at the outputs of the network: measured, with all other layers as they are.

``EffectWalk`` walks the original network once, layer by layer, with the samples' activations in a
``calibration.frontier.Frontier``. At a layer, nodes beside it run once; what is behind it is one session, which runs
for every candidate, from the activations that are stored and the candidate's own output of the layer. A candidate
stands as the dense layer that its factors multiply to, as in calibration.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.dense import as_dense, stand_ins
from onnxsep.calibration.frontier import Frontier, Store
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.errors import CalibrationError
from onnxsep.graph.dependencies import Dependencies
from onnxsep.graph.index import Index
from onnxsep.graph.scopes import reads
from onnxsep.model.io import Model
from onnxsep.planner.measuring import Dense
from onnxsep.planner.output_distance import Effect, Kind, Original, Outputs, Score
from onnxsep.running.feeds import samples_of
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_MEMORY = 2 * 2**30  # bytes of activations; beyond that they go to files


class EffectWalk:
    """The original network on the samples that effects are measured on.

    Args:
        model: The source.
        sites: Its layers.
        batches: Inputs by name, at least one; the first dimension counts samples.
        runtime: How pieces of the network are run.
        around: What stands for replaced layers: effects are then those of the whole, with one more layer changed.
        memory: Bytes for activations.
        score: The user's metric, where it is what counts.
        as_error: Measure the relative error of classifiers too.

    Raises:
        CalibrationError: The runtime cannot run the model on the samples, or its outputs are no numbers.
    """

    def __init__(
        self,
        model: Model,
        sites: Sites,
        batches: Iterable[Mapping[str, NDArray[Any]]],
        runtime: RuntimeOptions,
        *,
        around: Dense | None = None,
        memory: int = _MEMORY,
        score: Score | None = None,
        as_error: bool = False,
    ) -> None:
        self._copied = bool(held_types(model))  # the runtime has no Conv for float64 and bfloat16
        network = float32_copy(model) if self._copied else model
        self._runtime = runtime
        self._feeds = [
            {name: as_float32(array) for name, array in batch.items()} if self._copied else dict(batch)
            for batch in batches
        ]
        graph = network.proto.graph
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        self._nodes = [[node] for node in nodes]  # what runs in the place of each
        self._outputs = [value.name for value in graph.output]
        stored = {tensor.name for tensor in graph.initializer}
        inputs = {value.name for value in graph.input} - stored
        self._order = Dependencies(Index(model.proto, sites.scopes), inputs)
        self._repeated = {name for index in self._order.constant for name in nodes[index].output}
        self._needed = self._order.before(self._outputs)
        self._frontier = Frontier(network, self._feeds, runtime, Store(memory))
        self._done: set[int] = set()
        self._original = self._reference(score, as_error=as_error)
        stands = stand_ins(nodes, sites, around or {}, copied=self._copied)
        for index, own in stands.nodes.items():
            self._nodes[index] = own
        for tensor in stands.tensors:
            self._frontier.add_initializer(tensor)

    @property
    def kind(self) -> Kind:
        """The measure."""
        return self._original.kind

    @property
    def samples(self) -> int:
        """How many samples are measured on."""
        return self._original.samples

    def at(self, site: ConvSite) -> Callable[[Array, Array | None], Effect]:
        """Walk on to a layer of the main graph; layers come in an order in which each is behind what it depends on.

        Returns:
            What measures the effect of other values of this layer: of a weight [out_channels, in_channels / group,
            *kernel_shape] and a bias [out_channels], None for the one that it has.

        Raises:
            CalibrationError: The runtime cannot run the nodes; what is returned raises it too.
        """
        index = site.place[1]
        (node,) = self._nodes[index]
        output = node.output[0]
        self.walk_on(site)
        here = self._frontier.fork()
        behind = self._order.behind([output]) & self._needed
        assert behind.isdisjoint(self._done), "layers come in the order of what they depend on"
        read = {name for place in behind for name in self._reads(place)} | {*reads(node), output}
        beside = self._order.before(read, self._done) - behind
        here.advance(self._with_constants(beside), (read - self._repeated))
        made = [name for place in sorted(behind) for one in self._nodes[place] for name in one.output]
        wanted = [name for name in made if name in self._outputs]
        rest = here.piece(self._with_constants(behind), wanted) if wanted else None
        is_output = output in self._outputs

        def given(weight: Array, bias: Array | None) -> Effect:
            new, tensors = as_dense(node, site, weight, bias, copied=self._copied)
            for tensor in tensors:
                here.add_initializer(tensor)
            layer = here.piece(self._in_order({index: [new]}), [output])

            def outputs() -> Iterator[Outputs]:
                for batch in range(here.batches):
                    made = layer(batch, {})
                    yield {**(rest(batch, made) if rest else {}), **(made if is_output else {})}

            return self._original.effect(outputs())

        return given

    def walk_on(self, site: ConvSite) -> None:
        """Walk on to a layer at which nothing is measured: what is measured behind it is the same as if it were."""
        self._advance(self._order.before(self._reads(site.place[1]), self._done))

    def of(self, result: Model) -> Effect:
        """The effect of all changes of a rewritten model together.

        Raises:
            CalibrationError: The runtime cannot run it.
        """
        try:
            run = Runner(float32_copy(result) if self._copied else result, self._runtime)
            return self._original.effect(run(feed) for feed in self._feeds)
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run the rewritten model: {error}") from error

    def _reference(self, score: Score | None, *, as_error: bool) -> Original:
        end = self._frontier.fork()
        made = [name for name in self._outputs if self._order.makers([name])]
        end.advance(self._with_constants(self._needed), made)
        found = [{name: end.value(batch, name) for name in made} for batch in range(end.batches)]
        return Original(found, [samples_of(feed) or 1 for feed in self._feeds], score, as_error=as_error)

    def _advance(self, nodes: set[int]) -> None:
        """Run nodes, and forget what no later one reads."""
        nodes = nodes - self._order.constant
        self._done |= nodes
        later = self._needed - self._done - self._order.constant
        keep = {name for place in later for name in self._reads(place)} | set(self._outputs)
        self._frontier.advance(self._with_constants(nodes), keep - self._repeated)

    def _reads(self, place: int) -> set[str]:
        return {name for node in self._nodes[place] for name in reads(node)}

    def _with_constants(self, nodes: Iterable[int]) -> list[onnx.NodeProto]:
        """Nodes in order, with those that compute the constants that they read: these are computed in each piece."""
        return self._in_order({place: self._nodes[place] for place in nodes})

    def _in_order(self, nodes: Mapping[int, Sequence[onnx.NodeProto]]) -> list[onnx.NodeProto]:
        read = {name for several in nodes.values() for node in several for name in reads(node)}
        constants = {place: self._nodes[place] for place in self._order.before(read) & self._order.constant}
        found = {**constants, **nodes}
        return [node for place in sorted(found) for node in found[place]]
