"""Taking tensors out of a graph: what holds them, and what is said about them."""

from typing import Any

import onnx


def remove_tensors(body: onnx.GraphProto | onnx.FunctionProto, names: set[str]) -> tuple[list[str], list[str]]:
    """Take tensors of these names out of a graph or a function, which no node uses any more.

    Returns:
        The names of the initialisers, and of the inputs, that went.
    """
    _remove(body.value_info, names)
    if isinstance(body, onnx.FunctionProto):
        return [], []
    for index in reversed(range(len(body.quantization_annotation))):
        if body.quantization_annotation[index].tensor_name in names:
            del body.quantization_annotation[index]
    return _remove(body.initializer, names), _remove(body.input, names)


def _remove(values: Any, names: set[str]) -> list[str]:
    """Delete the members with these names from a repeated field; gives the names that were there."""
    removed = []
    for index in reversed(range(len(values)) if names else ()):
        if values[index].name in names:
            removed.append(values[index].name)
            del values[index]
    return removed[::-1]
