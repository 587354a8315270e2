"""``inspect``: every Conv of a model and what each mode would cost, without changing or running anything."""

from collections.abc import Callable, Sequence

from onnxsep.algebra.linalg import Array
from onnxsep.engine.blocks import matches
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planned_costs import edited, plan_macs, source_macs
from onnxsep.engine.planning import (
    Options,
    choose,
    does_not_pay,
    mac_ratio,
    make_plan,
    naming,
    refusal,
    site_macs,
)
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.counting import count_flops_paper004
from onnxsep.graph.parameters import count_parameters
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import AnyModel, load
from onnxsep.modes.base import AnyMode, Mode, available_modes, find_mode
from onnxsep.modes.block import BlockMode
from onnxsep.modes.width import WidthMode
from onnxsep.options.progress import announce
from onnxsep.options.taking import takes
from onnxsep.reporting.model_info import model_info
from onnxsep.rewriting.blocks import inspected_blocks
from onnxsep.rewriting.inspect_options import InspectOptions
from onnxsep.rewriting.report import InspectedConv, InspectReport, InspectTotals, ModeCosts
from onnxsep.rewriting.rows import activations, sums_of_macs
from onnxsep.running.feeds import check_input_shapes
from onnxsep.running.sizes import find_sizes


@takes(InspectOptions)
def inspect(model: AnyModel, options: InspectOptions) -> InspectReport:
    """List every convolution with its parameters and MACs, and those of each mode at the rank asked for.

    Gemm and MatMul nodes are listed where one of the modes takes them.

    Args:
        model: a file, a ModelProto, or what ``load`` gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: the rank cannot be used.
        FeedError: a shape does not fit the model.
        ModeNotFoundError: no such mode.
    """
    asked = Options(rank=RankPolicy.parse(options.rank))
    chosen = _shown(options.modes)
    source = load(model, follow_links=options.follow_links)
    check_input_shapes(source, options.shapes)
    announce(options.teller, "finding the layers")
    sizes = find_sizes(source, options.shapes)
    linear = any(mode.linear_layers for mode in chosen)
    sites = find_sites(source, options.shapes, linear_layers=linear, transposed=True, measured=sizes.of(source))

    def read(site: ConvSite) -> Array:
        return read_weight(source, sites, site)

    names = [mode.name for mode in chosen]
    plans = []
    for number, mode in enumerate(chosen):
        announce(options.teller, f"mode {mode.name}", number, len(chosen))
        plans.append(make_plan(matches(source, sites, mode), mode, asked, read))
    rows = [
        {row.place if isinstance(row, Rejected) else row.site.anchor.place: row for row in plan.rows} for plan in plans
    ]
    lights = {name: edited(sites, plan)[0] for name, plan in zip(names, plans, strict=True)}
    (macs, *mode_macs), unknown = sums_of_macs(
        [source_macs(sites), *(plan_macs(sites, plan)[1] for plan in plans)], [sites.light, *lights.values()], sizes
    )
    return InspectReport(
        source=model_info(source),
        rank=str(asked.rank),
        options=options.as_json(model=model),
        convs=tuple(
            _row(item, [by_place.get(item.place) for by_place in rows], chosen, asked, read) for item in sites.found
        ),
        blocks=inspected_blocks(source, sites, dict(zip(names, plans, strict=True))),
        totals=InspectTotals(
            convs=len(sites.found),
            parameters=count_parameters(sites.light),
            trainable_parameters=count_parameters(sites.light, "trainable"),
            macs=macs,
            macs_unknown=unknown,
            flops_paper004=count_flops_paper004(sites.light).total,
            mode_convs={name: len(plan.replacements) for name, plan in zip(names, plans, strict=True)},
            mode_parameters={name: count_parameters(light) for name, light in lights.items()},
            mode_macs=dict(zip(names, mode_macs, strict=True)),
            activations=activations(sizes, sites.light),
            mode_activations={name: activations(sizes, light) for name, light in lights.items()}
            if options.modes
            else None,
        ),
        notes=(*sites.notes, *sizes.notes(source)),
    )


def _shown(names: Sequence[str | AnyMode]) -> list[Mode | BlockMode]:
    """The modes to show; of all those that are installed, those that can say what they make of a layer."""
    asked = [find_mode(name) for name in names]
    widths = [mode.name for mode in asked if isinstance(mode, WidthMode)]
    if widths:
        raise OptionError(
            f"mode {widths[0]} changes how many channels layers have, so it has no costs of one layer; a rewrite with"
            f" {spelled('dry_run', True)} shows what it would do"
        )
    return [mode for mode in asked or available_modes().values() if not isinstance(mode, WidthMode)]


def _row(
    item: ConvSite | Rejected,
    decided: Sequence[Replacement | Rejected | None],
    modes: Sequence[AnyMode],
    options: Options,
    read: Callable[[ConvSite], Array],
) -> InspectedConv:
    if isinstance(item, Rejected):
        return InspectedConv(name=item.name, op_type=item.op_type, where=item.where, reason=item.reason)
    return InspectedConv(
        name=item.name,
        op_type=item.op_type,
        where=item.where,
        weight_shape=item.conv.weight_shape,
        group=item.conv.group,
        strides=item.conv.strides,
        input_size=item.input_size,
        first=item.first,
        parameters=item.conv.parameters,
        macs=site_macs(item),
        modes={mode.name: _costs(item, mode, row, options, read) for mode, row in zip(modes, decided, strict=True)},
    )


def _costs(
    site: ConvSite,
    mode: AnyMode,
    decided: Replacement | Rejected | None,
    options: Options,
    read: Callable[[ConvSite], Array],
) -> ModeCosts:
    if decided is None:
        return ModeCosts(eligible=True, reason="part of the match of another one")
    reason = decided.reason if isinstance(decided, Rejected) else ""
    candidate = decided
    if isinstance(mode, Mode):
        with naming(mode, site.name):
            if refusal(site, mode):
                return ModeCosts(eligible=False, reason=reason)
            # What is left alone (a first Conv, one that does not pay) has its costs all the same.
            candidate = choose(site, mode, options, read) if isinstance(decided, Rejected) else decided
    elif isinstance(decided, Rejected):
        return ModeCosts(eligible=False, reason=reason)
    if isinstance(candidate, Rejected):
        return ModeCosts(eligible=True, reason=candidate.reason)
    return ModeCosts(
        eligible=True,
        pays=does_not_pay(candidate) is None,
        replaced=isinstance(decided, Replacement),
        reason=reason,
        notes=candidate.notes,
        rank=candidate.rank,
        parameters=candidate.parameters,
        macs=candidate.macs,
        parameter_ratio=candidate.parameters / candidate.site.parameters,
        mac_ratio=float(mac_ratio(candidate)),
    )
