"""Preconditioned conjugate gradients (Hestenes and Stiefel 1952), for matrices that are given as products."""

from collections.abc import Callable

import numpy as np

from onnxsep.algebra.linalg import Array

_FLAT = 1e-9  # curvature, relative to what the preconditioner expects: less is rounding, in a direction of no curvature


def conjugate_gradients(
    apply: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    rest: Array,
    *,
    steps: int,
    tolerance: float,
) -> tuple[Array, Array]:
    """Some steps for H d = r, H symmetric and positive semidefinite; each lowers <H d, d> / 2 - <r, d>.

    Args:
        apply: H times an array.
        precondition: an approximate inverse of H times an array, symmetric and positive definite too.
        rest: r.
        steps: at most so many.
        tolerance: of the norm of what is left, in the norm of the preconditioner, relative to the start.

    Returns:
        d, and what is left of r.
    """
    change = np.zeros_like(rest)
    direction = scaled = precondition(rest)
    energy = start = size = float(np.vdot(rest, scaled))  # ``size`` is that of the direction, in the same norm
    for _ in range(steps):
        if not energy > tolerance**2 * start:
            break
        image = apply(direction)
        curvature = float(np.vdot(direction, image))
        if not curvature > _FLAT * size:
            break
        length = energy / curvature
        change += length * direction
        rest = rest - length * image
        scaled = precondition(rest)
        before, energy = energy, float(np.vdot(rest, scaled))
        direction = scaled + (energy / before) * direction
        size = energy + (energy / before) ** 2 * size
    return change, rest
