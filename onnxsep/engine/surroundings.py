"""What stands around a layer, for starts without data: one weight, one start, whatever reads it."""

from collections.abc import Sequence
from dataclasses import replace

from onnxsep.engine.matches import ConvSite, Normalization, Rejected
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import is_standard
from onnxsep.graph.view import View


def normalization_behind(view: View, scope: int, name: str) -> Normalization | None:
    """The BatchNormalization that alone reads a tensor."""
    index = view.index
    uses = index.uses(name, scope)
    place = uses[0].place if len(uses) == 1 else None
    if place is None or place[0] != scope:
        return None
    node = view.scopes[scope].body.node[place[1]]
    if node.op_type != "BatchNormalization" or not is_standard(node) or uses[0].position or len(node.input) < 5:
        return None
    scale, variance = (index.constant(node.input[position], scope) for position in (1, 4))
    if scale is None or variance is None:
        return None
    return Normalization(scale, variance, index.attribute(place, "epsilon", 1e-5))


def alike(found: Sequence[ConvSite | Rejected]) -> list[ConvSite | Rejected]:
    """Sites that share a weight share what is known of what stands around it, for they share their factors."""
    sharing: dict[Constant, list[ConvSite]] = {}
    for item in found:
        if isinstance(item, ConvSite):
            sharing.setdefault(item.weight, []).append(item)
    made: list[ConvSite | Rejected] = []
    for item in found:
        if isinstance(item, ConvSite) and len(others := sharing[item.weight]) > 1:
            same = len({other.normalization for other in others}) == 1
            item = replace(
                item,
                rectified=all(other.rectified for other in others),
                normalization=item.normalization if same else None,
            )
        made.append(item)
    return made
