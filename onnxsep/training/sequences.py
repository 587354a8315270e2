"""Operators on sequences, which are lists, and on optional values, which are the value or None."""

from collections.abc import Sequence
from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call, plain


def _split_to_sequence(attributes: Attributes) -> Call:
    axis, keep = attributes.get("axis", 0), attributes.flag("keepdims", True)

    def call(x: Any, split: Any = None) -> list[Any]:
        parts = 1 if split is None else split.tolist()
        found = list(torch.split(x, parts, axis))
        return [part.squeeze(axis) for part in found] if split is None and not keep else found

    return call


def _concat_from_sequence(attributes: Attributes) -> Call:
    axis = attributes.need("axis")
    join = torch.stack if attributes.flag("new_axis") else torch.cat
    return lambda sequence: join(sequence, axis)


def _optional(attributes: Attributes) -> Call:
    attributes.ignore("type")
    return lambda x=None: x


def _insert(sequence: Sequence[Any], tensor: Any, place: Any = None) -> list[Any]:
    where = len(sequence) if place is None else int(place)
    where = where if where >= 0 else where + len(sequence)
    return [*sequence[:where], tensor, *sequence[where:]]


def _erase(sequence: Sequence[Any], place: Any = None) -> list[Any]:
    where = (len(sequence) - 1 if place is None else int(place)) % len(sequence)
    return [*sequence[:where], *sequence[where + 1 :]]


TABLE: dict[str, Builder] = {
    "SequenceConstruct": plain(lambda *tensors: list(tensors)),
    "SequenceAt": plain(lambda sequence, place: sequence[int(place)]),
    "SequenceInsert": plain(_insert),
    "SequenceErase": plain(_erase),
    "SequenceLength": plain(lambda sequence: torch.tensor(len(sequence), dtype=torch.int64)),
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
    "Optional": _optional,
    "OptionalGetElement": plain(lambda x: x),
    "OptionalHasElement": plain(lambda x=None: torch.tensor(x is not None)),
}
