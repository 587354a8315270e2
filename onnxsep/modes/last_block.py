"""The last residual block of a network: what it computes is read by a mean over all positions, and by nothing else."""

from onnxsep.graph.activations import ACTIVATIONS, activation
from onnxsep.graph.expressions import Either, Value
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match, Pattern
from onnxsep.graph.places import Place
from onnxsep.modes.residual import residual_sum

_MEANS = ("GlobalAveragePool", "ReduceMean", "AveragePool")


def closed_block_pattern(*, last: bool) -> Pattern:
    """A bottleneck or a basic block with the activation of its sum, where there is one.

    Args:
        last: only the last one of a network.
    """
    sums = (residual_sum(3, Value("x")), residual_sum(2, Value("x")))
    whole = Either(*(activation("activation", one) for one in sums), *sums)
    return Pattern("residual block", whole, _before_mean if last else None)


def _before_mean(index: Index, match: Match) -> str | None:
    """Why a match is not the last block; None if it is."""
    uses = list(index.uses(match.output, match.scope))
    for use in uses:
        if use.place is None:
            return f"is {use.what}"
        if index.node(use.place).op_type not in _MEANS:
            return f"is not the last block: what it computes goes on into {_reader(index, use.place, match.scope)}"
    return None if uses else "computes what nothing reads"


def _reader(index: Index, place: Place, scope: int) -> str:
    """A node in words; behind an activation that which reads it, where there is one alone."""
    node = index.node(place)
    if node.op_type in (*ACTIVATIONS, "Clip"):
        behind = [use.place for use in index.uses(node.output[0], scope) if use.place is not None]
        return index.label(behind[0] if len(behind) == 1 else place)
    return index.label(place)
