"""What becomes of each layer: one mode and one rule for its rank for all, or as a plan says."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from onnxsep.calibration import Fitting
from onnxsep.data import Dataset
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
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.places import Place
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.modes.width import WidthMode
from onnxsep.planner.api import PlanResult
from onnxsep.planner.assigning import assign, check_plan, planned_sites
from onnxsep.planner.judging import kept_from
from onnxsep.planner.limiting import LIMIT
from onnxsep.planner.plan_file import PlanFile


@dataclass(frozen=True)
class Chosen:
    """What was chosen for the layers of a model.

    Attributes:
        plan: A row for each layer.
        init: How factors are found, in words.
        said: The same where the user has said it, by the place of the layer.
        max_effect: The largest effect on the output that replacing a layer without a kernel may have; None: any.
        planned: The plan that was made for it by measurement.
    """

    plan: Plan
    init: str
    said: Mapping[Place, str] = field(default_factory=dict)
    max_effect: float | None = None
    planned: PlanResult | None = None

    def unseen_kept(self, fitting: Fitting) -> Fitting:
        """What is asked of the data, without the samples that a plan is judged by."""
        judge = None if self.planned is None else self.planned.judge
        if judge is None or not isinstance(fitting.data, Dataset):
            return fitting
        return replace(fitting, data=kept_from(judge, fitting.data))


class Choice(ABC):
    """What the user wants to become of layers, before a model is opened.

    Attributes:
        mode: Its name in reports.
        rank: The same for the rank.
        plan: The name of a plan, None without one.
        force: Keep what does not pay.
        measures: Whether it opens the data to choose.
    """

    mode: str
    rank: str
    plan: str | None = None
    force: bool
    measures: bool = False

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
        check_ranks(mode, options.rank, options.round_ranks)
        if pointwise is not None and isinstance(pointwise.mode, Mode):
            check_ranks(pointwise.mode, pointwise.options.rank, pointwise.options.round_ranks)
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
        fits = self._mode.fits if fitting.data is not None else ""
        return Chosen(plan, fits or fitting.init(self._mode))


class OneWidthMode(Choice):
    """One mode that changes how many channels layers have.

    Attributes:
        width_mode: The mode.
        options: Which layers it may be about.
    """

    rank = ""
    force = False

    def __init__(self, mode: WidthMode, options: Options) -> None:
        check_ranks(mode, options.rank, options.round_ranks)
        self.width_mode, self.options, self.mode = mode, options, mode.name

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102 - the base class says it
        fitting.check(self.width_mode, images=images)

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return find(True)

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:
        """It has no row for each layer: ``onnxsep.rewriting.narrowing`` carries it out."""
        raise NotImplementedError


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
        plan = plan_assigned(wanted.found, wanted, lambda site: read_weight(model, sites, site))
        return Chosen(plan, wanted.init, wanted.said)


def takes_pointwise(mode: Mode) -> str | None:
    """Why a mode takes no layers without a kernel; None where it does."""
    if mode.linear_layers:
        return None
    return mode.accepts(Conv(16, 16, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, False))
