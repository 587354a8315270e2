"""Ranks: the range that a mode offers, and how one is chosen."""

from dataclasses import dataclass
from typing import Literal

from onnxsep.errors import OptionError


@dataclass(frozen=True)
class RankAxis:
    """One rank that a mode can choose: ``step``, 2 ``step``, ... up to ``full``, where the replacement is exact.

    ``unit`` is "channels" (the channels in between) or "terms" (parallel summands). For a grouped Conv ``step`` is
    the number of groups, for every group has the same rank. ``inputs`` is what the rule "in" gives, None where a mode
    has no such rule.
    """

    unit: Literal["channels", "terms"]
    full: int
    paper: int
    step: int = 1
    inputs: int | None = None

    def clamp(self, rank: int) -> int:
        """The nearest usable rank that is not above ``rank``, or the smallest one."""
        return max(self.step, min(rank, self.full) // self.step * self.step)


Rank = tuple[int, ...]


_WORDS: tuple[Literal["paper", "in", "full"], ...] = ("paper", "in", "full")


@dataclass(frozen=True)
class RankPolicy:
    """How ranks are chosen: the six forms of ``--rank``."""

    kind: Literal["paper", "in", "integer", "fraction", "energy", "full"]
    value: float = 0.0

    @classmethod
    def parse(cls, rank: "RankPolicy | str | float") -> "RankPolicy":
        """Read ``paper``, ``in``, ``full``, an integer, a fraction with a point, or ``energy=SHARE``.

        Raises:
            OptionError: the text is none of these, or the value is out of range.
        """
        if isinstance(rank, RankPolicy):
            return rank
        if isinstance(rank, bool):
            raise OptionError(_rank_message(rank))
        text = str(rank).strip()
        for word in _WORDS:
            if text == word:
                return cls(word)
        try:
            if text.startswith("energy="):
                return cls._share("energy", float(text.removeprefix("energy=")), text)
            if "." in text or "e" in text.lower():
                return cls._share("fraction", float(text), text)
            value = int(text)
        except ValueError:
            raise OptionError(_rank_message(rank)) from None
        if value < 1:
            raise OptionError(f"rank out of range: {text}; an integer rank must be at least 1")
        return cls("integer", value)

    @classmethod
    def _share(cls, kind: Literal["energy", "fraction"], value: float, text: str) -> "RankPolicy":
        if not 0.0 < value <= 1.0:
            raise OptionError(f"rank out of range: {text}; a share must be above 0 and at most 1")
        return cls(kind, value)

    def __str__(self) -> str:
        if self.kind == "integer":
            return str(int(self.value))
        if self.kind == "fraction":
            return repr(self.value)
        return f"energy={self.value!r}" if self.kind == "energy" else self.kind


def _rank_message(rank: object) -> str:
    return (
        f"cannot read the rank {rank!r}; use 'paper', 'in' (spatial), 'full', an integer such as 16, "
        "a share of the parameters such as 0.5, or energy=0.95"
    )
