"""Rows of what one Conv reads and of what it should compute, from two networks that walk side by side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.threads import threads_for
from onnxsep.calibration.behind import fitting_region, skip_values
from onnxsep.calibration.frontier import Frontier
from onnxsep.calibration.outcomes import mixed_products
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.sampling import Stack, gather_outputs, gather_patches, input_sizes, output_shape
from onnxsep.calibration.schedule import Step, Tail
from onnxsep.calibration.walk import CalibrationOptions, Walk, finite, split

# Of the pull towards the weight, times unknowns by rows. Chosen on ResNet-20 by agreement with the original on training
# images that were not calibrated with: of 0, 0.1, 0.3 and 1, the last was best by far with 40 images and 12 positions
# (one and three terms) and with 100 and 32, and made no difference with 500 and 64.
_PRIOR_PER_UNKNOWN = 1.0


def prior_of(options: CalibrationOptions, weight: Array, samples: Samples) -> float:
    """How strong the pull towards the weight is for so many rows."""
    rows = int(np.count_nonzero(~samples.held_out))
    return max(options.prior, _PRIOR_PER_UNKNOWN * int(weight[0].size) / rows)


def sample(
    walk: Walk,
    step: Step,
    tail: Tail,
    weight: Array,
    old_bias: Array | None,
    *,
    other: Frontier | None = None,
    mixed: bool = False,
    centre: bool = True,
    seed: int = 0,
) -> Samples:
    """Rows at the positions that the walk samples.

    Args:
        walk: the original network, at this step.
        step: the Conv and where it stands.
        tail: what is behind it, as ``usable_tail`` gives it.
        weight: [out_channels, in_channels / group, *kernel_shape].
        old_bias: [out_channels], or None.
        other: the network that is rewritten so far, at the same step; the original one by default.
        mixed: whether the products of both kinds of rows are wanted.
        centre: whether these are centred.
        seed: of what is held out where all images are of one kind.
    """
    site, conv, skip = step.site, step.site.conv, tail.skip
    name = walk.nodes[site.place[1]].input[0]
    frontiers = (walk.frontier, walk.frontier if other is None else other)
    gated = [walk.gated(frontier) for frontier in frontiers] if tail.gates else frontiers
    dense = weight.reshape(conv.group, conv.out_channels // conv.group, -1).astype(np.float32)
    offset = np.float32(0) if old_bias is None else old_bias.astype(np.float32)
    inputs, targets, originals, skips = Stack(), Stack(), Stack(), (Stack(), Stack())
    further = [[Stack() for _ in tail.more.skips] if tail.more else [] for _ in frontiers]
    held_out: list[NDArray[np.bool_]] = []
    for rows in walk.rows(site):
        expected = walk.samples * len(rows.patches) // len(rows.positions)
        grouped = rows.patches.reshape(len(rows.patches), conv.group, -1)
        with threads_for(walk.samples * rows.patches.size // len(rows.positions) * conv.out_channels):
            outputs = [grouped[:, group] @ dense[group].T for group in range(conv.group)]
        targets.add(np.concatenate(outputs, axis=1) + offset, expected)
        if other is None or other.shares(walk.frontier, rows.batch, name):
            inputs.add(rows.patches, expected)
        else:
            inputs.add(finite(gather_patches(conv, other.value(rows.batch, name), rows.positions), site), expected)
        held_out.append(rows.held_out)
        if mixed:
            originals.add(rows.patches, expected)
        if skip is not None:
            for kept, frontier in zip(skips, frontiers, strict=True):
                value = frontier.value(rows.batch, skip)
                # It may get the shape of the Conv's output by broadcasting.
                value = np.broadcast_to(value, output_shape(conv, len(rows.positions), rows.size))
                kept.add(gather_outputs(conv, value, rows.positions), expected)
        if tail.more is not None:
            shape = output_shape(conv, len(rows.positions), rows.size)
            for columns, frontier in zip(further, gated, strict=True):
                found = skip_values(tail.more, frontier, rows.batch, conv, shape)
                for column, one in zip(columns, found, strict=True):
                    assert one is not None, "usable_tail has seen to that"
                    column.add(gather_outputs(conv, one, rows.positions), expected)
    mask, read = split(np.concatenate(held_out), seed, site), inputs.rows
    products = None
    if mixed:
        products = mixed_products(originals.rows[~mask], read[~mask], conv.group, centre=centre)
    kept_skips = (skips[0].rows, skips[1].rows) if skip is not None else None
    others = tuple((one.rows, two.rows) for one, two in zip(*further, strict=True))
    return Samples(read, targets.rows, kept_skips, mask, products, others)


def usable_tail(walk: Walk, step: Step, frontiers: Sequence[Frontier]) -> Tail:
    """The tail; only its part before a skip where that enlarges the Conv's output, or adds NaN or infinity."""
    conv, tail = step.site.conv, step.tail
    name = walk.nodes[step.site.place[1]].input[0]
    if tail.more is not None and tail.more.skips:

        def shape_of(frontier: Frontier, batch: int) -> tuple[int, ...]:
            read = frontier.value(batch, name)
            return output_shape(conv, len(read), input_sizes(conv, read.shape))

        networks = [walk.gated(frontier) for frontier in frontiers] if tail.gates else frontiers
        tail = replace(tail, more=fitting_region(tail.more, networks, conv, shape_of))
    if tail.skip is None or tail.before_skip is None:
        return tail
    for frontier in frontiers:
        for batch in range(frontier.batches):
            read, skip = frontier.value(batch, name), frontier.value(batch, tail.skip)
            shape = output_shape(conv, len(read), input_sizes(conv, read.shape))
            try:
                fits = np.broadcast_shapes(skip.shape, shape) == shape
            except ValueError:
                fits = False
            if not fits or not np.isfinite(skip).all():
                return tail.before_skip
    return tail
