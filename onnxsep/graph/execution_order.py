"""The order of execution that needs the least memory for tensors.

Which order of the nodes of a network has the lowest peak of live tensors is the problem that E. Liberis and N. D. Lane
solve for microcontrollers (Neural networks on microcontrollers: saving memory at inference via operator reordering,
2019, arXiv:1910.05110) by dynamic programming over sets of tensors. Here:

- A step that every other one comes before or behind of, in any order, cuts the program in two that are solved each by
  itself: which tensors are alive there does not depend on the order. A chain falls into single steps.
- Between two cuts the sets of steps that may be done are searched, those of the lowest peak first (Dijkstra's algorithm
  with the maximum in place of the sum), so that what is found is optimal. A step that is possible, does not raise the
  peak and leaves no more alive than before is taken at once: a step frees the more the more steps are done before it,
  so no later time needs more memory for it.
- Where there are too many sets (the problem is NP-complete: R. Sethi, Complete register allocation problems, 1975), a
  beam search goes on with the best few, and the file's own order stays where it is not worse.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

_MOST_WORK = 150_000  # steps that one kind of search looks at, over the whole program; below a second
_BEAMS = (1, 16)  # sets that are kept


@dataclass(frozen=True)
class Step:
    """One node, or several that are run as one.

    Attributes:
        reads: buffers that it needs.
        writes: buffers that come to life with it; one that it only writes over is among ``reads``.
        after: earlier steps that must be done before.
        extra: further bytes while it runs, such as those of the graph within it.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    after: tuple[int, ...]
    extra: int = 0


@dataclass(frozen=True)
class Program:
    """Steps in an order in which they can be done, and the buffers that they use.

    A buffer is alive from the step that writes it, or from the beginning, until all steps that use it are done.

    Attributes:
        steps: the steps.
        sizes: bytes of each buffer.
        given: buffers that are alive at the beginning.
        kept: buffers that stay until the end.
    """

    steps: Sequence[Step]
    sizes: Sequence[int]
    given: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()


class Order(NamedTuple):
    """An order of the steps.

    Attributes:
        steps: their numbers.
        peak: the most bytes that are alive at a time.
        optimal: whether it is proved that no order has a lower peak.
    """

    steps: list[int]
    peak: int
    optimal: bool


def peak(program: Program, order: Sequence[int]) -> int:
    """The most bytes that are alive at a time, where the steps are done in this order."""
    run = _Run(program)
    return max([run.alive, *(run.do(step) for step in order)])


def bytes_at(program: Program, order: Sequence[int]) -> dict[int, int]:
    """The bytes that are alive while each step runs, where the steps are done in this order."""
    run = _Run(program)
    return {step: run.do(step) for step in order}


def best_order(program: Program, enough: int | None = None) -> Order:
    """An order with the lowest peak, or one with a low peak where the program is too large to find the lowest.

    The time is about linear in the number of steps; searching is bounded.

    Args:
        program: The steps.
        enough: Bytes that every part of the order is to keep within, as far as that can be found; None: only the peak
            of the whole counts.
    """
    run = _Run(program)
    orders = _segments(program)
    peaks, starts = [], [run.alive]
    for segment in orders:
        peaks.append(max(run.do(step) for step in segment))
        starts.append(run.alive)
    # What no order avoids: the beginning, what lives on at each cut, and steps that stand alone.
    least = max([*starts, *(found for found, segment in zip(peaks, orders, strict=True) if len(segment) == 1)])
    highest, work, ends = least, 0, _last_users(program)
    for number in sorted(range(len(orders)), key=lambda number: -peaks[number]):
        bound = highest if enough is None else enough
        if peaks[number] <= bound:
            break
        search = _Search(program, orders[number], ends, starts[number], bound)
        found = search.exact(_MOST_WORK - work)
        if found is None:
            found = search.beam(2 * _MOST_WORK - work)
        else:
            least = max(least, found.peak)
        work += search.work
        if found is not None and found.peak < peaks[number]:
            peaks[number], orders[number] = found.peak, found.path()
        highest = max(highest, peaks[number])
    return Order([step for order in orders for step in order], highest, highest == least)


def _last_users(program: Program) -> dict[int, int]:
    """The last step in the program's own order that uses each buffer."""
    return {buffer: number for number, step in enumerate(program.steps) for buffer in (*step.reads, *step.writes)}


class _Run:
    """What is alive while steps are done."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._left = [0] * len(program.sizes)  # steps that still need a buffer
        for step in program.steps:
            for buffer in {*step.reads, *step.writes}:
                self._left[buffer] += 1
        needed = (buffer for buffer in program.given if self._left[buffer] or buffer in program.kept)
        self.alive = sum(program.sizes[buffer] for buffer in needed)

    def do(self, number: int) -> int:
        """Do a step; gives the bytes that are alive while it runs."""
        step, sizes = self._program.steps[number], self._program.sizes
        self.alive += sum(sizes[buffer] for buffer in step.writes)
        highest = self.alive + step.extra
        for buffer in {*step.reads, *step.writes}:
            self._left[buffer] -= 1
            if not self._left[buffer] and buffer not in self._program.kept:
                self.alive -= sizes[buffer]
        return highest


def _segments(program: Program) -> list[list[int]]:
    """The steps in their order, in runs that end in a cut.

    A step has all earlier ones behind it where none of those but itself waits for a reader: where of the steps up to it
    it alone has no successor among them. Likewise for the later ones, from the end.
    """
    steps = program.steps
    followers: list[list[int]] = [[] for _ in steps]
    for number, step in enumerate(steps):
        for earlier in step.after:
            followers[earlier].append(number)
    last = len(steps) - 1
    before = _lonely(step.after for step in steps)
    after = _lonely([last - number for number in behind] for behind in reversed(followers))[::-1]
    found: list[list[int]] = [[]]
    for number in range(len(steps)):
        if before[number] and after[number]:
            found += [[number], []]
        else:
            found[-1].append(number)
    return [segment for segment in found if segment]


def _lonely(predecessors: Iterable[Sequence[int]]) -> list[bool]:
    """Whether each item is the only one, of those up to it, that none of them follows."""
    followed: list[bool] = []
    found: list[bool] = []
    ends = 0
    for earlier in predecessors:
        followed.append(False)
        ends += 1
        for other in earlier:
            ends -= not followed[other]
            followed[other] = True
        found.append(ends == 1)
    return found


@dataclass(frozen=True, slots=True)
class _State:
    """Some steps of a segment are done."""

    peak: int
    alive: int
    done: int  # bits
    ready: tuple[int, ...]
    last: int = -1
    before: "_State | None" = field(default=None, repr=False)

    def path(self) -> list[int]:
        """The steps in the order in which they were done."""
        found: list[int] = []
        state: _State | None = self
        while state is not None and state.last >= 0:
            found.append(state.last)
            state = state.before
        return found[::-1]


class _Search:
    """Orders of one segment: everything before it is done, nothing behind it."""

    def __init__(
        self, program: Program, segment: Sequence[int], ends: Mapping[int, int], alive: int, bound: int
    ) -> None:
        self._program, self._segment = program, segment
        bit = {number: 1 << place for place, number in enumerate(segment)}
        self._bit = bit
        self._all = (1 << len(segment)) - 1
        self.work = 0
        self._needs = {
            number: sum(bit[other] for other in set(program.steps[number].after) if other in bit) for number in segment
        }
        self._followers: dict[int, list[int]] = {number: [] for number in segment}
        for number in segment:
            for other in set(program.steps[number].after):
                if other in bit:
                    self._followers[other].append(number)
        self._users = self._freed_within(ends)
        self._written = {
            number: sum(program.sizes[buffer] for buffer in program.steps[number].writes) for number in segment
        }
        ready = tuple(number for number in segment if not self._needs[number])
        self._start = self._forced(_State(max(bound, alive), alive, 0, ready))

    def _freed_within(self, ends: Mapping[int, int]) -> dict[int, int]:
        """The steps, as bits, after which each buffer is free; without those that live on."""
        users: dict[int, int] = {}
        for number in self._segment:
            step = self._program.steps[number]
            for buffer in (*step.reads, *step.writes):
                users[buffer] = users.get(buffer, 0) | self._bit[number]
        kept = self._program.kept
        return {buffer: bits for buffer, bits in users.items() if buffer not in kept and ends[buffer] in self._bit}

    def exact(self, most: int) -> _State | None:
        """The best order; None where more work is needed to find it."""
        order = count()
        heap = [(self._start.peak, -self._start.done.bit_count(), next(order), self._start)]
        seen = {self._start.done: self._start.peak}
        while heap and self.work <= most:
            *_, state = heapq.heappop(heap)
            if state.done == self._all:
                return state
            if seen[state.done] < state.peak:
                continue
            for step in state.ready:
                following = self._forced(self._after(state, step))
                if seen.get(following.done, following.peak + 1) > following.peak:
                    seen[following.done] = following.peak
                    heapq.heappush(heap, (following.peak, -following.done.bit_count(), next(order), following))
        return None

    def beam(self, most: int) -> _State | None:
        """A good order; None where more work is needed for any."""
        found = [state for width in _BEAMS if (state := self._beam(width, most)) is not None]
        return min(found, key=lambda state: state.peak, default=None)

    def _beam(self, width: int, most: int) -> _State | None:
        states, best = [self._start], None
        while states and self.work <= most:
            following: dict[int, _State] = {}
            for state in states:
                if state.done == self._all:
                    best = state if best is None or state.peak < best.peak else best
                    continue
                for step in state.ready:
                    found = self._forced(self._after(state, step))
                    other = following.get(found.done)
                    if other is None or found.peak < other.peak:
                        following[found.done] = found
            states = heapq.nsmallest(width, following.values(), key=lambda state: (state.peak, state.alive))
        return best

    def _after(self, state: _State, step: int) -> _State:
        done = state.done | self._bit[step]
        alive = state.alive + self._written[step]
        highest = max(state.peak, alive + self._program.steps[step].extra)
        ready = (
            *(other for other in state.ready if other != step),
            *(other for other in self._followers[step] if not self._needs[other] & ~done),
        )
        return _State(highest, alive - self._freed(step, done), done, ready, step, state)

    def _freed(self, step: int, done: int) -> int:
        """Bytes that are free once these steps are done, this one the last of them."""
        found, users = self._program.steps[step], self._users
        buffers = {*found.reads, *found.writes}
        return sum(self._program.sizes[buffer] for buffer in buffers if not users.get(buffer, -1) & ~done)

    def _forced(self, state: _State) -> _State:
        """The state after all steps that can be done without loss."""
        while True:
            for step in state.ready:
                self.work += 1
                needed = state.alive + self._written[step]
                if needed + self._program.steps[step].extra > state.peak:
                    continue
                if self._written[step] <= self._freed(step, state.done | self._bit[step]):
                    state = self._after(state, step)
                    break
            else:
                return state
