"""Where does the error arise? The tensors that two models have in common, compared on the same inputs.

Both models run with their inner tensors as outputs, some at a time, and only sums over them are kept. The runtime does
not optimise the graphs here: each node is computed by itself, so that what is compared is what the graph says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import inliner

from onnxsep.checking.layer_report import LayersReport
from onnxsep.checking.layer_rows import MatchTally, Rows, usual_error
from onnxsep.checking.matching import Match, match_tensors
from onnxsep.checking.network import LAYERS, Network, Value
from onnxsep.graph.marks import KEY, onto_nodes
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce, under
from onnxsep.running.feeds import samples_of
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.integer_io import IntegerIO, integer_io, quantized_feed
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

Feeds = Callable[[int], Iterator[Mapping[str, Any]]]
"""Inputs for the reference, at most so many samples at a time where they can be divided; the same ones every time."""

_HELD = 256 * 2**20  # bytes of the tensors of both models at a time, as far as one sample allows
_BATCH = 16
_PROBED = 64  # tensors of which one sample is run at once, to learn their sizes


def compare_layers(
    reference: Model,
    model: Model,
    feeds: Feeds,
    options: RuntimeOptions,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> LayersReport:
    """Compare the tensors that two models have in common.

    Args:
        reference: The model that computes what is right.
        model: The other one.
        feeds: The inputs.
        options: How the models are run.
        notes: What the reader must know about the inputs.
        progress: Told of every feed, among the layers that are run at a time.

    Raises:
        CannotRun: the runtime cannot run one of the models; the message says which and why.
    """
    reference, model, said = _runnable(reference, model)
    networks = Network(reference), Network(model)
    matches = [match for match in match_tensors(*networks) if _worth(match)]
    pair = _Pair(networks[0], networks[1], replace(options, optimize=False), feeds, progress)
    tallies = pair.run(matches)
    rows = Rows(networks[0], tallies, usual_error(networks)).rows()
    compared = {id(tally.match.reference) for tally in tallies}
    layers = [stem for stem in networks[0].stems if stem.kind in LAYERS]
    found = {stem.head for stem in layers if any(id(value) in compared for value in stem.values)}
    convs = [stem.head for stem in layers if stem.kind != "MatMul"]
    linear = [stem.head for stem in layers if stem.kind == "MatMul"]
    values = {id(value): value for value in networks[0].values.values() if value.node is not None}
    return LayersReport(
        rows=tuple(rows),
        convs=len(convs),
        convs_compared=len(found.intersection(convs)),
        linear=len(linear),
        linear_compared=len(found.intersection(linear)),
        tensors=len(values),
        tensors_compared=len(compared.intersection(values)),
        nested=networks[0].skipped,
        not_compared=tuple(networks[0].name(stem.head) for stem in layers if stem.head not in found),
        samples=pair.samples,
        first_jump=next((row.name for row in rows if row.jump), None),
        notes=(*notes, *said, *pair.notes),
    )


def _runnable(reference: Model, model: Model) -> tuple[Model, Model, tuple[str, ...]]:
    """Both models with their functions inlined, in float32 where the runtime lacks kernels for their types."""
    models = [_inlined(reference), _inlined(model)]
    notes: tuple[str, ...] = ()
    if types := sorted({name for one in models for name in held_types(one)}):
        models = [float32_copy(one) for one in models]
        notes = (f"compared through float32 copies: the runtime lacks kernels for {' and '.join(types)}",)
    return models[0], models[1], notes


def _inlined(model: Model) -> Model:
    if not model.proto.functions:
        return model
    proto = model.proto
    if any(entry.key == KEY for entry in proto.metadata_props):
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        onto_nodes(proto)  # what a function's nodes say goes with them
    proto = inliner.inline_local_functions(proto)
    return Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)


def _worth(match: Match) -> bool:
    """Whether the tensors can differ: a graph input does where it is rounded."""
    if match.reference.node is not None and match.actual.node is not None:
        return True
    return match.rounded and (match.reference.quantized or match.actual.quantized)


class _Watched:
    """A model whose inner tensors are outputs.

    Args:
        network: The model.
        wanted: Values, and whether they are wanted as they are after rounding to integers.
        options: How it is run.
    """

    def __init__(self, network: Network, wanted: Sequence[tuple[Value, bool]], options: RuntimeOptions) -> None:
        source = network.model
        proto = onnx.ModelProto()
        proto.CopyFrom(source.proto)
        del proto.graph.output[:]
        self._names = [_tensor(proto, value, rounded) for value, rounded in wanted]
        self._integers: IntegerIO = integer_io(source.proto)
        fed = {entry.name for entry in proto.graph.input}
        for name in dict.fromkeys(self._names):
            if name not in fed:
                proto.graph.output.add().name = name
        model = Model(proto, base_dir=source.base_dir, follow_links=source.follow_links)
        self._run = Runner(model, options) if proto.graph.output else None

    def __call__(self, feed: Mapping[str, Any]) -> list[Any]:
        """The values in the order in which they were wanted."""
        found = dict(feed)
        if self._run is not None:
            found |= self._run(quantized_feed(feed, self._integers))
        return [found[name] for name in self._names]


def _tensor(proto: onnx.ModelProto, value: Value, rounded: bool) -> str:
    """The name of the floats that stand for a value; a DequantizeLinear is added where there are only integers."""
    if not value.is_integer and not (rounded and value.quantized):
        return value.name
    if value.dequantized is not None:
        return value.dequantized
    assert value.integers is not None
    name = f"{value.integers[0]} as onnxsep dequantises it"
    if not any(node.output[0] == name for node in reversed(proto.graph.node) if node.output):
        inputs = [each for each in value.integers if each]
        proto.graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [name]))
    return name


class _Pair:
    """Two networks that are run side by side."""

    def __init__(
        self, reference: Network, model: Network, options: RuntimeOptions, feeds: Feeds, progress: Progress | None
    ) -> None:
        self._networks = reference, model
        self._options, self._feeds, self._progress = options, feeds, progress
        self.samples = 0
        self.notes: tuple[str, ...] = ()

    def run(self, matches: Sequence[Match]) -> list[MatchTally]:
        """The sums of all matches that can be compared."""
        size = max(_PROBED, -(-len(matches) // 8))
        parts = [list(matches[start : start + size]) for start in range(0, len(matches), size)]
        sizes: list[int] = []
        for part in parts:
            first = next(self._values(part, 1))
            sizes += [sum(getattr(value, "nbytes", 0) for value in pair) for pair in first[1]]
        tallies: list[MatchTally] = []
        blocks = list(_blocks(matches, sizes))
        for number, (block, batch) in enumerate(blocks):
            layer = block[0].reference.name
            progress = under(f"comparing the layers from {layer}", self._progress)
            tallies += self._tally(block, batch, progress, number, len(blocks))
        if left := len(matches) - len(tallies):
            self.notes += (f"{left} pairs of tensors are left out: their shapes differ, or they are no numbers",)
        return tallies

    def _tally(
        self, block: Sequence[Match], batch: int, progress: Progress | None, number: int, blocks: int
    ) -> list[MatchTally]:
        tallies = [MatchTally(match) for match in block]
        sound = [True] * len(block)
        samples = 0
        for count, pairs in self._values(block, batch):
            samples += 1 if count is None else count
            for place, (expected, actual) in enumerate(pairs):
                sound[place] = sound[place] and tallies[place].add(expected, actual, count)
            announce(progress, f"{samples} samples", number, blocks)
        self.samples = samples
        return [tally for tally, good in zip(tallies, sound, strict=True) if good]

    def _values(self, block: Sequence[Match], batch: int) -> Iterator[tuple[int | None, list[tuple[Any, Any]]]]:
        """For each feed how many samples it holds, and the tensors of the reference and the model."""
        reference = self._watched(0, [(match.reference, match.rounded) for match in block])
        model = self._watched(1, [(match.actual, match.rounded) for match in block])
        names = self._renamed()
        for feed in self._feeds(batch):
            feed = {name: as_float32(value) if isinstance(value, np.ndarray) else value for name, value in feed.items()}
            try:
                expected = reference(feed)
            except CannotRun as error:
                raise CannotRun(f"the runtime cannot run the reference: {error}") from error
            try:
                actual = model({names.get(name, name): value for name, value in feed.items()})
            except CannotRun as error:
                raise CannotRun(f"the runtime cannot run the model: {error}") from error
            yield samples_of(feed), list(zip(expected, actual, strict=True))

    def _watched(self, side: int, wanted: Sequence[tuple[Value, bool]]) -> _Watched:
        try:
            return _Watched(self._networks[side], wanted, self._options)
        except CannotRun as error:
            raise CannotRun(f"the runtime cannot load the {('reference', 'model')[side]}: {error}") from error

    def _renamed(self) -> dict[str, str]:
        """Names of the model's inputs by the reference's, where no name is the same."""
        ours, theirs = (
            [value.name for name, value in network.values.items() if value.node is None and value.name == name]
            for network in self._networks
        )
        return dict(zip(ours, theirs, strict=False)) if not set(ours) & set(theirs) else {}


def _blocks(matches: Sequence[Match], sizes: Sequence[int]) -> Iterator[tuple[list[Match], int]]:
    """Matches that are run together, and how many samples at a time."""
    block: list[Match] = []
    held = 0
    for match, size in zip(matches, sizes, strict=True):
        if block and held + size > _HELD:
            yield block, 1
            block, held = [], 0
        block.append(match)
        held += size
    if block:
        yield block, max(1, min(_BATCH, _HELD // max(held, 1)))
