"""Options of the Python API: numpy's numbers work everywhere, other types are refused before a model is opened."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.errors import FeedError, OnnxsepError, OptionError

MISSING = "missing.onnx"  # a message that names it would come too late


def small_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["s"], "one", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["t"]),
        helper.make_node("Conv", ["t", "b"], ["y"], "two", pads=[1] * 4),
    ]
    weights = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3)}
    tensors = [numpy_helper.from_array(rng.standard_normal(v).astype(np.float32), k) for k, v in weights.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "fields",
    [
        {"threads": "1"},
        {"threads": 1.5},
        {"threads": True},
        {"time_limit": "10m"},
        {"time_limit": None},
        {"provider": 5},
        {"custom_op_libraries": "ops.so"},
        {"optimize": "yes"},
    ],
)
def test_types_in_the_options_of_the_runtime(fields: dict[str, Any]) -> None:
    options = onnxsep.RuntimeOptions(**fields)
    (name,) = fields
    for run in (
        lambda: onnxsep.rewrite(MISSING, mode="depthwise", runtime=options),
        lambda: onnxsep.prune(MISSING, sparsity=0.5, runtime=options),
        lambda: onnxsep.quantize(MISSING, data="d.npz", runtime=options),
        lambda: onnxsep.evaluate([MISSING], data="d.npz", runtime=options),
        lambda: onnxsep.check(MISSING, MISSING, runtime=options),
    ):
        with pytest.raises(OptionError, match=f"^RuntimeOptions: {name} must be "):
            run()


@pytest.mark.parametrize("value", ["x", 5, True, 1.5, [1], object()])
def test_what_is_no_dict_no_mode_and_no_options(value: Any) -> None:
    for run in (
        lambda: onnxsep.rewrite(MISSING, mode="depthwise", input_shapes=value),
        lambda: onnxsep.prune(MISSING, sparsity=0.5, input_shapes=value),
        lambda: onnxsep.check(MISSING, MISSING, runtime=value),
        lambda: onnxsep.inspect(MISSING, modes=value),
        lambda: onnxsep.rewrite(MISSING, mode=value),
    ):
        with pytest.raises(OnnxsepError) as raised:
            run()
        assert MISSING not in str(raised.value)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_in_steps(kind: Any) -> None:
    from onnxsep import Pipeline, Prune, Quantize, Rewrite

    steps = [
        Rewrite(mode="depthwise", rank=kind(2), samples=kind(20), include_first=np.bool_(True)),
        Prune(step=np.float32(0.25), steps=kind(2)),
        Quantize(samples=kind(10), per_channel=np.bool_(False)),
    ]
    assert str(steps[1]) == "step 0.25, steps 2"
    data = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    done = Pipeline(steps)(small_model(), data={"x": data}, runs=kind(0), seed=kind(1)).report
    assert [step.command for step in done.steps] == ["rewrite", "prune", "quantize"]
    with pytest.raises(OptionError, match="'samples' must be a whole number"):
        Quantize(samples=np.float32(10))


def test_runtime_options_take_numbers_of_numpy_and_paths() -> None:
    options = onnxsep.RuntimeOptions(threads=np.int64(1), time_limit=np.float32(60))
    assert onnxsep.rewrite(small_model(), mode="depthwise", runtime=options).report.totals.convs == 2


def test_inputs_that_do_not_fit_are_named_with_their_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", q=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(FeedError, match=r"wrong\.npz'.*no input 'q'"):
        onnxsep.check(small_model(), small_model(), inputs=tmp_path / "wrong.npz")


def test_a_reference_is_not_written_into_the_data(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    onnx.save(small_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "i.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    (tmp_path / "i.npz").rename(tmp_path / "i.txt")
    for reference, given in (("images/r.txt", {"data": "images"}), ("i.txt", {"inputs": "i.txt"})):
        paths = {key: tmp_path / value for key, value in given.items()}
        with pytest.raises(OptionError, match=r"lies in the folder|would overwrite"):
            onnxsep.check(tmp_path / "m.onnx", tmp_path / reference, update=True, **paths)  # type: ignore[arg-type]
    assert not any((tmp_path / "images").iterdir())


@needs_torch
def test_a_teacher_with_a_state_whose_first_axis_counts_layers() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "one", pads=[1, 1]),
        helper.make_node("ReduceMean", ["c"], ["p"], axes=[2], keepdims=0),
        helper.make_node("ReduceSum", ["h", "zero"], ["s"], keepdims=0),
        helper.make_node("Add", ["p", "s"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(rng.standard_normal((4, 1, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array([0]), "zero"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 16]),
        helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, "N", 4]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", values, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = {
        "x": rng.standard_normal((20, 1, 16)).astype(np.float32),
        "h": rng.standard_normal((2, 20, 4)).astype(np.float32),
    }
    report = onnxsep.finetune(model, data=data, teacher=model, epochs=1).report
    assert report.training_samples + report.held_out_samples == 20
