"""Gates that a Conv's own output makes through a mean over positions: found, given to the fit, and run again later."""

from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import Steps, fitted, images, network, outputs, row
from numpy.typing import NDArray

from onnxsep.calibration.fitting import fit
from onnxsep.calibration.samples import sample, usable_tail
from onnxsep.calibration.schedule import Step
from onnxsep.modes.base import get_mode

Array = NDArray[Any]
X = images(16, (4, 6, 6))
RNG = np.random.default_rng(5)
TENSORS: dict[str, Any] = {
    "w": (4, 4, 3, 3),
    "v": (4, 4, 3, 3),
    "down": (2, 4, 1, 1),
    "up": (4, 2, 1, 1),
    "dense": (4, 4),
    "dense1": (4, 4, 1, 1),
    "positions": np.array([2, 3], np.int64),
    "channels": np.array([1], np.int64),
    "maps": np.array([0, 4, 1, 1], np.int64),
    "low": np.full((4, 1, 1), -1, np.float32),
    **{name: RNG.uniform(0.5, 2, 4).astype(np.float32) for name in ("g4", "b4", "m4", "v4")},
}


def gated(lines: str, opset: int = 17) -> onnx.ModelProto:
    """A Conv "t" with these nodes behind it, beside another one, "s"."""
    text = f"s = Conv<pads = [1, 1, 1, 1]>(x, v) t = Conv<pads = [1, 1, 1, 1]>(x, w) {lines}"
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in TENSORS.items() if name in words}
    return network(f"g (float[N, 4, 6, 6] x) => (float[N, c, h, l] y) {{ {text} }}", opset=opset, **used)


def at_conv(model: onnx.ModelProto, **options: Any) -> tuple[Steps, Step]:
    """The walk at the Conv "t", which alone is to be replaced."""
    steps = Steps(model, [{"x": X[:10]}, {"x": X[10:]}], ["conv_t"], **options)
    (step,) = steps.steps
    steps.walk.advance(step)
    return steps, step


SQUEEZE = "p = GlobalAveragePool({0}) d = Conv(p, down) e = Relu(d) u = Conv(e, up)"
FORMS = {
    "squeeze-and-excitation": (f"{SQUEEZE} q = Sigmoid(u) a = Mul(t, q) y = Softmax(a)".replace("{0}", "t"), "a", 17),
    "gate first": (f"{SQUEEZE} q = HardSigmoid(u) a = Mul(q, t) y = Softmax(a)".replace("{0}", "t"), "a", 17),
    "mean by attribute": ("p = ReduceMean<axes = [2, 3]>(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)", "a", 13),
    "mean by input": ("p = ReduceMean(t, positions) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)", "a", 18),
    "negative axes": ("p = ReduceMax<axes = [-1, -2]>(t) q = Tanh(p) a = Mul(t, q) y = Softmax(a)", "a", 13),
    "a matrix": (
        "p = GlobalAveragePool(t) f = Flatten(p) d = MatMul(f, dense) r = Reshape(d, maps) q = Sigmoid(r) "
        "a = Mul(t, q) y = Softmax(a)",
        "a",
        17,
    ),
    "two pools": (
        "p = GlobalAveragePool(t) m = GlobalMaxPool(t) d = Add(p, m) q = Sigmoid(d) a = Mul(t, q) y = Softmax(a)",
        "a",
        17,
    ),
    "behind an activation, before a sum": (
        "n = BatchNormalization(t, g4, b4, m4, v4) z = HardSwish(n) p = GlobalAveragePool(z) q = Sigmoid(p) "
        "a = Mul(z, q) b = Add(a, x) c = Elu(b) y = Softmax(c)",
        "c",
        17,
    ),
    "behind a Relu": ("z = Relu(t) p = GlobalAveragePool(z) q = Sigmoid(p) a = Mul(z, q) y = Softmax(a)", "a", 17),
}


@pytest.mark.parametrize("form", FORMS)
def test_errors_are_measured_behind_the_gate_of_the_original(form: str) -> None:
    """The held-out error is that of what the gate lets through, by a run of the nodes on what the factors give."""
    lines, end, opset = FORMS[form]
    model = gated(lines, opset)
    steps, step = at_conv(model, positions=36)
    tail = usable_tail(steps.walk, step, (steps.walk.frontier,))
    assert tail.more is not None
    assert (tail.more.end, tail.gates) == (end, ("q",))
    weight = np.asarray(onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w")), float)
    rows = sample(steps.walk, step, tail, weight, None)
    conv, mode = step.site.conv, get_mode("channel")
    found = fit(mode, conv, (2,), weight, rows, tail, init="joint", old_bias=None, new_bias=True)
    wanted = outputs(model, {"x": X}, ["t", "q", end])
    # The same nodes, reading the new outputs and the old gate.
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[:], other.graph.input[:]
    behind = [node for node in model.graph.node if node.op_type != "Conv" and node.output[0] not in ("p", "m", "q")]
    needed, kept = {end}, list[onnx.NodeProto]()
    for node in reversed(behind):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    other.graph.node.extend(kept)
    for name in ("t", "q", "x"):
        other.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    dense = mode.reconstruct(conv, found.factors).reshape(4, -1)
    made = rows.inputs @ dense.T + found.bias
    new = made.reshape(16, 6, 6, 4).transpose(0, 3, 1, 2).astype(np.float32)
    got = outputs(other, {"t": new, "q": wanted["q"], "x": X}, [end])[end]
    per_row = [one.transpose(0, 2, 3, 1).reshape(-1, 4)[rows.held_out] for one in (wanted[end], got)]
    size = np.linalg.norm(per_row[0] - per_row[0].mean(axis=0))
    assert found.held_out == pytest.approx(np.linalg.norm(per_row[0] - per_row[1]) / size, rel=1e-3)


@pytest.mark.parametrize(
    "lines",
    [
        # Over channels, or images; a gate for each position; without all positions.
        "p = ReduceMean<axes = [1]>(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)",
        "p = ReduceMean<axes = [0, 2, 3]>(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)",
        "p = ReduceMean<axes = [2]>(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)",
        "p = ReduceMean(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)",
        "q = Conv(t, dense1) a = Mul(t, q) y = Softmax(a)",
        # The pool, or the gate, is used elsewhere too.
        "p = GlobalAveragePool(t) q = Sigmoid(p) a = Mul(t, q) b = Mul(a, p) y = Softmax(b)",
        "p = GlobalAveragePool(t) q = Sigmoid(p) a = Mul(t, q) b = Add(t, s) c = Add(a, b) y = Softmax(c)",
        "p = GlobalAveragePool(t) q = Sigmoid(p) a = Add(t, q) y = Softmax(a)",
        "p = GlobalAveragePool(t) a = Mul(t, s) b = Add(a, p) y = Softmax(b)",
    ],
)
def test_what_is_no_gate(lines: str) -> None:
    model = gated(lines, 13)
    steps, step = at_conv(model)
    assert not step.tail.gates
    assert not step.aside
    tail = usable_tail(steps.walk, step, (steps.walk.frontier,))
    assert tail.more is None or tail.more.end not in ("a", "b", "c")


@pytest.mark.parametrize("name", ["p", "q"])
def test_a_gate_that_is_an_output(name: str) -> None:
    model = gated("p = GlobalAveragePool(t) q = Sigmoid(p) a = Mul(t, q) y = Softmax(a)")
    model.graph.output.add(name=name)
    _, step = at_conv(model)
    assert not step.tail.gates


WEIGHTS: dict[str, Any] = {
    **{f"w{number}": (4, 4, 3, 3) for number in (1, 2, 3)},
    **{f"b{number}": (4,) for number in (1, 2, 3)},
    "d1": (2, 4, 1, 1),
    "u1": (4, 2, 1, 1),
}


def chain() -> onnx.ModelProto:
    """Two gated Convs, and a third one whose output is the network's."""
    return network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, h, l] y) {
        z = Relu(x)
        a = Conv<pads = [1, 1, 1, 1]>(z, w1, b1)
        p = GlobalAveragePool(a) d = Conv(p, d1) e = Relu(d) u = Conv(e, u1) q = Sigmoid(u) g1 = Mul(a, q)
        r = Add(g1, z) f = Relu(r)
        b = Conv<pads = [1, 1, 1, 1]>(f, w2, b2) c = HardSwish(b)
        p2 = GlobalAveragePool(c) q2 = HardSigmoid(p2) g2 = Mul(c, q2)
        y = Conv<pads = [1, 1, 1, 1]>(g2, w3, b3)
        }""",
        **WEIGHTS,
    )


@pytest.mark.parametrize("mode", ["depthwise", "spatial"])
def test_what_stands_behind_runs_in_the_rewritten_network(mode: str) -> None:
    """The last Conv's error is that of the rewritten network's output: its gates are its own, not lent ones."""
    model = chain()
    result = fitted(model, X, mode=mode, rank=1, positions=36, only=["conv_a", "conv_b", "conv_y"])
    wanted, got = (outputs(one, {"x": X})["y"] for one in (model, result.model.proto))
    held = np.zeros(len(X), bool)
    held[np.random.default_rng(0).permutation(len(X))[: round(0.1 * len(X))]] = True
    parts = [one[held].transpose(0, 2, 3, 1).reshape(-1, 4) for one in (wanted, got)]
    size = np.linalg.norm(parts[0] - parts[0].mean(axis=0))
    assert row(result, "conv_y").held_out_error == pytest.approx(np.linalg.norm(parts[0] - parts[1]) / size, rel=1e-3)


def test_full_rank_stays_exact() -> None:
    result = fitted(chain(), X, mode="channel", rank="full")
    wanted, got = (outputs(one, {"x": X})["y"] for one in (chain(), result.model.proto))
    assert np.linalg.norm(wanted - got) < 1e-4 * np.linalg.norm(wanted)
