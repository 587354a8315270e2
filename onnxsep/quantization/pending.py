"""Which of the tensors that are there will be read again, when a graph is run goal by goal."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence


class Pending:
    """The nodes that lead from known tensors to the goals that wait; it takes linear time in all.

    Args:
        reads: What each node reads, by its place.
        makers: Places of nodes by the names of what they make.
        goals: Places of nodes that are waited for, which may be there several times.
        known: Names of the tensors that are there already.
    """

    def __init__(
        self, reads: Sequence[Collection[str]], makers: Mapping[str, int], goals: Iterable[int], known: Iterable[str]
    ) -> None:
        self._reads, self._makers, self._known = reads, makers, set(known)
        self._readers: Counter[str] = Counter()  # pending nodes that read a tensor
        self._uses: Counter[int] = Counter()  # goals, and pending readers of what is not known yet
        for goal in goals:
            self._count(goal, 1)

    def _count(self, place: int, step: int) -> None:
        """A node is needed once more (1) or once less (-1), and so are others where that makes a difference."""
        waiting = [place]
        while waiting:
            place = waiting.pop()
            self._uses[place] += step
            if self._uses[place] != max(step, 0):  # it was, or stays, pending
                continue
            for name in self._reads[place]:
                self._readers[name] += step
                if name not in self._known and name in self._makers:
                    waiting.append(self._makers[name])

    def done(self, goal: int, made: Collection[str]) -> None:
        """A goal is reached, and these tensors need not be computed again."""
        self._count(goal, -1)
        for name in set(made) - self._known:
            self._known.add(name)
            for _ in range(self._readers[name]):
                self._count(self._makers[name], -1)

    def __contains__(self, name: str) -> bool:
        """Whether a tensor will be read again."""
        return self._readers[name] > 0
