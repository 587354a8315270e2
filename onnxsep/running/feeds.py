"""The inputs for a verification: read from the user's file, or made from a seed in the model's own shapes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnxsep.errors import FeedError, OptionError, spelled
from onnxsep.graph.scopes import constant_value
from onnxsep.model.io import Model, read_tensor
from onnxsep.reporting.records import MeasuredOn
from onnxsep.running.inputs import (
    FLOATS,
    Dim,
    Input,
    check_type,
    dims_with_channels,
    fits,
    model_inputs,
    read_arrays,
    show_inputs,
)

_T = onnx.TensorProto
_LARGEST = 2**31  # elements of one random input


@dataclass(frozen=True)
class Feeds:
    """Arrays for a model's inputs.

    Attributes:
        arrays: One array per input, in the input's own type.
        notes: What was chosen for the user, such as "input 'x': free dimension 'batch' set to 1".
        others: Makes further sets of arrays, to be run one after another; None: there are none.
        measured_on: What these arrays are, for a report.
    """

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    others: Callable[[], Iterator[Mapping[str, Any]]] | None = None
    measured_on: MeasuredOn | None = None

    def sets(self) -> Iterator[Mapping[str, Any]]:
        """All sets of arrays."""
        yield self.arrays
        if self.others is not None:
            yield from self.others()


def samples_of(arrays: Mapping[str, Any]) -> int | None:
    """How many samples inputs hold: the length of the first axis, where all inputs that have one share it."""
    sizes = {value.shape[0] for value in arrays.values() if isinstance(value, np.ndarray) and value.ndim}
    return int(sizes.pop()) if len(sizes) == 1 else None


def make_feeds(
    model: Model,
    *,
    inputs: Path | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    seed: int = 0,
) -> Feeds:
    """Make one set of inputs for a model.

    Args:
        model: The model; initialisers that are also graph inputs need no value and get none.
        inputs: An .npz file with one array per input, named after the inputs, or ``x`` for the only one; or an .npy
            file for the only input. Arrays are taken as they are, never cast. None: random values.
        input_shapes: Shapes by input name, for free dimensions (and unknown ranks).
        seed: Seed of the random values: floats from the standard normal distribution, uint8 and int8 over their whole
            range, other integers 0 or 1 (safe as indices), booleans evenly. One integer that the model compares with
            a constant gets that constant.

    Raises:
        FeedError: the file or the shapes do not fit the model, or random values cannot be made for it.
        OptionError: the seed is negative.
    """
    if seed < 0:
        raise OptionError(f"the seed must be 0 or more, not {seed}")
    check_input_shapes(model, input_shapes)
    wanted = _inputs(model.proto)
    if inputs is not None:
        given = _read(Path(inputs), wanted, input_shapes)
        what = MeasuredOn(kind="inputs", source=repr(str(inputs)), samples=samples_of(given))
        return Feeds(given, measured_on=what)
    shapes, notes = _choose_shapes(model.proto, wanted, input_shapes)
    arrays = {}
    for position, (entry, shape) in enumerate(zip(wanted, shapes, strict=True)):
        arrays[entry.name] = _random(entry, shape, np.random.default_rng([seed, position]))
        choice = _compared_with(model, entry) if math.prod(shape) == 1 else None
        if choice is not None:
            arrays[entry.name] = np.full(shape, choice, entry.dtype)
            notes.append(f"input {entry.name!r}: set to {choice}, a value that the model compares it with")
    return Feeds(arrays, tuple(notes), measured_on=MeasuredOn(kind="random", samples=samples_of(arrays)))


def check_input_shapes(model: Model, input_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes that do not fit the model's inputs.

    Raises:
        FeedError: a name is no input of the model, or the shape contradicts the model's.
    """
    wanted = _inputs(model.proto) if input_shapes else []
    _check_names(input_shapes, wanted)
    for entry in wanted:
        _check_shape(entry, input_shapes.get(entry.name))


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``NAME:1,3,224,224`` or ``NAME:1x3x224x224``; the name may hold colons, no dimensions mean a scalar.

    Raises:
        OptionError: the text has another form, or a dimension is not a positive integer.
    """
    name, colon, dims = text.rpartition(":")
    fields = dims.replace("x", ",").split(",") if dims.strip() else []
    try:
        shape = tuple(int(field) for field in fields)
    except ValueError:
        shape = (0,)
    if not colon or not name or any(size < 1 for size in shape):
        raise OptionError(f"cannot read the input shape {text!r}; write NAME:DIMS, for example image:1,3,224,224")
    return name, shape


def _inputs(proto: onnx.ModelProto) -> list[Input]:
    try:
        return list(model_inputs(proto))
    except FeedError as error:
        raise FeedError(f"{error}; skip the verification ({spelled('verify', 'none')})") from None


def _check_names(names: Mapping[str, object], wanted: list[Input]) -> None:
    for name in names:
        if name not in {entry.name for entry in wanted}:
            raise FeedError(f"the model has no input {name!r} that needs a value; {show_inputs(wanted)}")


def _check_shape(entry: Input, shape: tuple[int, ...] | None) -> None:
    if shape is not None and (any(size < 1 for size in shape) or not fits(shape, entry.dims)):
        raise FeedError(f"the shape {list(shape)} given for input {entry.name!r} does not fit the model's: {entry}")


def _read(path: Path, wanted: list[Input], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    given = read_arrays(path)
    if len(wanted) == 1 and set(given) == {"x"}:
        given = {wanted[0].name: given["x"]}
    try:
        _check_names(given, wanted)
        for entry in wanted:
            if entry.name not in given:
                raise FeedError(f"it has no array for input {entry}; it has: {', '.join(given) or 'none'}")
        return {entry.name: _checked(given[entry.name], entry, shapes.get(entry.name)) for entry in wanted}
    except FeedError as error:
        raise FeedError(f"{str(path)!r}: {error}") from None


def _checked(array: np.ndarray, entry: Input, shape: tuple[int, ...] | None) -> np.ndarray:
    """The array, if it fits; only the representation may change: byte order, memory layout, bfloat16's bits."""
    array = check_type(array, entry)
    if not fits(array.shape, entry.dims if shape is None else shape):
        also = "" if shape is None else f", not the given {list(shape)}"
        raise FeedError(f"the array for input {entry} has shape {list(array.shape)}{also}")
    if array.size == 0:
        raise FeedError(f"the array for input {entry} is empty: its shape is {list(array.shape)}")
    if entry.elem_type in FLOATS and np.isnan(array).any():
        raise FeedError(f"the array for input {entry} holds NaN: nothing could be compared")
    return np.asarray(array, dtype=entry.dtype, order="C")


def _choose_shapes(
    proto: onnx.ModelProto, wanted: list[Input], given: Mapping[str, tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], list[str]]:
    """A shape for every input, and a note for every dimension chosen here; equal names get equal sizes."""
    sizes: dict[str, int] = {}
    for entry in wanted:
        for dim, size in zip(entry.dims or (), given.get(entry.name, ()), strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise FeedError(f"the given shapes set dimension {dim!r} to both {sizes[dim]} and {size}")
    dims: list[tuple[Dim, ...]] = [
        given[entry.name] if entry.name in given else _dims(proto, entry) for entry in wanted
    ]
    batch = {dim for shape in dims for dim in shape[:1]} | {dim for shape in dims for dim in shape if _is_batch(dim)}
    for dim in batch:
        if isinstance(dim, str):
            sizes.setdefault(dim, 1)
    shapes = []
    notes: dict[str, None] = {}  # a set that keeps its order
    for entry, free in zip(wanted, dims, strict=True):
        shape = list(_default_sizes(free))
        for axis, dim in enumerate(free):
            if isinstance(dim, int):
                shape[axis] = dim
            elif isinstance(dim, str):
                shape[axis] = sizes.setdefault(dim, shape[axis])
            if entry.name not in given and not (entry.dims and isinstance(entry.dims[axis], int)):
                label = f"free dimension {dim!r}" if isinstance(dim, str) else f"free dimension at axis {axis}"
                notes[f"input {entry.name!r}: {label} set to {shape[axis]}"] = None
        shapes.append(tuple(shape))
    return shapes, list(notes)


def _is_batch(dim: Dim) -> bool:
    return isinstance(dim, str) and "batch" in dim.lower()


def _dims(proto: onnx.ModelProto, entry: Input) -> tuple[Dim, ...]:
    dims = dims_with_channels(proto, entry)
    if dims is None:
        raise FeedError(
            f"input {entry} needs a shape: give it with {spelled('input_shapes', hint=f'{entry.name}:DIMS')}"
        )
    return dims


def _default_sizes(dims: tuple[Dim, ...]) -> list[int]:
    """Small sizes for free axes: batch 1, then by rank; what stands at fixed axes is not used."""
    rank = len(dims)
    sizes = [1] + [{2: 512, 3: 512, 4: 64, 5: 32}.get(rank, 4)] * (rank - 1)
    channels_last = rank in (4, 5) and isinstance(dims[-1], int) and dims[-1] <= 4
    if rank in (4, 5) and not channels_last:
        sizes[1] = 3 if rank == 4 else 1
    if rank == 3 and isinstance(dims[0], int) and dims[0] > 1 and isinstance(dims[2], int):
        sizes[1] = 1  # the state of a recurrent layer: [layers, batch, units]
    return sizes[:rank]


def _compared_with(model: Model, entry: Input) -> int | None:
    """The constant that an integer input is compared with: such an input is a switch, and 0 may be none of its states.

    A voice model's sample rate, for example, chooses the branch that runs.
    """
    if entry.dtype.kind not in "iu":
        return None
    constants = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        if (value := constant_value(node)) is not None:
            constants[node.output[0]] = value
        elif node.op_type == "Equal" and entry.name in node.input:
            other = next((constants[name] for name in node.input if name in constants), None)
            if other is not None and math.prod(other.dims) == 1:
                return int(read_tensor(model, other).item())
    return None


def _random(entry: Input, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if entry.elem_type == _T.STRING:
        raise FeedError(f"input {entry} holds strings: give them with {spelled('inputs', hint='FILE.npz')}")
    if math.prod(shape) > _LARGEST:
        raise FeedError(
            f"input {entry} would have {math.prod(shape)} elements: give a smaller shape with {spelled('input_shapes')}"
        )
    if entry.elem_type in FLOATS:
        return np.asarray(generator.standard_normal(shape)).astype(entry.dtype)
    if entry.elem_type in (_T.UINT8, _T.INT8):
        limits = np.iinfo(entry.dtype)
        return np.asarray(generator.integers(limits.min, limits.max + 1, size=shape)).astype(entry.dtype)
    return np.asarray(generator.integers(0, 2, size=shape)).astype(entry.dtype)
