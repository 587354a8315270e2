"""The order in which Convs are calibrated, and what stands behind each of them."""

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import Steps, fitted, images, network, outputs
from numpy.typing import NDArray
from onnx import helper

from onnxsep.calibration.sampling import output_shape
from onnxsep.calibration.schedule import Tail
from onnxsep.engine.matches import ConvSite

Array = NDArray[Any]
X = images(4, (4, 6, 6))
RNG = np.random.default_rng(5)
PIECES = {
    "bn": "BatchNormalization<epsilon = 0.01>({}, gamma, beta, mean, variance)",
    "add": "Add({}, offset)",
    "mul": "Mul(factor, {})",
    "number": "Add(number, {})",
    "skip": "Add({}, x)",
    "ksip": "Add(x, {})",
    "same": "Identity({})",
    "relu": "Relu({})",
    "relu6": "Clip({}, zero, six)",
    "above": "Clip({}, minus)",
    "below": "Clip({}, , six)",
    "open": "Clip({})",
}
TENSORS: dict[str, Any] = {
    "w": (4, 4, 3, 3),
    "b": RNG.standard_normal(4).astype(np.float32),
    "gamma": np.array([1.0, -0.7, 0.3, 2.0], np.float32),
    "beta": RNG.standard_normal(4).astype(np.float32),
    "mean": RNG.standard_normal(4).astype(np.float32),
    "variance": RNG.uniform(0.5, 2, 4).astype(np.float32),
    "offset": RNG.standard_normal((1, 4, 1, 1)).astype(np.float32),
    "factor": RNG.uniform(-2, 2, (4, 1, 1)).astype(np.float32),
    "number": np.float32(0.25),
    "zero": np.float32(0),
    "six": np.array([0.6], np.float32),
    "minus": np.float32(-0.2),
}


def behind(*pieces: str, opset: int = 17) -> onnx.ModelProto:
    """A Conv with these nodes behind it, then something that no tail holds."""
    lines = ["t = Conv<pads = [1, 1, 1, 1]>(x, w, b)"]
    for number, piece in enumerate(pieces):
        lines.append(f"t{number} = {PIECES[piece].format(f't{number - 1}' if number else 't')}")
    lines.append(f"y = Sigmoid(t{len(pieces) - 1})" if pieces else "y = Sigmoid(t)")
    text = "\n".join(lines)
    used = {name: value for name, value in TENSORS.items() if any(name in line for line in lines)}
    return network(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", opset=opset, **used)


def tail_of(model: onnx.ModelProto, conv: str = "conv_t") -> Tail:
    steps = Steps(model, [{"x": X}])
    return next(step.tail for step in steps.steps if step.site.name == conv)


def column(values: Array) -> Array:
    return np.asarray(values, np.float64).reshape(-1, 1, 1)


def value_of(tail: Tail, output: Array, found: dict[str, Array]) -> Array:
    """What the tail says that the tensor at its end is."""
    value = column(tail.scale) * output + column(tail.shift)
    if tail.skip is not None:
        value = value + column(tail.skip_scale) * found[tail.skip]
    end: Array = np.clip(value, tail.low, tail.high)
    return end


def check(model: onnx.ModelProto, end: str, feeds: dict[str, Array] | None = None, conv: str = "t") -> Tail:
    """The tail of a Conv ends at ``end``: what it says of that tensor is true."""
    feeds = feeds or {"x": X}
    tail = next(step.tail for step in Steps(model, [feeds]).steps if step.site.name == f"conv_{conv}")
    made = {name for node in model.graph.node for name in node.output}
    names = {conv, end, *({tail.skip} & made if tail.skip else set())}
    found = {**feeds, **outputs(model, feeds, sorted(names))}
    assert np.allclose(value_of(tail, found[conv], found), found[end], atol=1e-5)
    return tail


ORDERS = [
    *itertools.permutations(["bn", "skip", "add", "mul"]),
    *itertools.permutations(["ksip", "number", "same", "open"], 3),
]
ENDS = itertools.cycle(["relu", "relu6", "above", "below", None])


@pytest.mark.parametrize(("order", "end"), list(zip(ORDERS, ENDS, strict=False)))
def test_tail_says_what_its_end_is(order: tuple[str, ...], end: str | None) -> None:
    pieces = (*order, end) if end else order
    tail = check(behind(*pieces), f"t{len(pieces) - 1}")
    assert tail.clips == bool(end)
    assert (tail.skip is not None) == bool({"skip", "ksip"} & set(order))


def test_tail_of_old_clip_reads_attributes() -> None:
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            t = Conv<pads = [1, 1, 1, 1]>(x, w)
            c = Clip<min = 0.0, max = 0.4>(t)
            y = Relu(c)
        }""",
        opset=9,
        w=(4, 4, 3, 3),
    )
    tail = check(model, "c")
    assert (tail.low, tail.high) == (0, np.float32(0.4))


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        # What is behind an activation, or reads the output beside another node, does not count.
        ("a = Relu(t) y = Add(a, x)", "a"),
        ("a = Relu(t) b = Sigmoid(t) y = Mul(a, b)", "t"),
        ("a = Add(t, x) b = Relu(a) c = Sigmoid(a) y = Mul(b, c)", "a"),
        ("a = Add(t, t) y = Relu(a)", "t"),
        ("a = Mul(t, t) y = Relu(a)", "t"),
        ("a = Add(t, x) b = Add(a, x) y = Relu(b)", "a"),
        ("a = Sub(t, x) y = Relu(a)", "t"),
        # Not one number for each channel.
        ("a = Add(t, along) y = Relu(a)", "t"),
        ("a = Mul(t, map) y = Relu(a)", "t"),
        ("a = Clip(t, lower) y = Identity(a)", "t"),
        # The limit is computed from the input.
        ("m = ReduceMin<keepdims = 0>(x) a = Clip(t, m) y = Identity(a)", "t"),
    ],
)
def test_tail_ends_where_it_can_no_longer_tell(lines: str, end: str) -> None:
    model = network(
        f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ t = Conv<pads = [1, 1, 1, 1]>(x, w) {lines} }}",
        w=(4, 4, 3, 3),
        along=np.arange(6, dtype=np.float32),
        map=RNG.standard_normal((1, 4, 6, 6)).astype(np.float32),
        lower=np.array(0.1, np.float32),
    )
    if "lower" in lines:  # a limit that the user may give
        model.graph.input.append(helper.make_tensor_value_info("lower", onnx.TensorProto.FLOAT, []))
        del model.graph.initializer[3]
        tail = next(step.tail for step in Steps(model, [{"x": X, "lower": np.array(0.1, np.float32)}] * 2).steps)
        assert not tail.clips
        return
    check(model, end)


def test_output_of_the_graph_ends_the_tail() -> None:
    model = behind("add", "relu")
    model.graph.output.add(name="t0")
    assert not check(model, "t0").clips


def test_batch_normalization_in_training_ends_the_tail() -> None:
    model = behind("bn", "relu")
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["running_mean", "running_variance"])
    tail = tail_of(model)
    assert not tail.clips
    assert (tail.scale == 1).all()


def test_channels_of_a_matmul_are_not_those_of_a_batch_normalization() -> None:
    """BatchNormalization takes the second axis for the channels, a MatMul makes the last one."""
    model = network(
        """g (float[N, 4, 3] x) => (float[N, 4, 4] y) {
            t = MatMul(x, w)
            t0 = BatchNormalization(t, gamma, beta, mean, variance)
            y = Relu(t0)
        }""",
        w=RNG.standard_normal((3, 4)).astype(np.float32),
        **{name: TENSORS[name] for name in ("gamma", "beta", "mean", "variance")},
    )
    (step,) = Steps(model, [{"x": RNG.standard_normal((4, 4, 3)).astype(np.float32)}], linear=True).steps
    assert not step.tail.clips
    assert (step.tail.scale == 1).all()


def test_linear_layers_have_tails_too() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 4] y) {
            t = Gemm<transB = 1>(x, w, b)
            a = BatchNormalization(t, gamma, beta, mean, variance)
            y = Relu(a)
        }""",
        w=(4, 6),
        **{name: TENSORS[name] for name in ("b", "gamma", "beta", "mean", "variance")},
    )
    x = RNG.standard_normal((8, 6)).astype(np.float32)
    (step,) = Steps(model, [{"x": x}], linear=True).steps
    found = outputs(model, {"x": x}, ["t", "y"])
    tail = step.tail
    assert np.allclose(np.clip(tail.scale * found["t"] + tail.shift, tail.low, tail.high), found["y"], atol=1e-5)


@pytest.mark.parametrize("tip", ["x", "wide"])
def test_skip_may_get_its_shape_by_broadcasting(tip: str) -> None:
    model = network(
        f"""g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{
            m = GlobalAveragePool(x)
            wide = Mul(m, number)
            t = Conv<pads = [1, 1, 1, 1]>(x, w)
            a = Add({tip}, t)
            y = Relu(a)
        }}""",
        w=(4, 4, 3, 3),
        number=np.float32(3),
    )
    assert check(model, "y").skip == tip
    (row,) = fitted(model, X, positions=36, verify="none").report.convs
    assert row.status == "replaced"


def test_skip_that_enlarges_the_output_is_not_part_of_the_fit() -> None:
    """As in the image branch of atrous spatial pyramid pooling: a Conv of the mean, added to every position."""
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            m = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)
            c = Conv<pads = [0, 0, 0, 0]>(m, w)
            a = Add(c, x)
            y = Relu(a)
        }""",
        w=(4, 4, 3, 3),
    )
    row = fitted(model, X, positions=8, verify="full").report.convs[0]
    assert row.status == "replaced"
    assert row.held_out_error is not None


def test_branches_of_an_add_come_one_after_the_other() -> None:
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            t = Conv<pads = [1, 1, 1, 1]>(x, w)
            u = Conv<pads = [1, 1, 1, 1]>(x, w2)
            v = Conv<pads = [1, 1, 1, 1]>(u, w3)
            a = Add(t, v)
            y = Relu(a)
        }""",
        w=(4, 4, 3, 3),
        w2=(4, 4, 3, 3),
        w3=(4, 4, 3, 3),
    )
    steps = Steps(model, [{"x": X}]).steps
    tails = {step.site.name: step.tail for step in steps}
    assert sorted(tails) == ["conv_t", "conv_u", "conv_v"]
    names = [step.site.name for step in steps]
    assert names.index("conv_u") < names.index("conv_v")
    # The last one makes up for the other; the other does not pretend to know what the activation sees.
    last, first = sorted(("conv_t", "conv_v"), key=names.index, reverse=True)
    assert tails[last].skip == {"conv_t": "v", "conv_v": "t"}[last]
    assert tails[last].clips
    assert tails[first].skip is None
    assert not tails[first].clips
    assert check(model, "t" if first == "conv_t" else "v", conv=first.removeprefix("conv_")).skip is None


def test_every_conv_comes_after_those_that_it_depends_on() -> None:
    """On random graphs: each node reads one or two earlier tensors."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        lines, tensors = [], ["x"]
        for number in range(14):
            one, other = (str(rng.choice(tensors[-5:])) for _ in range(2))
            kind = rng.choice(["conv", "conv", "add", "relu"])
            body = {"conv": f"Conv<pads = [1, 1, 1, 1]>({one}, w{number})", "add": f"Add({one}, {other})"}
            lines.append(f"v{number} = {body.get(kind, f'Relu({one})')}")
            tensors.append(f"v{number}")
        used: dict[str, Any] = {f"w{n}": (4, 4, 3, 3) for n in range(14) if f"w{n})" in lines[n]}
        text = "\n".join(lines)
        model = network(
            f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} y = Identity(v13) }}", seed=seed, **used
        )
        walk = Steps(model, [{"x": X}])
        assert sorted(step.site.place for step in walk.steps) == sorted(site.place for site in walk.wanted)
        run: set[int] = set()
        calibrated: set[int] = set()
        convs = {site.place[1] for site in walk.wanted}
        for step in walk.steps:
            assert not run & set(step.nodes)
            run |= set(step.nodes)
            # A node never runs in the rewritten network before its Conv is replaced.
            assert run & convs <= calibrated
            calibrated.add(step.site.place[1])
            walk.walk.advance(step)
            name = walk.input_of(step)
            expected = X if name == "x" else outputs(model, {"x": X}, [name])[name]
            assert np.allclose(walk.walk.frontier.value(0, name), expected, rtol=1e-4, atol=1e-4)
            if step.tail.skip and step.tail.skip != "x":
                skip = outputs(model, {"x": X}, [step.tail.skip])[step.tail.skip]
                assert np.allclose(walk.walk.frontier.value(0, step.tail.skip), skip, rtol=1e-4, atol=1e-4)


def test_output_shape_is_that_of_the_runtime() -> None:
    model = network(
        """g (float[N, 4, 7, 6] x) => (float[N, 5, H, W] y) {
            y = Conv<pads = [2, 0, 1, 1], strides = [2, 1], dilations = [1, 2]>(x, w)
        }""",
        w=(5, 4, 3, 2),
    )
    x = images(3, (4, 7, 6))
    (site,) = Steps(model, [{"x": x}]).wanted
    assert isinstance(site, ConvSite)
    assert output_shape(site.conv, 3, (7, 6)) == outputs(model, {"x": x})["y"].shape
