"""Rewrites with calibration data of graphs of every form: where weights and biases are kept, and where Convs stand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import (
    BLOCK,
    MODEL,
    ONE_THREAD,
    SHAPES,
    TYPED_OPSET,
    X,
    block,
    constants,
    difference,
    fitted,
    images,
    network,
    replaced,
    row,
    stored_parameters,
)
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from test_modes import NUMPY_TYPES

import onnxsep
from onnxsep.calibration import layerwise
from onnxsep.calibration.fitting import Fit, fit
from onnxsep.calibration.outcomes import FELL_BACK, SHARED, SHARED_BY_NESTED
from onnxsep.calibration.schedule import Tail
from onnxsep.graph.view import ONNX_TYPES

Array = NDArray[Any]

SHARED_WEIGHT = network(
    """g (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b1)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, w)
        y = Relu(c)
    }""",
    w=(6, 6, 3, 3),
    b1=(6,),
)

X6 = images(24, (6, 8, 8))


def test_shared_weight_keeps_one_set_of_factors_and_gets_two_biases(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    for result in (
        fitted(SHARED_WEIGHT, X6, statistics=path),
        onnxsep.rewrite(SHARED_WEIGHT, mode="depthwise", include_first=True, statistics=path, runtime=ONE_THREAD),
    ):
        assert [entry.notes for entry in replaced(result)] == [(), (SHARED,)]
        shapes = sorted(array.shape for array in constants(result.proto).values())
        assert shapes == [(6,), (6,), (6, 1, 3, 3), (6, 6, 1, 1)]
        errors = [entry.held_out_error for entry in replaced(result)]
        assert None not in errors
        assert len(set(errors)) == 2
        assert result.report.totals.parameters_after == stored_parameters(result.proto) == 6 + 6 + 54 + 36


def test_bias_in_a_constant_node() -> None:
    model = block()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b1"], name="bias", value=bias))
    model.graph.initializer.remove(bias)
    onnx.checker.check_model(model)
    result = fitted(model, X)
    onnx.checker.check_model(result.proto, full_check=True)
    assert "b1" not in constants(result.proto)
    assert difference(result.proto, fitted(MODEL, X).proto) < 1e-5
    assert result.report.totals.parameters_after == stored_parameters(result.proto)


def test_weights_in_constant_nodes() -> None:
    body = BLOCK.replace("x, w1, b1)", "x, w1, b1) w2 = Constant<value = wc>()")
    model = network(
        f"g (float[N, 3, 8, 8] x) => (float[N, 5] y) {{ {body.replace(' w2 = Constant<value = wc>()', '')} }}", **SHAPES
    )
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], name="weight", value=weight))
    model.graph.initializer.remove(weight)
    result = fitted(model, X)
    onnx.checker.check_model(result.proto, full_check=True)
    assert difference(result.proto, fitted(MODEL, X).proto) < 1e-5
    assert result.report.totals.parameters_after == stored_parameters(result.proto)


def test_ir_3_lists_the_new_biases_among_the_inputs() -> None:
    model = block()
    model.ir_version, model.opset_import[0].version = 3, 8
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(model)
    result = fitted(model, X)
    onnx.checker.check_model(result.proto, full_check=True)
    names = {value.name for value in result.proto.graph.input}
    assert names == {"x", *constants(result.proto)}
    assert difference(result.proto, fitted(MODEL, X).proto) < 1e-5


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["depthwise", "spatial", "channel", "lean", "cp"])
def test_other_types(kind: str, name: str) -> None:
    # bfloat16 has 8 bits: neither rounding is the same as that of the float32 model.
    model = onnx.ModelProto()
    model.CopyFrom(SHARED_WEIGHT)
    number = ONNX_TYPES[kind]
    model.opset_import[0].version = TYPED_OPSET
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(NUMPY_TYPES[kind])
        tensor.CopyFrom(helper.make_tensor(tensor.name, number, array.shape, array.tobytes(), raw=True))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = number
    result = fitted(model, X6.astype(NUMPY_TYPES[kind]), mode=name, rank=2)
    assert {tensor.data_type for tensor in result.proto.graph.initializer} == {number}
    single = fitted(SHARED_WEIGHT, X6, mode=name, rank=2)
    for one, other in zip(replaced(result), replaced(single), strict=True):
        assert one.held_out_error is not None
        assert other.held_out_error is not None
        assert one.held_out_error == pytest.approx(other.held_out_error, rel=0.1 if kind != "float64" else 1e-3)


def branching() -> onnx.ModelProto:
    """Convs in both branches of an If: one has a weight of its own, one that of a Conv of the main graph."""
    return network(
        """g (float[N, 3, 8, 8] x, bool flip) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            k = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(k, w2)
            b = If(flip) <
                then_branch = then () => (float[N, 6, 8, 8] r) { r = Conv<pads = [1, 1, 1, 1]>(c, w3) },
                else_branch = otherwise () => (float[N, 6, 8, 8] r) { r = Conv<pads = [1, 1, 1, 1]>(c, w2) }
            >
            y = Conv<pads = [1, 1, 1, 1]>(b, w4)
        }""",
        w1=(6, 3, 3, 3),
        w2=(6, 6, 3, 3),
        w3=(6, 6, 3, 3),
        w4=(6, 6, 3, 3),
    )


def feeds(flips: Sequence[bool]) -> list[dict[str, Array]]:
    return [{"x": X[number : number + 1], "flip": np.array(flip)} for number, flip in enumerate(flips)]


def test_convs_of_branches_are_left_to_their_weights(tmp_path: Path) -> None:
    model, path = branching(), tmp_path / "statistics.npz"
    for node in model.graph.node:
        if node.op_type == "If":
            for attribute, name in zip(node.attribute, ("own", "twin"), strict=True):
                attribute.g.node[0].name = name
    for result in (
        fitted(model, feeds([True, False] * 6), statistics=path),
        onnxsep.rewrite(model, mode="depthwise", force=True, include_first=True, statistics=path, runtime=ONE_THREAD),
    ):
        onnx.checker.check_model(result.proto, full_check=True)
        own, twin = row(result, "own"), row(result, "twin")
        for entry in (own, twin):
            assert entry.status == "replaced"
            assert (entry.svd_error, entry.fitted_error, entry.held_out_error) == (None, None, None)
            assert entry.parameters_after == 6 * 9 + 36  # no new bias
        assert SHARED_BY_NESTED not in own.notes
        assert SHARED_BY_NESTED in twin.notes
        assert all(row(result, f"conv_{name}").held_out_error is not None for name in "acy")
        assert result.report.totals.parameters_after == stored_parameters(result.proto)
        plain = onnxsep.rewrite(model, mode="depthwise", force=True, include_first=True)
        mine, theirs = constants(result.proto), constants(plain.proto)
        names = [name for name in mine if name.startswith("r_")]
        assert len(names) == 2
        assert all((mine[name] == theirs[name]).all() for name in names)


def test_convs_of_functions_are_left_to_their_weights() -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((6, 6, 3, 3)).astype(np.float32) / 5)
    body = [
        helper.make_node("Constant", [], ["w"], name="weight", value=weight),
        helper.make_node("Conv", ["u", "w"], ["v"], name="inner", pads=[1] * 4),
    ]
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = local.mixed(a)
            c = local.mixed(b)
            y = Conv<pads = [1, 1, 1, 1]>(c, w2)
        }""",
        w1=(6, 3, 3, 3),
        w2=(6, 6, 3, 3),
    )
    model.opset_import.add(domain="local", version=1)
    model.functions.append(helper.make_function("local", "mixed", ["u"], ["v"], body, [helper.make_opsetid("", 17)]))
    result = fitted(model, X)
    inner = row(result, "inner")
    assert inner.status == "replaced"
    assert inner.held_out_error is None
    assert not {SHARED, FELL_BACK, SHARED_BY_NESTED} & set(inner.notes)
    assert row(result, "conv_y").held_out_error is not None
    assert result.report.verification.ran


def test_computed_bias_stays_and_nothing_is_clipped_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is clipped depends on a bias that the samples do not hold."""
    clips: list[bool] = []

    def spy(*arguments: Any, **options: Any) -> Fit:
        clips.extend(argument.clips for argument in arguments if isinstance(argument, Tail))
        return fit(*arguments, **options)

    monkeypatch.setattr(layerwise, "fit", spy)
    model = network(
        """g (float[N, 3, 8, 8] x, float[6] offset) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            s = Softmax(offset)
            r = Relu(a)
            b = Conv<pads = [1, 1, 1, 1]>(r, w2, s)
            y = Relu(b)
        }""",
        w1=(6, 3, 3, 3),
        w2=(6, 6, 3, 3),
    )
    data = [{"x": X[number : number + 4], "offset": np.full(6, 9, np.float32)} for number in range(0, 24, 4)]
    result = fitted(model, data, rank=2)
    assert clips == [True, False]
    onnx.checker.check_model(result.proto, full_check=True)
    convs = [node for node in result.proto.graph.node if node.op_type == "Conv"]
    assert sum("s" in node.input for node in convs) == 1
    assert row(result, "conv_b").parameters_after == row(fitted(model, None, rank=2), "conv_b").parameters_after
    full = fitted(model, data, rank="full")
    assert row(full, "conv_b").held_out_error == pytest.approx(0, abs=1e-4)


def test_conv_whose_weight_cannot_be_used_is_left_alone() -> None:
    weight = np.full((6, 6, 3, 3), np.nan, np.float32)
    result = fitted(block(w3=weight), X)
    # What stands behind it reads NaN, and so cannot be fitted either: leave those out.
    assert row(result, "conv_e").status == "left"


def test_model_with_a_batch_of_one_and_one_that_folds_its_batch() -> None:
    """The batch of the second one becomes rows of an image: no entry belongs to one sample."""
    fixed = block()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert difference(fixed, fitted(fixed, X, positions=64, samples=24).proto, X[:1]) < 1.0
    folded = network(
        """g (float[N, 3, 8, 8] x) => (float[1, 6, M, 8] y) {
            t = Transpose<perm = [1, 0, 2, 3]>(x)
            f = Reshape(t, shape)
            y = Conv<pads = [1, 1, 1, 1]>(f, w)
        }""",
        shape=np.array([1, 3, -1, 8], np.int64),
        w=(6, 3, 3, 3),
    )
    (entry,) = replaced(fitted(folded, X, positions=200))
    assert entry.held_out_error is not None
    assert entry.svd_error is not None
    assert 0 < entry.held_out_error < entry.svd_error


def test_linear_layers_are_fitted_too() -> None:
    result = fitted(MODEL, X, mode="pointwise", rank=4)
    assert [(entry.name, entry.op_type) for entry in replaced(result)] == [("conv_h", "Conv"), ("gemm_y", "Gemm")]
    assert all(entry.held_out_error is not None for entry in replaced(result))
    model = network(
        """g (float[N, 4, 12] x) => (float[N, 4, 10] y) {
            a = MatMul(x, w)
            b = Add(a, bias)
            c = Relu(b)
            y = MatMul(c, w2)
        }""",
        w=np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32),
        bias=(12,),
        w2=np.random.default_rng(1).standard_normal((12, 10)).astype(np.float32),
    )
    x = images(30, (4, 12))
    done = fitted(model, x, mode="pointwise", rank=5)
    for entry in replaced(done):
        assert entry.held_out_error is not None
        assert entry.svd_error is not None
        assert entry.held_out_error <= entry.svd_error
        assert entry.parameters_after == 5 * (12 + (entry.weight_shape or (0,))[0])
    assert difference(model, done.proto, x) < difference(model, fitted(model, None, mode="pointwise", rank=5).proto, x)


def test_vectors_without_a_batch() -> None:
    """A MatMul of a vector has one row."""
    model = network(
        "g (float[6] x) => (float[4] y) { y = MatMul(x, w) }",
        w=np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32),
    )
    data = [{"x": vector} for vector in np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)]
    (entry,) = replaced(fitted(model, data, mode="pointwise", rank=2))
    assert entry.held_out_error is not None
    assert entry.svd_error is not None
    assert 0 < entry.held_out_error <= entry.svd_error


def test_images_of_different_sizes() -> None:
    """A fully convolutional network: every feed has its own size, and its own number of positions."""
    sizes = [(8, 8), (5, 11), (3, 3), (9, 4)]
    data = [{"x": images(3, (6, *size), seed)} for seed, size in enumerate(sizes)]
    model = network(
        """g (float[N, 6, H, W] x) => (float[N, 6, P, Q] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            y = Conv<pads = [1, 1, 1, 1]>(b, w2)
        }""",
        w1=(6, 6, 3, 3),
        w2=(6, 6, 3, 3),
    )
    result = fitted(model, data, positions=30, rank="full")
    assert all((entry.held_out_error or 0) < 1e-4 for entry in replaced(result))
    assert difference(model, result.proto, data[1]["x"]) < 1e-4


def test_conv_that_reads_an_initializer() -> None:
    """Learned positions: its rows are the same for every image."""
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
            p = Conv<pads = [1, 1, 1, 1]>(map, w1)
            a = Conv<pads = [1, 1, 1, 1]>(x, w2)
            y = Add(a, p)
        }""",
        map=images(1, (3, 8, 8)),
        w1=(6, 3, 3, 3),
        w2=(6, 3, 3, 3),
    )
    result = fitted(model, X, positions=64)
    assert [entry.name for entry in replaced(result)] == ["conv_p", "conv_a"]
    assert all(entry.held_out_error is not None for entry in replaced(result))
