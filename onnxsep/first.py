"""Which Convs are first: reached from a graph input without passing another Conv.

They see the image itself, have few input channels, and are what papers leave full. A Gemm or MatMul is first where it
is reached without passing a Conv, Gemm or MatMul; which Convs are first does not depend on them.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import onnx

from onnxsep.scopes import Scope, is_standard, scopes
from onnxsep.types import Place

# What these read of a tensor is its size, not its content.
_SHAPE_ONLY = {"Shape", "Size"}
_CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"}
_LINEAR = {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}


def first_convs(model: onnx.ModelProto, *, linear_layers: bool = False) -> set[Place]:
    """(scope, index) of every first Conv, in the order of ``onnxsep.scopes.scopes``.

    A function counts as inlined at each of its calls; in a Loop or Scan what one iteration leaves reaches the next.

    Args:
        model: the model or its skeleton.
        linear_layers: give the first Gemm and MatMul nodes too.
    """
    found = _Reach(model, _CONVOLUTIONS).run()
    if linear_layers:
        all_scopes = scopes(model)
        reached = _Reach(model, _CONVOLUTIONS | _LINEAR).run()
        found |= {place for place in reached if all_scopes[place[0]].body.node[place[1]].op_type in _LINEAR}
    return found


class _Reach:
    """Follows the graph inputs through nodes, nested graphs and calls."""

    def __init__(self, model: onnx.ModelProto, stops: AbstractSet[str]) -> None:
        self._stops = stops
        self._scopes = scopes(model)
        self._nested = {(scope.parent, *scope.holder): scope for scope in self._scopes if scope.holder is not None}
        self._functions = {
            (scope.body.domain, scope.body.name, scope.body.overload): scope
            for scope in self._scopes
            if isinstance(scope.body, onnx.FunctionProto)
        }
        self._calls: dict[tuple[int, tuple[bool, ...]], list[bool]] = {}
        self._first: set[Place] = set()

    def run(self) -> set[Place]:
        main = self._scopes[0].body
        assert isinstance(main, onnx.GraphProto)
        constants = {tensor.name for tensor in main.initializer}
        self._body(self._scopes[0], {value.name for value in main.input if value.name not in constants})
        return self._first

    def _body(self, scope: Scope, reached: set[str]) -> list[bool]:
        """Walk one body; ``reached`` holds the names that graph inputs reach, and grows. Gives that of its outputs."""
        for index, node in enumerate(scope.body.node):
            inputs = [name in reached for name in node.input]
            if is_standard(node) and node.op_type in self._stops:
                if inputs and inputs[0]:
                    self._first.add((scope.index, index))
                continue
            outputs = self._node(scope, index, node, inputs, reached)
            reached.update(name for name, hit in zip(node.output, outputs, strict=False) if hit and name)
        if isinstance(scope.body, onnx.FunctionProto):
            return [name in reached for name in scope.body.output]
        return [value.name in reached for value in scope.body.output]

    def _node(
        self, scope: Scope, index: int, node: onnx.NodeProto, inputs: list[bool], reached: set[str]
    ) -> Sequence[bool]:
        if is_standard(node) and node.op_type in _SHAPE_ONLY:
            return [False] * len(node.output)
        function = self._functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self._call(function, tuple(inputs))
        graphs = [
            self._nested[scope.index, index, attribute.name]
            for attribute in node.attribute
            if (scope.index, index, attribute.name) in self._nested
        ]
        if not graphs:
            return [any(inputs)] * len(node.output)
        outputs = [False] * len(node.output)
        for graph in graphs:
            results = self._subgraph(node, graph, inputs, reached)
            outputs = [old or new for old, new in zip(outputs, results, strict=False)]
        return outputs

    def _subgraph(self, node: onnx.NodeProto, graph: Scope, inputs: list[bool], reached: set[str]) -> list[bool]:
        assert isinstance(graph.body, onnx.GraphProto)
        formal = [value.name for value in graph.body.input]
        inner = reached | {name for name, hit in zip(formal, inputs, strict=False) if hit}
        # Loop: body outputs are (condition, carried..., scanned...), its inputs (number, condition, carried...).
        # Scan: outputs and inputs are both (carried..., scanned...).
        skip = 1 if node.op_type == "Loop" else 0
        carried: list[str] = formal[2:] if node.op_type == "Loop" else []
        if node.op_type == "Scan":
            scanned = next((attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs"), 0)
            carried = formal[: len(formal) - scanned]
        while True:  # each iteration may carry what it got one variable further
            results = self._body(graph, inner)[skip:]
            left = {name for name, hit in zip(carried, results, strict=False) if hit}
            if left <= inner:
                return results
            inner |= left

    def _call(self, function: Scope, inputs: tuple[bool, ...]) -> list[bool]:
        key = (function.index, inputs)
        if key not in self._calls:
            assert isinstance(function.body, onnx.FunctionProto)
            formal = function.body.input
            self._calls[key] = [True] * len(function.body.output)  # ends a (forbidden) recursion
            self._calls[key] = self._body(function, {name for name, hit in zip(formal, inputs, strict=False) if hit})
        return self._calls[key]
