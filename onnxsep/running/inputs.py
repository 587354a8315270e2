"""The inputs of a model that need a value, and arrays for them: read from a file, checked, never cast."""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx

from onnxsep.errors import FeedError
from onnxsep.model.files import open_regular

_T = onnx.TensorProto
FLOATS: dict[int, np.dtype[Any]] = {
    _T.FLOAT: np.dtype(np.float32),
    _T.DOUBLE: np.dtype(np.float64),
    _T.FLOAT16: np.dtype(np.float16),
    _T.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_DTYPES = FLOATS | {
    _T.INT8: np.dtype(np.int8),
    _T.INT16: np.dtype(np.int16),
    _T.INT32: np.dtype(np.int32),
    _T.INT64: np.dtype(np.int64),
    _T.UINT8: np.dtype(np.uint8),
    _T.UINT16: np.dtype(np.uint16),
    _T.UINT32: np.dtype(np.uint32),
    _T.UINT64: np.dtype(np.uint64),
    _T.BOOL: np.dtype(np.bool_),
    _T.STRING: np.dtype(np.object_),
}
# Names that exporters give to every unknown dimension: two of them need not be equal.
_NOT_A_NAME = {"", "?", "-1", "0", "None", "none", "unk", "unknown"}
_LARGE_ARCHIVE, _MOST_COMPRESSED = 1 << 30, 200  # bytes; times the size that arrays have in memory
_SHAPE_PRESERVING = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Sub"}

Dim = int | str | None  # fixed, free with a name, free without


@dataclass(frozen=True)
class Input:
    """An input that needs a value; ``dims`` is None where the model does not tell the rank."""

    name: str
    elem_type: int
    dims: tuple[Dim, ...] | None
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        kind = "string" if self.elem_type == _T.STRING else self.dtype.name
        return f"{self.name!r} ({kind} {show_dims(self.dims)})"

    @property
    def is_float(self) -> bool:
        """Whether the values are floats."""
        return self.elem_type in FLOATS


def model_inputs(proto: onnx.ModelProto) -> Iterator[Input]:
    """The inputs of the main graph, without those that initialisers give a value.

    Raises:
        FeedError: an input is not a tensor, or has an element type for which NumPy has no arrays.
    """
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    for value in proto.graph.input:
        if value.name in given:
            continue
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            name = (kind or "not given").removesuffix("_type").replace("_", " ")
            raise FeedError(
                f"input {value.name!r} is not a tensor (its type is {name}): no values can be made or given for it"
            )
        tensor = value.type.tensor_type
        if tensor.elem_type not in _DTYPES:
            raise FeedError(
                f"input {value.name!r} has element type {tensor.elem_type}, for which no values can be made or given"
            )
        dims = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
        yield Input(value.name, tensor.elem_type, dims, _DTYPES[tensor.elem_type])


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    return None if dim.dim_param in _NOT_A_NAME else str(dim.dim_param)


def show_dims(dims: tuple[Dim, ...] | None) -> str:
    """Dims as messages show them: ``[n, 3, ?, 224]``."""
    if dims is None:
        return "of unknown rank"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def show_inputs(wanted: Iterable[Input]) -> str:
    """The sentence that ends a message about a wrong input."""
    return "the model's inputs are: " + (", ".join(map(str, wanted)) or "none")


def fits(shape: tuple[int, ...], dims: tuple[Dim, ...] | None) -> bool:
    """Whether an array of this shape has the rank and the fixed dimensions of an input; names are not compared."""
    if dims is None:
        return True
    return len(shape) == len(dims) and all(
        size == dim for size, dim in zip(shape, dims, strict=True) if isinstance(dim, int)
    )


def dims_with_channels(proto: onnx.ModelProto, entry: Input) -> tuple[Dim, ...] | None:
    """The input's dims; an unknown number of channels, or rank, is taken from the Conv that the input feeds.

    Returns:
        None where neither the input nor such a Conv tells the rank.
    """
    weight = _first_conv_weight(proto, entry.name)
    dims = entry.dims
    if dims is None:
        if weight is None:
            return None
        dims = (None,) * len(weight)
    if weight is not None and len(weight) == len(dims) and dims[1] is None:
        dims = (dims[0], weight[1], *dims[2:])
    return dims


def _first_conv_weight(proto: onnx.ModelProto, name: str) -> tuple[int, ...] | None:
    """Weight shape, with in_channels of all groups, of the Conv that an input reaches through elementwise operators."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    reached = {name}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            shapes.update((node.output[0], tuple(a.t.dims)) for a in node.attribute if a.name == "value")
        if not node.input or node.input[0] not in reached:
            continue
        if node.op_type in _SHAPE_PRESERVING:
            reached.add(node.output[0])
        elif node.op_type == "Conv" and len(shapes.get(node.input[1], ())) > 2:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            out_channels, in_channels, *kernel = shapes[node.input[1]]
            return (out_channels, in_channels * group, *kernel)
    return None


def read_arrays(path: Path, *, memory_map: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the one of an .npy file as ``x``; nothing is unpickled.

    Args:
        path: The file.
        memory_map: Leave the array of an .npy file on the disk; what is used of it is read then.

    Raises:
        FeedError: the file cannot be read, or holds something else.
    """
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                _refuse_bomb(file)
        loaded = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except OSError as error:
        raise FeedError(f"cannot read the inputs {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:  # NumPy evaluates headers, and zipfile's decompressors raise classes of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FeedError(
            f"{str(path)!r} is no .npz or .npy file of plain arrays ({reason}); write it with numpy.savez"
        ) from error


def _refuse_bomb(file: BinaryIO) -> None:
    """Refuse an archive of a few bytes that would fill the memory."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    size, stored = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if size > _LARGE_ARCHIVE and size > _MOST_COMPRESSED * stored:
        raise ValueError(f"it has {stored:,} bytes and would take {size:,} in memory")


def check_type(array: np.ndarray, entry: Input) -> np.ndarray:
    """The array, if it holds the input's own type, perhaps in another byte order; bfloat16 is recognised by its bits.

    Raises:
        FeedError: it holds another type.
    """
    if entry.elem_type == _T.BFLOAT16 and array.dtype == np.dtype("V2"):
        array = array.view(entry.dtype)  # NumPy's files hold bfloat16 as raw bytes
    is_text = entry.elem_type == _T.STRING
    if not (array.dtype.kind == "U" if is_text else array.dtype.newbyteorder("=") == entry.dtype):
        hint = ""
        if array.dtype.kind == entry.dtype.kind:
            hint = f"; nothing is cast silently: convert it with .astype({entry.dtype.name!r})"
        raise FeedError(f"the array for input {entry} has type {array.dtype.name}{hint}")
    return array
