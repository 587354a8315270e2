"""onnx's shape inference, for models from anywhere: it is written in C++, and some models end the process within it.

What is known to be harmless runs in this process: operators that CNNs are made of, tensors of ordinary sizes, functions
that do not multiply. Everything else runs in a process of its own, with limits for time and memory, which costs about
half a second; where that ends, the sizes are not known, and that is all.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache

import onnx
from onnx import AttributeProto, TensorProto, shape_inference

from onnxsep.graph.scopes import Scope, display_name, is_standard, scopes
from onnxsep.model.functions import expansion

_SECONDS = 60
_MEMORY = 8 << 30  # bytes of address space
_MOST_KEPT = 32  # answers of that process
_LARGEST_KEPT = 1 << 20  # bytes of a skeleton whose answer is kept
_LARGEST_SIZE = 2**31 - 1
_MOST_INTEGERS = 1 << 16  # in a list of integers, which inference copies
_MOST_CALLED = 20_000  # nodes behind calls of functions
_DEEPEST_CALLS = 64
_WITH_AXES_OF_SPACE = 3

# Found by running damaged models: none of these has ended the process on types, sizes and attributes that
# ``_is_harmless`` lets through. EyeLike, GatherND, LabelEncoder and others have.
_HARMLESS = set(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift Cast CastLike
    Ceil Celu CenterCropPad Clip Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh
    CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand Flatten Floor
    GRU Gather GatherElements Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - one name to a line would be eighty lines
)
_INTEGERS = {TensorProto.INT32, TensorProto.INT64}
_LIST = {"strides", "dilations", "kernel_shape", "pads", "output_padding", "output_shape", "split"}
# How the process of its own is told the folders of this one's packages, and nothing of the folder that it runs in.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
except (ImportError, ValueError, OSError):
    pass
import onnx
from onnx import shape_inference
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
try:
    found = shape_inference.infer_shapes(model, **json.loads(sys.argv[3]))
except Exception as error:
    sys.stdout.buffer.write(b"E" + str(error).encode("utf-8", "backslashreplace")[:2000])
else:
    sys.stdout.buffer.write(b"M" + found.SerializeToString())
"""


class InferenceError(Exception):
    """Shape inference failed; the message is one line that says why."""


def infer(light: onnx.ModelProto, *, strict: bool = False) -> tuple[onnx.ModelProto, str]:
    """Infer the shapes of a skeleton (``onnxsep.graph.shapes``), with constants followed through the graph.

    Args:
        light: The skeleton; it is not changed, but sizes below 0 are left out of what is inferred from.
        strict: Check all types, and fail at the first contradiction.

    Returns:
        The model with shapes, and a note on what was left out, or "".

    Raises:
        InferenceError: It fails.
    """
    options = {"check_type": True, "strict_mode": True} if strict else {"data_prop": True}
    all_scopes = scopes(light)
    _refuse_zero_strides(all_scopes)
    model, note = _without_many_calls(light)
    if all(map(_is_harmless, all_scopes)):
        try:
            found = shape_inference.infer_shapes(model, **options)
        except Exception as error:  # it raises several unrelated classes
            raise InferenceError(_one_line(str(error))) from error
    else:
        found = _in_a_process(model, options)
    if note:
        found.functions.extend(light.functions)
    return found, note


def forget_impossible_sizes(model: onnx.ModelProto) -> None:
    """Make sizes below 0, in place, what they stand for: not known. Some of onnx ends the process at them."""
    for scope in scopes(model):
        body = scope.body
        for value in body.value_info:
            _forget(value.type)
        if isinstance(body, onnx.GraphProto):
            for value in (*body.input, *body.output):
                _forget(value.type)
        for node in body.node:
            for attribute in node.attribute if node.attribute else ():
                for kind in (*([attribute.tp] if attribute.HasField("tp") else []), *attribute.type_protos):
                    _forget(kind)


def _forget(top: onnx.TypeProto) -> None:
    kind = top.WhichOneof("value")
    while kind in ("sequence_type", "optional_type", "map_type"):
        holder = getattr(top, kind)
        top = holder.value_type if kind == "map_type" else holder.elem_type
        kind = top.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        for dim in getattr(top, kind).shape.dim if getattr(top, kind).HasField("shape") else ():
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _refuse_zero_strides(all_scopes: Iterable[Scope]) -> None:
    """Older onnx divides by strides and kills the process where one is 0."""
    for scope in all_scopes:
        for node in scope.body.node:
            if node.attribute and any(entry.name == "strides" and 0 in entry.ints for entry in node.attribute):
                raise InferenceError(f"{node.op_type} {display_name(node)!r} has a stride of 0")


def _without_many_calls(light: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model as it is; or without its functions, where onnx would walk through them again and again."""
    if not light.functions:
        return light, ""
    size = expansion(light)
    if size.depth <= _DEEPEST_CALLS and size.nodes <= _MOST_CALLED + sum(len(f.node) for f in light.functions):
        return light, ""
    copy = onnx.ModelProto()
    copy.CopyFrom(light)
    del copy.functions[:]
    how = f"{size.nodes:,} nodes" if size.depth <= _DEEPEST_CALLS else f"chains of {size.depth:,} functions"
    return copy, f"calls of the model's functions expand to {how}: sizes behind these calls are not known"


def _is_harmless(scope: Scope) -> bool:
    body = scope.body
    values = list(body.value_info)
    if isinstance(body, onnx.GraphProto):
        values += (*body.input, *body.output)
        if body.sparse_initializer or any(not _is_ordinary(t.dims, t.data_type) for t in body.initializer):
            return False
    if not all(_is_ordinary_type(value.type) for value in values):
        return False
    flat = {value.name for value in values if _has_no_axes_of_space(value.type)}
    if flat and any(node.op_type.startswith("Conv") and flat.intersection(node.input[:1]) for node in body.node):
        return False  # older onnx reads dimensions that are not there
    return all(_is_harmless_node(node) for node in body.node)


def _has_no_axes_of_space(proto: onnx.TypeProto) -> bool:
    return proto.tensor_type.HasField("shape") and len(proto.tensor_type.shape.dim) < _WITH_AXES_OF_SPACE


def _is_ordinary(dims: Iterable[int], data_type: int) -> bool:
    sizes = list(dims)
    if len(sizes) == 1 and data_type in _INTEGERS and sizes[0] > _MOST_INTEGERS:
        return False
    return all(0 <= size <= _LARGEST_SIZE for size in sizes) and math.prod(sizes) < 2**62


def _is_ordinary_type(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind is None:
        return True
    if kind != "tensor_type":
        return False
    tensor = proto.tensor_type
    return _is_ordinary((dim.dim_value for dim in tensor.shape.dim), tensor.elem_type)


def _is_harmless_node(node: onnx.NodeProto) -> bool:
    if not is_standard(node):
        # Of other domains inference knows nothing, but for those that are onnx's too: for machine learning, training.
        return not node.domain.startswith("ai.onnx")
    if node.op_type not in _HARMLESS:
        return False
    if node.op_type == "Split" and not _parts_agree(node):
        return False
    return not node.attribute or all(_is_harmless_attribute(entry) for entry in node.attribute)


def _parts_agree(node: onnx.NodeProto) -> bool:
    """Whether a Split says as many parts as it has outputs: inference makes room for what it says."""
    said = (entry.i if entry.type == AttributeProto.INT else len(entry.ints) for entry in node.attribute)
    names = (entry.name for entry in node.attribute)
    return all(count == len(node.output) for name, count in zip(names, said, strict=True) if name != "axis")


def _is_harmless_attribute(entry: onnx.AttributeProto) -> bool:
    if entry.type == AttributeProto.INT:
        return -_LARGEST_SIZE <= entry.i <= _LARGEST_SIZE
    if entry.type == AttributeProto.INTS and entry.name in _LIST:
        return all(0 <= value <= _LARGEST_SIZE for value in entry.ints) or entry.name == "pads"
    if entry.type == AttributeProto.TENSOR:
        return _is_ordinary(entry.t.dims, entry.t.data_type)
    return entry.type not in (AttributeProto.SPARSE_TENSOR, AttributeProto.TYPE_PROTO)


def _in_a_process(model: onnx.ModelProto, options: dict[str, bool]) -> onnx.ModelProto:
    if not sys.executable:
        raise InferenceError("the model holds what needs a process of its own, and none can be started here")
    try:
        content = model.SerializeToString()
    except ValueError as error:  # it is too large for protobuf
        raise InferenceError(_one_line(str(error))) from error
    ask: Callable[[bytes, str], bytes] = _remembered if len(content) <= _LARGEST_KEPT else _remembered.__wrapped__
    found = onnx.ModelProto()
    found.ParseFromString(ask(content, json.dumps(options)))
    return found


@lru_cache(maxsize=_MOST_KEPT)
def _remembered(content: bytes, options: str) -> bytes:
    """The model with shapes, serialized as the model is; errors are not remembered.

    One rewrite asks no question twice; several calls on one model do, such as the same network in every mode, and to
    start a process for each takes longer than all other work on a small one.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path), str(_MEMORY), options],
            input=content,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InferenceError(f"it took more than {_SECONDS} seconds") from None
    except (OSError, ValueError) as error:  # no process could be started
        raise InferenceError(_one_line(str(error))) from error
    if done.returncode == 0 and done.stdout[:1] == b"M":
        return done.stdout[1:]
    if done.stdout[:1] == b"E":
        raise InferenceError(_one_line(done.stdout[1:].decode("utf-8", "replace")))
    raise InferenceError(f"onnx's shape inference ended its process (status {done.returncode}); is the model valid?")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no reason was given"
