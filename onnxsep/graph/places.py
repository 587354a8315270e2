"""Where nodes and constants stand in a model."""

from dataclasses import dataclass

Place = tuple[int, int]  # (scope, index of the node in it), in the order of onnxsep.graph.scopes


@dataclass(frozen=True)
class Constant:
    """A constant tensor: Convs whose weights are equal ``Constant`` objects share the weight.

    ``nodes`` are the nodes that make it, producers first: none for an initialiser, one Constant node, or an
    expression of constants. ``scope`` is where the initialiser or the last of the nodes stands.
    """

    scope: int
    name: str
    nodes: tuple[Place, ...] = ()
