"""Turning a plan and what was measured into report records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import onnx

from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import Rejected
from onnxsep.engine.planned_costs import plan_macs
from onnxsep.engine.planning import Plan, site_macs
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.places import Place
from onnxsep.planner.output_distance import Effect
from onnxsep.reporting.records import ActivationMemory, EffectReport
from onnxsep.rewriting.report import ConvReport, Spectrum, Totals
from onnxsep.running.sizes import Sizes


def conv_reports(
    plan: Plan,
    factors: Mapping[Place, Factorized],
    output_errors: Mapping[Place, float],
    effects: Mapping[Place, Effect],
    spectra: Mapping[Place, Spectrum],
) -> tuple[ConvReport, ...]:
    """One record for every convolution, in graph order.

    Args:
        plan: what was decided.
        factors: by the place of the replaced Conv.
        output_errors: of a local verification, by the place of the replaced Conv; empty without one.
        effects: on the network's output, by the place of the Conv, where they were measured.
        spectra: of weights, by the place of the replaced Conv, where they are known.
    """
    return tuple(_conv_report(row, factors, output_errors, effects, spectra) for row in plan.rows)


def _conv_report(
    row: Replacement | Rejected,
    factors: Mapping[Place, Factorized],
    output_errors: Mapping[Place, float],
    effects: Mapping[Place, Effect],
    spectra: Mapping[Place, Spectrum],
) -> ConvReport:
    site = row.site
    measured = None if site is None else effects.get(site.anchor.place)
    effect = None if measured is None else measured.report
    if isinstance(row, Rejected):
        return left_row(row, effect)
    assert site is not None
    errors = factors[site.place].errors
    return ConvReport(
        name=site.name,
        op_type=site.op_type,
        where=site.where,
        status="replaced",
        mode=row.mode.name,
        notes=row.notes,
        weight_shape=site.conv.weight_shape,
        group=site.conv.group,
        strides=site.conv.strides,
        rank=row.rank,
        parameters_before=site.parameters,
        parameters_after=row.parameters,
        macs_before=site_macs(site),
        macs_after=row.macs,
        weight_error=factors[site.place].weight_error,
        svd_error=errors.svd if errors else None,
        fitted_error=errors.fitted if errors else None,
        held_out_error=errors.held_out if errors else None,
        output_error=output_errors.get(site.place),
        effect=effect,
        spectrum=spectra.get(site.place),
    )


def left_row(row: Rejected, effect: EffectReport | None = None) -> ConvReport:
    """The record of a convolution that is left alone."""
    site = row.site
    return ConvReport(
        name=row.name,
        op_type=row.op_type,
        where=row.where,
        status="left",
        reason=row.reason,
        weight_shape=site.conv.weight_shape if site else None,
        group=site.conv.group if site else None,
        strides=site.conv.strides if site else None,
        parameters_before=site.conv.parameters if site else None,
        parameters_after=site.conv.parameters if site else None,
        macs_before=site_macs(site) if site else None,
        macs_after=site_macs(site) if site else None,
        effect=effect,
    )


def totals(sites: Sites, plan: Plan, light: onnx.ModelProto, sizes: Sizes) -> Totals:
    """Sums over the original and the result.

    Args:
        sites: of the original.
        plan: what was decided.
        light: skeleton of the result.
        sizes: of the original.
    """
    macs = sums_of_macs(plan_macs(sites, plan), [sites.light, light], sizes)
    return counted(sites.light, light, macs, sizes, convs=len(plan.rows), replaced=len(plan.replacements))


def counted(
    source: onnx.ModelProto,
    light: onnx.ModelProto,
    macs: tuple[Sequence[int], int],
    sizes: Sizes,
    *,
    convs: int,
    replaced: int,
) -> Totals:
    """Sums over two skeletons.

    Args:
        source: of the original.
        light: of the result.
        macs: of both, and how many nodes are not in these sums.
        sizes: of the original.
        convs: how many there are.
        replaced: how many of them changed.
    """
    (before, after), unknown = macs
    return Totals(
        convs=convs,
        replaced=replaced,
        parameters_before=count_parameters(source),
        parameters_after=count_parameters(light),
        macs_before=before,
        macs_after=after,
        macs_unknown=unknown,
        activations_before=activations(sizes, source),
        activations_after=activations(sizes, light),
    )


def sums_of_macs(
    counts: Sequence[Mapping[Place, int | None]], lights: Sequence[onnx.ModelProto], sizes: Sizes
) -> tuple[list[int], int]:
    """MACs of several forms of a model, and how many nodes are not in these sums.

    Where sizes are not known of all nodes, but for the inputs at hand of all that run, each call of a function counts,
    and what does not run is left out.

    Args:
        counts: MACs of the nodes of each form, by the places in the original.
        lights: the same forms as skeletons.
        sizes: of the original.
    """
    unknown = {place for one in counts for place, count in one.items() if count is None}
    if unknown:
        found = [sizes.macs(light) for light in lights]
        if not any(one.unknown for one in found):
            return [one.total for one in found], 0
    sums = [sum(count or 0 for place, count in one.items() if place not in unknown) for one in counts]
    return sums, len(unknown)


def activations(sizes: Sizes, light: onnx.ModelProto) -> ActivationMemory:
    """Peak activation memory of a skeleton, as a record."""
    return ActivationMemory(**asdict(sizes.activation_memory(light)))
