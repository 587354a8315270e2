"""``inspect``: every Conv of a model and what each mode would cost, without changing or running anything."""

import os
from collections.abc import Callable, Mapping, Sequence

import onnx

from onnxsep.counting import count_macs, count_parameters
from onnxsep.io import Model, load
from onnxsep.linalg import Array
from onnxsep.modes import Mode, available_modes, get_mode
from onnxsep.planning import (
    Options,
    choose,
    does_not_pay,
    mac_ratio,
    macs_change,
    make_plan,
    refusal,
    site_macs,
    stored_change,
)
from onnxsep.report import InspectedConv, InspectReport, InspectTotals, ModeCosts
from onnxsep.sites import find_sites, read_weight
from onnxsep.tables import model_info
from onnxsep.types import ConvSite, RankPolicy, Rejected


def inspect(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    modes: Sequence[str | Mode] = (),
    rank: RankPolicy | str | float = "paper",
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    follow_links: bool = False,
) -> InspectReport:
    """List every convolution with its parameters and MACs, and those of each mode at the rank asked for.

    Args:
        model: a file, a ModelProto, or what ``load`` gave.
        modes: the modes to show; all installed ones by default.
        rank: as for ``rewrite``.
        input_shapes: shapes for inputs whose dimensions are free, by input name.
        follow_links: follow links in the location of external data.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: the rank cannot be used.
        ModeNotFoundError: no such mode.
    """
    source = load(model, follow_links=follow_links)
    sites = find_sites(source, input_shapes or {})
    options = Options(rank=RankPolicy.parse(rank))
    chosen = [get_mode(mode) for mode in modes] or list(available_modes().values())

    def read(site: ConvSite) -> Array:
        return read_weight(source, sites, site)

    macs = count_macs(sites.light)
    plans = {mode.name: make_plan(sites.found, mode, options, read) for mode in chosen}
    stored = count_parameters(sites.light)
    return InspectReport(
        source=model_info(source),
        rank=str(options.rank),
        convs=tuple(_row(item, chosen, options, read) for item in sites.found),
        totals=InspectTotals(
            convs=len(sites.found),
            parameters=stored,
            trainable_parameters=count_parameters(sites.light, "trainable"),
            macs=macs.total,
            macs_unknown=macs.unknown,
            mode_convs={name: len(plan.replacements) for name, plan in plans.items()},
            mode_parameters={name: stored + stored_change(plan) for name, plan in plans.items()},
            mode_macs={name: macs.total + macs_change(plan) for name, plan in plans.items()},
        ),
    )


def _row(
    item: ConvSite | Rejected, modes: Sequence[Mode], options: Options, read: Callable[[ConvSite], Array]
) -> InspectedConv:
    if isinstance(item, Rejected):
        return InspectedConv(name=item.name, op_type=item.op_type, where=item.where, reason=item.reason)
    return InspectedConv(
        name=item.name,
        op_type="Conv",
        where=item.where,
        weight_shape=item.conv.weight_shape,
        group=item.conv.group,
        strides=item.conv.strides,
        input_size=item.input_size,
        first=item.first,
        parameters=item.conv.parameters,
        macs=site_macs(item),
        modes={mode.name: _costs(item, mode, options, read) for mode in modes},
    )


def _costs(site: ConvSite, mode: Mode, options: Options, read: Callable[[ConvSite], Array]) -> ModeCosts:
    reason = refusal(site, mode)
    if reason:
        return ModeCosts(eligible=False, reason=reason)
    candidate = choose(site, mode, options, read)
    if isinstance(candidate, Rejected):
        return ModeCosts(eligible=True, reason=candidate.reason)
    reason = does_not_pay(candidate)
    return ModeCosts(
        eligible=True,
        pays=reason is None,
        reason=f"does not pay: {reason}" if reason else "",
        rank=candidate.rank,
        parameters=candidate.parameters,
        macs=candidate.macs,
        parameter_ratio=candidate.parameters / site.conv.parameters,
        mac_ratio=float(mac_ratio(candidate)),
    )
