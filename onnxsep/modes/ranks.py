"""Choosing the rank of one Conv: what ``--rank`` and ``--round-ranks`` mean."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from onnxsep.algebra.linalg import Array
from onnxsep.errors import FactorizationError, OptionError, spelled
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import parameters
from onnxsep.layers.rank import Rank, RankAxis, RankPolicy
from onnxsep.modes.base import Mode, Task


def rank_axes(mode: Mode, conv: Conv, rank: Rank) -> list[RankAxis]:
    """The range of every rank, given those before it."""
    axes: list[RankAxis] = []
    while (axis := mode.rank_axis(conv, rank[: len(axes)])) is not None:
        axes.append(axis)
    return axes


def check_rounding(multiple: int) -> None:
    """Refuse what channels in between cannot be made multiples of.

    Raises:
        OptionError: it is none of 8, 16 and 0.
    """
    if multiple not in (0, 8, 16):
        raise OptionError(f"{spelled('round_ranks', multiple)} is not 8 or 16 (0: no rounding)")


def no_rule(mode: Mode) -> str:
    """Why a mode cannot have the rank "in"."""
    return f"mode {mode.name} has no rank 'in': it is one of spatial, which has as many channels between as come in"


def choose_rank(
    conv: Conv, mode: Mode, policy: RankPolicy, multiple: int, read: Callable[[], Array]
) -> tuple[Rank, tuple[str, ...]]:
    """The ranks that a policy gives for one Conv, and notes for the user.

    Args:
        conv: the Conv.
        mode: the mode.
        policy: how to choose.
        multiple: channels in between become multiples of this, 0 for any number.
        read: gives the weight; called only where the rank depends on it (``energy=``).

    Raises:
        FactorizationError: no rank satisfies the policy, or the weight cannot be used.
    """
    weight = _scaled(read()) if policy.kind == "energy" else None
    if policy.kind == "in" and not mode.ranks_as_inputs:
        raise FactorizationError(no_rule(mode))
    if mode.rank_axis(conv, ()) is None:
        return (), _without_ranks(conv, mode, policy)
    if policy.kind == "fraction":
        return _fraction_rank(conv, mode, policy.value, multiple), ()
    rank: Rank = ()
    notes: list[str] = []
    while (axis := mode.rank_axis(conv, rank)) is not None:
        wanted = _wanted(policy, mode, conv, axis, rank, weight)
        used = axis.clamp(wanted)
        if policy.kind == "integer" and used != wanted:
            notes.append(f"rank {wanted} clamped to {used}")
        rank += (_rounded(axis, used, 0 if policy.kind == "full" else multiple, up=True),)  # full means exact
    return rank, tuple(notes)


def check_rank(conv: Conv, mode: Mode, rank: Rank) -> None:
    """Refuse ranks that a mode does not have for a Conv.

    Raises:
        OptionError: says which are the nearest.
    """
    near: Rank = ()
    while (axis := mode.rank_axis(conv, near)) is not None:
        wanted = rank[len(near)] if len(near) < len(rank) else axis.paper
        near += (axis.clamp(wanted + (axis.step - 1) // 2),)
    if near == rank:
        return
    if not near:
        raise OptionError(f"mode {mode.name} has no rank to choose; take out {list(rank)}")
    ranges = ", ".join(
        f"{axis.step} to {axis.full}" + (f" by {axis.step}" if axis.step > 1 else "")
        for axis in rank_axes(mode, conv, near)
    )
    raise OptionError(f"mode {mode.name} has no rank {list(rank)} here; the nearest is {list(near)} (of {ranges})")


def _without_ranks(conv: Conv, mode: Mode, policy: RankPolicy) -> tuple[str, ...]:
    """Notes on a policy for a mode that has nothing to choose.

    Raises:
        FactorizationError: the policy is a limit, and the mode's only form is beyond it or cannot tell.
    """
    if policy.kind == "energy":
        raise FactorizationError(f"mode {mode.name} has no rank, so it cannot keep a share of the energy")
    if policy.kind == "fraction":
        after = _weight_size(mode, conv, ())
        if after > Fraction(str(policy.value)) * conv.weight_size:
            raise FactorizationError(
                f"mode {mode.name} has no rank, and its {after:,} weights are more than {policy.value:g} of "
                f"{conv.weight_size:,}"
            )
        return ()
    return () if policy.kind == "paper" else (f"mode {mode.name} has no rank: {str(policy)!r} is not used",)


def kept_energy(mode: Mode, conv: Conv, weight: Array, rank: Rank) -> Array:
    """The share of the squared singular values that each value of the last rank keeps, [n], given those before it.

    Args:
        mode: Whose singular values these are.
        conv: The Conv.
        weight: Its weight.
        rank: The ranks that were chosen; the n-th value is that of the last one being n times the axis's step.

    Raises:
        FactorizationError: The mode has no such values.
    """
    if not rank:
        raise FactorizationError(f"mode {mode.name} has no rank")
    sums = _energy(mode, conv, _scaled(weight) if weight.any() else weight, rank[:-1])
    return sums / sums[-1] if sums[-1] > 0 else np.ones_like(sums)


def _energy(mode: Mode, conv: Conv, weight: Array, chosen: Rank) -> Array:
    """Sums of the largest squared singular values, all slices together, [n]."""
    sums: Array = np.cumsum(mode.spectrum(Task(conv, weight), chosen).sum(axis=0))
    return sums


def _scaled(weight: Array) -> Array:
    """The weight at a scale at which squares neither overflow nor vanish; shares of energy do not depend on it."""
    return np.ldexp(weight, -int(np.frexp(np.max(np.abs(weight)))[1]))


def _wanted(policy: RankPolicy, mode: Mode, conv: Conv, axis: RankAxis, chosen: Rank, weight: Array | None) -> int:
    if policy.kind == "full":
        return axis.full
    if policy.kind == "paper":
        return axis.paper
    if policy.kind == "in":
        return axis.paper if axis.inputs is None else axis.inputs
    if weight is None:
        return int(policy.value)
    share = _energy(mode, conv, weight, chosen)
    # Rounding must not ask for one rank more than the exact sum would.
    needed = int(np.searchsorted(share, policy.value * share[-1] * (1 - 1e-12))) + 1
    return axis.full if needed >= len(share) else needed * axis.step


def _fraction_rank(conv: Conv, mode: Mode, share: float, multiple: int) -> Rank:
    """The largest ranks whose weights are at most ``share`` of the Conv's: equal ones first, then each in turn."""
    budget = Fraction(str(share)) * conv.weight_size  # the decimal that the user wrote, so that 0.29 of 100 is 29

    def at(common: int) -> Rank:
        rank: Rank = ()
        while (axis := mode.rank_axis(conv, rank)) is not None:
            rank += (axis.clamp(common),)
        return rank

    def fits(rank: Rank) -> bool:
        return _weight_size(mode, conv, rank) <= budget

    if not fits(at(1)):
        least = _weight_size(mode, conv, at(1))
        raise FactorizationError(
            f"no rank keeps {share:g} of its {conv.weight_size:,} weights: the smallest needs {least:,}"
        )
    low, high = 1, conv.weight_size  # no rank is larger than that
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle - 1)
    rank = at(low)
    for position, axis in enumerate(rank_axes(mode, conv, rank)):
        while rank[position] < axis.full and fits(grown := _with(rank, position, rank[position] + axis.step)):
            rank = grown
    rounded: Rank = ()
    while (limits := mode.rank_axis(conv, rounded)) is not None:  # rounding one rank down may limit the next
        rounded += (_rounded(limits, limits.clamp(rank[len(rounded)]), multiple, up=False),)
    return rounded


def _weight_size(mode: Mode, conv: Conv, rank: Rank) -> int:
    """Weight elements of a replacement; the bias that stays is no part of them."""
    return parameters(mode.layers(replace(conv, bias=False), rank))


def _with(rank: Rank, position: int, value: int) -> Rank:
    return (*rank[:position], value, *rank[position + 1 :])


def _rounded(axis: RankAxis, rank: int, multiple: int, *, up: bool) -> int:
    """A multiple that the runtime likes: the next one up, or down where the rank is a limit; terms stay."""
    if multiple <= 1 or axis.unit == "terms":
        return rank
    multiple = int(np.lcm(multiple, axis.step))
    rounded = (-(-rank // multiple) if up else rank // multiple) * multiple
    if rounded > axis.full:
        rounded = axis.full // multiple * multiple
    return rounded or rank
