"""Who does pieces of work: this process, others on this machine (``processes``) or a cluster (``cluster``).

A task is a function of a module: ``task(*shared, item, tell)``. What all pieces share is sent once; a task may keep in
it what the next piece will need, so pieces are best done in order. What comes out must not depend on who does what.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Task = Callable[..., Any]
Told = Callable[[int, Any], None]


@dataclass(frozen=True)
class Gone:
    """What stands for the result of a piece whose worker ended.

    Attributes:
        why: In words.
    """

    why: str


def ignore(number: int, part: object) -> None:
    """Make nothing of a part of a result."""


class Crew(Protocol):
    """Those who work."""

    count: int
    """How many pieces are done at a time."""

    def each(
        self, task: Task, shared: Sequence[object], items: Sequence[Any], told: Told = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """Do a task for each item.

        Args:
            task: Which.
            shared: Its first arguments.
            items: Its last argument but one, each.
            told: Called with the number of an item and what its task tells (its last argument) before it is done.

        Yields:
            The number of an item and its result, in any order; ``Gone`` where a worker ended over it.

        Raises:
            Exception: What a task raises.
            OptionError: There is nobody to do it.
        """

    def close(self) -> None:
        """Let go of all that was begun."""


class Alone:
    """This process, piece by piece."""

    count = 1

    def each(
        self, task: Task, shared: Sequence[object], items: Sequence[Any], told: Told = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """See :class:`Crew`."""
        for number, item in enumerate(items):
            yield number, task(*shared, item, lambda part, number=number: told(number, part))

    def close(self) -> None:
        """There is nothing to let go of."""
