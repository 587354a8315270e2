"""What a plan is to reach: ``params=0.4``, ``macs=0.5``, ``size=80kB``, ``latency=0.6``."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.tomlfile import nearest

Budget = Literal["params", "macs", "size", "latency"]
BUDGETS: Mapping[Budget, str] = {
    "params": "a whole number of parameters",
    "macs": "a whole number of MACs",
    "size": "a whole number of bytes of the file, or a number of bytes such as 80kB",
    "latency": "a time such as 5ms",
}
"""What can be a budget, and how an amount of it is written; times are counted in nanoseconds."""
_LATER = {
    "ram": "the memory of activations is not measured yet",
    "error": "it is no budget of a plan yet",
    "kl": "it is no budget of a plan yet",
    "drop": "it is no budget of a plan yet",
}
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_TIMES = {"ns": 1, "us": 1000, "ms": 1000**2, "s": 1000**3}
_NUMBER = re.compile(r"\s*(\d+\.\d*|\.\d+|\d+)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Target:
    """A budget.

    Attributes:
        kind: One of ``BUDGETS``.
        value: A share of the whole model's, or a number of what is counted.
        share: Which of the two.
        text: As it was written.
    """

    kind: Budget
    value: float
    share: bool
    text: str

    def amount(self, whole: int) -> int:
        """The budget in what is counted, where the whole model has so much."""
        return int(self.value * whole + 1e-9) if self.share else int(self.value)


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Read targets; a fraction with a point is a share of the whole model's, an integer a number.

    Raises:
        OptionError: One cannot be read, is given twice, or cannot be planned for.
    """
    found: dict[str, Target] = {}
    for text in texts:
        target = _parsed(text)
        if target.kind in found:
            raise OptionError(f"{spelled('target')} {target.kind} is given twice: {found[target.kind].text} and {text}")
        found[target.kind] = target
    return tuple(found.values())


def _parsed(text: str) -> Target:
    word, equals, value = text.partition("=")
    word = word.strip().lower()
    if word in _LATER:
        raise OptionError(
            f"{spelled('target')} {text}: {_LATER[word]}; budgets are {', '.join(f'{one}=' for one in BUDGETS)}"
        )
    kind = next((one for one in BUDGETS if one == word), None)
    if kind is None or not equals:
        near = nearest(word, [*BUDGETS, *_LATER])
        raise OptionError(
            f"{spelled('target')} {text!r} cannot be read{near}; write params=0.4, macs=0.5, size=0.3, size=80kB,"
            " latency=0.6 or latency=5ms"
        )
    number = _NUMBER.fullmatch(value)
    unit = number[2].lower() if number else ""
    share = number is not None and "." in number[1] and not unit
    known = {"size": _UNITS, "latency": _TIMES}.get(kind, {"": 1})
    if number is None or not (share or unit in known):
        raise OptionError(
            f"{spelled('target')} {text!r}: {value!r} is no amount; a share with a point such as 0.4, or"
            f" {BUDGETS[kind]}"
        )
    amount = float(number[1])
    if share and not 0 < amount <= 1:
        raise OptionError(f"{spelled('target')} {text!r}: a share is above 0 and at most 1")
    if amount <= 0:
        raise OptionError(f"{spelled('target')} {text!r}: a budget is above 0")
    return Target(kind, amount if share else amount * known[unit], share, text.strip())


def shown_amount(kind: Budget, amount: int) -> str:
    """So much of what a budget counts, for people."""
    return f"{amount / _TIMES['ms']:,.4g} ms" if kind == "latency" else f"{amount:,}"


def as_target(kind: Budget, amount: int, whole: int) -> str:
    """The target that allows so much of what the whole model has."""
    share = -(-1000 * amount // whole) / 1000 if whole else 0.0
    if 0 < share < 1:
        return f"{kind}={share:g}"
    return f"latency={amount / _TIMES['ms']:.6f}ms" if kind == "latency" else f"{kind}={amount}"
