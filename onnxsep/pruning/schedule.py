"""How many weights stay: a share in one go, the iterative form of paper 004, or N of every M.

The counts are exact: shares are read as the decimal numbers that were written (0.2 is one fifth, not the double next to
it), and a half is rounded to the even neighbour, as ``torch.nn.utils.prune`` does. With a step of 0.2 no half can come
up, for a fifth of a whole number ends in .0, .2, .4, .6 or .8.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from onnxsep.errors import OptionError, spelled


def surviving_weights(weights: int, step: float, steps: int) -> tuple[int, ...]:
    """The weights that are left after each of ``steps`` rounds: r <- r - round(step * r).

    Args:
        weights: how many there are at the start.
        step: the share of the remaining weights that goes each time.
        steps: the number of rounds.

    Returns:
        ``steps`` counts, the last one being what is left in the end.
    """
    share, left = Fraction(str(step)), []
    for _ in range(steps):
        weights -= round(share * weights)
        left.append(weights)
    return tuple(left)


@dataclass(frozen=True)
class Goal:
    """What was asked for: exactly one of ``sparsity``, ``step`` with ``steps``, and ``pattern``."""

    sparsity: float | None = None
    step: float | None = None
    steps: int = 1
    pattern: tuple[int, int] | None = None

    @classmethod
    def parse(cls, *, sparsity: float | None, step: float | None, steps: int | None, pattern: str | None) -> "Goal":
        """Check the options that say how much goes.

        Raises:
            OptionError: none or several of them are given, or a value is out of range.
        """
        given = {"sparsity": sparsity, "step": step, "pattern": pattern}
        named = [spelled(name) for name, value in given.items() if value is not None]
        if len(named) != 1:
            what = "none is given" if not named else f"{' and '.join(named)} contradict each other"
            steps_too = f"{spelled('step', 0.2)} {spelled('steps', 4)}"
            ways = f"{spelled('sparsity', 0.59)}, {steps_too}, {spelled('pattern', '2:4')}"
            raise OptionError(f"give one of {ways}; {what}")
        if steps is not None and step is None:
            raise OptionError(f"{spelled('steps')} counts the rounds of {spelled('step')}; add {spelled('step', 0.2)}")
        for name, value in (("sparsity", sparsity), ("step", step)):
            if value is not None and not 0 < value < 1:
                raise OptionError(
                    f"{spelled(name)} {value:g} is out of range; it is a share of the weights, above 0 and below 1"
                )
        if steps is not None and steps < 1:
            raise OptionError(f"{spelled('steps')} {steps} is out of range; it must be 1 or more")
        return cls(
            sparsity=sparsity,
            step=step,
            steps=1 if steps is None else steps,
            pattern=None if pattern is None else _parse_pattern(pattern),
        )

    def left(self, weights: int, zeros: int = 0) -> tuple[int, ...]:
        """How many of ``weights``, of which ``zeros`` are zero already, are not zero after each round.

        A share is one of all weights, a step one of those that remain; nothing that is zero comes back.
        """
        assert self.pattern is None, "a pattern has no single count"
        if self.step is not None:
            return surviving_weights(weights - zeros, self.step, self.steps)
        return (min(weights - zeros, weights - round(Fraction(str(self.sparsity)) * weights)),)


def _parse_pattern(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,4})\s*:\s*(\d{1,4})\s*", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) < int(found[2]):
        words = f"{spelled('pattern')} {text!r} is no N:M with N at least 1 and below M"
        raise OptionError(f"{words}; 2:4 keeps two of every four")
    return int(found[1]), int(found[2])
