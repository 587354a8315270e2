"""Running a network piece by piece: every live tensor is what a run of the whole network gives."""

import gc
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from calibration_models import EXACT, TYPED_OPSET, Steps, fitted, images, network, outputs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxsep.calibration.frontier import Frontier, Store
from onnxsep.errors import CalibrationError
from onnxsep.graph.view import ONNX_TYPES
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import Runner

Array = NDArray[Any]

RESIDUAL = network(
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, w2, b2)
        d = Add(c, b)
        e = Relu(d)
        f = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(e, w3)
        g = Conv<strides = [2, 2]>(e, w4)
        h = Add(f, g)
        y = Relu(h)
    }""",
    w1=(4, 3, 3, 3),
    w2=(4, 4, 3, 3),
    b2=(4,),
    w3=(4, 4, 3, 3),
    w4=(4, 4, 1, 1),
)
BRANCHES = network(
    """g (float[N, 3, 8, 8] x) => (float[N, 12, 4, 4] y, float[N, 4, 8, 8] b) {
        a = Conv(x, w0)
        b = Conv<pads = [1, 1, 1, 1]>(a, w1)
        c = Conv<pads = [2, 2, 2, 2]>(a, w2)
        d = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)
        e = Conv(d, w3)
        f = Concat<axis = 1>(b, c, e)
        h = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(f, w4)
        y = Relu(h)
    }""",
    w0=(4, 3, 1, 1),
    w1=(4, 4, 3, 3),
    w2=(4, 4, 5, 5),
    w3=(4, 4, 1, 1),
    w4=(12, 12, 3, 3),
)
SHAPES = network(
    """g (float[N, 3, 8, 8] x) => (float[N, K] y) {
        zero = Constant<value = int64[1] {0}>()
        rest = Constant<value = int64[1] {-1}>()
        flat = Constant<value = int64[3] {0, 0, -1}>()
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        s = Shape(a)
        n = Gather(s, zero)
        b = Reshape(a, flat)
        c = Conv<pads = [1, 1]>(b, w2)
        d = Relu(c)
        e = Reshape(d, flat)
        f = Conv<pads = [1, 1]>(e, w3)
        t = Concat<axis = 0>(n, rest)
        y = Reshape(f, t)
    }""",
    w1=(4, 3, 3, 3),
    w2=(5, 4, 3),
    w3=(4, 5, 3),
)
CONDITIONAL = network(
    """g (float[N, 3, 8, 8] x, bool flip) => (float[N, 4, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        k = Relu(a)
        b = If(flip) <
            then_branch = then () => (float[N, 4, 8, 8] r) { q = Neg(k)  r = Mul(q, scale) },
            else_branch = otherwise () => (float[N, 4, 8, 8] r) { r = Conv<pads = [1, 1, 1, 1]>(k, w3) }
        >
        c = Conv<pads = [1, 1, 1, 1]>(b, w2)
        y = Add(c, a)
    }""",
    w1=(4, 3, 3, 3),
    w2=(4, 4, 3, 3),
    w3=(4, 4, 3, 3),
    scale=np.array([0.5], np.float32),
)
TWO_INPUTS = network(
    """g (float[N, 3, 8, 8] x, float[N, 2, 8, 8] z, int64[1] axis) => (float[N, 4, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Conv<pads = [1, 1, 1, 1]>(z, w2)
        c = Mul(a, b)
        d = ReduceMean(c)
        e = Sub(c, d)
        f = Conv<pads = [1, 1, 1, 1]>(e, w3)
        g = Unsqueeze(f, axis)
        y = Squeeze(g, axis)
    }""",
    w1=(4, 3, 3, 3),
    w2=(4, 2, 3, 3),
    w3=(4, 4, 3, 3),
)
CONSTANTS = network(
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        half = Constant<value = float {0.5}>()
        two = Constant<value = float {2.0}>()
        one = Mul(half, two)
        map = Expand(half, dims)
        p = Conv<pads = [1, 1, 1, 1]>(map, wp)
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Mul(a, one)
        c = Conv<pads = [1, 1, 1, 1]>(b, w2)
        d = Mul(c, one)
        e = Conv<pads = [1, 1, 1, 1]>(d, w3)
        f = Sub(e, one)
        g = Add(f, p)
        h = Conv<pads = [1, 1, 1, 1]>(g, w1b)
        y = Div(h, one)
    }""",
    w1=(4, 3, 3, 3),
    w2=(4, 4, 3, 3),
    w3=(4, 4, 3, 3),
    w1b=(4, 4, 3, 3),
    wp=(4, 2, 3, 3),
    dims=np.array([1, 2, 8, 8], np.int64),
)


def with_function() -> onnx.ModelProto:
    """A model whose activation is a function, with a Conv inside another one."""
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = local.act(a)
            c = local.mixed(b, w2)
            d = Conv<pads = [1, 1, 1, 1]>(c, w3)
            y = local.act(d)
        }""",
        w1=(4, 3, 3, 3),
        w2=(4, 4, 3, 3),
        w3=(4, 4, 3, 3),
    )
    model.opset_import.add(domain="local", version=1)
    opset = [helper.make_opsetid("", 17)]
    act = [helper.make_node("Relu", ["u"], ["t"]), helper.make_node("Sqrt", ["t"], ["v"])]
    mixed = [helper.make_node("Conv", ["u", "w"], ["v"], name="inner", pads=[1] * 4)]
    model.functions.append(helper.make_function("local", "act", ["u"], ["v"], act, opset))
    model.functions.append(helper.make_function("local", "mixed", ["u", "w"], ["v"], mixed, opset))
    return model


def half_precision() -> onnx.ModelProto:
    """The residual network in float16."""
    model = onnx.ModelProto()
    model.CopyFrom(RESIDUAL)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model


def old_model() -> onnx.ModelProto:
    """The residual network as IR 3 and opset 10 want it: initialisers are inputs, and the user may give them."""
    model = onnx.ModelProto()
    model.CopyFrom(RESIDUAL)
    model.ir_version, model.opset_import[0].version = 3, 10
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


X = images(6)
FEEDS: dict[str, tuple[onnx.ModelProto, dict[str, Array]]] = {
    "residual": (RESIDUAL, {"x": X}),
    "branches": (BRANCHES, {"x": X}),
    "shapes": (SHAPES, {"x": X}),
    "constants": (CONSTANTS, {"x": X}),
    "then": (CONDITIONAL, {"x": X, "flip": np.array(True)}),
    "else": (CONDITIONAL, {"x": X, "flip": np.array(False)}),
    "two inputs": (TWO_INPUTS, {"x": X, "z": images(6, (2, 8, 8), 3), "axis": np.array([2])}),
    "function": (with_function(), {"x": X}),
    "float16": (half_precision(), {"x": X.astype(np.float16)}),
    "ir 3": (old_model(), {"x": X}),
}


def live(frontier: Frontier) -> set[str]:
    """Names of the tensors that are kept for the first batch."""
    return set(frontier._live[0])


def check_walk(steps: Steps, feeds: Mapping[str, Array], reference: onnx.ModelProto) -> None:
    """At every step all live tensors are those of a whole run, and those that are needed now are live."""
    for step in steps.steps:
        steps.walk.advance(step)
        names = sorted(live(steps.walk.frontier) - set(feeds))
        expected = outputs(reference, feeds, names) if names else {}
        for name in names:
            found = steps.walk.frontier.value(0, name)
            assert found.dtype == expected[name].dtype
            tolerance = 2e-2 if found.dtype == np.float16 else 1e-5
            assert np.allclose(found, expected[name], rtol=tolerance, atol=tolerance), name
        assert {steps.input_of(step), *([step.tail.skip] if step.tail.skip else [])} <= live(steps.walk.frontier)
        assert live(steps.walk.frontier) <= step.keep


@pytest.mark.parametrize("case", FEEDS)
def test_live_tensors_are_those_of_a_whole_run(case: str) -> None:
    model, feeds = FEEDS[case]
    steps = Steps(model, [feeds, feeds])
    assert len(steps.steps) == len(steps.wanted) > 1
    check_walk(steps, feeds, model)


@pytest.mark.parametrize("kind", [np.float64, ml_dtypes.bfloat16])
def test_types_that_the_runtime_lacks_are_run_as_float32(kind: Any) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(RESIDUAL)
    number = ONNX_TYPES[np.dtype(kind).name]
    model.opset_import[0].version = TYPED_OPSET
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(helper.make_tensor(tensor.name, number, array.shape, array.tobytes(), raw=True))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = number
    single = onnx.ModelProto()
    single.CopyFrom(RESIDUAL)
    for tensor, original in zip(single.graph.initializer, RESIDUAL.graph.initializer, strict=True):
        rounded = numpy_helper.to_array(original).astype(kind).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    steps = Steps(model, [{"x": X.astype(kind)}])
    assert steps.walk.copied
    check_walk(steps, {"x": X.astype(kind).astype(np.float32)}, single)


def test_external_weights_are_read_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(RESIDUAL)
    onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    source = load(path)
    assert any(tensor.external_data for tensor in source.proto.graph.initializer)
    check_walk(Steps(source, [{"x": X}]), {"x": X}, RESIDUAL)


class Count:
    """Counts the nodes that are run, for each frontier."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[int, Counter[str]] = {}
        original = Frontier.advance
        self._kept: list[Frontier] = []

        def advance(frontier: Frontier, nodes: Sequence[onnx.NodeProto], keep: Any, *told: Any) -> None:
            if id(frontier) not in self.runs:
                self._kept.append(frontier)  # so that no other one gets its id
            self.runs.setdefault(id(frontier), Counter()).update(node.output[0] for node in nodes)
            original(frontier, nodes, keep, *told)

        monkeypatch.setattr(Frontier, "advance", advance)


def chain(depth: int) -> onnx.ModelProto:
    """Residual blocks of one Conv each."""
    lines = ["t0 = Conv<pads = [1, 1, 1, 1]>(x, w0)"]
    for block in range(1, depth):
        lines += [
            f"c{block} = Conv<pads = [1, 1, 1, 1]>(t{block - 1}, w{block})",
            f"s{block} = Add(c{block}, t{block - 1})",
            f"t{block} = Relu(s{block})",
        ]
    body = "\n".join(lines)
    weights: dict[str, Any] = {f"w{block}": (4, 4, 3, 3) for block in range(1, depth)}
    return network(
        f"g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {body} y = Identity(t{depth - 1}) }}",
        w0=(4, 3, 3, 3),
        **weights,
    )


@pytest.mark.parametrize("depth", [4, 12])
def test_every_node_runs_at_most_once_in_either_network(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    result = fitted(chain(depth), X, samples=6, positions=4, verify="none")
    assert result.report.totals.replaced == depth
    assert len(count.runs) == 2
    original, rewritten = count.runs.values()
    for counted in (original, rewritten):
        assert set(counted.values()) == {1}
    # All but the last block, behind which nothing is calibrated: Conv, Add and Relu, and the first Conv.
    assert len(original) == 3 * (depth - 2) + 1
    # In the other one a replaced Conv is layers, the last of which makes what the Conv made.
    assert {name for name in rewritten if not name.startswith("onnxsep.calibration.")} == set(original)


def test_constants_are_the_only_nodes_that_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    fitted(CONSTANTS, X, samples=6, positions=4, verify="none")
    for counted in count.runs.values():
        assert {name for name, times in counted.items() if times > 1} <= {"half", "two", "one", "map", "p"}


@pytest.mark.parametrize("case", ["residual", "branches", "shapes", "function"])
def test_memory_does_not_change_the_result(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, feeds = FEEDS[case]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    walks = [Steps(model, [feeds, feeds], memory=memory) for memory in (2**30, 0)]
    stores = [walk.walk.frontier._store for walk in walks]
    for left, right in zip(walks[0].steps, walks[1].steps, strict=True):
        for walk, step in zip(walks, (left, right), strict=True):
            walk.walk.advance(step)
        kept = live(walks[0].walk.frontier)
        assert live(walks[1].walk.frontier) == kept
        for name in kept:
            for batch in range(2):
                one, other = (walk.walk.frontier.value(batch, name) for walk in walks)
                assert one.dtype == other.dtype
                assert one.tobytes() == other.tobytes()
        # What is no longer live is deleted at once, and nothing else.
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 2 * len(kept)
    assert stores[0].spilled == 0
    assert stores[1].spilled > sum(array.nbytes for array in feeds.values())
    del walks, walk, stores
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_rewrite_past_the_memory_limit_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = fitted(RESIDUAL, X, positions=4, verify="none").proto.SerializeToString()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []
    original = Store.put

    def put(store: Store, array: Array) -> Any:
        store._limit = 0
        kept = original(store, array)
        seen.append(sum(1 for _ in tmp_path.glob("*/*.npy")))
        return kept

    monkeypatch.setattr(Store, "put", put)
    assert fitted(RESIDUAL, X, positions=4, verify="none").proto.SerializeToString() == expected
    assert max(seen) > 1
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store(0)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CalibrationError, match=r"No space left on device; use fewer samples, or set TMPDIR"):
        store.put(X)


def test_memory_is_free_again_when_arrays_are_dropped() -> None:
    store = Store(X.nbytes)
    kept = store.put(X)
    assert kept.get() is X
    store.put(X)
    assert store.spilled == X.nbytes
    del kept
    gc.collect()
    again = store.put(X)
    assert again.get() is X
    assert store.spilled == X.nbytes


def test_sequences_between_convs_are_refused_in_one_line() -> None:
    model = network(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w)
            q = SplitToSequence<axis = 1>(a)
            b = Conv<pads = [1, 1, 1, 1]>(a, w2)
            r = ConcatFromSequence<axis = 1>(q)
            s = Add(r, b)
            y = Conv<pads = [1, 1, 1, 1]>(s, w3)
        }""",
        w=(4, 4, 3, 3),
        w2=(4, 4, 3, 3),
        w3=(4, 4, 3, 3),
    )
    # Run up to here in one piece the sequence is inside of it; cut within, it would have to be kept.
    frontier = Frontier(Model(model), [{"x": images(2, (4, 8, 8))}], EXACT, Store(2**20))
    with pytest.raises(CalibrationError, match=r"passes 'q', which is no tensor.*without data"):
        frontier.advance(model.graph.node[:2], {"q", "a"})
    assert fitted(model, images(4, (4, 8, 8)), positions=4).report.totals.replaced == 3


def test_nodes_that_cannot_run_are_a_clear_error() -> None:
    model = network(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w)
            b = nobody.Oracle(a)
            y = Conv<pads = [1, 1, 1, 1]>(b, w2)
        }""",
        w=(4, 4, 3, 3),
        w2=(4, 4, 3, 3),
    )
    model.opset_import.add(domain="nobody", version=1)
    with pytest.raises(CalibrationError, match=r"cannot run the model on the calibration data: .*Oracle"):
        fitted(model, images(4, (4, 8, 8)), verify="none")


def test_two_frontiers_share_tensors_but_not_their_future() -> None:
    frontier = Frontier(Model(RESIDUAL), [{"x": X}], EXACT, Store(2**30))
    frontier.advance(RESIDUAL.graph.node[:2], {"b"})
    other = frontier.fork()
    assert other.value(0, "b") is frontier.value(0, "b")
    frontier.advance(RESIDUAL.graph.node[2:4], {"d"})
    node = onnx.NodeProto()
    node.CopyFrom(RESIDUAL.graph.node[2])
    node.input[1] = "new"
    other.add_initializer(numpy_helper.from_array(np.zeros((4, 4, 3, 3), np.float32), "new"))
    bias = numpy_helper.to_array(RESIDUAL.graph.initializer[2])
    before = other.value(0, "b")
    other.advance([node, RESIDUAL.graph.node[3]], {"d"})
    assert np.allclose(other.value(0, "d"), before + bias[:, None, None])
    assert not np.allclose(other.value(0, "d"), frontier.value(0, "d"))
    with pytest.raises(KeyError):
        frontier.value(0, "b")


def test_shared_models_walk_like_a_whole_run(shared: Path) -> None:
    """Exporters' graphs: BatchNormalization in opset 10, NHWC with Transposes, quantised, dynamo, 3-D."""
    for name, size in (
        ("cifar10_resnet8_tf2onnx", (4, 32, 32, 3)),
        ("cifar10_resnet20_dynamo", (4, 3, 32, 32)),
        ("mnist_cntk", (1, 1, 28, 28)),
    ):
        source = load(shared / "models" / f"{name}.onnx")
        entry = source.proto.graph.input[0].name
        feeds = {entry: np.random.default_rng(0).random(size, np.float32)}
        steps = Steps(source, [feeds, feeds])
        reference = outputs(source.proto, feeds, sorted({steps.input_of(step) for step in steps.steps} - {entry}))
        visited = 0
        for step in steps.steps:
            steps.walk.advance(step)
            if steps.input_of(step) in reference:
                expected = reference[steps.input_of(step)]
                found = steps.walk.frontier.value(0, steps.input_of(step))
                assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()), (name, step)
                visited += 1
        assert visited >= len(steps.wanted) - 1 > 0
        assert isinstance(Runner(source, EXACT)(feeds), dict)
