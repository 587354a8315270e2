"""Which single weights go: the smallest ones. Plain arrays; knows no ONNX.

L1 and L2 order single weights alike (|w| and w**2), and so they do within the groups of N:M, where a weight is kept or
not by itself; they differ for filters (``onnxsep.pruning.importance``).

Ties are broken by place: of equal magnitudes the first one goes, in the order of the tensors given and of their
elements, so that counts are exact and a second run gives the same bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Weight = NDArray[np.generic]


def magnitudes(weight: Weight) -> NDArray[Any]:
    """Absolute values, in a type in which those of all stored types keep their order: float64 for it, else float32."""
    wide = weight.astype(np.float64 if weight.dtype == np.float64 else np.float32)
    return np.abs(wide)


def smallest(weights: Sequence[Weight], count: int) -> list[Mask]:
    """Mark the ``count`` smallest elements of several arrays together.

    Args:
        weights: finite arrays of any shape.
        count: how many to mark, at most as many as there are.

    Returns:
        A mask for each array, True where its element is marked; ``count`` of all are True.
    """
    if count <= 0:
        return [np.zeros(weight.shape, np.bool_) for weight in weights]
    every = [magnitudes(weight) for weight in weights]
    threshold = np.partition(np.concatenate([values.ravel() for values in every]), count - 1)[count - 1]
    masks = [values < threshold for values in every]
    open_places = count - sum(int(mask.sum()) for mask in masks)
    for mask, values in zip(masks, every, strict=True):
        if not open_places:
            break
        ties = np.flatnonzero(values == threshold)[:open_places]
        mask.reshape(-1)[ties] = True
        open_places -= len(ties)
    return masks


def outside_pattern(weight: Weight, kept: int, of: int) -> Mask:
    """Mark all but the ``kept`` largest of every ``of`` consecutive input channels.

    Args:
        weight: [out_channels, in_channels / group, *kernel_shape]; the second dimension is a multiple of ``of``.
        kept: N of N:M.
        of: M of N:M.

    Returns:
        A mask of the weight's shape, True where its element is to go.
    """
    values = magnitudes(weight)
    groups = values.reshape(values.shape[0], -1, of, *values.shape[2:])
    order = np.argsort(groups, axis=2, kind="stable")  # of equal ones the first is the "smaller"
    mask = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(mask, order[:, :, : of - kept], True, axis=2)
    return mask.reshape(values.shape)
