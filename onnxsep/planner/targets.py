"""What a plan is to reach: ``params=0.4``, ``macs=0.5``, ``size=80kB``."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.tomlfile import nearest

Budget = Literal["params", "macs", "size"]
BUDGETS: Mapping[Budget, str] = {"params": "parameters", "macs": "MACs", "size": "bytes of the file"}
"""What can be a budget, and what it counts."""
_LATER = {
    "latency": "latencies of candidates are not measured yet",
    "ram": "the memory of activations is not measured yet",
    "error": "it is no budget of a plan yet",
    "kl": "it is no budget of a plan yet",
    "drop": "it is no budget of a plan yet",
}
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
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
            f"{spelled('target')} {text!r} cannot be read{near}; write params=0.4, macs=0.5, size=0.3 or size=80kB"
        )
    number = _NUMBER.fullmatch(value)
    unit = number[2].lower() if number else ""
    known = _UNITS if kind == "size" else {"": 1}
    if number is None or unit not in known:
        units = ", or a number of bytes such as 80kB" if kind == "size" else ""
        raise OptionError(
            f"{spelled('target')} {text!r}: {value!r} is no amount; a share with a point such as 0.4, or a whole number"
            f" of {BUDGETS[kind]}{units}"
        )
    amount, share = float(number[1]), "." in number[1] and not unit
    if share and not 0 < amount <= 1:
        raise OptionError(f"{spelled('target')} {text!r}: a share is above 0 and at most 1")
    if amount <= 0:
        raise OptionError(f"{spelled('target')} {text!r}: a budget is above 0")
    return Target(kind, amount * known[unit], share, text.strip())
