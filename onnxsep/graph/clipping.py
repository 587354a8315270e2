"""The bounds of Relu and Clip, as attributes before operator set 11 and as operands since."""

import numpy as np

from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.model.io import Model


def clip_bounds(model: Model, index: Index, place: Place) -> tuple[float, float] | None:
    """Lower and upper bound of a Relu or Clip.

    Returns:
        The bounds, infinite where there is none; None where one is not a constant number.
    """
    node = index.node(place)
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [index.attribute(place, "min", -np.inf), index.attribute(place, "max", np.inf)]
    for position, name in enumerate(node.input[1:3]):
        if not name:
            continue
        constant = index.constant(name, place[0])
        if constant is None:
            return None
        try:
            value = read_constant(model, index.scopes, constant)
        except FactorizationError:
            return None
        if value.size != 1:
            return None
        bounds[position] = float(value.reshape(()))
    return float(bounds[0]), float(bounds[1])
