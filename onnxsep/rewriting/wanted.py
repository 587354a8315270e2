"""From what the user says about forms of layers to a choice: a mode or two, a plan, or a target."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from onnxsep.engine.planning import Assignment, Options
from onnxsep.errors import OptionError, spelled, worded
from onnxsep.layers.rank import RankPolicy
from onnxsep.modes.base import AnyMode, Mode, find_mode
from onnxsep.modes.block import BlockMode
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.reading import read_plan
from onnxsep.rewriting.choosing import ByPlan, Choice, OneBlockMode, OneMode, OneWidthMode, takes_pointwise
from onnxsep.rewriting.targeting import ByTarget


@dataclass(frozen=True)
class Wanted:
    """What the user says about forms of layers.

    Attributes:
        mode: A mode for all layers.
        plan: A plan instead of it, or its file.
        options: The other options about which layers are replaced, and how far; with a plan there are none.
        settings: Those of ``mode``.
        pointwise_mode: Another mode for layers without a kernel.
        pointwise_rank: Its rank, where that is another one.
        max_effect: As for ``OneMode``.
        target: Budgets instead of ranks: what ``onnxsep.plan`` is asked for, by its options; none: no budgets.
    """

    mode: str | AnyMode | None
    plan: str | os.PathLike[str] | PlanFile | None
    options: Options
    settings: Mapping[str, object] | None = None
    pointwise_mode: str | AnyMode | None = None
    pointwise_rank: RankPolicy | None = None
    max_effect: float | None = None
    target: Mapping[str, Any] = field(default_factory=dict)


def choice_of(wanted: Wanted) -> Choice:
    """What the user wants.

    Raises:
        OptionError: Neither mode nor plan is given, or a plan and what it says itself; the plan cannot be read; the
            mode has no such setting.
        ModeNotFoundError: There is no such mode.
    """
    if wanted.target:
        return _by_target(wanted)
    if wanted.plan is None:
        return _by_modes(wanted)
    plain, options = Options(), wanted.options
    given = [name for name in ("mode", "pointwise_mode", "pointwise_rank") if getattr(wanted, name) is not None]
    given += [one.name for one in fields(options) if getattr(options, one.name) != getattr(plain, one.name)]
    given += ["max_effect"] if wanted.max_effect is not None else []
    given += ["settings"] if wanted.settings else []
    if given:
        names = ", ".join(map(spelled, given))
        raise OptionError(
            f"{spelled('plan')} says what becomes of each layer, so {names} cannot be given with it; change the plan"
        )
    return ByPlan(wanted.plan if isinstance(wanted.plan, PlanFile) else read_plan(wanted.plan))


def _by_target(wanted: Wanted) -> Choice:
    """Modes restrict the forms that layers may get; ranks and what pays are the planner's to find."""
    given = [name for name in ("plan", "pointwise_rank", "max_effect") if getattr(wanted, name) is not None]
    given += ["rank"] if str(wanted.options.rank) != "paper" else []
    given += ["force"] if wanted.options.force else []
    given += ["settings"] if wanted.settings else []
    if given:
        raise OptionError(
            f"{spelled('target')} chooses for each layer, so {', '.join(map(spelled, given))} must be left out"
        )
    modes = [one for one in (wanted.mode, wanted.pointwise_mode) if one is not None]
    return ByTarget({**wanted.target, "modes": tuple(modes)})


def _by_modes(wanted: Wanted) -> Choice:
    if wanted.mode is None:
        listed = worded("`onnxsep modes` lists", "available_modes() gives")
        raise OptionError(
            f"{spelled('mode')} is missing: the form that Convs get ({listed} them); or give {spelled('plan')}"
        )
    mode, options = find_mode(wanted.mode).with_settings(wanted.settings), wanted.options
    if not isinstance(mode, Mode):
        blocks, widths = "takes blocks of several nodes", "changes how many channels layers have"
        what = blocks if isinstance(mode, BlockMode) else widths
        for name in ("pointwise_mode", "pointwise_rank", "max_effect"):
            if getattr(wanted, name) is not None:
                raise OptionError(f"mode {mode.name} {what}; leave {spelled(name)} out")
        return OneBlockMode(mode, options) if isinstance(mode, BlockMode) else OneWidthMode(mode, options)
    return OneMode(mode, options, _pointwise(wanted, mode), wanted.max_effect)


def _pointwise(wanted: Wanted, mode: Mode) -> Assignment | None:
    if wanted.pointwise_mode is None:
        if wanted.pointwise_rank is not None:
            raise OptionError(f"{spelled('pointwise_rank')} goes with {spelled('pointwise_mode')}; give both")
        return None
    found, name = find_mode(wanted.pointwise_mode), spelled("pointwise_mode")
    if not isinstance(found, Mode):
        raise OptionError(f"{name} {found.name}: it takes blocks of several nodes, and no layers without a kernel")
    if why := takes_pointwise(found):
        raise OptionError(f"{name} {found.name}: it takes no layers without a kernel ({why})")
    own, options = wanted.options.rank, wanted.options
    # An integer counts other things in other modes: terms in one, channels in the other.
    kept = isinstance(own, RankPolicy) and own.kind != "integer"
    rank = wanted.pointwise_rank or (own if kept or found is mode else RankPolicy("paper"))
    return Assignment(found, replace(options, rank=rank))
