"""What a plan is to reach (``params=0.4``, ``latency=0.6``, ...), and what it may lose (``drop=1``, ...)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.tomlfile import nearest

Budget = Literal["params", "macs", "size", "latency", "ram"]
BUDGETS: Mapping[Budget, str] = {
    "params": "a whole number of parameters",
    "macs": "a whole number of MACs",
    "size": "a whole number of bytes of the file, or a number of bytes such as 80kB",
    "latency": "a time such as 5ms",
    "ram": "a whole number of bytes of live activations, or a number of bytes such as 80kB",
}
"""What can be a budget, and how an amount of it is written; times are counted in nanoseconds."""
Loss = Literal["error", "kl", "drop"]
LOSSES: Mapping[Loss, str] = {
    "error": "a relative error of the outputs such as 0.05",
    "kl": "a divergence in nats such as 0.02",
    "drop": "a number of points such as 1",
}
"""What a model may lose against the original, and how much of it is written."""
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
        text: As it was written; "" where nobody asked for it.
    """

    kind: Budget
    value: float
    share: bool
    text: str

    def amount(self, whole: int) -> int:
        """The budget in what is counted, where the whole model has so much."""
        return int(self.value * whole + 1e-9) if self.share else int(self.value)


@dataclass(frozen=True)
class LossTarget:
    """What a model may lose.

    Attributes:
        kind: One of ``LOSSES``.
        most: The relative error of the worst output, KL in nats, or points.
        text: As it was written.
    """

    kind: Loss
    most: float
    text: str


CHEAPEST = Target("params", 1.0, share=True, text="")
"""What is made small where nothing but a loss was asked for."""


def parse_targets(texts: Iterable[str]) -> tuple[Target | LossTarget, ...]:
    """Read targets; a fraction with a point is a share of the whole model's, an integer a number.

    Raises:
        OptionError: One cannot be read, is given twice, or cannot be planned for.
    """
    found: dict[str, Target | LossTarget] = {}
    for text in texts:
        target = _parsed(text)
        if target.kind in found:
            raise OptionError(f"{spelled('target')} {target.kind} is given twice: {found[target.kind].text} and {text}")
        found[target.kind] = target
    return tuple(found.values())


def budgets_of(targets: Sequence[Target | LossTarget]) -> tuple[Target, ...]:
    """Those that are budgets; where there is none, the one that is made small."""
    return tuple(one for one in targets if isinstance(one, Target)) or ((CHEAPEST,) if targets else ())


def losses_of(targets: Sequence[Target | LossTarget]) -> tuple[LossTarget, ...]:
    """Those that say what may be lost."""
    return tuple(one for one in targets if isinstance(one, LossTarget))


def _parsed(text: str) -> Target | LossTarget:
    word, equals, value = text.partition("=")
    word = word.strip().lower()
    loss = next((one for one in LOSSES if one == word), None)
    kind = next((one for one in BUDGETS if one == word), None)
    if not equals or (kind is None and loss is None):
        near = nearest(word, [*BUDGETS, *LOSSES])
        raise OptionError(
            f"{spelled('target')} {text!r} cannot be read{near}; write params=0.4, macs=0.5, size=0.3, size=80kB,"
            " latency=0.6, latency=5ms, ram=0.7, error=0.05, kl=0.02 or drop=1"
        )
    if kind is None:
        assert loss is not None
        return _loss(loss, value, text)
    number = _NUMBER.fullmatch(value)
    unit = number[2].lower() if number else ""
    share = number is not None and "." in number[1] and not unit
    known = {"size": _UNITS, "ram": _UNITS, "latency": _TIMES}.get(kind, {"": 1})
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


def _loss(kind: Loss, value: str, text: str) -> LossTarget:
    try:
        most = float(value)
    except ValueError:
        most = math.nan
    if not 0 <= most < math.inf:
        raise OptionError(f"{spelled('target')} {text!r}: {value!r} is no loss; give {LOSSES[kind]}")
    return LossTarget(kind, most, text.strip())


def shown_amount(kind: Budget, amount: int) -> str:
    """So much of what a budget counts, for people."""
    return f"{amount / _TIMES['ms']:,.4g} ms" if kind == "latency" else f"{amount:,}"


def shown_loss(kind: Loss, value: float) -> str:
    """So much of what is lost, for people."""
    return {"error": "relative error {:.3g}", "kl": "KL {:.3g}", "drop": "{:.3g} points"}[kind].format(value)


def as_target(kind: Budget, amount: int, whole: int) -> str:
    """The target that allows so much of what the whole model has."""
    share = -(-1000 * amount // whole) / 1000 if whole else 0.0
    if 0 < share < 1:
        return f"{kind}={share:g}"
    return f"latency={amount / _TIMES['ms']:.6f}ms" if kind == "latency" else f"{kind}={amount}"


def as_loss_target(kind: Loss, value: float) -> str:
    """The target, of two digits, that allows so much to be lost."""
    if value <= 0:
        return f"{kind}=0"
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{kind}={math.ceil(value / step * (1 - 1e-12)) * step:.6g}"
