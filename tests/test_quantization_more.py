"""More graphs to quantise: zeros behind a Relu, weights stored as integers, sizes of some axes, computed biases."""

from typing import Any

import numpy as np
import onnx
import pytest
from test_quantization_structures import FORMATS, ONE, Net, X, beginning, checked, left, relative
from versions import needs_new_runtime

from onnxsep.model.io import load
from onnxsep.quantization import quantize
from onnxsep.running.runtime import Runner


def ended(net: Net, x: str) -> onnx.ModelProto:
    net.head(net.add("Relu", [net.conv(x, 16, 16, "last")], "end"), 16)
    return net.model(opset=18)


# ---------------------------------------------------------------- activations that only ever are 0


@pytest.mark.parametrize(
    ("format_", "activations", "bounds", "bias"),
    [
        ("qdq", "int8", None, -100),
        ("qoperator", "int8", None, -100),
        ("qdq", "uint8", (-2.0, 0.0), 100),
        ("qdq", "int8", (0.0, 0.0), 50),
    ],
)
def test_limit_that_leaves_nothing(
    format_: str, activations: str, bounds: tuple[float, float] | None, bias: float
) -> None:
    """What such a Relu holds back must not pass: it would be added to everything."""
    net = Net()
    x = beginning(net)
    weight, biases = net.kernel("dead.w", 16, 16, 3, 3), net.const("dead.b", np.full(16, bias, np.float32))
    dead = net.add("Conv", [x, weight, biases], "dead", pads=[1] * 4)
    if bounds is None:
        zero = net.add("Relu", [dead], "zero")
    else:
        zero = net.add(
            "Clip",
            [dead, *(net.const(f"bound{value}{place}", np.float32(value)) for place, value in enumerate(bounds))],
            "zero",
        )
    checked(ended(net, net.add("Add", [x, zero], "sum")), 0.03, format=format_, activations=activations, equalize=False)


# ---------------------------------------------------------------- weights that are stored as integers


@pytest.mark.parametrize("format_", FORMATS)
def test_weight_behind_dequantize_linear(format_: str) -> None:
    net = Net()
    x = beginning(net)
    net.const("integers", net.rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8))
    net.const("scales", np.linspace(0.0005, 0.002, 16).astype(np.float32))
    weight = net.add("DequantizeLinear", ["integers", "scales", net.const("zeros", np.zeros(16, np.int8))], "w", axis=0)
    result = checked(ended(net, net.add("Conv", [x, weight], "c", pads=[1] * 4)), format=format_)
    assert any(note.startswith("1 weights that were stored as integers") for note in result.report.notes)


# ---------------------------------------------------------------- Resize with axes beside integer Convs


@needs_new_runtime
@pytest.mark.parametrize(
    ("policy", "wanted", "size"),
    [("stretch", (12, 5), (12, 5)), ("not_larger", (12, 20), (12, 12)), ("not_smaller", (9, 13), (13, 13))],
)
def test_resize_to_sizes_of_some_axes(policy: str, wanted: tuple[int, int], size: tuple[int, int]) -> None:
    net = Net()
    sizes = net.const("sizes", np.array(wanted, np.int64))
    attributes = {} if policy == "stretch" else {"keep_aspect_ratio_policy": policy}
    axes = [-2, -1] if policy == "stretch" else [2, 3]  # the runtime ignores sizes for negative ones with a policy
    x = net.add("Resize", [beginning(net), "", "", sizes], "r", mode="linear", axes=axes, **attributes)
    net.conv(x, 16, 16, "y")
    result = checked(net.model(opset=18))
    assert "r" not in left(result)
    assert Runner(result.model, ONE)({"x": X[:1]})["y"].shape == (1, 16, *size)


# ---------------------------------------------------------------- biases that nodes compute


@pytest.mark.parametrize("format_", FORMATS)
def test_bias_that_is_computed(format_: str) -> None:
    net = Net()
    x = beginning(net)
    bias = net.add("ReduceMean", [x, net.const("axes", np.array([0, 2, 3], np.int64))], "mean", keepdims=0)
    checked(ended(net, net.add("Conv", [x, net.kernel("w", 16, 16, 3, 3), bias], "c", pads=[1] * 4)), format=format_)


# ---------------------------------------------------------------- parts of an output


@pytest.mark.parametrize("format_", FORMATS)
def test_parts_of_an_output_that_differ_ten_times(format_: Any) -> None:
    """Offsets of a detector: 25 of 256 levels would make an error of a tenth."""
    net = Net()
    offsets = net.add("Tanh", [net.conv(beginning(net), 16, 4, "c")], "offsets")
    factors = net.const("factors", np.array([300, 300, 30, 30], np.float32).reshape(4, 1, 1))
    net.add("Mul", [offsets, factors], "y")
    source = net.model()
    result = quantize(source, data=X, runtime=ONE, format=format_)
    expected, actual = (Runner(model, ONE)({"x": X})["y"] for model in (load(source), result.model))
    for part in (slice(0, 2), slice(2, 4)):
        assert relative(expected[:, part], actual[:, part]) < 0.05
    assert "c" not in left(result)


# ---------------------------------------------------------------- values that no range holds


@needs_new_runtime
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min])
def test_pad_with_infinity(format_: str, value: float) -> None:
    net = Net()
    pads = net.const("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = net.add("Pad", [beginning(net), pads, net.const("least", np.float32(value))], "padded")
    result = checked(ended(net, net.add("MaxPool", [x], "pool", kernel_shape=[3, 3])), format=format_)
    assert {"padded", "pool"} <= set(left(result)) <= {"padded", "pool"}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("op_type", ["Add", "Where"])
def test_mask_with_infinity(format_: str, op_type: str) -> None:
    """Attention over channels, each of which sees those before it only."""
    net = Net()
    rows = net.add("Reshape", [beginning(net), net.const("flat shape", np.array([0, 16, -1], np.int64))], "rows")
    scores = net.add("MatMul", [rows, net.add("Transpose", [rows], "columns", perm=[0, 2, 1])], "scores")
    later = np.triu(np.ones((16, 16), bool), 1)
    if op_type == "Add":
        masked = net.add("Add", [scores, net.const("mask", np.where(later, -np.inf, 0).astype(np.float32))], "masked")
    else:
        least = net.const("least", np.float32(-np.inf))
        masked = net.add("Where", [net.const("later", later), least, scores], "masked")
    seen = net.add("MatMul", [net.add("Softmax", [masked], "weights", axis=-1), rows], "seen")
    x = net.add("Reshape", [seen, net.const("shape", np.array([0, 16, 8, 8], np.int64))], "image")
    result = checked(ended(net, x), 0.06, format=format_)
    assert "seen" not in left(result)


@needs_new_runtime
def test_where_beside_integer_operators() -> None:
    net = Net()
    x = beginning(net)
    chosen = net.const("chosen", np.arange(8) % 3 > 0)
    result = checked(ended(net, net.add("Where", [chosen, x, net.conv(x, 16, 16, "c")], "w")), format="qoperator")
    assert set(left(result)) == {"w"}
