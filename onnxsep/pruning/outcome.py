"""What either way of pruning hands back: the model, a row for each layer, sums, and what the result must equal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.sites import Sites
from onnxsep.graph.counting import compare_macs, node_macs
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import Model
from onnxsep.pruning.report import PrunedLayer, PruneTotals


@dataclass(frozen=True)
class Outcome:
    """A pruned model, not yet compared with its source.

    Attributes:
        model: the pruned model; the source's own object where nothing changed, or in a dry run.
        layers: one row for each Conv (Gemm, MatMul) in graph order.
        totals: sums.
        dtypes: types of the weights that were pruned.
        new_initializers: changed initialisers of the main graph that were in a data file.
        surviving: weights left after each step.
        notes: for the report.
        masked: makes the source with the removed channels without effect, which the model must equal; None where
            single weights became zero.
    """

    model: Model
    layers: tuple[PrunedLayer, ...]
    totals: PruneTotals
    dtypes: frozenset[str] = frozenset()
    new_initializers: tuple[str, ...] = ()
    surviving: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    masked: Callable[[], Model] | None = None


def left_row(item: ConvSite | Rejected, reason: str, notes: tuple[str, ...] = ()) -> PrunedLayer:
    """The row of a layer that is left alone."""
    conv = item.conv if isinstance(item, ConvSite) else None
    return PrunedLayer(
        name=item.name,
        op_type=item.op_type,
        where=item.where,
        status="left",
        reason=reason,
        notes=notes,
        weight_shape=conv.weight_shape if conv else None,
        weights=conv.weight_size if conv else None,
    )


def sharing_notes(sites: Sites) -> Mapping[Place, tuple[str, ...]]:
    """By place of each layer whose weight an earlier one has too, a note that says so: it is counted once."""
    first: dict[object, ConvSite] = {}
    notes: dict[Place, tuple[str, ...]] = {}
    for item in sites.found:
        if isinstance(item, ConvSite) and first.setdefault(item.weight, item) is not item:
            notes[item.place] = (f"shares the weight of {first[item.weight].name!r}, which is counted once",)
    return notes


def make_totals(
    sites: Sites, light: onnx.ModelProto, *, pruned: int, weights: tuple[int, int], zeros: tuple[int, int] | None = None
) -> PruneTotals:
    """Sums over the layers, given before and after, and over the source and the result.

    Args:
        sites: of the source.
        light: skeleton of the result, with inferred shapes.
        pruned: how many layers took part.
        weights: elements of their weights, before and after.
        zeros: how many of them are zero, before and after; None where that is not counted.
    """
    before, after, unknown = compare_macs(_named_macs(sites.light), _named_macs(light))
    return PruneTotals(
        layers=len(sites.found),
        pruned=pruned,
        weights_before=weights[0],
        weights_after=weights[1],
        zeros_before=zeros[0] if zeros else None,
        zeros_after=zeros[1] if zeros else None,
        parameters_before=count_parameters(sites.light),
        parameters_after=count_parameters(light),
        macs_before=before,
        macs_after=after,
        macs_unknown=unknown,
    )


def _named_macs(light: onnx.ModelProto) -> dict[tuple[int, str], int | None]:
    """MACs of every node by scope and first output, for nodes may have been put in or taken out."""
    all_scopes = scopes(light)
    return {
        (scope, "".join(all_scopes[scope].body.node[index].output[:1])): count
        for (scope, index), count in node_macs(light).items()
    }
