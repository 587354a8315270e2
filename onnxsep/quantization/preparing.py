"""What must be done to a model before the quantiser can take it: weights in memory, operators new enough, names."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx

from onnxsep.graph.index import Index
from onnxsep.graph.inference import forget_impossible_sizes
from onnxsep.graph.matching import Const, Op, Pattern
from onnxsep.graph.scopes import scopes
from onnxsep.model.external import is_external
from onnxsep.model.files import temporary_folder
from onnxsep.model.functions import too_many_calls, with_few_calls
from onnxsep.model.io import Model
from onnxsep.model.tensors import tensor_protos
from onnxsep.quantization.agreement import Agreement
from onnxsep.quantization.converting import hint, opset_of, raise_opset
from onnxsep.quantization.equalizing import equalize
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.normalizing import normalize
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.stored import float_weights
from onnxsep.quantization.toolkit import pre_process
from onnxsep.reporting.model_info import size_bytes

_LARGEST = 2**31 - 1
_FOLDED = 11  # the lowest opset of what the tool gives
_STANDARD = ("", "ai.onnx")
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})


@dataclass(frozen=True)
class Prepared:
    """A model that the quantiser can take.

    Attributes:
        proto: The model; every node of the main graph has a name of its own.
        renamed: What a node was called, by the name that it got for the time being.
        notes: What was changed that the user should know.
    """

    proto: onnx.ModelProto
    renamed: dict[str, str]
    notes: tuple[str, ...]


def prepare(source: Model, settings: Settings, agreement: Agreement | None = None) -> Prepared:
    """Fold what can be folded, raise the opset where needed, and name every node. The source is not changed.

    Args:
        source: The user's model.
        settings: What the quantiser will be asked for.
        agreement: Compares results with the source. A step after which the model computes something else is left out.

    Raises:
        QuantizationError: the model is quantised already, has over 2 GB, or cannot be converted.
        ModelLoadError: external data cannot be read.
    """
    if reason := too_many_calls(source.proto):
        raise QuantizationError(f"{reason}; write the model with fewer functions")
    proto, notes = _in_memory(source)
    if stored := float_weights(proto):
        notes += (f"{stored} weights that were stored as integers are quantised again, from what they stand for",)
    _refuse_quantized(proto)
    prepared = _steps(source, proto, settings, ())
    if agreement is None or not (wrong := agreement.difference(prepared.proto)):
        return replace(prepared, notes=notes + prepared.notes)
    # Which step does it? Each is left out in turn, the least useful one first, then all of them.
    for left_out in (("equalise",), ("fold",), ("fold", "equalise")):
        try:
            prepared = _steps(source, proto, settings, left_out)
        except QuantizationError:
            continue
        if not agreement.difference(prepared.proto):
            said = " and ".join(_LEFT_OUT[step] for step in left_out)
            return replace(prepared, notes=(*notes, *prepared.notes, f"{said}: that would change what it computes"))
    version = opset_of(source.proto)
    raise QuantizationError(
        f"the model uses opset {version}, quantising it needs {settings.opset}, and raising it changes what the model"
        f" computes ({wrong}); export it with opset {settings.opset} or newer{hint(settings.opset)}"
        if version is not None and version < settings.opset
        else f"preparing the model for the quantiser changes what it computes ({wrong}); export it again, simplified"
    )


_LEFT_OUT = {
    "equalise": "channels between layers are not equalised",
    "fold": "BatchNormalization and constants are not folded",
}


def _steps(source: Model, proto: onnx.ModelProto, settings: Settings, left_out: Collection[str]) -> Prepared:
    # To 11 first, because the tool would do that itself, and wrongly. No further, because it writes operators that have
    # no kernel for their type as functions if their newer form is one.
    version = opset_of(proto)
    if not proto.functions:
        proto, _ = raise_opset(proto, _FOLDED)
    with temporary_folder() as folder:
        first, second = Path(folder, "source.onnx"), Path(folder, "prepared.onnx")
        try:
            first.write_bytes(proto.SerializeToString())
            notes = pre_process(first, second, fold="fold" not in left_out)
            proto = onnx.load(second)
        except OSError as error:
            raise QuantizationError(f"a temporary copy of the model cannot be written: {error}") from error
    if source.proto.functions and not proto.functions:
        notes += ("functions of the model were inlined",)
    drop_unused_imports(proto, source.proto)
    _fold_casts(proto)
    _own_biases(proto)
    proto, _ = raise_opset(proto, settings.opset)
    new = opset_of(proto)
    raised: tuple[str, ...] = (f"opset raised from {version} to {new}",) if version != new else ()
    normalize(proto)
    if "equalise" not in left_out and settings.equalize and (pairs := equalize(proto)):
        raised += (f"{pairs} pairs of layers equalised across the channels between them",)
    return Prepared(proto, _name_nodes(proto), notes + raised)


def drop_unused_imports(proto: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Remove the operator sets that the tools import and nothing uses; those of the source stay."""
    used = {_domain(node.domain) for scope in scopes(proto) for node in scope.body.node}
    used |= {_domain(entry.domain) for entry in source.opset_import}
    kept = [entry for entry in proto.opset_import if _domain(entry.domain) in used]
    imports = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in kept]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)


def _domain(name: str) -> str:
    return "" if name in _STANDARD else name


def _refuse_quantized(proto: onnx.ModelProto) -> None:
    for scope in scopes(proto):
        for node in scope.body.node:
            if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
                raise QuantizationError(
                    f"the model is quantised already: node {node.name or node.output[0]!r} is a {node.op_type}; give"
                    " the float model that it was made from"
                )


def _in_memory(source: Model) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy that holds all its weights, none of which is a graph input."""
    if (size := size_bytes(source)) > _LARGEST:
        raise QuantizationError(
            f"the model has {size:,} bytes with its external data, and the quantiser takes at most 2 GB"
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(with_few_calls(source.proto))
    forget_impossible_sizes(proto)  # the tools' shape inference runs in this process
    external = [tensor for tensor in tensor_protos(proto) if is_external(tensor)]
    folder = source.data_folder() if external else None
    for tensor in external:
        assert folder is not None
        data = bytes(folder.read(tensor))
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = data
    # A weight that is also an input may be given at run time, so that neither optimiser nor quantiser would touch it.
    held = {tensor.name for tensor in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in held]
    if len(inputs) == len(proto.graph.input):
        return proto, ()
    gone = len(proto.graph.input) - len(inputs)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)
    return proto, (f"{gone} graph inputs that only gave weights a default are inputs no longer",)


_CAST = Pattern("cast of a weight", Op("cast", "Cast", Const("weight")))


def _fold_casts(proto: onnx.ModelProto) -> None:
    """Store as float32 the weights that the runtime would cast to it: it has no float16 kernels on the CPU.

    The quantiser does not look for weights behind a Cast.
    """
    index = Index(proto)
    for match in _CAST.find(index).matches:
        constant, place = match.constants["weight"], match.nodes["cast"]
        weight = None if match.scope or constant.nodes else index.tensor(constant.name)
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT16 or index.is_output(match.output):
            continue
        if index.attribute(place, "to") == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(weight).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, match.output))
            proto.graph.node.remove(index.node(place))
    index = Index(proto)
    for tensor in list(proto.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT16 and not index.uses(tensor.name):
            proto.graph.initializer.remove(tensor)


def _own_biases(proto: onnx.ModelProto) -> None:
    """Give each node a bias of its own, of one dimension; the quantiser needs both.

    A bias is quantised with the scale of its node's input. For a second node the quantiser copies it, under a name that
    may be taken. On a Gemm's bias of shape [1, n], which means the same as [n], it fails.
    """
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    uses = Counter(entry.name for entry in proto.graph.output)
    for scope in scopes(proto):
        for node in scope.body.node:
            uses.update(node.input)
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3:
            continue
        name = node.input[2]
        bias = weights.get(name)
        if bias is None:
            continue
        if uses[name] > 1:
            uses[name] -= 1
            copy = proto.graph.initializer.add()
            copy.CopyFrom(bias)
            bias = copy
            bias.name = next(other for number in count() if (other := f"{name}_own{number}") not in uses)
            uses[bias.name] = 1
            node.input[2] = bias.name
        if node.op_type == "Gemm" and len(bias.dims) == 2 and bias.dims[0] == 1:
            del bias.dims[0]
            for entry in [entry for entry in proto.graph.value_info if entry.name == bias.name]:
                proto.graph.value_info.remove(entry)


def _name_nodes(proto: onnx.ModelProto) -> dict[str, str]:
    """Give every node of the main graph a name of its own; returns the old names by the new ones."""
    taken: set[str] = set()
    renamed: dict[str, str] = {}
    known = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if not node.name or node.name in taken:
            name = next(name for name in _candidates(node) if name not in known)
            renamed[name] = node.name
            node.name = name
            known.add(name)
        taken.add(node.name)
    return renamed


def _candidates(node: onnx.NodeProto) -> Iterator[str]:
    base = next((name for name in node.output if name), node.op_type)
    yield base
    number = 1
    while True:
        number += 1
        yield f"{base}_{number}"
