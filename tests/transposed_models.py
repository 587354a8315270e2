"""ConvTransposes of every geometry, and networks that end in some."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import helper
from test_modes import ELEMENT_TYPES, NUMPY_TYPES, tensor_of

from onnxsep.layers.conv import AutoPad, Conv
from onnxsep.modes.base import conv_modes

Array = npt.NDArray[Any]
MODES = sorted(name for name, mode in conv_modes().items() if mode.transposed)
AUTOMATIC: dict[str, AutoPad] = {"SAME_UPPER": "SAME_UPPER", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
KERNELS: dict[int, list[tuple[int, ...]]] = {
    1: [(2,), (3,), (8,)],
    2: [(1, 3), (3, 1), (2, 2), (3, 3), (2, 4), (5, 3)],
    3: [(2, 2, 2), (3, 1, 2), (1, 3, 3)],
}


@dataclass(frozen=True)
class Case:
    """One ConvTranspose, what is said about its output, and the sizes and the type of its input."""

    conv: Conv
    size: tuple[int, ...]
    dtype: str = "float32"
    seed: int = 0
    output_shape: tuple[int, ...] = ()

    @property
    def weight(self) -> Array:
        """As ONNX stores it: [in_channels, out_channels / group, *kernel], no two axes alike."""
        conv, rng = self.conv, np.random.default_rng(self.seed)
        shape = (conv.in_channels, conv.out_channels // conv.group, *conv.kernel_shape)
        weight = rng.standard_normal(shape)
        for axis, extent in enumerate(shape):
            weight *= rng.uniform(0.5, 1.5, [extent if other == axis else 1 for other in range(weight.ndim)])
        return weight.astype(NUMPY_TYPES[self.dtype])

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        conv = self.conv
        found: dict[str, Any] = {"strides": conv.strides, "dilations": conv.dilations, "group": conv.group}
        found.update({"pads": conv.pads} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad})
        if self.output_shape:
            found["output_shape"] = self.output_shape
        return found | ({"output_padding": conv.output_padding} if conv.output_padding else {})

    def model(self, weight: Array | None = None, *, free: bool = False, opset: int = 17) -> onnx.ModelProto:
        """The node alone, named "up": x -> y; ``free`` leaves the sizes of x open."""
        conv, kind = self.conv, ELEMENT_TYPES[self.dtype]
        bias = np.random.default_rng(self.seed + 1).standard_normal(conv.out_channels).astype(NUMPY_TYPES[self.dtype])
        arrays = {"w": self.weight if weight is None else weight.astype(NUMPY_TYPES[self.dtype])}
        arrays |= {"b": bias} if conv.bias else {}
        node = helper.make_node("ConvTranspose", ["x", *arrays], ["y"], "up", **self.attributes)
        sizes: tuple[Any, ...] = tuple("hwd"[: conv.dims]) if free else self.size
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", kind, [2, conv.in_channels, *sizes])],
            [
                helper.make_tensor_value_info(
                    "y", kind, [2, conv.out_channels, *(f"o{axis}" for axis in range(conv.dims))]
                )
            ],
            [tensor_of(name, array) for name, array in arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32",)) -> Case:
    """Any that ONNX Runtime runs, with something left of its output."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = draw(st.sampled_from(KERNELS[dims]))
    kind = draw(st.sampled_from(["pads", "pads", "padded output", "SAME_UPPER", "SAME_LOWER", "VALID", "shape"]))
    strides = tuple(draw(st.sampled_from([1, 2, 2, 3])) for _ in kernel)
    dilations = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel)
    group = draw(st.sampled_from([1, 1, 2, 3]))
    size = tuple(draw(st.integers(2, 5)) for _ in kernel)
    conv = Conv(
        in_channels=group * draw(st.integers(1, 4)),
        out_channels=group * draw(st.integers(1, 4)),
        kernel_shape=kernel,
        strides=strides,
        pads=(0,) * (2 * dims),
        dilations=dilations,
        group=group,
        bias=draw(st.booleans()),
        auto_pad=AUTOMATIC.get(kind, "NOTSET"),
        transposed=True,
    )
    whole = [s * (n - 1) + (k - 1) * d + 1 for s, n, k, d in zip(strides, size, kernel, dilations, strict=True)]
    room = [stride - 1 for stride in strides]  # ONNX Runtime wants no larger padding of the output
    shape: tuple[int, ...] = ()
    if kind in ("pads", "padded output"):
        begins = [draw(st.integers(0, min(3, extent - 1))) for extent in whole]
        ends = [draw(st.integers(0, min(3, extent - 1 - begin))) for extent, begin in zip(whole, begins, strict=True)]
        conv = replace(conv, pads=(*begins, *ends))
    if kind == "padded output":
        conv = replace(conv, output_padding=tuple(draw(st.integers(0, most)) for most in room))
    if kind == "shape":
        conv = replace(conv, auto_pad=draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"])))
        shape = tuple(draw(st.integers(max(1, n - 4), n + more)) for n, more in zip(whole, room, strict=True))
    return Case(conv, size, draw(st.sampled_from(dtypes)), draw(st.integers(0, 999)), shape)


def plain_case(kernel: tuple[int, ...] = (4, 4), channels: tuple[int, int] = (12, 6), group: int = 1) -> Case:
    """As decoders have it: twice the size."""
    ones = (1,) * len(kernel)
    twos, pads = tuple(2 * one for one in ones), ones * 2
    conv = Conv(*channels, kernel, twos, pads, ones, group=group, bias=True, transposed=True)
    return Case(conv, (6,) * len(kernel))
