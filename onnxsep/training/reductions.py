"""Operators that join or order the elements along axes."""

from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call, plain


def _mean(x: Any, dims: tuple[int, ...], keep: bool) -> Any:
    if x.is_floating_point():
        return x.mean(dims, keep)
    return x.to(torch.float64).mean(dims, keep).to(x.dtype)


def _sum(x: Any, dims: tuple[int, ...], keep: bool) -> Any:
    return x.sum(dims, keep, dtype=x.dtype)


def _product(x: Any, dims: tuple[int, ...], keep: bool) -> Any:
    for axis in sorted((axis % x.dim() for axis in dims), reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _length(x: Any, dims: tuple[int, ...], keep: bool) -> Any:
    # Its gradient is 0 where the elements are all 0; that of a square root is not finite there.
    return torch.linalg.vector_norm(x.float(), 2, dims, keep).to(x.dtype)


_REDUCE: dict[str, tuple[Call, Call]] = {  # over axes, and what is left of it where there are no axes
    "ReduceMean": (_mean, lambda x: x),
    "ReduceSum": (_sum, lambda x: x),
    "ReduceMax": (torch.amax, lambda x: x),
    "ReduceMin": (torch.amin, lambda x: x),
    "ReduceProd": (_product, lambda x: x),
    "ReduceL1": (lambda x, dims, keep: _sum(x.abs(), dims, keep), torch.abs),
    "ReduceL2": (_length, torch.abs),
    "ReduceSumSquare": (lambda x, dims, keep: _sum(x * x, dims, keep), torch.square),
    "ReduceLogSum": (lambda x, dims, keep: _sum(x, dims, keep).log(), torch.log),
    "ReduceLogSumExp": (torch.logsumexp, lambda x: x),
}


def _reduce(name: str) -> Builder:
    over, alone = _REDUCE[name]

    def build(attributes: Attributes) -> Call:
        keep, fixed = attributes.flag("keepdims", True), attributes.get("axes")
        nothing = attributes.flag("noop_with_empty_axes")

        def call(x: Any, axes: Any = None) -> Any:
            dims = fixed if axes is None else axes.tolist()
            if (not dims and nothing) or not x.dim():
                return alone(x)
            return over(x, tuple(dims or range(x.dim())), keep)

        return call

    return build


def _arg(largest: bool) -> Builder:
    def build(attributes: Attributes) -> Call:
        axis, keep = attributes.get("axis", 0), attributes.flag("keepdims", True)
        last = attributes.flag("select_last_index")
        find = torch.argmax if largest else torch.argmin

        def call(x: Any) -> Any:
            if last:
                return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)
            return find(x, axis, keep)

        return call

    return build


def _over_axis(function: Call) -> Builder:
    """Softmax and the like: along one axis; in opset 12 and older over all axes from ``axis`` on."""

    def build(attributes: Attributes) -> Call:
        old = attributes.opset < 13
        axis = attributes.get("axis", 1 if old else -1)

        def call(x: Any) -> Any:
            if not old:
                return function(x, axis)
            return function(x.flatten(axis % max(x.dim(), 1)), -1).reshape(x.shape)

        return call

    return build


def _hardmax(x: Any, axis: int) -> Any:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _top_k(attributes: Attributes) -> Call:
    fixed, axis = attributes.get("k"), attributes.get("axis", -1)
    largest = attributes.flag("largest", True)
    attributes.ignore("sorted")

    def call(x: Any, count: Any = None) -> Any:
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)  # of equal ones the first, as in ONNX
        size = fixed if count is None else int(count)
        return values.narrow(axis, 0, size), places.narrow(axis, 0, size)

    return call


def _cumulative(function: Call, neutral: int) -> Builder:
    def build(attributes: Attributes) -> Call:
        exclusive, backwards = attributes.flag("exclusive"), attributes.flag("reverse")

        def call(x: Any, axis: Any) -> Any:
            along = int(axis)
            y = function(x.flip(along) if backwards else x, along).to(x.dtype)
            if exclusive:
                first = torch.full_like(y.narrow(along, 0, 1), neutral)
                y = torch.cat([first, y.narrow(along, 0, y.shape[along] - 1)], along)
            return y.flip(along) if backwards else y

        return call

    return build


TABLE: dict[str, Builder] = {
    **{name: _reduce(name) for name in _REDUCE},
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "Softmax": _over_axis(torch.softmax),
    "LogSoftmax": _over_axis(torch.log_softmax),
    "Hardmax": _over_axis(_hardmax),
    "TopK": _top_k,
    "CumSum": _cumulative(torch.cumsum, 0),
    "CumProd": _cumulative(torch.cumprod, 1),
    "Det": plain(torch.linalg.det),
}
