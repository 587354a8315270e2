"""What of a model a run has not executed: branches of an If, loops without iterations, functions that nobody calls.

An output says nothing about a node that did not run, nor about one that only such nodes read, nor about one that ran on
no elements; what was replaced there has to be verified in another way.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

import onnx

from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, scopes
from onnxsep.model.functions import callee, key_of
from onnxsep.model.io import Model
from onnxsep.running.comparison import Run, run_reference
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import CannotRun, RuntimeOptions

_MOST_RUNS = 100
_MARK = "onnxsep.running.execution"
_ALARM = re.compile(r"idx=(\d+)")
_FIRST = 1000  # index of the first alarm: no node of a model that runs asks for it
# Operators whose outputs' sizes depend on values, so that what is behind them may have no elements.
_DATA_DEPENDENT = {
    "NonZero",
    "NonMaxSuppression",
    "Compress",
    "Unique",
    "Loop",
    "If",
    "Range",
    "Slice",
}


def unseen_places(
    model: Model, places: Collection[Place], feeds: Feeds, options: RuntimeOptions
) -> tuple[set[Place], list[str]]:
    """The nodes whose results reach no output of a run, so that comparing outputs does not verify them.

    Args:
        model: the model.
        places: of nodes, by scope and index.
        feeds: the inputs of the run; what one of their sets shows is seen.
        options: how it was run.

    Returns:
        Those of ``places`` that are not seen; and the scopes that did not run, in words.
    """
    all_scopes = scopes(model.proto)
    unseen, idle = set(places), set(range(1, len(all_scopes)))
    for arrays in feeds.sets():
        one = Feeds(dict(arrays))
        idle_now = idle_scopes(model, one, options)
        shown = unseen & _live(all_scopes, idle_now)
        shown -= _empty(model, [place for place in shown if place[0] == 0], one, options)
        unseen, idle = unseen - shown, idle & idle_now
        if not unseen:
            break
    return unseen, describe(all_scopes, idle)


def idle_scopes(model: Model, feeds: Feeds, options: RuntimeOptions) -> set[int]:
    """The nested graphs and functions, by index in ``onnxsep.graph.scopes.scopes``, that do not run on these inputs.

    Each gets a node that fails whenever it runs, and says which one it is. The graph that failed did run; its node
    goes, and so on, until the model runs to its end. A graph of which that cannot be told counts as one that did not.
    """
    idle = set(range(1, len(scopes(model.proto))))
    if not idle:
        return idle
    try:
        # On the CPU, whose kernels check an index, and without optimisations, which might compute the node beforehand.
        _, run, _ = run_reference(model, feeds, replace(options, provider=RuntimeOptions().provider, optimize=False))
    except CannotRun:
        return idle
    idle -= _certain(model.proto)
    for _ in range(min(len(idle), _MOST_RUNS)):
        failed = _alarm(_with_alarms(model, idle), feeds, run)
        if failed not in idle:
            break
        idle.remove(failed)
    return idle


def _certain(proto: onnx.ModelProto) -> set[int]:
    """Functions that run whenever the model does: calls lead to them from the main graph, and through no nested one."""
    all_scopes = scopes(proto)
    bodies = {key_of(scope.body): scope.index for scope in all_scopes if isinstance(scope.body, onnx.FunctionProto)}
    found: set[int] = set()
    pending = [0]
    while pending:
        called = {bodies[key] for node in all_scopes[pending.pop()].body.node if (key := callee(node)) in bodies}
        pending += called - found
        found |= called
    return found


def _alarm(model: Model, feeds: Feeds, run: Run) -> int | None:
    """The scope whose alarm stops a run; None where the run comes to its end, or ends for another reason."""
    try:
        run(model, feeds.arrays)
    except CannotRun as error:
        found = _ALARM.search(str(error))
        return int(found[1]) - _FIRST if found else None
    return None


def _with_alarms(model: Model, where: Collection[int]) -> Model:
    """A copy in which a node of these scopes takes an element of a vector that has none at that place."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    imports = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    for scope in scopes(proto):
        if scope.index not in where:
            continue
        name = f"{_MARK}.{scope.index}"
        vector = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [0])
        index = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [_FIRST + scope.index])
        scope.body.node.extend(
            [
                onnx.helper.make_node("Constant", [], [f"{name}.vector"], value=vector),
                onnx.helper.make_node("Constant", [], [f"{name}.index"], value=index),
                onnx.helper.make_node("Gather", [f"{name}.vector", f"{name}.index"], [f"{name}.alarm"], name=name),
            ]
        )
        body = scope.body
        if isinstance(body, onnx.FunctionProto) and all(
            entry.domain not in ("", "ai.onnx") for entry in body.opset_import
        ):
            body.opset_import.extend(imports[:1])
    return replace(model, proto=proto, path=None, pristine=False, stored=None)


def describe(all_scopes: Sequence[Scope], idle: Collection[int]) -> list[str]:
    """Names of scopes in words, but of those only that are not within another one of them."""
    return [all_scopes[index].where for index in sorted(idle) if all_scopes[index].parent not in idle]


class _Liveness:
    """Walks from the outputs back to what they are computed from."""

    def __init__(self, all_scopes: Sequence[Scope], idle: Collection[int]) -> None:
        self._scopes, self._idle = all_scopes, idle
        self._nested: dict[Place, list[Scope]] = {}
        for scope in all_scopes:
            if scope.parent is not None and scope.holder is not None:
                self._nested.setdefault((scope.parent, scope.holder[0]), []).append(scope)
        self._functions = {
            (scope.body.domain, scope.body.name, scope.body.overload): scope
            for scope in all_scopes
            if isinstance(scope.body, onnx.FunctionProto)
        }
        self._entered: set[int] = set()
        self.places: set[Place] = set()

    def walk(self, scope: Scope) -> set[str]:
        """Mark what the outputs of a body need; gives the names that it needs of the graphs around it."""
        body = scope.body
        needed = set(body.output) if isinstance(body, onnx.FunctionProto) else {value.name for value in body.output}
        for index in reversed(range(len(body.node))):
            node = body.node[index]
            if needed.isdisjoint(name for name in node.output if name):
                continue
            self.places.add((scope.index, index))
            needed.update(name for name in node.input if name)
            for graph in self._nested.get((scope.index, index), ()):
                if graph.index not in self._idle:
                    needed |= self.walk(graph)
            function = self._functions.get((node.domain, node.op_type, node.overload))
            if function is not None and function.index not in self._entered and function.index not in self._idle:
                self._entered.add(function.index)
                self.walk(function)
        return needed


def _live(all_scopes: Sequence[Scope], idle: set[int]) -> set[Place]:
    liveness = _Liveness(all_scopes, idle)
    liveness.walk(all_scopes[0])
    return liveness.places


def _empty(model: Model, places: Sequence[Place], feeds: Feeds, options: RuntimeOptions) -> set[Place]:
    """Nodes of the main graph whose first output has no elements in this run."""
    graph = model.proto.graph
    if not places or not any(node.op_type in _DATA_DEPENDENT for node in graph.node):
        return set()
    outputs = {place: graph.node[place[1]].output[0] for place in places}
    shapes = shapes_in_run(model, list(outputs.values()), feeds, options)
    return {place for place, name in outputs.items() if 0 in shapes.get(name, ())}


def shapes_in_run(
    model: Model, names: Sequence[str], feeds: Feeds, options: RuntimeOptions
) -> dict[str, tuple[int, ...]]:
    """The shapes that tensors of the main graph have in a run, by name; none where the runtime cannot tell them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    for number, tensor in enumerate(names):
        name = f"{_MARK}.{number}"
        proto.graph.node.append(onnx.helper.make_node("Shape", [tensor], [name]))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    watched = replace(model, proto=proto, path=None, pristine=False, stored=None)
    try:
        shapes, _, _ = run_reference(watched, feeds, options)
    except CannotRun:
        return {}
    return {name: tuple(map(int, shape)) for name, shape in zip(names, shapes.values(), strict=True)}
