"""What stands around a layer, for starts without data: one weight, one start, whatever reads it."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from onnxsep.engine.matches import ConvSite, InputMoments, Normalization, Rejected
from onnxsep.graph.index import Index
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import is_standard
from onnxsep.graph.view import View

_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv"})
_MOST_NODES = 64


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


def normalization_before(index: Index, scope: int, name: str) -> InputMoments | None:
    """Mean and deviation of a tensor that a BatchNormalization makes."""
    place = index.place(name, scope)
    if place is None or index.node(place).op_type != "BatchNormalization" or not is_standard(index.node(place)):
        return None
    node = index.node(place)
    if len(node.input) < 5 or index.attribute(place, "training_mode", 0) or not index.attribute(place, "spatial", 1):
        return None
    mean, deviation = (index.constant(node.input[position], place[0]) for position in (2, 1))
    return None if mean is None or deviation is None else InputMoments(mean, deviation)


def behind_first(index: Index, scope: int, name: str, first: AbstractSet[Place]) -> bool:
    """Whether a tensor is what first Convs make of the image, with whatever stands between, but no other Conv."""
    pending, seen, found = [(scope, name)], set[Place](), False
    while pending:
        at, one = pending.pop()
        place = index.place(one, at)
        if place is None or place in seen:
            continue
        seen.add(place)
        if len(seen) > _MOST_NODES:
            return False
        if place in first:
            found = True
        elif index.node(place).op_type in _CONVOLUTIONS:
            return False
        else:
            pending += [(place[0], operand) for operand in index.node(place).input if operand]
    return found


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
            same_inputs = len({(other.input_moments, other.rectified) for other in others}) == 1
            item = replace(
                item,
                rectified=all(other.rectified for other in others),
                smooth=all(other.smooth for other in others),
                input_moments=item.input_moments if same_inputs else None,
                normalization=item.normalization if same else None,
            )
        made.append(item)
    return made
