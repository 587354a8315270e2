"""From a plan's file to what is wanted of each layer of a model: all that does not fit is refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from onnxsep.calibration import Fitting
from onnxsep.engine.matches import BlockMatch, ConvSite, Match, Rejected
from onnxsep.engine.planning import Assignment, Options, check_ranks, naming, refusal
from onnxsep.engine.sites import Sites
from onnxsep.errors import ModeNotFoundError, OnnxsepError, OptionError, spelled
from onnxsep.graph.places import Place
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.content import content_hashes
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode, find_mode
from onnxsep.modes.block import LEAST_SQUARES, BlockMode
from onnxsep.modes.ranks import check_rank
from onnxsep.modes.width import WidthMode
from onnxsep.options.tomlfile import nearest
from onnxsep.planner.block_lines import BlockFinder, with_blocks
from onnxsep.planner.plan_file import LayerPlan, PlanFile, layer_keys

NOT_NAMED = "the plan has no line for it"
_FEW = 3  # examples in a message


@dataclass(frozen=True)
class Assigned:
    """What a plan wants of the layers of one model.

    Attributes:
        wanted: What is wanted, or why the layer is left alone, by its place.
        said: How its factors are found, where that was said, by its place.
        init: That of all that are fitted, in words.
        found: The layers, and the blocks in the place of theirs.
    """

    wanted: Mapping[Place, Assignment | str]
    said: Mapping[Place, str]
    init: str
    found: Sequence[Match | Rejected]

    def __call__(self, site: Match) -> Assignment | str:
        """What is wanted of a site."""
        return self.wanted.get(site.place, NOT_NAMED)


def check_plan(plan: PlanFile, fitting: Fitting, *, images: bool) -> None:
    """Refuse, before a model is opened, modes that are not there and options about data that do not go with them.

    Raises:
        ModeNotFoundError: A mode is not installed.
        OptionError: Something does not go with the modes, or with another option.
        MissingDependencyError: What tuning needs is not installed.
    """
    choices: dict[tuple[Mode, str | None], tuple[LayerPlan, Fitting]] = {}
    blocks = [(layer, mode) for layer, mode in _modes(plan) if isinstance(mode, BlockMode)]
    for layer, block in blocks:
        with _in_plan(plan, layer):
            if layer.init is not None:
                raise OptionError(f"mode {block.name} fits its weights in one way; take init out")
            # How layers are fitted, and what is found of them without data, does not concern blocks.
            steps = fitting.tune_blocks if block.fits == LEAST_SQUARES else 0
            replace(fitting, wanted=None, refine=0, statistics=None, tune_blocks=steps).check(block, images=images)
    if blocks:
        fitting = replace(fitting, tune_blocks=0)
    for layer, mode in _modes(plan):
        if isinstance(mode, Mode):
            choices.setdefault((mode, layer.init), (layer, _of_layer(fitting, layer)))
    joint = any(found.init(mode) == "joint" for (mode, _), (_, found) in choices.items())
    for (mode, _), (layer, found) in choices.items():
        # Pairs of Convs that are both fitted so are refined; others need not be.
        refine = fitting.refine if found.init(mode) == "joint" or not joint else 0
        with _in_plan(plan, layer):
            replace(found, refine=refine).check(mode, images=images)


def planned_sites(plan: PlanFile, find: Callable[[bool], Sites]) -> Sites:
    """The layers that a plan may speak of.

    Args:
        plan: The plan.
        find: Finds convolutions, and Gemm and MatMul nodes too where it is told so.
    """
    linear = any(mode.linear_layers for _, mode in _modes(plan))
    sites = find(linear)
    if linear or not _unknown(plan, sites):
        return sites
    more = find(True)  # made with another mode, or changed since
    return more if len(_unknown(plan, more)) < len(_unknown(plan, sites)) else sites


def assign(plan: PlanFile, model: Model, sites: Sites, fitting: Fitting) -> Assigned:
    """What a plan wants of the layers of a model.

    Args:
        plan: The plan.
        model: The model.
        sites: Its layers, as ``planned_sites`` gives them.
        fitting: What the user chose about data.

    Raises:
        OptionError: The plan was made for another model; a layer is not there, cannot be replaced, or has not that
            rank in that mode.
        ModelLoadError: Weights of the model cannot be read.
    """
    _check_model(plan, model, sites)
    if unknown := _unknown(plan, sites):
        raise OptionError(f"{plan.name}: {_not_there(unknown, sites)}")
    items = {key: item for item, key in _keyed(sites)}
    wanted: dict[Place, Assignment | str] = {}
    said: dict[Place, str] = {}
    blocks: dict[Place, BlockMatch] = {}
    of_blocks: dict[Place, Assignment] = {}
    finder = BlockFinder(model, sites)
    for layer in plan.layers:
        item = items[layer.where, layer.key]
        if layer.mode is None:
            wanted[item.place] = layer.left or NOT_NAMED
            continue
        own = _of_layer(fitting, layer)
        with _in_plan(plan, layer):
            mode = _mode(layer, layer.mode)
            if isinstance(mode, BlockMode):
                check_ranks(mode, layer.rank, layer.round_ranks)
                match = blocks[item.place] = finder.at(item, mode)
                # Its place may be that of a layer in it, which is left alone.
                of_blocks[match.place] = Assignment(mode, Options(force=True, include_first=True, recurse=True))
                continue
            wanted[item.place] = _assignment(layer, mode, item, own)
        if own.wanted:
            said[item.place] = own.wanted
    found = with_blocks(sites, blocks, {place for place, one in wanted.items() if isinstance(one, Assignment)})
    wanted |= of_blocks
    chosen = [one for one in wanted.values() if isinstance(one, Assignment)]
    inits = dict.fromkeys(one.options.init for one in chosen if isinstance(one.mode, Mode))
    if fitting.data is not None:
        inits |= dict.fromkeys(one.mode.fits for one in chosen if isinstance(one.mode, BlockMode) and one.mode.fits)
    return Assigned(wanted, said, ", ".join(inits) or "svd", found)


def _assignment(layer: LayerPlan, mode: Mode, item: ConvSite | Rejected, fitting: Fitting) -> Assignment:
    if isinstance(item, Rejected):
        raise OptionError(f"it cannot be replaced: {item.reason}")
    with naming(mode, item.name):
        if reason := refusal(item, mode):
            raise OptionError(f"mode {mode.name} cannot take it: {reason}")
        check_ranks(mode, layer.rank, layer.round_ranks)
        if not isinstance(layer.rank, RankPolicy):
            check_rank(item.conv, mode, layer.rank)
    options = Options(
        layer.rank,
        force=True,
        include_first=True,
        recurse=True,
        round_ranks=layer.round_ranks,
        init=fitting.init(mode),
    )
    return Assignment(mode, options)


def _of_layer(fitting: Fitting, layer: LayerPlan) -> Fitting:
    """The user's choices for one layer: what the command says wins over what the plan says."""
    return replace(fitting, wanted=fitting.wanted or layer.init)


def _mode(layer: LayerPlan, named: str | Mode | BlockMode) -> Mode | BlockMode:
    found = find_mode(named)
    if isinstance(found, WidthMode):
        raise ModeNotFoundError(f"{found.name!r} is a width mode, and a mode for a layer or a block is needed here")
    return found.with_settings(layer.settings)


def _modes(plan: PlanFile) -> Iterator[tuple[LayerPlan, Mode | BlockMode]]:
    for layer in plan.layers:
        if layer.mode is not None:
            with _in_plan(plan, layer):
                mode = _mode(layer, layer.mode)
            yield layer, mode


@contextmanager
def _in_plan(plan: PlanFile, layer: LayerPlan) -> Iterator[None]:
    """Say of an error which line of the plan it is about."""
    try:
        yield
    except OnnxsepError as error:
        where = f" in {layer.where}" if layer.where else ""
        error.args = (f"{plan.name}, layer {layer.key!r}{where}: {error}",)
        raise


# ---------------------------------------------------------------- layers and models that are not the plan's


def _keyed(sites: Sites) -> list[tuple[ConvSite | Rejected, tuple[str, str]]]:
    keys = layer_keys(sites.found)
    return [(item, keys[item.place]) for item in sites.found]


def _unknown(plan: PlanFile, sites: Sites) -> list[LayerPlan]:
    known = {key for _, key in _keyed(sites)}
    return [layer for layer in plan.layers if (layer.where, layer.key) not in known]


def _not_there(unknown: Sequence[LayerPlan], sites: Sites) -> str:
    """Which layers the model does not have, and the nearest that it has."""
    known = [key for _, key in _keyed(sites)]
    words = []
    for layer in unknown[:_FEW]:
        near = nearest(layer.key, [key for where, key in known if where == layer.where])
        elsewhere = next((where for where, key in known if key == layer.key), None)
        if not near and elsewhere is not None:
            near = f" (there is one in {elsewhere})" if elsewhere else " (there is one in the main graph)"
        words.append(f"{layer.key!r}" + (f" in {layer.where}" if layer.where else "") + near)
    more = len(unknown) - _FEW
    return f"the model has no layer {'; no layer '.join(words)}" + (f" (and {more} more)" if more > 0 else "")


def _check_model(plan: PlanFile, model: Model, sites: Sites) -> None:
    made_for = plan.model
    if not made_for.graph and not made_for.weights:
        return
    here = content_hashes(model)
    other_graph = bool(made_for.graph) and made_for.graph != here.graph
    other_weights = bool(made_for.weights) and made_for.weights != here.weights
    if not other_graph and not other_weights:
        return
    which = f"{made_for.name!r}, " if made_for.name else ""
    lines = "the lines graph and weights" if other_graph else "the line weights"
    raise OptionError(
        f"{plan.name} was made for another model, {which}{_difference(plan, sites, other_graph=other_graph)}. Make a "
        f"plan for this one ({spelled('dry_run', True)} {spelled('plan_out')}), or take {lines} out of [model] to "
        "carry it out all the same"
    )


def _difference(plan: PlanFile, sites: Sites, *, other_graph: bool) -> str:
    if not other_graph:
        return "of the same graph with other weights"
    found = []
    if plan.model.layers is not None and plan.model.layers != len(sites.found):
        found.append(f"of {plan.model.layers} layers, and this one has {len(sites.found)}")
    if unknown := _unknown(plan, sites):
        found.append(_not_there(unknown, sites))
    planned = {(layer.where, layer.key) for layer in plan.layers}
    if new := [item.name for item, key in _keyed(sites) if key not in planned]:
        some = ", ".join(map(repr, new[:_FEW])) + (", ..." if len(new) > _FEW else "")
        found.append(f"the plan knows no {some}")
    return "; ".join(found) or "of the same layers, but with other nodes, attributes or names between them"
