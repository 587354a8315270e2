"""Sizes of tensors in a run, those of nested graphs included.

Each tensor gets a Shape node beside it, whose output is handed out through the graphs around it: as one more output of
an If, where the other branch gives a mark, and as one more of a Loop or Scan, which stacks what its iterations give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, scopes
from onnxsep.graph.shapes import Measured
from onnxsep.model.io import Model
from onnxsep.running.comparison import run_reference
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import CannotRun, RuntimeOptions

_MARK = "onnxsep.running.exposing"
_INT64 = onnx.TensorProto.INT64
_NOT_RUN = -1  # in the place of a shape

Tensor = tuple[int, str]  # scope and name


@dataclass(frozen=True)
class Exposed:
    """What a run has told.

    Attributes:
        sizes: of the tensors that were made.
        idle: scopes, of those that hold a tensor that was asked for, that did not run.
    """

    sizes: Measured
    idle: frozenset[int] = frozenset()


def sizes_in_run(model: Model, wanted: Mapping[Tensor, int], feeds: Feeds, options: RuntimeOptions) -> Exposed:
    """Run a model once, and read off the sizes of tensors; nothing where the runtime cannot run it.

    Args:
        model: a model without functions of its own.
        wanted: the element type of each tensor, by scope and name; 0 where it is not known, in the main graph only.
        feeds: the inputs.
        options: how to run it.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    typed = {tensor: kind for tensor, kind in wanted.items() if kind or tensor[0]}
    handed_out = _Exposing(proto, list(typed)).main()
    for tensor in wanted:
        if tensor not in typed:
            handed_out[tensor[1]] = tensor
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, _INT64, None) if tensor in typed else onnx.ValueInfoProto(name=name)
        for name, tensor in handed_out.items()
    )
    try:
        watched = replace(model, proto=proto, path=None, pristine=False, stored=None)
        values, _, _ = run_reference(watched, feeds, options)
    except CannotRun:
        return Exposed({})
    found: dict[Tensor, tuple[int, tuple[int, ...]]] = {}
    idle: set[int] = set()
    for name, tensor in handed_out.items():
        value = values[name]
        if not isinstance(value, np.ndarray):  # a sequence, a map or an optional has no sizes
            continue
        if tensor not in typed:
            found[tensor] = helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        elif (shape := _shape(value)) is not None:
            found[tensor] = typed[tensor], shape
        else:
            idle.add(tensor[0])
    return Exposed(found, frozenset(idle))


def _shape(value: np.ndarray) -> tuple[int, ...] | None:
    """The shape that a run gave, the largest where several iterations gave one; None where none did."""
    if not value.shape[-1]:  # of a scalar
        return ()
    rows = value.reshape(-1, value.shape[-1])
    rows = rows[(rows != _NOT_RUN).all(axis=1)]
    return tuple(int(size) for size in rows.max(axis=0)) if len(rows) else None


class _Exposing:
    """Puts Shape nodes beside tensors, and hands their outputs out."""

    def __init__(self, proto: onnx.ModelProto, wanted: Sequence[Tensor]) -> None:
        self._scopes = scopes(proto)
        self._count = 0
        self._wanted: dict[int, list[str]] = {}
        for scope, name in wanted:
            self._wanted.setdefault(scope, []).append(name)
        self._nested: dict[Place, list[Scope]] = {}
        for scope_ in self._scopes:
            if scope_.parent is not None and scope_.holder is not None:
                self._nested.setdefault((scope_.parent, scope_.holder[0]), []).append(scope_)

    def main(self) -> dict[str, Tensor]:
        """Tensors of the main graph that hold shapes, and of what."""
        return self._within(self._scopes[0])

    def _within(self, scope: Scope) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index in range(len(scope.body.node)):
            if nested := self._nested.get((scope.index, index)):
                found.update(self._handed_out(scope.body.node[index], nested))
        for tensor in self._wanted.get(scope.index, ()):
            found[self._new()] = scope.index, tensor
            scope.body.node.append(helper.make_node("Shape", [tensor], [f"{_MARK}.{self._count}"]))
        return found

    def _handed_out(self, node: onnx.NodeProto, nested: Sequence[Scope]) -> dict[str, Tensor]:
        """What a node gives of the graphs within it, by the names of its new outputs."""
        inner = [self._within(scope) for scope in nested]
        found: dict[str, Tensor] = {}
        for number, scope in enumerate(nested):
            for name, tensor in inner[number].items():
                found[outer := self._new()] = tensor
                node.output.append(outer)
                for other in nested:
                    self._give(other, name if other is scope else "", node.op_type)
        return found

    def _give(self, scope: Scope, name: str, holder: str) -> None:
        """One more output of a graph: a tensor, or a mark where it has none of this name."""
        body = scope.body
        assert isinstance(body, onnx.GraphProto)
        if not name:
            name = self._new()
            mark = helper.make_tensor("", _INT64, [1], [_NOT_RUN])
            body.node.append(helper.make_node("Constant", [], [name], value=mark))
        body.output.append(helper.make_tensor_value_info(name, _INT64, [None] if holder == "If" else None))

    def _new(self) -> str:
        self._count += 1
        return f"{_MARK}.{self._count}"
