"""Nodes that hold graphs: the branches of an If, and what a Loop or Scan runs again and again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from onnxsep.training.attributes import Call, Operation
from onnxsep.training.converters import import_torch
from onnxsep.training.module import Step, looked_up, run_steps

_MOST_RUNS = 100_000  # of a Loop: one whose condition never becomes false would not end


@dataclass(frozen=True)
class Body:
    """A graph that a node holds.

    Attributes:
        inputs: What it is given; what it captures comes by name.
        outputs: What it gives.
        steps: Its nodes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: Sequence[Step]

    def __call__(self, around: Mapping[str, Any], given: Sequence[Any], training: bool) -> list[Any]:
        """Its outputs, once.

        Args:
            around: The tensors that it may capture.
            given: Its inputs.
            training: Whether it is run in training.
        """
        tensors = {**around, **dict(zip(self.inputs, given, strict=True))}
        run_steps(self.steps, tensors, training)
        return looked_up(tensors, self.outputs, "a graph within the model")


def nested(node: onnx.NodeProto, names: Sequence[str], opset: int, bodies: Mapping[str, Body]) -> Operation:
    """The operation of a node of :data:`NESTED`.

    Args:
        node: The node.
        names: All that it reads, captured tensors too; each once.
        opset: The version of ONNX's own operators.
        bodies: Its graphs by attribute.

    Raises:
        NotImplementedError: The form of the node is not supported.
    """
    run = NESTED[node.op_type](node, opset, bodies)

    def call(*tensors: Any, training: bool = False) -> tuple[Any, ...]:
        return tuple(run(dict(zip(names, tensors, strict=True)), training))

    call.trains = True  # type: ignore[attr-defined]
    modules = [
        step.operation.module for body in bodies.values() for step in body.steps if step.operation.module is not None
    ]
    return Operation(tuple(names), call, import_torch().nn.ModuleList(modules) if modules else None)


def _branching(node: onnx.NodeProto, opset: int, bodies: Mapping[str, Body]) -> Call:
    """If: the branch that the condition chooses is computed."""
    found = bodies["else_branch"], bodies["then_branch"]

    def run(around: Mapping[str, Any], training: bool) -> list[Any]:
        return found[bool(around[node.input[0]])](around, (), training)

    return run


def _looping(node: onnx.NodeProto, opset: int, bodies: Mapping[str, Body]) -> Call:
    """Loop: each run gets the states that the one before gave; what else they give is stacked."""
    body = bodies["body"]
    limit, condition, *states = [*node.input, "", ""][: max(len(node.input), 2)]
    torch = import_torch()

    def run(around: Mapping[str, Any], training: bool) -> list[Any]:
        most = int(around[limit]) if limit else None
        goes, count = bool(around[condition]) if condition else True, 0
        values = [around[name] for name in states]
        device = next((value.device for value in around.values() if torch.is_tensor(value)), None)
        rows: list[list[Any]] = []
        while goes and (most is None or count < most):
            if count == _MOST_RUNS:
                raise NotImplementedError(f"it has run {_MOST_RUNS:,} times without an end")
            counters = torch.tensor(count, device=device), torch.tensor(goes, device=device)
            again, *found = body(around, (*counters, *values), training)
            values, goes, count = found[: len(states)], bool(again), count + 1
            rows.append(found[len(states) :])
        if not rows and len(body.outputs) > 1 + len(states):
            raise NotImplementedError("it never runs, so there is nothing to stack")
        return [*values, *(torch.stack(column) for column in zip(*rows, strict=True))]

    return run


def _scanning(node: onnx.NodeProto, opset: int, bodies: Mapping[str, Body]) -> Call:
    """Scan: a Loop over the slices of tensors."""
    if opset < 9:
        raise NotImplementedError("Scan of opset 8 is not supported; write the model at opset 9 or newer")
    body, torch = bodies["body"], import_torch()
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    scanned = attributes["num_scan_inputs"]
    kept = len(node.input) - scanned
    stacked = len(body.outputs) - kept

    def each(name: str, count: int) -> list[int]:
        return list(attributes.get(name) or [0] * count)

    axes, backwards = each("scan_input_axes", scanned), each("scan_input_directions", scanned)
    axes_out, backwards_out = each("scan_output_axes", stacked), each("scan_output_directions", stacked)

    def run(around: Mapping[str, Any], training: bool) -> list[Any]:
        values = [around[name] for name in node.input[:kept]]
        sources = [around[name] for name in node.input[kept:]]
        parts = [
            source.unbind(axis)[:: -1 if back else 1]
            for source, axis, back in zip(sources, axes, backwards, strict=True)
        ]
        rows: list[list[Any]] = []
        for slices in zip(*parts, strict=True):
            found = body(around, (*values, *slices), training)
            values = found[:kept]
            rows.append(found[kept:])
        if not rows and stacked:
            raise NotImplementedError("it scans nothing, so there is nothing to stack")
        columns = zip(zip(*rows, strict=True), axes_out, backwards_out, strict=True) if stacked else ()
        return [*values, *(torch.stack(column[:: -1 if back else 1], axis) for column, axis, back in columns)]

    return run


NESTED: dict[str, Callable[[onnx.NodeProto, int, Mapping[str, Body]], Call]] = {
    "If": _branching,
    "Loop": _looping,
    "Scan": _scanning,
}
"""The operators that hold graphs; all of them are ONNX's own."""
