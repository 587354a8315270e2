"""What becomes of each layer: one mode and one rule for its rank for all, or as a plan says."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

from onnxsep.calibration import Fitting
from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.planning import Options, Plan, check_ranks, make_plan, plan_assigned
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import OptionError, spelled, worded
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode, find_mode
from onnxsep.modes.block import BlockMode
from onnxsep.planner.assigning import assign, check_plan, planned_sites
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.reading import read_plan


@dataclass(frozen=True)
class Chosen:
    """What was chosen for the layers of a model.

    Attributes:
        plan: A row for each layer.
        init: How factors are found, in words.
        said: The same where the user has said it, by the place of the layer.
    """

    plan: Plan
    init: str
    said: Mapping[Place, str] = field(default_factory=dict)


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
    """One mode for all layers that it can take and for which it pays."""

    def __init__(self, mode: Mode, options: Options) -> None:
        check_ranks(mode, options.rank, options.round_ranks)
        self._mode, self._options = mode, options
        self.mode, self.rank, self.force = mode.name, str(options.rank), options.force

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102 - the base class says it
        fitting.check(self._mode, images=images)

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return find(self._mode.linear_layers)

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:  # noqa: D102
        options = replace(self._options, init=fitting.init(self._mode))
        plan = make_plan(sites.found, self._mode, options, lambda site: read_weight(model, sites, site))
        said = {row.site.place: fitting.wanted for row in plan.replacements} if fitting.wanted else {}
        return Chosen(plan, options.init, said)


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


def choice_of(
    mode: str | Mode | BlockMode | None,
    plan: str | os.PathLike[str] | PlanFile | None,
    options: Options,
    settings: Mapping[str, object] | None = None,
) -> Choice:
    """What the user wants.

    Args:
        mode: A mode for all layers.
        plan: A plan instead of it, or its file.
        options: The other options about which layers are replaced, and how far; with a plan there are none.
        settings: Those of the mode.

    Raises:
        OptionError: Neither is given, or a plan and what it says itself; the plan cannot be read; the mode has no such
            setting.
        ModeNotFoundError: There is no such mode.
    """
    if plan is None:
        if mode is None:
            listed = worded("`onnxsep modes` lists", "available_modes() gives")
            raise OptionError(
                f"{spelled('mode')} is missing: the form that Convs get ({listed} them); or give {spelled('plan')}"
            )
        found = find_mode(mode).with_settings(settings)
        return OneBlockMode(found, options) if isinstance(found, BlockMode) else OneMode(found, options)
    plain = Options()
    given = [one.name for one in fields(options) if getattr(options, one.name) != getattr(plain, one.name)]
    given += ["settings"] if settings else []
    if mode is not None or given:
        names = ", ".join(map(spelled, (*(["mode"] if mode is not None else []), *given)))
        raise OptionError(
            f"{spelled('plan')} says what becomes of each layer, so {names} cannot be given with it; change the plan"
        )
    return ByPlan(plan if isinstance(plan, PlanFile) else read_plan(plan))
