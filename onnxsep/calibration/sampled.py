"""The rows of one Conv that its replacement is fitted to, and what they ask for before an activation that clips."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.gram import Mixed
from onnxsep.calibration.sampling import Floats


@dataclass(frozen=True)
class Samples:
    """Rows of one Conv's inputs and outputs at sampled positions.

    Attributes:
        inputs: [rows, in_channels * taps], from the rewritten network.
        targets: [rows, out_channels], y of the original network with its bias.
        skip: [rows, out_channels], s and s', where the tail has a skip.
        held_out: [rows], the rows that are not for fitting.
        mixed: for each group the mean of x0 x^T, [d, d], where it was asked for.
        further: the same as ``skip`` for each skip of what the tail says of more.
    """

    inputs: Floats
    targets: Floats
    skip: tuple[Floats, Floats] | None
    held_out: NDArray[np.bool_]
    mixed: tuple[Mixed, ...] | None = None
    further: tuple[tuple[Floats, Floats], ...] = ()


def majorised(wanted: Floats, now: Floats, low: Floats | np.float32, high: Floats | np.float32) -> Floats:
    """What is to be reached before an activation that clips, given what is there now; the limits broadcast."""
    wanted = np.where(wanted <= low, np.minimum(now, low), wanted)
    reached: Floats = np.where(wanted >= high, np.maximum(now, high), wanted)
    return reached
