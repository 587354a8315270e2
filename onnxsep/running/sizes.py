"""The figures of a model that follow from sizes: MACs and peak activation memory, for inputs of given shapes.

Shape inference finds most sizes. What it does not find (the pads that exporters compute, Reshape by a computed shape,
Resize by computed sizes, what custom operators give) is read off one run on random inputs of these shapes.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import inliner

from onnxsep.errors import FeedError, OnnxsepError
from onnxsep.graph.activation_memory import ActivationMemory, activation_memory
from onnxsep.graph.constants import read_constant
from onnxsep.graph.counting import Operations, count_macs
from onnxsep.graph.index import Index
from onnxsep.graph.runtime_operators import standardise
from onnxsep.graph.scopes import constant_value, scopes
from onnxsep.graph.shapes import KnownShapes, Measured, infer_shapes, skeleton
from onnxsep.model.functions import expansion
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.reporting.model_info import size_bytes
from onnxsep.running.execution import describe
from onnxsep.running.exposing import Tensor, sizes_in_run
from onnxsep.running.feeds import Feeds, make_feeds
from onnxsep.running.inputs import model_inputs
from onnxsep.running.runtime import RuntimeOptions, version_numbers
from onnxsep.running.verification import FULL_BELOW

_MOST_NODES = 20_000  # of calls that are expanded
_NOT_EXPANDED = (onnx.checker.ValidationError, RuntimeError)  # functions call one another more deeply than onnx allows
# ONNX Runtime 1.21 ends the process on some models that are no models, and on some graphs with more outputs.
_ABORTS_BEFORE = (1, 22)
_MOST_TURNS = 1_000  # of a Loop that is run


@dataclass(frozen=True)
class Sizes:
    """What is known of the sizes of a model's tensors for one set of input shapes.

    Attributes:
        shapes: of the inputs; a free batch is 1.
        measured: what was read off a run, by scope of the model with its functions expanded, and name.
        idle: scopes that did not run then, so that they need nothing; scopes as above.
        complete: whether the shapes of all inputs are known.
    """

    shapes: Mapping[str, tuple[int, ...]]
    measured: Measured = field(default_factory=dict)
    idle: frozenset[int] = frozenset()
    complete: bool = True

    def applied(self, light: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of a skeleton, of the model or of what was made from it, with these sizes inferred."""
        return infer_shapes(_expanded(light), self.shapes, measured=self.measured)

    def macs(self, light: onnx.ModelProto) -> Operations:
        """MACs of a model, each call of a function counted, graphs that did not run left out."""
        return count_macs(self.applied(light), self.idle)

    def activation_memory(self, light: onnx.ModelProto) -> ActivationMemory:
        """Peak activation memory of a model."""
        return activation_memory(self.applied(light), self.idle)

    def notes(self, model: Model) -> tuple[str, ...]:
        """What does not run on these inputs, in words, where that mattered."""
        if not self.idle:
            return ()
        where = describe(scopes(_with_expanded(model).proto), self.idle)
        words = where[0] + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        return (f"on inputs of these shapes {words} did not run: MACs and memory are without it",)

    def of(self, model: Model) -> Measured:
        """What was measured of tensors of the model as it is, its functions not expanded."""
        if not model.proto.functions:
            return self.measured
        made = {name for node in model.proto.graph.node for name in node.output}
        return {(scope, name): found for (scope, name), found in self.measured.items() if not scope and name in made}


def find_sizes(
    model: Model,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    feeds: Feeds | None = None,
) -> Sizes:
    """The sizes of all tensors of a model, from inference and, where that does not find them, from one run.

    Args:
        model: the model.
        input_shapes: shapes of inputs whose dimensions are free, by name; a free batch is 1 where it is not given.
        runtime: how to run it.
        feeds: inputs for the run; else random ones of these shapes.

    Returns:
        What was found; a size may be unknown still where the shape of an input is, or the model cannot be run. A model
        of 1 GB or more, or with a Loop that may turn often, is not run; with ONNX Runtime 1.21 none without feeds.
    """
    shapes, complete = _input_shapes(model, input_shapes or {})
    if feeds is not None:
        shapes, complete = {name: np.shape(array) for name, array in feeds.arrays.items()}, True
    found = Sizes(shapes, complete=complete)
    light = found.applied(skeleton(model))
    unknown = _unknown(light)
    if not unknown or not complete or size_bytes(model) >= FULL_BELOW or not _can_be_expanded(model.proto):
        return found
    if not _ends_soon(model):
        return found
    if version_numbers() < _ABORTS_BEFORE:  # what is run then is run in the verification too
        unknown = {tensor: kind for tensor, kind in unknown.items() if tensor[0] == 0}
        if feeds is None or not unknown:
            return found
    try:
        expanded = _with_expanded(model)
        if feeds is None:
            feeds = make_feeds(model, input_shapes=shapes)
        told = sizes_in_run(expanded, unknown, feeds, runtime or RuntimeOptions())
        if not told.sizes:  # a nested graph may refuse further outputs
            main = {tensor: kind for tensor, kind in unknown.items() if tensor[0] == 0}
            told = sizes_in_run(expanded, main, feeds, runtime or RuntimeOptions())
    except (OnnxsepError, *_NOT_EXPANDED):
        return found  # it takes too long, its weights cannot be read, ...: what needs them says so
    return Sizes(shapes, told.sizes, told.idle)


def peak_activation_bytes(
    model: AnyModel, input_shapes: Mapping[str, tuple[int, ...]] | None = None, runtime: RuntimeOptions | None = None
) -> int | None:
    """The most bytes of live tensors while a model runs, in the best order of execution.

    ``onnxsep.graph.activation_memory`` says what is counted.

    Args:
        model: a file, a ModelProto, or what ``load`` gave.
        input_shapes: shapes of inputs whose dimensions are free, by name; a free batch is 1 where it is not given.
        runtime: how to run it, where some sizes can only be read off a run.

    Returns:
        Bytes; None where a size is not known even so.

    Raises:
        ModelLoadError: the model cannot be read.
    """
    source = load(model)
    sizes = find_sizes(source, input_shapes, runtime)
    return sizes.activation_memory(skeleton(source)).best_order


def _input_shapes(model: Model, given: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Shapes of all inputs, as far as they are known, and whether they all are."""
    shapes, complete = dict(given), True
    try:
        inputs = list(model_inputs(model.proto))
    except FeedError:
        return shapes, False
    for value in inputs:
        if value.name in shapes:
            continue
        dims = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.dims or ())]
        known = tuple(size for size in dims if isinstance(size, int))
        if value.dims is None or len(known) < len(dims):
            complete = False
        else:
            shapes[value.name] = known
    return shapes, complete


def _expanded(light: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a skeleton with the bodies of functions in the place of their calls, where these are not too many."""
    copy = onnx.ModelProto()
    copy.CopyFrom(light)
    if copy.functions and _can_be_expanded(copy):
        with suppress(*_NOT_EXPANDED):
            copy = inliner.inline_local_functions(copy)
    standardise(copy)
    return copy


def _can_be_expanded(proto: onnx.ModelProto) -> bool:
    return not proto.functions or expansion(proto).nodes <= _MOST_NODES


def _ends_soon(model: Model) -> bool:
    """Whether each Loop has a constant number of turns, and not many: what it gives in them is kept for its sizes."""
    all_scopes = scopes(model.proto)
    index = Index(model.proto, all_scopes)
    for scope in all_scopes:
        for node in scope.body.node:
            if node.op_type != "Loop":
                continue
            turns = index.constant(node.input[0], scope.index) if node.input and node.input[0] else None
            if turns is None or not 0 <= int(read_constant(model, all_scopes, turns).reshape(-1)[0]) <= _MOST_TURNS:
                return False
    return True


def _with_expanded(model: Model) -> Model:
    if not model.proto.functions:
        return model
    proto = inliner.inline_local_functions(model.proto)
    return Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)


def _unknown(light: onnx.ModelProto) -> dict[Tensor, int]:
    """Tensors whose sizes are not known: element types by scope and name.

    Of a nested graph only those count whose type is known.
    """
    all_scopes = scopes(light)
    shapes = KnownShapes(all_scopes)
    found: dict[Tensor, int] = {}
    for scope in all_scopes:
        if isinstance(scope.body, onnx.FunctionProto):
            continue
        names = [value.name for value in scope.body.input] if scope.index else []
        names += [name for node in scope.body.node if constant_value(node) is None for name in node.output if name]
        for name in names:
            shape, kind = shapes.of(scope.index, name), shapes.element_type(scope.index, name)
            known = kind and shape is not None and all(isinstance(size, int) for size in shape)
            if not known and (kind or not scope.index):
                found[scope.index, name] = kind
    return found
