"""Curves as the numbers of an SVG drawing; the page's template writes the elements and escapes every text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxsep.reporting.document import Curve, Curves, Point
from onnxsep.reporting.printable import printable

LARGE, SMALL = (640, 280), (300, 150)  # units of a drawing that stands alone, and of one among several
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 24  # room for the numbers of the axes
_MANY = 50.0  # times the smallest value: larger ranges are drawn on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    """A number at an axis, and where it stands."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point in the drawing, and what is told of it."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Drawing:
    """One curve in its frame.

    Attributes:
        name: What it is of.
        width: Of the whole.
        height: Of the whole.
        frame: Left, top, right and bottom of where the curve is.
        line: The curve, as SVG's ``points``.
        dots: Points of which something is told.
        chosen: The point that was taken.
        across: Numbers below.
        up: Numbers to the left.
    """

    name: str
    width: int
    height: int
    frame: tuple[int, int, int, int]
    line: str
    dots: tuple[Dot, ...]
    chosen: Dot | None
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def drawings(curves: Curves) -> list[Drawing]:
    """Each curve of a block; those with fewer than two finite points are left out."""
    size = LARGE if len(curves.curves) == 1 else SMALL
    found = [(curve, [point for point in curve.points if _is_finite(point)]) for curve in curves.curves]
    return [_drawing(curve, points, size, curves.logarithmic) for curve, points in found if len(points) > 1]


def _drawing(curve: Curve, points: Sequence[Point], size: tuple[int, int], logarithmic: bool) -> Drawing:
    width, height = size
    chosen = curve.chosen if curve.chosen is not None and _is_finite(curve.chosen) else None
    shown = [*points, *([] if chosen is None else [chosen])]
    frame = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    x, across = _axis([point.x for point in shown], frame[0], frame[2])
    y, up = _axis([point.y for point in shown], frame[3], frame[1], logarithmic)

    def dot(point: Point) -> Dot:
        return Dot(x(point.x), y(point.y), printable(point.words))

    return Drawing(
        printable(curve.name),
        width,
        height,
        frame,
        " ".join(f"{x(point.x):g},{y(point.y):g}" for point in points),
        tuple(dot(point) for point in points if point.words),
        None if chosen is None else dot(chosen),
        across,
        up,
    )


def _axis(
    values: Sequence[float], begin: int, end: int, logarithmic: bool = False
) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Where values lie between two places, and the numbers at both ends and in the middle."""
    low, high = min(values), max(values)
    least = min((value for value in values if value > 0), default=high)
    far = logarithmic and high > _MANY * least > 0

    def to(value: float) -> float:
        return math.log(max(value, least)) if far else value

    def back(value: float) -> float:
        return math.exp(value) if far else value

    first, last = to(low), to(high)
    if first == last:
        first, last = first - 0.5, last + 0.5

    def place(value: float) -> float:
        return round(begin + (to(value) - first) / (last - first) * (end - begin), 1)

    ends = (first, (first + last) / 2, last)
    return place, tuple(Tick(place(back(one)), _number(back(one))) for one in ends)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _is_finite(point: Point) -> bool:
    return math.isfinite(point.x) and math.isfinite(point.y)
