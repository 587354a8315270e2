"""Operators that pick or place elements by their index."""

from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call, plain

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_start(places: Any, size: int) -> Any:
    """Indices that count from the start, also where they counted from the end."""
    places = places.to(torch.int64)
    return torch.where(places < 0, places + size, places)


def _gather(attributes: Attributes) -> Call:
    axis = attributes.get("axis", 0)

    def call(x: Any, indices: Any) -> Any:
        along = axis % x.dim()
        picked = x.index_select(along, _from_start(indices, x.shape[along]).reshape(-1))
        return picked.reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))

    return call


def _gather_elements(attributes: Attributes) -> Call:
    axis = attributes.get("axis", 0)
    return lambda x, indices: x.gather(axis, _from_start(indices, x.shape[axis]))


def _flat(x: Any, indices: Any, batch: int) -> tuple[Any, int]:
    """The places that tuples of indices name, in x with the axes that they index made one; and that axis' length."""
    depth = indices.shape[-1]
    sizes = x.shape[batch : batch + depth]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for number, size in enumerate(sizes):
        flat = flat * size + _from_start(indices[..., number], size)
    return flat, sizes.numel()


def _gather_nd(attributes: Attributes) -> Call:
    batch = attributes.get("batch_dims", 0)

    def call(x: Any, indices: Any) -> Any:
        flat, length = _flat(x, indices, batch)
        lead, tail = x.shape[:batch], x.shape[batch + indices.shape[-1] :]
        items = x.reshape(lead.numel() * length, *tail)
        first = torch.arange(lead.numel(), device=x.device).reshape(*lead, *[1] * (flat.dim() - batch)) * length
        return items.index_select(0, (flat + first).reshape(-1)).reshape((*flat.shape, *tail))

    return call


def _scatter_elements(attributes: Attributes) -> Call:
    axis = attributes.get("axis", 0)
    reduction = attributes.choice("reduction", ("none", *_REDUCTIONS))

    def call(x: Any, indices: Any, updates: Any) -> Any:
        places, values = _from_start(indices, x.shape[axis]), updates.to(x.dtype)
        if reduction == "none":
            return x.scatter(axis, places, values)
        return x.scatter_reduce(axis, places, values, _REDUCTIONS[reduction])

    return call


def _scatter_nd(attributes: Attributes) -> Call:
    reduction = attributes.choice("reduction", ("none", *_REDUCTIONS))

    def call(x: Any, indices: Any, updates: Any) -> Any:
        flat, length = _flat(x, indices, 0)
        items, values = x.reshape(length, -1), updates.to(x.dtype).reshape(flat.numel(), -1)
        places = flat.reshape(-1, 1).expand_as(values)
        if reduction == "none":
            items = items.scatter(0, places, values)
        else:
            items = items.scatter_reduce(0, places, values, _REDUCTIONS[reduction])
        return items.reshape(x.shape)

    return call


def _one_hot(attributes: Attributes) -> Call:
    axis = attributes.get("axis", -1)

    def call(indices: Any, depth: Any, values: Any) -> Any:
        size = int(depth)
        places = _from_start(indices, size).unsqueeze(axis)
        shape = [1] * places.dim()
        shape[axis] = size
        return torch.where(places == torch.arange(size, device=places.device).reshape(shape), values[1], values[0])

    return call


def _compress(attributes: Attributes) -> Call:
    axis = attributes.get("axis")

    def call(x: Any, condition: Any) -> Any:
        source, along = (x.reshape(-1), 0) if axis is None else (x, axis)
        return source.index_select(along, condition.nonzero().reshape(-1))

    return call


TABLE: dict[str, Builder] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "Compress": _compress,
    "NonZero": plain(lambda x: x.nonzero().t()),
}
