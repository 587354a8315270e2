"""What becomes of each layer: one mode and one rule for its rank for all, or as a plan says."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial

from onnxsep.calibration import Fitting
from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.matches import Match
from onnxsep.engine.planning import (
    Assignment,
    Options,
    Plan,
    check_ranks,
    make_plan,
    plan_assigned,
)
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import OptionError, spelled, worded
from onnxsep.graph.places import Place
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model
from onnxsep.modes.base import AnyMode, Mode, find_mode
from onnxsep.modes.block import BlockMode
from onnxsep.planner.assigning import assign, check_plan, planned_sites
from onnxsep.planner.limiting import LIMIT
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.reading import read_plan


@dataclass(frozen=True)
class Chosen:
    """What was chosen for the layers of a model.

    Attributes:
        plan: A row for each layer.
        init: How factors are found, in words.
        said: The same where the user has said it, by the place of the layer.
        max_effect: The largest effect on the output that replacing a layer without a kernel may have; None: any.
    """

    plan: Plan
    init: str
    said: Mapping[Place, str] = field(default_factory=dict)
    max_effect: float | None = None


class Choice(ABC):
    """What the user wants to become of layers, before a model is opened.

    Attributes:
        mode: Its name in reports.
        rank: The same for the rank.
        plan: The name of a plan, None without one.
        force: Keep what does not pay.
    """

    mode: str
    rank: str
    plan: str | None = None
    force: bool

    @abstractmethod
    def check(self, fitting: Fitting, *, images: bool = False) -> None:
        """Refuse options about data that do not go with it, or with one another.

        Raises:
            OptionError: They do not.
            ModeNotFoundError: A mode is not installed.
            MissingDependencyError: What tuning needs is not installed.
        """

    @abstractmethod
    def sites(self, find: Callable[[bool], Sites]) -> Sites:
        """The layers that it may be about; ``find`` is told whether Gemm and MatMul nodes are among them."""

    @abstractmethod
    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:
        """The plan for a model.

        Raises:
            OptionError: It does not fit the model.
        """


class OneMode(Choice):
    """One mode for all layers that it can take and for which it pays; or two, one of them for layers without a kernel.

    Args:
        mode: The mode.
        options: What is asked of it.
        pointwise: What is wanted of 1 x 1 Convs, Gemm and MatMul, where that is another mode.
        max_effect: The largest effect on the output of a layer of low rank without a kernel; None: the usual one.
    """

    def __init__(
        self, mode: Mode, options: Options, pointwise: Assignment | None = None, max_effect: float | None = None
    ) -> None:
        self._mode, self._options, self._pointwise, self._max_effect = mode, options, pointwise, max_effect
        self.mode, self.rank, self.force = mode.name, str(options.rank), options.force
        if pointwise is not None:
            other, own = str(pointwise.options.rank), self.rank
            self.mode, self.rank = f"{mode.name} + {pointwise.mode.name}", own if own == other else f"{own} + {other}"

    @property
    def _modes(self) -> list[Mode]:
        others = [self._pointwise.mode] if self._pointwise else []
        return [self._mode, *(mode for mode in others if isinstance(mode, Mode))]

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102 - the base class says it
        for mode in self._modes:
            fitting.check(mode, images=images)
        if self._max_effect is None:
            return
        name = spelled("max_effect")
        if self.force:
            raise OptionError(f"{spelled('force', True)} replaces layers whatever their effect; leave {name} out")
        if not any(takes_pointwise(mode) is None for mode in self._modes):
            raise OptionError(
                f"{name} is for 1 x 1 Convs, Gemm and MatMul, and mode {self._mode.name} takes none; give"
                f" {spelled('pointwise_mode', 'pointwise')} too, or leave it out"
            )
        if fitting.data is None:
            raise OptionError(f"{name} is measured on samples; add {spelled('data')}")

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return find(any(mode.linear_layers for mode in self._modes))

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:  # noqa: D102
        main, other = self._fitted(Assignment(self._mode, self._options), fitting), None
        if self._pointwise is not None:
            other = self._fitted(self._pointwise, fitting)

        def wanted(match: Match) -> Assignment:
            return other if other is not None and max(match.conv.kernel_shape, default=1) == 1 else main

        weight = partial(read_weight, model, sites)
        plan = make_plan(sites.found, self._mode, self._options, weight, wanted)
        said = {row.site.place: fitting.wanted for row in plan.replacements} if fitting.wanted else {}
        inits = dict.fromkeys(one.options.init for one in (main, other) if one is not None)
        return Chosen(plan, ", ".join(inits), said, self._limit)

    @property
    def _limit(self) -> float | None:
        return None if self.force else LIMIT if self._max_effect is None else self._max_effect

    @staticmethod
    def _fitted(wanted: Assignment, fitting: Fitting) -> Assignment:
        return replace(wanted, options=replace(wanted.options, init=fitting.init(wanted.mode)))


class OneBlockMode(Choice):
    """One block mode for all matches of its pattern."""

    rank = ""

    def __init__(self, mode: BlockMode, options: Options) -> None:
        check_ranks(mode, options.rank, options.round_ranks)
        self._mode, self._options = mode, options
        self.mode, self.force = mode.name, options.force

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102 - the base class says it
        fitting.check(self._mode, images=images)

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return find(self._mode.linear_layers)

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:  # noqa: D102
        found = find_blocks(model, sites, self._mode)
        plan = make_plan(found, self._mode, self._options, lambda site: read_weight(model, sites, site))
        return Chosen(plan, fitting.init(self._mode))


class ByPlan(Choice):
    """As a plan says, whether it pays or not."""

    mode = rank = "plan"
    force = True

    def __init__(self, plan: PlanFile) -> None:
        self._plan, self.plan = plan, "in memory" if plan.path is None else plan.name

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102
        check_plan(self._plan, fitting, images=images)

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return planned_sites(self._plan, find)

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:  # noqa: D102
        wanted = assign(self._plan, model, sites, fitting)
        plan = plan_assigned(sites.found, wanted, lambda site: read_weight(model, sites, site))
        return Chosen(plan, wanted.init, wanted.said)


@dataclass(frozen=True)
class Wanted:
    """What the user says about forms of layers.

    Attributes:
        mode: A mode for all layers.
        plan: A plan instead of it, or its file.
        options: The other options about which layers are replaced, and how far; with a plan there are none.
        pointwise_mode: Another mode for layers without a kernel.
        pointwise_rank: Its rank, where that is another one.
        max_effect: As for ``OneMode``.
    """

    mode: str | AnyMode | None
    plan: str | os.PathLike[str] | PlanFile | None
    options: Options
    pointwise_mode: str | AnyMode | None = None
    pointwise_rank: RankPolicy | None = None
    max_effect: float | None = None


def choice_of(wanted: Wanted) -> Choice:
    """What the user wants.

    Raises:
        OptionError: Neither mode nor plan is given, or a plan and what it says itself; the plan cannot be read.
        ModeNotFoundError: There is no such mode.
    """
    if wanted.plan is None:
        return _by_modes(wanted)
    plain, options = Options(), wanted.options
    given = [name for name in ("mode", "pointwise_mode", "pointwise_rank") if getattr(wanted, name) is not None]
    given += [one.name for one in fields(options) if getattr(options, one.name) != getattr(plain, one.name)]
    given += ["max_effect"] if wanted.max_effect is not None else []
    if given:
        names = ", ".join(map(spelled, given))
        raise OptionError(
            f"{spelled('plan')} says what becomes of each layer, so {names} cannot be given with it; change the plan"
        )
    return ByPlan(wanted.plan if isinstance(wanted.plan, PlanFile) else read_plan(wanted.plan))


def _by_modes(wanted: Wanted) -> Choice:
    if wanted.mode is None:
        listed = worded("`onnxsep modes` lists", "available_modes() gives")
        raise OptionError(
            f"{spelled('mode')} is missing: the form that Convs get ({listed} them); or give {spelled('plan')}"
        )
    mode, options = find_mode(wanted.mode), wanted.options
    if isinstance(mode, BlockMode):
        for name in ("pointwise_mode", "pointwise_rank", "max_effect"):
            if getattr(wanted, name) is not None:
                raise OptionError(f"mode {mode.name} takes blocks of several nodes; leave {spelled(name)} out")
        return OneBlockMode(mode, options)
    return OneMode(mode, options, _pointwise(wanted, mode), wanted.max_effect)


def _pointwise(wanted: Wanted, mode: Mode) -> Assignment | None:
    if wanted.pointwise_mode is None:
        if wanted.pointwise_rank is not None:
            raise OptionError(f"{spelled('pointwise_rank')} goes with {spelled('pointwise_mode')}; give both")
        return None
    found, name = find_mode(wanted.pointwise_mode), spelled("pointwise_mode")
    if isinstance(found, BlockMode):
        raise OptionError(f"{name} {found.name}: it takes blocks of several nodes, and no layers without a kernel")
    if why := takes_pointwise(found):
        raise OptionError(f"{name} {found.name}: it takes no layers without a kernel ({why})")
    own, options = wanted.options.rank, wanted.options
    # An integer counts other things in other modes: terms in one, channels in the other.
    kept = isinstance(own, RankPolicy) and own.kind != "integer"
    rank = wanted.pointwise_rank or (own if kept or found is mode else RankPolicy("paper"))
    return Assignment(found, replace(options, rank=rank))


def takes_pointwise(mode: Mode) -> str | None:
    """Why a mode takes no layers without a kernel; None where it does."""
    if mode.linear_layers:
        return None
    return mode.accepts(Conv(16, 16, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, False))
