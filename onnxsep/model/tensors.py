"""The tensors of a model: finding every one of them, how their types are stored, decoding data that is in the proto."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from onnxsep.errors import ModelLoadError

Body = onnx.GraphProto | onnx.FunctionProto

_DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.UINT8: np.dtype("|u1"),
    TensorProto.INT8: np.dtype("|i1"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.BOOL: np.dtype("|b1"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.COMPLEX64: np.dtype("<c8"),
    TensorProto.COMPLEX128: np.dtype("<c16"),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
# Bits per element of the types that onnx decodes for us. Numbers stand for types that the oldest supported onnx does
# not name: FLOAT4E2M1, FLOAT8E8M0, UINT2, INT2, FLOAT6E2M3, FLOAT6E3M2.
_OTHER_BITS: dict[int, int] = {TensorProto.UINT4: 4, TensorProto.INT4: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6}
# The field that holds the values where there is no raw_data; int32_data for all other types.
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_FIELD_DTYPES = {
    "float_data": "<f4",
    "double_data": "<f8",
    "int32_data": "<i4",
    "int64_data": "<i8",
    "uint64_data": "<u8",
}
# Every field that may hold numbers.
DATA_FIELDS = ("raw_data", *_FIELD_DTYPES)


# ---------------------------------------------------------------- walking


def type_name(number: int) -> str:
    """The name of an element type, FLOAT for 1; type99 where onnx has none for the number, as in a damaged file."""
    known = number in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)) if known else f"type{number}"


def bodies(proto: onnx.ModelProto) -> Iterator[tuple[Body, bool]]:
    """Every graph and function, the main graph first, and whether it is (in) a function."""
    training = ((info.initialization, info.algorithm) for info in proto.training_info)
    for graph in (proto.graph, *itertools.chain.from_iterable(training)):
        yield from ((body, False) for body in _with_subgraphs(graph))
    for function in proto.functions:
        yield from ((body, True) for body in _with_subgraphs(function))


def _with_subgraphs(body: Body) -> Iterator[Body]:
    yield body
    for attribute in itertools.chain(_defaults(body), *(node.attribute for node in body.node if node.attribute)):
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _with_subgraphs(graph)


def _defaults(body: Body) -> Iterable[onnx.AttributeProto]:
    """The default values of a function's arguments."""
    return body.attribute_proto if isinstance(body, onnx.FunctionProto) else ()


def walk(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Every tensor, and whether runtimes accept it as external data: initialisers and Constant nodes of graphs."""
    for body, in_function in bodies(proto):
        if isinstance(body, onnx.GraphProto):
            yield from ((tensor, True) for tensor in body.initializer)
            yield from ((tensor, False) for tensor in _parts(body.sparse_initializer))
        yield from ((tensor, False) for tensor in _held(_defaults(body)))
        for node in body.node:
            if not node.attribute:
                continue
            is_constant = node.op_type == "Constant" and not in_function
            yield from ((tensor, is_constant) for tensor in _held(node.attribute))


def _held(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _parts([attribute.sparse_tensor])
        yield from _parts(attribute.sparse_tensors)


def _parts(sparse_tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    return itertools.chain.from_iterable((sparse.values, sparse.indices) for sparse in sparse_tensors)


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model, the initialisers of the main graph first.

    Covers initialisers, attributes, sparse tensors, subgraphs, functions and training information.
    """
    return (tensor for tensor, _ in walk(proto))


# ---------------------------------------------------------------- one tensor


def label(tensor: onnx.TensorProto) -> str:
    """The tensor's name for a message."""
    return f"tensor {tensor.name!r}" if tensor.name else "a tensor without a name"


def element_bits(data_type: int) -> int | None:
    """Bits per element as stored, or None for strings and types that are not known."""
    dtype = _DTYPES.get(data_type)
    return _OTHER_BITS.get(data_type) if dtype is None else 8 * dtype.itemsize


def storage_bytes(tensor: onnx.TensorProto) -> int | None:
    """Number of bytes that the tensor's shape and type need, or None for strings and types that are not known.

    Raises:
        ModelLoadError: A dimension is negative.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelLoadError(f"{label(tensor)} has a negative dimension: {list(tensor.dims)}. The file is damaged.")
    bits = element_bits(tensor.data_type)
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def check_inline(tensor: onnx.TensorProto) -> None:
    """Check that the data in the proto is as long as shape and type say.

    Raises:
        ModelLoadError: It is not.
    """
    needed = storage_bytes(tensor)
    if tensor.HasField("segment") or (needed is None and tensor.data_type != TensorProto.STRING):
        return  # segments and unknown types are carried over as they are; reading them is an error
    if tensor.HasField("raw_data") and needed is not None:
        have, want, unit = len(tensor.raw_data), needed, "bytes"
    else:
        have, unit = len(getattr(tensor, _field(tensor))), "values"
        want = math.prod(tensor.dims)
        if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            want *= 2
        elif needed is not None and element_bits(tensor.data_type) in (2, 4):  # packed, one byte per value
            want = needed
    if have != want:
        raise ModelLoadError(
            f"{label(tensor)} has {have} {unit} of data but its shape {list(tensor.dims)} and type need {want}."
            " The file is damaged."
        )


def decode(tensor: onnx.TensorProto, raw: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[Any]:
    """The values of one tensor, in the type that it is stored in (types of ml_dtypes for bfloat16 and float8).

    Types that pack several values into a byte come in the type that the installed onnx has for them.

    Args:
        tensor: A tensor whose data is in the proto, unless ``raw`` is given.
        raw: The tensor's bytes, shape [bytes], where they lie outside the proto.

    Returns:
        An array of the tensor's shape that does not depend on the proto; it may be read-only.

    Raises:
        ModelLoadError: The data does not fit the shape, or the type is not supported.
    """
    shape = tuple(tensor.dims)
    try:
        if tensor.HasField("segment"):  # a part of a tensor; older onnx decodes it to something wrong
            raise ValueError("tensors in segments are not supported")
        dtype = _DTYPES.get(tensor.data_type)
        if dtype is None:
            if raw is not None:
                tensor = onnx.TensorProto(data_type=tensor.data_type, dims=shape, raw_data=raw.tobytes())
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        if raw is None and tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
        if raw is not None:
            return raw.view(dtype).reshape(shape)
        values = np.array(getattr(tensor, _field(tensor)), _FIELD_DTYPES[_field(tensor)])
        if values.dtype.kind in "iu":
            values = values.astype(f"<u{dtype.itemsize}")  # a value's bits are in the low bytes
        return values.view(dtype).reshape(shape)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{label(tensor)} of type {tensor.data_type} cannot be read: {error}.") from error


def _field(tensor: onnx.TensorProto) -> str:
    """The field that holds the values where there is no raw_data."""
    return _FIELDS.get(tensor.data_type, "int32_data")
