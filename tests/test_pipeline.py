"""The rewrite as a whole, through the Python API: how it verifies, and what it does with weights that it cannot use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import onnxsep
from onnxsep.engine.surgery import replace_matches
from onnxsep.errors import FeedError, OptionError, PassError, VerificationError
from onnxsep.graph.view import ONNX_TYPES, build_tensor
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import ConvLayer, Layer
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Task
from onnxsep.passes.depthwise import Depthwise
from onnxsep.passes.spatial import Spatial

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))


def two_convs(weight: NDArray[Any]) -> onnx.ModelProto:
    """A 1 x 1 Conv, then one with this weight [8, 6, 3, 3]."""
    rng = np.random.default_rng(0)
    kind = ONNX_TYPES[weight.dtype.name]
    stem = rng.standard_normal((6, 3, 1, 1)).astype(weight.dtype)
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem"),
        helper.make_node("Conv", ["a", "w"], ["y"], name="body", pads=[1] * 4),
    ]
    tensors = [build_tensor("stem", stem), build_tensor("w", weight)]
    value = helper.make_tensor_value_info("x", kind, [1, 3, 9, 7])
    output = helper.make_tensor_value_info("y", kind, [1, 8, 9, 7])
    graph = helper.make_graph(nodes, "g", [value], [output], tensors)
    # Conv has bfloat16 since opset 22.
    opset = 22 if weight.dtype == ml_dtypes.bfloat16 else 17
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(1).standard_normal((8, 6, 3, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(np.float32, 1e-5), (np.float64, 1e-5), (np.float16, 5e-3), (ml_dtypes.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("verify", ["full", "local"])
def test_every_type_is_verified_both_ways(dtype: Any, bound: float, verify: Any) -> None:
    if dtype is ml_dtypes.bfloat16 and verify == "full" and RUNTIME < (1, 21):
        pytest.skip("ONNX Runtime runs opset 22, in which Conv has bfloat16, since version 1.21")
    result = onnxsep.rewrite(two_convs(weight(dtype)), mode="spatial", rank="full", force=True, verify=verify)
    outcome = result.report.verification
    assert outcome.ran, outcome.reason
    assert outcome.kind == verify
    assert outcome.relative is not None
    assert outcome.relative < bound
    kinds = {tensor.data_type for tensor in result.proto.graph.initializer}
    assert kinds == {ONNX_TYPES[np.dtype(dtype).name]}
    without_kernel = dtype in (np.float64, ml_dtypes.bfloat16)
    assert any("float32 copies" in note for note in outcome.notes) == without_kernel


def test_local_verification_gives_the_error_of_each_conv() -> None:
    report = onnxsep.rewrite(DIGITS, mode="depthwise", rank=2, verify="local").report
    errors = [conv.output_error for conv in report.convs if conv.status == "replaced"]
    assert len(errors) == 6
    assert all(error is not None and 0.1 < error < 1 for error in errors)
    assert report.verification.relative == max(error for error in errors if error is not None)
    assert all(conv.output_error is None for conv in report.convs if conv.status == "left")


def test_verification_that_cannot_run_does_not_hide_the_result() -> None:
    model = two_convs(weight())
    model.graph.node.append(helper.make_node("Oracle", ["y"], ["z"], domain="nobody"))
    model.opset_import.add(domain="nobody", version=1)
    model.graph.output[0].name = "z"
    result = onnxsep.rewrite(model, mode="spatial")
    assert result.report.totals.replaced == 1
    assert not result.report.verification.ran
    assert "Oracle" in result.report.verification.reason


def test_input_that_has_no_default_is_not_an_error() -> None:
    model = two_convs(weight())
    model.graph.input.append(helper.make_tensor_value_info("text", onnx.TensorProto.STRING, [1]))
    outcome = onnxsep.rewrite(model, mode="spatial").report.verification
    assert not outcome.ran
    assert "'text'" in outcome.reason
    assert "with inputs" in outcome.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_left_alone(value: float) -> None:
    values = weight()
    values[3, 2, 1, 0] = value
    result = onnxsep.rewrite(two_convs(values), mode="depthwise")
    (row,) = (conv for conv in result.report.convs if conv.name == "body")
    assert (row.status, row.reason) == ("left", "its weight holds NaN or infinity")
    for rank in ("energy=0.5", "full"):
        again = onnxsep.rewrite(two_convs(values), mode="depthwise", rank=rank, force=True)
        assert {conv.reason for conv in again.report.convs if conv.name == "body"} == {row.reason}


def test_factors_that_do_not_fit_the_type_are_left_alone() -> None:
    class Huge(Spatial):
        def factorize(self, task: Task, rank: Rank) -> Factors:
            first, second = super().factorize(task, rank).weights
            return Factors([first * 1e6, second / 1e6])

    report = onnxsep.rewrite(two_convs(weight(np.float16)), mode=Huge(), force=True).report
    assert [conv.reason for conv in report.convs if conv.name == "body"] == ["its factors do not fit into float16"]


class WrongShape(Spatial):
    def factorize(self, task: Task, rank: Rank) -> Factors:
        return Factors(super().factorize(task, rank).weights[::-1])


class Inexact(Spatial):
    def factorize(self, task: Task, rank: Rank) -> Factors:
        first, second = super().factorize(task, rank).weights
        return Factors([first * 1.01, second])


class Failing(Spatial):
    def factorize(self, task: Task, rank: Rank) -> Factors:
        raise ZeroDivisionError("by chance")


class NoBias(Depthwise):
    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        layers = super().layers(conv, rank)
        return tuple(
            replace(layer, conv=replace(layer.conv, bias=False)) if isinstance(layer, ConvLayer) else layer
            for layer in layers
        )


class Lying(Spatial):
    """Claims to be exact, but its layers compute something else: only running it shows."""

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        first, second = super().layers(conv, rank)
        assert isinstance(second, ConvLayer)
        shifted = (*second.conv.pads[2:], *second.conv.pads[:2])
        return first, replace(second, conv=replace(second.conv, pads=(0, 2, 0, 0) if any(shifted) else shifted))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (WrongShape(), "shapes"),
        (Inexact(), "error"),
        (NoBias(), "bias"),
        (Failing(), "mode spatial, Conv .*: ZeroDivisionError: by chance"),
    ],
)
def test_mode_that_breaks_its_promise_is_named(mode: Any, words: str) -> None:
    with pytest.raises(PassError, match=words):
        onnxsep.rewrite(DIGITS, mode=mode, rank="full", force=True)


def test_result_that_computes_something_else_fails_the_verification() -> None:
    for verify in ("full", "local"):
        with pytest.raises(VerificationError, match="all ranks are full, yet the outputs differ"):
            onnxsep.rewrite(two_convs(weight()), mode=Lying(), rank="full", force=True, verify=verify)


@pytest.mark.parametrize("verify", ["full", "local"])
@pytest.mark.parametrize("damaged", ["weights", "bias"])
def test_damage_to_the_result_itself_is_found(verify: Any, damaged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both verifications run what will be saved, not what was meant: so the damage is done to the result."""

    def replace_and_damage(model: onnx.ModelProto, *rest: Any) -> Any:
        edit = replace_matches(model, *rest)
        for initializer in model.graph.initializer:
            is_new = initializer.name in edit.new_initializers
            if is_new if damaged == "weights" else initializer.name == "block1_conv1.bias":
                values = numpy_helper.to_array(initializer)
                initializer.CopyFrom(numpy_helper.from_array(values * 0, initializer.name))
        return edit

    monkeypatch.setattr("onnxsep.rewriting.api.replace_matches", replace_and_damage)
    with pytest.raises(VerificationError, match="all ranks are full, yet the outputs differ"):
        onnxsep.rewrite(DIGITS, mode="spatial", rank="full", force=True, verify=verify)


def test_large_double_weights_are_exact_at_full_rank() -> None:
    values = np.random.default_rng(3).standard_normal((256, 256, 3, 3))
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    value = helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1, 256, 5, 5])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1, 256, 5, 5])
    graph = helper.make_graph([conv], "g", [value], [output], [numpy_helper.from_array(values, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = onnxsep.rewrite(model, mode="spatial", rank="full", force=True, include_first=True).report
    assert report.totals.replaced == 1
    assert report.verification.relative is not None
    assert report.verification.relative < 1e-5


def test_error_above_the_limit_fails() -> None:
    relative = onnxsep.rewrite(DIGITS, mode="spatial").report.verification.relative
    assert relative is not None
    onnxsep.rewrite(DIGITS, mode="spatial", max_error=relative * 1.01)
    with pytest.raises(VerificationError, match="max_error"):
        onnxsep.rewrite(DIGITS, mode="spatial", max_error=relative * 0.99)


def test_limit_that_cannot_be_measured_fails() -> None:
    model = two_convs(weight())
    model.graph.input.append(helper.make_tensor_value_info("text", onnx.TensorProto.STRING, [1]))
    with pytest.raises(VerificationError, match="max_error was asked for and could not be measured"):
        onnxsep.rewrite(model, mode="spatial", max_error=0.5)
    for limit in (-0.1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="max_error"):
            onnxsep.rewrite(DIGITS, mode="spatial", max_error=limit)
    for options in ({"verify": "none"}, {"dry_run": True}):
        with pytest.raises(OptionError, match="needs a verification"):
            onnxsep.rewrite(DIGITS, mode="spatial", max_error=0.5, **options)


@pytest.mark.parametrize(("rank", "force"), [("paper", False), ("full", True)])
def test_dry_run_counts_what_the_rewrite_gives_for_an_expression(rank: str, force: bool) -> None:
    """The weight is computed from another one, which goes together with the expression."""
    model = two_convs(weight())
    model.graph.node.insert(1, helper.make_node("Identity", ["w"], ["same"]))
    model.graph.node[2].input[1] = "same"
    planned = onnxsep.rewrite(model, mode="depthwise", rank=rank, force=force, dry_run=True).report
    done = onnxsep.rewrite(model, mode="depthwise", rank=rank, force=force).report
    assert planned.totals == done.totals
    assert done.totals.replaced == 1
    if not force:
        assert onnxsep.inspect(model).totals.mode_parameters["depthwise"] == done.totals.parameters_after
    assert any("expression of constants" in note for row in done.convs for note in row.notes)


def test_one_pattern_may_be_given_as_a_text() -> None:
    report = onnxsep.rewrite(DIGITS, mode="spatial", only="block1*", verify="none").report
    assert {conv.name for conv in report.convs if conv.status == "replaced"} == {"block1_conv1", "block1_conv2"}


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="verify 'fast' is not one of auto, full, local, none"):
        onnxsep.rewrite(DIGITS, mode="spatial", verify="fast")  # type: ignore[arg-type]
    for verify in ("full", "local"):
        with pytest.raises(OptionError, match="seed"):
            onnxsep.rewrite(DIGITS, mode="spatial", seed=-1, verify=verify)
    with pytest.raises(OptionError, match="inputs are for a full verification"):
        onnxsep.rewrite(DIGITS, mode="spatial", verify="local", inputs=tmp_path / "x.npz")
    for call in (onnxsep.inspect, lambda *args, **kw: onnxsep.rewrite(*args, mode="spatial", verify="none", **kw)):
        with pytest.raises(FeedError, match="picture"):
            call(DIGITS, input_shapes={"picture": (1, 1, 8, 8)})
        with pytest.raises(FeedError, match="image"):
            call(DIGITS, input_shapes={"image": (1, 1, 9, 8)})
    with pytest.raises(OptionError, match="round_ranks=-8 is not 8 or 16"):
        onnxsep.rewrite(DIGITS, mode="spatial", round_ranks=-8)
    with pytest.raises(OptionError, match="rank"):
        onnxsep.rewrite(DIGITS, mode="spatial", rank=True)


def test_result_of_one_rewrite_goes_into_the_next(tmp_path: Path) -> None:
    first = onnxsep.rewrite(DIGITS, mode="depthwise", rank=4, verify="none")
    second = onnxsep.rewrite(first.model, mode="spatial", recurse=True, force=True, rank="full", only=["*_depthwise_*"])
    assert second.report.totals.replaced == 24  # four terms of each of six Convs
    assert second.report.verification.relative is not None
    assert second.report.verification.relative < 1e-4
    second.save(tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_progress_names_every_conv() -> None:
    seen: list[tuple[str, int, int]] = []
    onnxsep.rewrite(DIGITS, mode="spatial", verify="none", progress=lambda *state: seen.append(state))
    assert {name for name, _, _ in seen} == {"block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"}
    assert sorted((done, total) for _, done, total in seen) == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_outputs_that_are_all_nan_are_not_called_equal() -> None:
    model = two_convs(weight())
    model.graph.initializer[0].CopyFrom(build_tensor("stem", np.full((6, 3, 1, 1), np.nan, np.float32)))
    outcome = onnxsep.rewrite(model, mode="spatial").report.verification
    assert not outcome.ran
    assert "nothing can be compared" in outcome.reason
    with pytest.raises(VerificationError, match="could not be measured"):
        onnxsep.rewrite(model, mode="spatial", max_error=0.5)


def test_failed_verification_carries_the_report() -> None:
    with pytest.raises(VerificationError) as caught:
        onnxsep.rewrite(DIGITS, mode="spatial", max_error=1e-6)
    assert caught.value.report.totals.replaced == 4
    assert caught.value.report.verification.relative > 1e-6


def test_name_with_brackets_is_matched_as_it_is() -> None:
    model = two_convs(weight())
    model.graph.node[1].name = "blocks[0].conv"
    for pattern in ("blocks[0].conv", "blocks[[]0].*"):
        assert onnxsep.rewrite(model, mode="spatial", only=pattern, verify="none").report.totals.replaced == 1
    with pytest.raises(OptionError, match=r"\[ \] stand for"):
        onnxsep.rewrite(model, mode="spatial", only="blocks[1].conv")


def test_limit_of_zero_is_a_limit() -> None:
    with pytest.raises(VerificationError, match="above max_error=0") as caught:
        onnxsep.rewrite(DIGITS, mode="spatial", rank="full", force=True, max_error=0)
    assert not any("amplifies" in note for note in caught.value.report.verification.notes)


def test_bias_that_is_an_argument_of_a_function_is_verified_locally() -> None:
    bias = helper.make_node("Constant", [], ["b"])
    reference = bias.attribute.add()
    reference.name, reference.type, reference.ref_attr_name = "value", onnx.AttributeProto.TENSOR, "bias"
    held = helper.make_node("Constant", [], ["w"], value=build_tensor("w", weight()))
    conv = helper.make_node("Conv", ["a", "w", "b"], ["r"], name="conv", pads=[1] * 4)
    opset = helper.make_opsetid("", 17)
    local = helper.make_function("local", "block", ["a"], ["r"], [bias, held, conv], [opset], attributes=["bias"])
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem"),
        helper.make_node(
            "block", ["a"], ["y"], domain="local", bias=build_tensor("bias", np.arange(8, dtype=np.float32))
        ),
    ]
    stem = build_tensor("stem", np.random.default_rng(2).standard_normal((6, 3, 1, 1)).astype(np.float32))
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 9, 7])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 9, 7])
    graph = helper.make_graph(nodes, "g", [value], [output], [stem])
    opsets = [opset, helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[local], ir_version=8)
    for verify in ("full", "local"):
        outcome = onnxsep.rewrite(model, mode="spatial", rank="full", force=True, verify=verify).report.verification
        assert outcome.ran, outcome.reason
        assert outcome.relative is not None
        assert outcome.relative < 1e-5


def test_dry_run_tells_which_inputs_will_go() -> None:
    model = two_convs(weight())
    model.ir_version = 3
    model.opset_import[0].version = 8
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    planned = onnxsep.rewrite(model, mode="spatial", dry_run=True).report
    done = onnxsep.rewrite(model, mode="spatial").report
    assert planned.removed_inputs == done.removed_inputs == ("w",)
    assert planned.notes == done.notes
