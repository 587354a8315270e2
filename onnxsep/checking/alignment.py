"""Pairing the statements of two texts."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

from onnxsep.checking.structure_statements import Statement

_EDITS = 300  # that the search for common lines looks ahead at once
_Path = tuple[Any, int, int, int]  # the path before, then an equal run
LinePair = tuple[int | None, int | None]  # indices of statements in the reference and in the model


def align(reference: Sequence[Statement], actual: Sequence[Statement], nameless: bool) -> list[LinePair]:
    """Pair statements in order: first equal ones, then within the gaps those that are likely versions of each other."""
    levels: tuple[Literal["exact", "definition", "kind", "class"], ...] = ("exact", "definition", "kind", "class")
    pairs: list[LinePair] = []

    def gap(r0: int, r1: int, a0: int, a1: int, level: int) -> None:
        if r0 == r1 or a0 == a1 or level == len(levels) or (levels[level] == "class" and r1 - r0 != a1 - a0):
            pairs.extend((index, None) for index in range(r0, r1))
            pairs.extend((None, index) for index in range(a0, a1))
            return
        left = [statement.key(levels[level], nameless) for statement in reference[r0:r1]]
        right = [statement.key(levels[level], nameless) for statement in actual[a0:a1]]
        i = j = 0
        for i_next, j_next in [*common(left, right), (len(left), len(right))]:
            gap(r0 + i, r0 + i_next, a0 + j, a0 + j_next, level + 1)
            if i_next < len(left) and j_next < len(right):
                pairs.append((r0 + i_next, a0 + j_next))
            i, j = i_next + 1, j_next + 1

    gap(0, len(reference), 0, len(actual), 0)
    return pairs


def common(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Indices of a long common subsequence; what is equal at both ends first, for most changes are small."""
    shorter = min(len(left), len(right))
    start = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    end = next((i for i in range(shorter - start) if left[-1 - i] != right[-1 - i]), shorter - start)
    i_end, j_end = len(left) - end, len(right) - end
    found = [(index, index) for index in range(start)]
    # What only one side has can be left out of the search.
    here, there = set(left[start:i_end]), set(right[start:j_end])
    ours = [i for i in range(start, i_end) if left[i] in there]
    theirs = [j for j in range(start, j_end) if right[j] in here]
    one, two = [left[i] for i in ours], [right[j] for j in theirs]
    at, stop = (0, 0), (len(one), len(two))
    while at[0] < stop[0] and at[1] < stop[1]:
        at, runs = _furthest(one, two, at, stop)
        found += [(ours[x + step], theirs[y + step]) for x, y, length in runs for step in range(length)]
    return found + [(i_end + step, j_end + step) for step in range(end)]


def _furthest(
    left: Sequence[Hashable], right: Sequence[Hashable], start: tuple[int, int], stop: tuple[int, int]
) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """Myers' search (An O(ND) difference algorithm, 1986) from ``start``, as far as ``_EDITS`` edits lead.

    Its time grows with the number of differences, not with how often lines repeat; without names they repeat a lot,
    and ``difflib`` then takes minutes.

    Returns:
        Where it ended, and the equal runs on the way there: index on the left, on the right, length.
    """
    reached: dict[int, tuple[int, _Path | None]] = {}  # by diagonal: index on the left, and the way there
    for edits in range(_EDITS + 1):
        last, reached = reached, {}
        for diagonal in range(-edits, edits + 1, 2):
            ways: list[tuple[int, _Path | None]] = [(start[0], None)] if edits == 0 else []
            if diagonal + 1 in last and last[diagonal + 1][0] - diagonal + start[1] - start[0] <= stop[1]:
                ways.append(last[diagonal + 1])
            if diagonal - 1 in last and last[diagonal - 1][0] < stop[0]:
                x, path = last[diagonal - 1]
                ways.append((x + 1, path))
            if not ways:
                continue
            x, path = max(ways, key=lambda way: way[0])
            first, offset = x, start[1] - start[0] - diagonal
            while x < stop[0] and x + offset < stop[1] and left[x] == right[x + offset]:
                x += 1
            if x > first:
                path = (path, first, first + offset, x - first)
            reached[diagonal] = (x, path)
            if (x, x + offset) == stop:
                return stop, _runs(path)
    diagonal, (x, path) = max(reached.items(), key=lambda item: (2 * item[1][0] - item[0], -abs(item[0])))
    return (x, x + start[1] - start[0] - diagonal), _runs(path)


def _runs(path: "_Path | None") -> list[tuple[int, int, int]]:
    runs = []
    while path is not None:
        path, *run = path
        runs.append((run[0], run[1], run[2]))
    return runs[::-1]
