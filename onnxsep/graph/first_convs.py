"""Which Convs are first: reached from a graph input without passing another Conv.

They see the image itself, have few input channels, and are what papers leave full. A Gemm or MatMul is first where it
is reached without passing a Conv, Gemm or MatMul; which Convs are first does not depend on them.

What reaches a name is the union of what reaches it from each single input. So a function is walked twice, however
often it is called: once to see which of its inputs reach which of its outputs, once with all the inputs that any call
reaches.
"""

from collections import ChainMap
from collections.abc import Callable, MutableMapping, Sequence
from collections.abc import Set as AbstractSet

import onnx

from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, is_standard, scopes
from onnxsep.model.functions import callee, callees_first, key_of

# What these read of a tensor is its size, not its content.
_SHAPE_ONLY = {"Shape", "Size"}
_CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"}
_LINEAR = {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}

# A set of inputs of the body that is walked, as bits; by the name of each tensor that they reach.
_Inputs = int
_Reached = MutableMapping[str, _Inputs]


def first_convs(model: onnx.ModelProto, *, linear_layers: bool = False) -> set[Place]:
    """(scope, index) of every first Conv, in the order of ``onnxsep.graph.scopes.scopes``.

    A function counts as inlined at each of its calls; in a Loop or Scan what one iteration leaves reaches the next.

    Args:
        model: the model or its skeleton.
        linear_layers: give the first Gemm and MatMul nodes too.

    Raises:
        ModelLoadError: a function calls itself.
    """
    all_scopes = scopes(model)
    present = {node.op_type for scope in all_scopes for node in scope.body.node}
    found: set[Place] = set()
    if present & _CONVOLUTIONS:
        found = _Reach(model, all_scopes, _CONVOLUTIONS).run()
    if linear_layers and present & _LINEAR:
        reached = _Reach(model, all_scopes, _CONVOLUTIONS | _LINEAR).run()
        found |= {place for place in reached if all_scopes[place[0]].body.node[place[1]].op_type in _LINEAR}
    return found


class _Reach:
    """Follows inputs through nodes, nested graphs and calls."""

    def __init__(self, model: onnx.ModelProto, all_scopes: Sequence[Scope], stops: AbstractSet[str]) -> None:
        self._stops = stops
        self._scopes = all_scopes
        self._nested = {(scope.parent, *scope.holder): scope for scope in self._scopes if scope.holder is not None}
        bodies = {scope.namespace - 1: scope for scope in self._scopes if scope.kind == "function"}
        self._callees_first = [bodies[index] for index in callees_first(model)]
        self._functions = {
            key_of(scope.body): scope.index
            for scope in self._callees_first
            if isinstance(scope.body, onnx.FunctionProto)
        }
        self._outputs: dict[int, list[_Inputs]] = {}  # of each function: the inputs that reach each output
        self._found: Callable[[Place], None] = lambda place: None
        self._called: Callable[[int, Sequence[_Inputs]], None] = lambda function, inputs: None

    def run(self) -> set[Place]:
        for scope in self._callees_first:
            assert isinstance(scope.body, onnx.FunctionProto)
            self._outputs[scope.index] = self._body(
                scope, {name: 1 << number for number, name in enumerate(scope.body.input)}
            )
        first: set[Place] = set()
        given: dict[int, set[int]] = {scope.index: set() for scope in self._callees_first}
        self._found = first.add
        self._called = lambda function, inputs: given[function].update(
            number for number, hit in enumerate(inputs) if hit
        )
        main = self._scopes[0].body
        assert isinstance(main, onnx.GraphProto)
        constants = {tensor.name for tensor in main.initializer}
        self._body(self._scopes[0], {value.name: 1 for value in main.input if value.name not in constants})
        for scope in reversed(self._callees_first):
            assert isinstance(scope.body, onnx.FunctionProto)
            hit = given[scope.index]
            self._body(scope, {name: 1 for number, name in enumerate(scope.body.input) if number in hit})
        return first

    def _body(self, scope: Scope, reached: _Reached) -> list[_Inputs]:
        """Walk one body; ``reached`` grows. Gives what reaches its outputs."""
        for index, node in enumerate(scope.body.node):
            inputs = [reached.get(name, 0) for name in node.input]
            if node.op_type in self._stops and is_standard(node):
                if inputs and inputs[0]:
                    self._found((scope.index, index))
                continue
            for name, hit in zip(node.output, self._node(scope, index, node, inputs, reached), strict=False):
                if hit and name:
                    reached[name] = reached.get(name, 0) | hit
        if isinstance(scope.body, onnx.FunctionProto):
            return [reached.get(name, 0) for name in scope.body.output]
        return [reached.get(value.name, 0) for value in scope.body.output]

    def _node(
        self, scope: Scope, index: int, node: onnx.NodeProto, inputs: list[_Inputs], reached: _Reached
    ) -> Sequence[_Inputs]:
        if node.op_type in _SHAPE_ONLY and is_standard(node):
            return ()
        function = self._functions.get(callee(node)) if self._functions else None
        if function is not None:
            self._called(function, inputs)
            return [_mapped(output, inputs) for output in self._outputs[function]]
        graphs = [
            self._nested[scope.index, index, attribute.name]
            for attribute in (node.attribute if self._nested else ())
            if (scope.index, index, attribute.name) in self._nested
        ]
        if not graphs:
            return [_union(inputs)] * len(node.output)
        outputs = [0] * len(node.output)
        for graph in graphs:
            results = self._subgraph(node, graph, inputs, reached)
            outputs = [old | new for old, new in zip(outputs, results, strict=False)]
        return outputs

    def _subgraph(self, node: onnx.NodeProto, graph: Scope, inputs: list[_Inputs], reached: _Reached) -> list[_Inputs]:
        assert isinstance(graph.body, onnx.GraphProto)
        formal = [value.name for value in graph.body.input]
        inner = ChainMap[str, _Inputs]({}, *(reached.maps if isinstance(reached, ChainMap) else [reached]))
        for name, hit in zip(formal, inputs, strict=False):
            inner[name] = inner.get(name, 0) | hit
        # Loop: body outputs are (condition, carried..., scanned...), its inputs (number, condition, carried...).
        # Scan: outputs and inputs are both (carried..., scanned...).
        skip = 1 if node.op_type == "Loop" else 0
        carried: list[str] = formal[2:] if node.op_type == "Loop" else []
        if node.op_type == "Scan":
            scanned = next((attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs"), 0)
            carried = formal[: len(formal) - scanned]
        while True:  # each iteration may carry what it got one variable further
            results = self._body(graph, inner)[skip:]
            left = {name: hit for name, hit in zip(carried, results, strict=False) if hit & ~inner.get(name, 0)}
            if not left:
                return results
            inner.update((name, inner.get(name, 0) | hit) for name, hit in left.items())


def _union(masks: Sequence[_Inputs]) -> _Inputs:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _mapped(output: _Inputs, inputs: Sequence[_Inputs]) -> _Inputs:
    """What reaches an output of a call, by the function's inputs that reach it."""
    return _union([mask for number, mask in enumerate(inputs) if output >> number & 1])
