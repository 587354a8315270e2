"""What stands behind a Conv and treats each element by itself: found in the graph, run on rows, and fitted to."""

from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, Steps, fitted, images, network, outputs, replaced, row
from numpy.typing import NDArray
from random_examples import some

from onnxsep.calibration.behind import Behind, skip_values
from onnxsep.calibration.regions import Grower, Region
from onnxsep.calibration.samples import usable_tail
from onnxsep.calibration.sampling import gather_outputs, output_shape
from onnxsep.calibration.schedule import Step

Array = NDArray[Any]
X = images(12, (4, 6, 6))
RNG = np.random.default_rng(2)
TENSORS: dict[str, Any] = {
    "w": (4, 4, 3, 3),
    "v": (4, 4, 3, 3),
    "wide": RNG.uniform(-2, 2, (10, 1, 1)).astype(np.float32),
    "slope": RNG.uniform(0, 0.5, (4, 1, 1)).astype(np.float32),
    "factor": RNG.uniform(-2, 2, (1, 4, 1, 1)).astype(np.float32),
    "map": RNG.standard_normal((1, 4, 6, 6)).astype(np.float32),
    "along": RNG.standard_normal(6).astype(np.float32),
    "one": np.array([0.2], np.float32),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "zero": np.float32(0),
    "six": np.float32(6),
    "whole": np.array([1, 1], np.int64),
    **{name: RNG.uniform(0.5, 2, 10).astype(np.float32) for name in ("g10", "b10", "m10", "v10")},
    **{name: RNG.uniform(0.5, 2, 4).astype(np.float32) for name in ("g4", "b4", "m4", "v4")},
}


def behind(lines: str, opset: int = 17, end: str = "y") -> onnx.ModelProto:
    """A Conv "t" with these nodes behind it, beside another one, "s"."""
    text = f"s = Conv<pads = [1, 1, 1, 1]>(x, v) t = Conv<pads = [1, 1, 1, 1]>(x, w) {lines}"
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in TENSORS.items() if name in words}
    return network(f"g (float[N, 4, 6, 6] x) => (float[N, c, h, l] {end}) {{ {text} }}", opset=opset, **used)


def found(model: onnx.ModelProto) -> tuple[Steps, Step, Region | None]:
    """The walk at the Conv "t", which alone is to be replaced, and the region behind it."""
    steps = Steps(model, [{"x": X}], ["conv_t"])
    (step,) = steps.steps
    steps.walk.advance(step)
    return steps, step, usable_tail(steps.walk, step, (steps.walk.frontier,)).more


# The nodes behind "t", the last tensor that is told, and the tensors from elsewhere.
FORMS = [
    ("a = Sigmoid(t) b = Mul(t, a) y = MaxPool<kernel_shape = [2, 2]>(b)", "b", ()),
    ("a = HardSwish(t) y = Softmax(a)", "a", ()),
    ("a = Add(t, three) b = Clip(a, zero, six) c = Mul(t, b) d = Div(c, six) y = Softmax(d)", "d", ()),
    ("a = Div(t, half) b = Erf(a) c = Add(b, half) d = Mul(t, c) e = Mul(d, half) y = Softmax(e)", "e", ()),
    ("a = Softplus(t) b = Tanh(a) c = Mul(b, t) y = Softmax(c)", "c", ()),
    ("a = LeakyRelu<alpha = 0.1>(t) y = Softmax(a)", "a", ()),
    ("a = PRelu(t, slope) y = Softmax(a)", "a", ()),
    ("a = PRelu(t, one) y = Softmax(a)", "a", ()),
    ("a = Elu<alpha = 0.7>(t) b = Mul(factor, a) y = Softmax(b)", "b", ()),
    ("a = Sub(half, t) y = Softmax(a)", "a", ()),
    ("a = Relu(t) b = BatchNormalization(a, g4, b4, m4, v4) y = Softmax(b)", "b", ()),
    # Sums of several branches, before the activation and behind it; gates of another branch.
    ("a = Add(t, s) b = Add(x, a) c = Selu(b) y = Softmax(c)", "c", ("x",)),
    ("a = Sum(s, t, x) b = Tanh(a) y = Softmax(b)", "b", ("s", "x")),
    ("a = Sigmoid(t) b = Mul(t, a) c = Add(s, b) y = Softmax(c)", "c", ("s",)),
    ("p = GlobalAveragePool(s) q = Sigmoid(p) a = Relu(t) b = Mul(a, q) y = Softmax(b)", "b", ("q",)),
    ("q = Sigmoid(s) a = Mul(t, q) b = Max(a, x) y = Softmax(b)", "b", ("q", "x")),
    # Beside other channels: in front, behind, and twice.
    ("a = Concat<axis = 1>(p, t, s) b = Mul(a, wide) c = Sigmoid(b) d = Mul(b, c) y = Softmax(d)", "d", ()),
    (
        "a = Concat<axis = -3>(t, p) b = Concat<axis = 1>(s, a) c = BatchNormalization(b, g10, b10, m10, v10) "
        "d = LeakyRelu(c) y = Softmax(d)",
        "d",
        (),
    ),
    ("a = Concat<axis = 1>(s, t, p) q = Neg(a_) b = Add(a, q) c = Elu(b) y = Softmax(c)", "c", ("q",)),
]


def completed(lines: str) -> str:
    """With two channels "p" of another branch, and ten channels "a_" of one, where they are read."""
    if "Concat" in lines:
        lines = "p = Slice(s, lo, hi, ax) " + ("a_ = Concat<axis = 1>(p, s, x) " if "a_" in lines else "") + lines
    return lines


TENSORS |= {name: np.array([value], np.int64) for name, value in (("lo", 0), ("hi", 2), ("ax", 1))}


@pytest.mark.parametrize(("lines", "end", "skips"), FORMS)
def test_region_says_what_its_end_is(lines: str, end: str, skips: tuple[str, ...]) -> None:
    model = behind(completed(lines), opset=17)
    steps, step, region = found(model)
    assert region is not None
    assert (region.end, region.skips) == (end, skips)
    conv, tail = step.site.conv, step.tail
    values = outputs(model, {"x": X}, ["t", end])
    shape = output_shape(conv, len(X), (6, 6))
    positions = np.tile(np.arange(36), (len(X), 1))
    rows = gather_outputs(conv, values["t"], positions) * tail.scale + tail.shift
    if tail.skip is not None:
        skip = np.broadcast_to(steps.walk.frontier.value(0, tail.skip), shape)
        rows = rows + tail.skip_scale * gather_outputs(conv, skip, positions)
    rows = np.clip(rows, tail.low, tail.high)
    others = skip_values(region, steps.walk.frontier, 0, conv, shape)
    made = Behind(region, conv)(
        rows.astype(np.float32), [gather_outputs(conv, np.asarray(other), positions) for other in others]
    )
    # Its own channels among those of the tensor at the end.
    axis = {"p, t": 2, "s, a": 4, "s, t": 4}
    first = next((before for words, before in axis.items() if "Concat" in lines and f"({words}" in lines), 0)
    expected = gather_outputs(conv, values[end][:, first : first + 4], positions)
    assert np.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize(
    "lines",
    [
        "a = Softmax(t) y = Relu(a)",
        "y = Sigmoid(t)",
        # What is pooled also goes elsewhere; two readers never meet; one skips ahead.
        "p = GlobalAveragePool(t) q = Sigmoid(p) a = Mul(t, q) b = Add(a, p) y = Softmax(b)",
        "a = Sigmoid(t) b = MaxPool<kernel_shape = [1, 1]>(t) c = Add(a, b) y = Softmax(c)",
        # Not one number for each channel.
        "a = Mul(t, map) b = Sigmoid(a) y = Softmax(b)",
        "a = Sub(t, along) b = Sigmoid(a) y = Softmax(b)",
        "a = PRelu(s, t) y = Softmax(a)",
        # A Concat of both halves of what one Conv gives, or along another axis.
        "n = Neg(t) a = Concat<axis = 1>(t, n) b = Elu(a) y = Softmax(b)",
        "a = Concat<axis = 2>(t, s) b = Elu(a) y = Softmax(b)",
        "a = Identity(t) b = Neg(a) y = Softmax(b)",
    ],
)
def test_where_no_region_is(lines: str) -> None:
    """Or only the activation that is the output."""
    _, _, region = found(behind(lines))
    assert region is None or region.end == "y"


def test_an_output_in_the_middle_ends_it() -> None:
    model = behind("a = Elu(t) b = Sigmoid(a) y = Softmax(b)")
    model.graph.output.add(name="a")
    region = found(model)[2]
    assert region is not None
    assert region.end == "a"


def test_of_two_gated_branches_the_second_one_counts_the_gate() -> None:
    """Each waits for the other: the first one's region ends before the product."""
    model = behind("a = Sigmoid(t) b = Mul(s, a) y = Softmax(b)")
    steps = {step.site.name: step.tail.more for step in Steps(model, [{"x": X}]).steps}
    ends = sorted((region.end if region else "", region.skips if region else ()) for region in steps.values())
    assert ends in ([("", ()), ("b", ("s",))], [("a", ()), ("b", ("a",))])


def test_skips_that_enlarge_the_output_are_left_out() -> None:
    """Two images more by broadcasting a map over a map of one pixel."""
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            t = Conv(x, w) a = Sigmoid(t) b = Mul(t, a) c = Add(b, x) y = Softmax(c)
        }""",
        w=(4, 4, 6, 6),
    )
    _, step, region = found(model)
    assert step.tail.more is not None
    assert step.tail.more.end == "c"
    assert region is not None
    assert region.end == "b"


ACTS = {
    "silu": "a = Sigmoid(t) b = Mul(t, a)",
    "hardswish": "b = HardSwish(t)",
    "gelu": "p = Div(t, half) q = Erf(p) r = Add(q, half) b = Mul(t, r)",
    "prelu": "b = PRelu(t, slope)",
    "sigmoid": "u = Mul(t, three) b = Sigmoid(u)",
    "skip": "a = Elu(t) b = Add(z, a)",
    "concat": "a = Concat<axis = 1>(z, t) c = Elu(a) b = Slice(c, four, eight, ax)",
}
TENSORS |= {name: np.array([value], np.int64) for name, value in (("four", 4), ("eight", 8))}


def one(lines: str) -> onnx.ModelProto:
    """One Conv with bias behind a stem that is left alone, and what follows."""
    text = f"z = Conv(x, e) t = Conv<pads = [1, 1, 1, 1]>(z, w) {lines} y = Neg(b)"
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in TENSORS.items() if name in words}
    return network(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", e=(4, 4, 1, 1), **used)


@pytest.mark.parametrize("act", some(sorted(ACTS), 2))
def test_errors_are_measured_behind_it_and_the_fit_lowers_them(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = one(ACTS[act]), images(200, (4, 6, 6))
    options: dict[str, Any] = {
        "mode": "spatial",
        "rank": 0.5,
        "only": "conv_t",
        "positions": 36,
        "include_first": False,
    }
    wanted = outputs(model, {"x": x})["y"]

    def error(result: Any) -> float:
        lost = wanted - outputs(result.proto, {"x": x})["y"]
        return float(np.linalg.norm(lost) / np.linalg.norm(wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)))

    result = fitted(model, x, **options)
    (entry,) = replaced(result)
    assert entry.fitted_error is not None
    assert entry.held_out_error is not None
    assert entry.svd_error is not None
    low, high = sorted([entry.fitted_error, entry.held_out_error])
    assert 0.97 * low < error(result) < 1.03 * high
    assert entry.held_out_error < entry.svd_error
    monkeypatch.setattr(Grower, "region", lambda *arguments, **others: None)
    assert error(result) < error(fitted(model, x, **options))


def test_what_cannot_be_computed_behind_it_is_no_part_of_the_fit() -> None:
    """The logarithm of what is negative."""
    model = one("a = Log(t) b = Abs(a)")
    (entry,) = replaced(fitted(model, images(30, (4, 6, 6)), only="conv_t", include_first=False, verify="none"))
    assert entry.held_out_error is not None
    assert entry.held_out_error < 1


@pytest.mark.parametrize("kind", some(["float16", "float64"], 2))
def test_other_types_are_computed_in_single_precision(kind: str) -> None:
    model = one(ACTS["gelu"])
    numbers = {"float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(kind), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = numbers[kind]
    result = fitted(model, images(30, (4, 6, 6)).astype(kind), only="conv_t", include_first=False, verify="none")
    entry = row(result, "conv_t")
    assert (entry.held_out_error or 1) < (entry.svd_error or 0)


def test_refinement_goes_on_with_what_stands_behind_the_second_one() -> None:
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            z = Conv(x, e) t = Conv<pads = [1, 1, 1, 1]>(z, w) a = Relu(t)
            u = Conv<pads = [1, 1, 1, 1]>(a, v) b = Sigmoid(u) c = Mul(u, b) y = Neg(c)
        }""",
        e=(4, 4, 1, 1),
        w=(6, 4, 3, 3),
        v=(4, 6, 3, 3),
    )
    x = images(60, (4, 6, 6))
    errors = [
        row(fitted(model, x, refine=rounds, include_first=False, runtime=ONE_THREAD), "conv_u") for rounds in (0, 2)
    ]
    assert (errors[1].held_out_error or 1) < (errors[0].held_out_error or 0)
