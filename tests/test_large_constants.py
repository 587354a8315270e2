"""A file of a few bytes may describe a constant of any size: it is refused before it is made."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsep.errors import UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.training.normalize import normalized_copy

MANY = 2**34  # elements; as float32 they would be 64 GB
SIDE = 2**17
CASES = {
    "ConstantOfShape": [np.array([MANY // 8, 8])],
    "Expand": [np.array([7]), np.array([8, MANY // 8])],
    "Tile": [np.array([[1, 2]]), np.array([MANY // 4, 2])],
    "Range": [np.array(5), np.array(5 - 2 * MANY), np.array(-2)],
    "Pad": [np.array([1, 2]), np.array([MANY, 0])],
    "Add": [np.zeros((SIDE, 1), np.int64), np.zeros((1, SIDE), np.int64)],
    "Equal": [np.zeros((SIDE, 1), np.int64), np.zeros((SIDE,), np.int64)],
}


def model_with(operator: str, constants: list[np.ndarray]) -> Model:
    """Adds the smallest value of what an operator computes from constants to the input."""
    names = [f"constant{index}" for index in range(len(constants))]
    nodes = [
        helper.make_node(operator, names, ["made"], name="maker"),
        helper.make_node("Cast", ["made"], ["cast"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("ReduceMin", ["cast"], ["least"], keepdims=0, name="least"),
        helper.make_node("Add", ["x", "least"], ["y"], name="add"),
    ]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    tensors = [numpy_helper.from_array(values, name) for values, name in zip(constants, names, strict=True)]
    graph = helper.make_graph(nodes, "large", [given], [made], tensors)
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("operator", CASES)
def test_training_refuses_a_constant_that_is_too_large(operator: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{operator} 'maker' computes is too large"):
        normalized_copy(model_with(operator, CASES[operator]))


@pytest.mark.parametrize("operator", CASES)
def test_training_folds_the_same_with_few_elements(operator: str) -> None:
    small = [
        values if values.size == SIDE else np.where(abs(values) > 100, np.sign(values) * 100, values)
        for values in CASES[operator]
    ]
    small = [
        values[:50] if values.shape[:1] == (SIDE,) else values[:, :50] if values.size == SIDE else values
        for values in small
    ]
    plain = normalized_copy(model_with(operator, small)).graph
    assert "maker" not in {node.name for node in plain.node}
