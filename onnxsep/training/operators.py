"""The operators that onnxsep computes with torch itself; see :mod:`onnxsep.training.converters`.

Each one is built from a node's attributes and called with its tensors. A builder raises NotImplementedError with the
reason where it cannot follow the attributes. torch is imported when an operator is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxsep.training import windows
from onnxsep.training.windows import Attributes, Call, torch_order


@dataclass(frozen=True)
class Own:
    """One of our operators: what builds it, and the attributes that it knows, in all versions of the operator."""

    build: Callable[[Attributes, int], Call]
    attributes: frozenset[str]


def _torch() -> Any:
    import torch

    return torch


# ---------------------------------------------------------------- matrices and norms


def _gemm(attributes: Attributes, _: int) -> Call:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    first, second = bool(attributes.get("transA", 0)), bool(attributes.get("transB", 0))

    def call(a: Any, b: Any, c: Any = None) -> Any:
        y = (a.t() if first else a) @ (b.t() if second else b)
        y = y if alpha == 1 else y * alpha
        return y if c is None else y + (c if beta == 1 else c * beta)

    return call


def _batch_norm(attributes: Attributes, _: int) -> Call:
    functional = _torch().nn.functional
    epsilon, momentum = attributes.get("epsilon", 1e-5), 1 - attributes.get("momentum", 0.9)
    if not attributes.get("spatial", 1) or attributes.get("training_mode", 0):
        raise NotImplementedError("spatial=0 and training_mode=1 are not supported")

    def call(x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, training: bool = False) -> Any:
        return functional.batch_norm(x, mean, var, scale, bias, training, momentum, epsilon)

    call.trains = True  # type: ignore[attr-defined]
    return call


def _instance_norm(attributes: Attributes, _: int) -> Call:
    functional, epsilon = _torch().nn.functional, attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _layer_norm(attributes: Attributes, outputs: int) -> Call:
    functional = _torch().nn.functional
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    if outputs > 1:
        raise NotImplementedError("its outputs Mean and InvStdDev are not supported")
    return lambda x, scale, bias=None: functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _dropout(attributes: Attributes, _: int) -> Call:
    functional, fixed = _torch().nn.functional, attributes.get("ratio", 0.5)

    def call(x: Any, ratio: Any = None, mode: Any = None, *, training: bool = False) -> Any:
        return functional.dropout(x, fixed if ratio is None else float(ratio), training)

    call.trains = True  # type: ignore[attr-defined]
    return call


# ---------------------------------------------------------------- shapes


def _pad(attributes: Attributes, _: int) -> Call:
    torch, mode = _torch(), attributes.get("mode", "constant")
    fixed = attributes.get("pads", attributes.get("paddings"))
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise NotImplementedError(f"mode {mode!r} is not known")

    def call(x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
        sizes = [int(size) for size in (fixed if fixed is not None else pads.tolist())]
        half = len(sizes) // 2
        begin, end = [0] * x.dim(), [0] * x.dim()
        for index, axis in enumerate(range(half) if axes is None else axes.tolist()):
            begin[axis], end[axis] = sizes[index], sizes[half + index]
        if mode == "constant":
            filler = attributes.get("value", 0.0) if value is None else float(value)
            return torch.nn.functional.pad(x, torch_order(begin, end), value=filler)
        for axis, (first, last) in enumerate(zip(begin, end, strict=True)):
            if first or last:  # torch pads in these modes along some axes only, so pick elements
                size = x.shape[axis]
                picked = np.pad(np.arange(size), (max(first, 0), max(last, 0)), mode)
                picked = picked[max(-first, 0) : len(picked) - max(-last, 0)]
                x = x.index_select(axis, torch.from_numpy(picked).to(x.device))
        return x

    return call


def _slice(attributes: Attributes, _: int) -> Call:
    fixed = [attributes.get(name) for name in ("starts", "ends", "axes")]

    def call(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
        begins, stops, where = (
            own if tensor is None else tensor.tolist() for own, tensor in zip(fixed, (starts, ends, axes), strict=True)
        )
        index, flipped = [slice(None)] * x.dim(), []
        for number, (begin, stop) in enumerate(zip(begins or (), stops or (), strict=True)):
            axis = (where[number] if where else number) % x.dim()
            step = 1 if steps is None else int(steps[number])
            picked = range(x.shape[axis])[begin:stop:step]
            if step < 0:  # torch has no negative steps: take the same elements forwards, then turn them round
                picked = picked[::-1]
                flipped.append(axis)
            index[axis] = slice(picked.start, picked.stop, picked.step) if len(picked) else slice(0, 0)
        y = x[tuple(index)]
        return y.flip(flipped) if flipped else y

    return call


def _clip(attributes: Attributes, _: int) -> Call:
    def call(x: Any, least: Any = None, most: Any = None) -> Any:
        low = attributes.get("min") if least is None else least
        high = attributes.get("max") if most is None else most
        if low is not None:
            x = x.clamp(min=low)
        return x if high is None else x.clamp(max=high)

    return call


def _reduce(kind: str) -> Callable[[Attributes, int], Call]:
    def build(attributes: Attributes, _: int) -> Call:
        reduce, keep, fixed = getattr(_torch(), kind), bool(attributes.get("keepdims", 1)), attributes.get("axes")

        def call(x: Any, axes: Any = None) -> Any:
            dims = fixed if axes is None else axes.tolist()
            if not dims and attributes.get("noop_with_empty_axes", 0):
                return x
            return reduce(x, dim=tuple(dims or range(x.dim())), keepdim=keep)

        return call

    return build


_WINDOW = {"auto_pad", "dilations", "kernel_shape", "pads", "strides"}
_REDUCE = {"axes", "keepdims", "noop_with_empty_axes"}
OPERATORS: dict[str, Own] = {
    name: Own(build, frozenset(attributes))
    for name, build, attributes in (
        ("Conv", windows.conv, {*_WINDOW, "group"}),
        ("ConvTranspose", windows.conv_transpose, {*_WINDOW, "group", "output_padding", "output_shape"}),
        ("MaxPool", windows.max_pool, {*_WINDOW, "ceil_mode", "storage_order"}),
        ("AveragePool", windows.average_pool, {*_WINDOW, "ceil_mode", "count_include_pad"}),
        ("GlobalAveragePool", windows.global_pool("mean"), set[str]()),
        ("GlobalMaxPool", windows.global_pool("amax"), set[str]()),
        ("Gemm", _gemm, {"alpha", "beta", "transA", "transB", "broadcast"}),
        ("BatchNormalization", _batch_norm, {"epsilon", "momentum", "spatial", "training_mode"}),
        ("InstanceNormalization", _instance_norm, {"epsilon"}),
        ("LayerNormalization", _layer_norm, {"axis", "epsilon", "stash_type"}),
        ("Dropout", _dropout, {"ratio", "seed"}),
        ("Pad", _pad, {"mode", "pads", "paddings", "value"}),
        ("Slice", _slice, {"starts", "ends", "axes"}),
        ("Clip", _clip, {"min", "max"}),
        ("ReduceMean", _reduce("mean"), _REDUCE),
        ("ReduceSum", _reduce("sum"), _REDUCE),
        ("ReduceMax", _reduce("amax"), _REDUCE),
        ("ReduceMin", _reduce("amin"), _REDUCE),
    )
}
