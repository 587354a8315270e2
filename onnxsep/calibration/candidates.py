"""Fits of Convs in many modes, at many ranks, from one gathering: what a choice among them needs.

``gather`` walks the original network once, with the data, and gives for each Conv what it reads and should compute;
``fit_candidates`` fits one of these. Samples, Gram matrices and prior are the same for all candidates of a Conv. Each
is fitted as if it were the only one replaced.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.dense import Dense, stand_ins
from onnxsep.calibration.fitting import PRIOR, Fit, Fitter
from onnxsep.calibration.frontier import Frontier
from onnxsep.calibration.outcomes import read_bias
from onnxsep.calibration.own_nodes import OwnNodes
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.samples import prior_of, sample, usable_tail
from onnxsep.calibration.schedule import Step, Tail, make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import reads
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import parameters
from onnxsep.layers.rank import Rank
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.running.runtime import RuntimeOptions


@dataclass(frozen=True)
class Candidate:
    """One way to replace a Conv, and how it is fitted.

    Attributes:
        mode: which.
        rank: within the ranges of its ``rank_axis``.
        init: one of its ``inits``; None for the last one, which is the best.
    """

    mode: Mode
    rank: Rank
    init: str | None = None


@dataclass(frozen=True)
class Gathered:
    """What a Conv reads and should compute, and how strong the pull towards its weight is.

    Attributes:
        site: the Conv.
        weight: [out_channels, in_channels / group, *kernel_shape].
        old_bias: [out_channels]; None where it has none, or one that is computed.
        samples: rows at sampled positions.
        tail: what stands behind it.
        prior: as ``onnxsep.calibration.fitting.fit`` has it.
    """

    site: ConvSite
    weight: Array
    old_bias: Array | None
    samples: Samples
    tail: Tail
    prior: float


def gather(
    model: Model,
    sites: Sites,
    chosen: Sequence[ConvSite],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    replaced: Mapping[Place, Dense | OwnNodes] | None = None,
) -> Iterator[Gathered]:
    """Walk the original network, and give the samples of every chosen Conv as it comes by.

    The arguments are those of ``onnxsep.calibration.layerwise.calibrate``; the Convs are some of the main graph.
    ``replaced`` are weights and biases of Convs of another network, and nodes of its blocks: it says what Convs read.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        FactorizationError: a weight cannot be read.
    """
    for _, gathered in along(model, sites, chosen, batches, options, runtime, replaced):
        yield gathered()


def along(
    model: Model,
    sites: Sites,
    chosen: Sequence[ConvSite],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    replaced: Mapping[Place, Dense | OwnNodes] | None = None,
) -> Iterator[tuple[ConvSite, Callable[[], Gathered]]]:
    """The walk of ``gather``, and at each Conv what gathers its samples, as long as the walk is there.

    What a Conv reads does not depend on which others are gathered: the walk runs the same pieces in any case.
    """
    walk = Walk(model, batches, options, runtime)
    other = None if replaced is None else _Replaced(walk, sites, replaced)
    for step in make_schedule(model, sites.scopes, list(chosen)):
        walk.advance(step)
        read = walk.frontier if other is None else other.advance(step)
        yield step.site, partial(_gathered, model, sites, walk, step, read)


def _gathered(model: Model, sites: Sites, walk: Walk, step: Step, read: Frontier) -> Gathered:
    site, options = step.site, walk.options
    weight, old_bias = read_weight(model, sites, site), read_bias(model, sites, site)
    tail = usable_tail(walk, step, (walk.frontier, read))
    other = None if read is walk.frontier else read
    samples = sample(walk, step, tail, weight, old_bias, other=other, seed=options.seed)
    if site.conv.bias and site.bias is None:  # a computed bias is not known here, and so not what is clipped
        tail = tail.unclipped
    return Gathered(site, weight, old_bias, samples, tail, prior_of(options, weight, samples))


class _Replaced:
    """Another network beside the walk, some of whose layers are replaced."""

    def __init__(self, walk: Walk, sites: Sites, replaced: Mapping[Place, Dense | OwnNodes]) -> None:
        self._frontier, self._walk = walk.frontier.fork(), walk
        stands = stand_ins(walk.nodes, sites, replaced, copied=walk.copied)
        self._stands = stands.nodes
        blocks = [node for one in replaced.values() if isinstance(one, OwnNodes) for node in one.all_nodes]
        self._reads = {name for node in blocks for name in reads(node)}  # longer, maybe, than what they stand for
        for tensor in stands.tensors:
            self._frontier.add_initializer(tensor)

    def advance(self, step: Step) -> Frontier:
        """Move on to the Conv of this step."""
        nodes = [node for index in step.nodes for node in self._stands.get(index, [self._walk.nodes[index]])]
        self._frontier.advance(nodes, self._reads.union(step.keep))
        return self._frontier


def fit_candidates(
    conv: Conv,
    weight: Array,
    samples: Samples,
    tail: Tail,
    candidates: Sequence[Candidate],
    *,
    old_bias: Array | None,
    new_bias: bool,
    prior: float = PRIOR,
) -> Iterator[tuple[int, Fit]]:
    """Fit all candidates, mode by mode and from the highest rank to the lowest.

    The arguments are those of ``onnxsep.calibration.fitting.fit``; so is each result, bit by bit.

    Yields:
        The place of a candidate in the list, and its fit, as soon as it is done.
    """
    if not candidates:
        return
    names = [one.mode.name for one in candidates]
    sizes = [parameters(one.mode.layers(conv, one.rank)) for one in candidates]
    order = sorted(range(len(candidates)), key=lambda place: (names.index(names[place]), -sizes[place]))
    first = candidates[order[0]]
    fitter = Fitter(first.mode, conv, first.rank, weight, samples, tail, old_bias, new_bias, prior)
    for place in order:
        one = candidates[place]
        yield place, fitter.with_mode(one.mode, one.rank).run(one.init or one.mode.inits[-1])
