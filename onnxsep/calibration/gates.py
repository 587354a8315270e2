"""Gates that a tensor gives itself through a mean over all positions, as squeeze-and-excitation has them.

Such a gate multiplies every position of an image by the same number for each channel, and is made of all positions
together, so what one position of a Conv gives hardly moves it. A fit takes the gate of the original network as given.
"""

import numpy as np

from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import is_standard
from onnxsep.model.io import Model

_GLOBAL = frozenset({"GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"})
_REDUCING = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum"})
_LARGEST = 24  # nodes


def own_gate(model: Model, index: Index, name: str, dims: int) -> tuple[Place, str] | None:
    """The product of a tensor and its gate, and the name of the gate; None where it has none.

    All that reads the tensor are this product and pools over its positions, and all that is made of the pools ends in
    the product.

    Args:
        model: the source.
        index: of it.
        name: of the tensor, [images, channels, *positions].
        dims: how many axes its positions have.
    """
    readers = index.readers(name)
    products = [place for place in readers if index.node(place).op_type == "Mul" and is_standard(index.node(place))]
    if len(products) != 1 or len(readers) < 2 or index.is_output(name) or any(place[0] for place in readers):
        return None
    (product,) = products
    pools = [place for place in readers if place != product]
    others = [operand for operand in index.node(product).input if operand != name]
    if len(others) != 1 or not all(_pools(model, index, place, name, dims) for place in pools):
        return None
    made = set[Place]()
    while pools:
        place = pools.pop()
        if place == product or place in made:
            continue
        made.add(place)
        outputs = [output for output in index.node(place).output if output]
        if place[0] or len(made) > _LARGEST or any(map(index.is_output, outputs)):
            return None
        pools += [reader for output in outputs for reader in index.readers(output)]
    return (product, others[0]) if index.place(others[0]) in made else None


def _pools(model: Model, index: Index, place: Place, name: str, dims: int) -> bool:
    """Whether a node takes all positions of a tensor together, and leaves its channels apart."""
    node = index.node(place)
    if not is_standard(node) or node.input[0] != name:
        return False
    if node.op_type not in _REDUCING:
        return node.op_type in _GLOBAL
    axes = index.attribute(place, "axes", None)
    if axes is None and len(node.input) > 1 and (constant := index.constant(node.input[1])) is not None:
        try:
            axes = np.ravel(read_constant(model, index.scopes, constant)).tolist()
        except FactorizationError:
            return False
    return axes is not None and {axis % (dims + 2) for axis in axes} == set(range(2, dims + 2))
