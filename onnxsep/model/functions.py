"""Which of a model's own functions call which, and what a model is with all calls expanded, without expanding them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import inliner

from onnxsep.errors import ModelLoadError
from onnxsep.model.tensors import Body

Key = tuple[str, str, str]  # domain, name, overload
_MOST_NODES = 200_000
_FEW_NODES = 1_000  # the runtime's own time for calls grows with the square of their number: 40 s for 8,000
_DEEPEST = 200  # onnx and the runtime expand by recursion, and a stack that is full ends the process


@dataclass(frozen=True)
class Expansion:
    """What a model is when every call is replaced by the function's nodes.

    Attributes:
        nodes: How many nodes it then has.
        depth: The longest chain of functions that call one another; 0 where the model calls none.
    """

    nodes: int
    depth: int


def key_of(function: onnx.FunctionProto) -> Key:
    """What a call names a function by."""
    return function.domain, function.name, function.overload


def callee(node: onnx.NodeProto) -> Key:
    """The function that a node calls, if the model has one of this name."""
    return node.domain, node.op_type, node.overload


def callees_first(proto: onnx.ModelProto) -> list[int]:
    """Numbers of the model's functions, each behind those that it calls.

    Raises:
        ModelLoadError: A function calls itself, be it through others.
    """
    number = {key_of(function): index for index, function in enumerate(proto.functions)}
    called = [
        sorted({number[key] for key in map(callee, _nodes(function)) if key in number}) for function in proto.functions
    ]
    order: list[int] = []
    state = [0] * len(called)  # 1: entered, 2: done
    for start in range(len(called)):
        pending = [start]
        while pending:
            index = pending[-1]
            if state[index]:
                pending.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
                continue
            state[index] = 1
            for other in called[index]:
                if state[other] == 1:
                    raise ModelLoadError(
                        f"the function {proto.functions[other].name!r} calls itself"
                        + ("" if other == index else f", through {proto.functions[index].name!r}")
                        + ". ONNX does not allow that; the file is damaged, or its exporter is at fault."
                    )
                if not state[other]:
                    pending.append(other)
    return order


def check_calls(proto: onnx.ModelProto) -> None:
    """Refuse functions that call themselves.

    Raises:
        ModelLoadError: There is one.
    """
    if proto.functions:
        callees_first(proto)


def expansion(proto: onnx.ModelProto) -> Expansion:
    """The size that the model has with all calls expanded; the time that this takes is linear in the model as it is.

    Raises:
        ModelLoadError: A function calls itself.
    """
    sizes: dict[Key, Expansion] = {}
    for index in callees_first(proto):
        function = proto.functions[index]
        sizes[key_of(function)] = _expanded(function, sizes, 1)
    return _expanded(proto.graph, sizes, 0)


def too_many_calls(proto: onnx.ModelProto) -> str | None:
    """Why the calls of a model's functions cannot be expanded, which is how it is run; None if they can."""
    if not proto.functions:
        return None
    size = expansion(proto)
    if size.nodes > _MOST_NODES:
        return f"its functions call one another so often that they expand to {size.nodes:,} nodes"
    if size.depth > _DEEPEST:
        return f"its functions call one another {size.depth:,} deep"
    return None


def with_few_calls(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the runtime can load it in little time: with many calls, a copy in which they are expanded.

    Args:
        proto: A model for which :func:`too_many_calls` has nothing to say.
    """
    if not proto.functions or expansion(proto).nodes <= _FEW_NODES:
        return proto
    return inliner.inline_local_functions(proto)


def _expanded(body: Body, sizes: dict[Key, Expansion], own: int) -> Expansion:
    nodes = depth = 0
    for key, count in Counter(map(callee, _nodes(body))).items():
        size = sizes.get(key)
        nodes += count * (1 if size is None else max(size.nodes, 1))
        depth = max(depth, 0 if size is None else size.depth)
    return Expansion(nodes, own + depth)


def _nodes(body: Body) -> Iterator[onnx.NodeProto]:
    """The nodes of a body and of the graphs in its attributes."""
    pending: list[Sequence[onnx.NodeProto]] = [body.node]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute if node.attribute else ():
                pending += [graph.node for graph in attribute.graphs]
                if attribute.HasField("g"):
                    pending.append(attribute.g.node)
