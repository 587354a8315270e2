"""What operators that change sizes do with channels: flattening, reducing, padding, slicing, resizing."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx

from onnxsep.engine.channels import Channels, Facts, Track, label


class Lost(Exception):  # noqa: N818 - a finding about a node, not an error
    """The channels cannot be followed through a node; the message says why."""


class SizeRules:
    """The rules; each gives the channels of the output, or raises ``Lost``.

    Args:
        facts: of the graph.
        channels: what was followed so far; padding adds channels that stay.
        fold: the values of a constant that is an input of the present node, by its position; None where it is none.
    """

    def __init__(self, facts: Facts, channels: Channels, fold: Callable[[int], Sequence[int] | None]) -> None:
        self._facts, self._channels, self._fold = facts, channels, fold

    def reduce(self, node: onnx.NodeProto, track: Track) -> Track:
        """Averages, sums and so on over the spatial axes."""
        axes = self._integers(node, "axes", 1)
        kept = [axis % track.rank for axis in axes or ()]
        if not kept or 1 in kept or 0 in kept:
            raise Lost("reduces along other axes than the spatial ones")
        return track if integer(node, "keepdims", 1) else Track(track.ids, track.rank - len(set(kept)))

    def flatten(self, node: onnx.NodeProto, track: Track) -> Track:
        """[N, C, H, W] -> [N, C * H * W]: every channel becomes H * W entries."""
        if node.op_type == "Flatten":
            if integer(node, "axis", 1) % (track.rank + 1) != 1:
                raise Lost("flattens along another axis")
        else:
            self._reshaped(node, track)
        made = self._facts.shapes.get(node.output[0])
        entries = made[1] if made is not None and len(made) == 2 else None
        if not isinstance(entries, int) or entries % len(track.ids):
            if track.rank != 2:
                raise Lost("makes an unknown number of entries of each channel")
            entries = len(track.ids)
        found = Track(np.repeat(track.ids, entries // len(track.ids)), 2)
        if node.op_type == "Reshape" and (self._integers(node, "shape", 1) or ())[1:] != [-1]:
            self._channels.lengths[self._facts.constants[node.input[1]][0]] = found.ids
        return found

    def _reshaped(self, node: onnx.NodeProto, track: Track) -> None:
        """Refuse a Reshape that is not to [batch, -1] or [batch, length], its length then in a constant of its own."""
        shape, before = self._integers(node, "shape", 1), self._facts.shapes.get(node.input[0]) or (None,)
        if shape is None or len(shape) != 2:
            raise Lost("is no Reshape to [batch, -1]")
        if shape[1] == -1 and shape[0] in (0, before[0]):
            if integer(node, "allowzero", 0) and shape[0] == 0:
                raise Lost("has allowzero")
            return
        sizes = [size for size in before[2:] if isinstance(size, int)]
        whole = len(track.ids) * math.prod(sizes) if len(sizes) == len(before) - 2 else None
        if shape[0] not in (-1, before[0]) or shape[1] != whole or len(before) != track.rank:
            raise Lost("is no Reshape to [batch, -1], or to as many entries as an image has")
        if len(node.input) < 2 or node.input[1] not in self._facts.constants:
            raise Lost("has a shape that is not stored as a constant")

    def squeeze(self, node: onnx.NodeProto, track: Track) -> Track:
        """Axes of size one come or go behind the channels."""
        axes = self._integers(node, "axes", 1)
        change = -1 if node.op_type == "Squeeze" else 1
        rank = track.rank + change * len(axes or ())
        if not axes or any(axis % max(track.rank, rank) < 2 for axis in axes):
            raise Lost("changes the first axes")
        return Track(track.ids, rank)

    def pad(self, node: onnx.NodeProto, track: Track) -> Track:
        """Channels of a constant in front of the others, or behind them, are channels that stay."""
        pads = self._integers(node, "pads", 1)
        if pads is None or len(pads) != 2 * track.rank or (len(node.input) > 3 and node.input[3]):
            raise Lost("pads by amounts that are not known")
        before, after = pads[1], pads[track.rank + 1]
        if not before and not after:
            return track
        if before < 0 or after < 0 or attribute_value(node, "mode") not in (None, b"constant"):
            raise Lost("makes channels of other channels")
        parts = self._channels.fresh(before), track.ids, self._channels.fresh(after)
        for ids in (parts[0], parts[2]):
            self._channels.freeze(ids, f"they meet channels that {label(node)} adds")
        return Track(np.concatenate(parts), track.rank)

    def slice(self, node: onnx.NodeProto, track: Track) -> Track:
        """A part of the image; of the channels all."""
        starts, ends = self._integers(node, "starts", 1), self._integers(node, "ends", 2)
        axes, steps = self._integers(node, "axes", 3), self._integers(node, "steps", 4)
        given = {position for position, name in enumerate(node.input) if name}
        if starts is None or ends is None or (axes is None and 3 in given) or (steps is None and 4 in given):
            raise Lost("takes a part that is not known")
        for number, axis in enumerate(axes or range(len(starts))):
            whole = starts[number] == 0 and ends[number] >= len(track.ids) and (steps is None or steps[number] == 1)
            if axis % track.rank == 1 and not whole:
                raise Lost("takes a part of the channels")
        return track

    def resize(self, node: onnx.NodeProto, track: Track) -> Track:
        """Scales that leave the channels alone."""
        if len(node.input) > 3 and node.input[3]:
            raise Lost("names the number of channels among its sizes")
        if any(attribute.name == "axes" for attribute in node.attribute):
            raise Lost("resizes named axes")
        if attribute_value(node, "coordinate_transformation_mode") == b"tf_crop_and_resize":
            raise Lost("may crop channels")
        position = 2 if len(node.input) > 2 else 1
        scales: Sequence[float] | None = attribute_value(node, "scales")
        if scales is None and len(node.input) > position:
            scales = self._fold(position)
        if scales is None or len(scales) != track.rank or scales[1] != 1:
            raise Lost("may resize the channel axis")
        return track

    def _integers(self, node: onnx.NodeProto, name: str, position: int) -> Sequence[int] | None:
        """Integers that are an attribute in older operator sets, and a constant input in newer ones."""
        found: Sequence[int] | None = attribute_value(node, name)
        given = len(node.input) > position and node.input[position]
        return self._fold(position) if found is None and given else found


def attribute_value(node: onnx.NodeProto, name: str) -> Sequence[int] | None:
    """The value of an attribute; None where the node has none of that name."""
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """The value of an attribute that is one integer."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
