"""The options about what budgets are counted on, which ``plan``, ``rewrite`` and ``profile`` have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.lazy import lazy
from onnxsep.options.patterns import matches
from onnxsep.options.proposals import MODES
from onnxsep.options.specs import Options, default_of, grouped, option, record, specs_of
from onnxsep.quantization.settings import Activations, Settings

if TYPE_CHECKING:
    from onnxsep.modes import BlockMode, Mode
    from onnxsep.planner.targets import LossTarget, Target
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.modes": ("BlockMode", "Mode")})

LATENCY, QUANTIZED = "Latency", "Quantised after it (as by onnxsep quantize)"


@record
class _Then(Options):
    """What follows; it stands before the options of what follows."""

    then: Literal["int8"] | None = option(
        default=None,
        help="int8: plan for what `onnxsep quantize` makes of the result, with the options below.",
        doc='"int8": bytes and latencies are those of what :func:`onnxsep.quantize` makes of the result, with its'
        " options below. The rewritten model itself stays one of floats.",
    )


@grouped(QUANTIZED)
@record
class Quantizing(Settings, _Then):
    """What is done to the rewritten model after it, with the options of ``quantize`` that say what that makes."""

    activations: Activations | None = option(
        default=None,
        help="int8 or uint8; by default uint8, the fast ones on x86.",
        doc='"int8" or "uint8"; by default uint8, which are the fast ones on x86 processors with VNNI.',
    )

    def check(self) -> None:
        """Refuse options of the quantiser where nothing is quantised.

        Raises:
            OptionError: There are such, or they contradict each other.
        """
        super().check()
        given = self._given()
        if given and self.then is None:
            name, value = next(iter(given.items()))
            shown = spelled(name, value) if isinstance(value, bool) else spelled(name)
            raise OptionError(f"{shown} is for {spelled('then', 'int8')}; add it, or leave it out")

    @property
    def quantized(self) -> dict[str, Any] | None:
        """The options of ``quantize`` that differ from its own defaults; None where it does not follow."""
        return None if self.then is None else {"activations": "uint8", **self._given()}

    def stays_in_float(self, name: str) -> str:
        """Why a layer is left alone that the quantiser is to leave in float, by its name; empty where it is not."""
        left = self.then is not None and any(matches(name, one) for one in self.excluded)
        return f"it stays in float ({spelled('exclude')})" if left else ""

    def _given(self) -> dict[str, Any]:
        """Those that are not the quantiser's defaults."""
        values = {name: getattr(self, name) for name in specs_of(Settings)}
        return {name: value for name, value in values.items() if value != default_of(Settings, name)}


@record
class Forms(Options):
    """The forms that a plan chooses from."""

    modes: Sequence[str | Mode | BlockMode] = option(
        default=(),
        flag="--mode",
        short="-m",
        typed=list[str],
        proposed=MODES,
        help="The forms that layers may get; by default those that do best at some budget.",
        doc="the forms that layers may get; by default those that do best at some budget.",
    )

    def check(self) -> None:
        """Refuse modes that are not there.

        Raises:
            OptionError: An option cannot be used.
            ModeNotFoundError: There is no such mode.
        """
        from onnxsep.planner.forms import forms

        super().check()
        forms(self.modes)


@record
class Timed(Options):
    """Where latencies are from; the budgets are in the option ``target``."""

    latency_from: str | os.PathLike[str] | None = option(
        default=None,
        group=LATENCY,
        typed=Path,
        metavar="latency.json",
        reads="the latencies",
        help="Take latencies from this file, of a kit of `onnxsep profile`, instead of this machine's.",
        doc="take latencies from this file, which the script of a kit of ``profile`` has written, instead of this"
        " machine's.",
    )

    def check(self) -> None:
        """Refuse targets that cannot be read, and options about latency where it is no budget.

        Raises:
            OptionError: There are such.
        """
        super().check()
        given = [name for name in ("latency_from", "latency_resource") if getattr(self, name, None) is not None]
        if given and not self.times:
            raise OptionError(f"{spelled(given[0])} is for {spelled('target')} latency=, such as latency=0.6")
        if len(given) > 1:
            raise OptionError(f"{spelled('latency_from')} measures no time, so leave {spelled(given[1])} out")

    @property
    def times(self) -> bool:
        """Whether latency is a budget."""
        return any(one.kind == "latency" for one in self.targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The budgets; where there is only what may be lost, that of all parameters."""
        from onnxsep.planner.targets import budgets_of

        return budgets_of(self._asked)

    @property
    def losses(self) -> tuple[LossTarget, ...]:
        """What may be lost."""
        from onnxsep.planner.targets import losses_of

        return losses_of(self._asked)

    def check_together(self) -> None:
        """Refuse what cannot be had together.

        Raises:
            OptionError: The quantised model is planned for, and a goal is of the float one; or others are to measure,
                with a function that they need not have.
        """
        of_floats = [*(one.text for one in self.losses), *(one.text for one in self.targets if one.kind == "ram")]
        if getattr(self, "then", None) is not None and of_floats:
            raise OptionError(
                f"{spelled('target')} {of_floats[0]} is measured of the float model, so leave {spelled('then')} out;"
                f" `compress` with {spelled('target')} size= and {spelled('max_drop')} measures the quantised one"
            )
        self._check_blocks()
        others = [name for name in ("scheduler", "workers") if getattr(self, name, None) not in (None, 1)]
        if others and getattr(self, "metric", None) is not None:
            raise OptionError(f"{spelled('metric')} is measured by this process, so leave {spelled(others[0])} out")

    def _check_blocks(self) -> None:
        """Refuse forms of blocks of several nodes where these are not counted yet.

        Raises:
            OptionError: There are some.
        """
        from onnxsep.planner.forms import block_forms

        blocks = block_forms(getattr(self, "modes", ()))
        if not blocks:
            return
        ram = any(one.kind == "ram" for one in self.targets)
        given = [name for name in ("then", "latency_resource", "latency_from") if getattr(self, name, None) is not None]
        if ram or given:
            other = f"{spelled('target')} ram=" if ram else spelled(given[0])
            raise OptionError(
                f"{other} is for forms of single layers, and {blocks[0].name} takes blocks of several nodes; leave the"
                " one or the other out"
            )

    @property
    def _asked(self) -> tuple[Target | LossTarget, ...]:
        from onnxsep.planner.targets import parse_targets

        asked: str | Sequence[str] = getattr(self, "target", ())
        return parse_targets([asked] if isinstance(asked, str) else asked)
