"""Fits of one Conv in many modes, at many ranks, from one gathering: what a choice among them needs.

What the Conv reads and should compute, the Gram matrices and the prior are the same for all of them. For each mode the
ranks are walked from the highest to the lowest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.fitting import PRIOR, Fit, Fitter, Samples
from onnxsep.calibration.schedule import Tail
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import parameters
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Mode


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
    """Fit all candidates, and give each as soon as it is done, with its place in the list.

    The arguments are those of ``onnxsep.calibration.fitting.fit``; so is each result, bit by bit.

    Raises:
        MemoryError: of one candidate; the others can still be fitted, by another call.
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
