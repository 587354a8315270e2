"""The graph as a torch module, weights back by name, and label-free tuning."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import DataError, FeedError, OptionError, TrainingError, UnsupportedModelError
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.training import TuneResult, to_torch, tune, write_back
from onnxsep.training.augment import Augment, image_layout
from onnxsep.training.objective import Objective, Reference

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None,
    reason="torch is not installed (pip install onnxsep[finetune])",
)
DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
CIFAR = (
    "cifar10_resnet20_dynamo",
    "cifar10_resnet20_ts",
    "cifar10_resnet32_dynamo_ext",
    "cifar10_resnet32_ts_bn_op10",
    "cifar10_resnet56_ts",
    "cifar10_resnet8_tf2onnx",
)
OTHERS = ("mnist_cntk", "squeezenet_fp16_caffe2", "subpixel_sr_pt12", "ultraface_rfb640_pt13", "basic_pitch_tf2onnx")
ONE_THREAD = RuntimeOptions(threads=1)


def random_feeds(model: Model, batch: int = 2) -> dict[str, np.ndarray]:
    """Random values for the inputs that are no initialisers; free dimensions are the batch."""
    generator = np.random.default_rng(3)
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    feeds = {}
    for value in model.proto.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type
            shape = [dim.dim_value or batch for dim in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def torch_outputs(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    graph = to_torch(model)
    return {name: tensor.detach().numpy() for name, tensor in graph.module(graph.tensors(feeds)).items()}


def assert_same_outputs(model: Model, tolerance: float) -> None:
    feeds = random_feeds(model)
    expected, found = Runner(model, ONE_THREAD)(feeds), torch_outputs(model, feeds)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert np.abs(found[name] - values.astype(np.float64)).max() <= tolerance * max(1, np.abs(values).max())


def tensors(model: Model) -> dict[str, onnx.TensorProto]:
    """Every tensor of the main graph by name."""
    found = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


# ---------------------------------------------------------------- the bridge


@needs_torch
@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("rewritten", [False, True])
def test_cifar_networks_compute_the_same(shared: Path, name: str, rewritten: bool) -> None:
    model = load(shared / "models" / f"{name}.onnx")
    if rewritten:
        model = onnxsep.rewrite(model, mode="depthwise", verify="none").model
    assert_same_outputs(model, 1e-4)
    graph = to_torch(model)
    convs = [node for node in model.proto.graph.node if node.op_type == "Conv"]
    assert {node.input[1] for node in convs} <= set(graph.parameters)
    held = tensors(model)
    for tensor, values in graph.arrays().items():
        stored = read_tensor(model, held[tensor])
        assert values.dtype == stored.dtype
        np.testing.assert_array_equal(values, stored)


@needs_torch
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_compute_the_same(shared: Path, name: str) -> None:
    model = load(shared / "models" / f"{name}.onnx")
    assert_same_outputs(model, 1e-3 if "fp16" in name else 1e-4)
    held = tensors(model)
    for tensor, values in to_torch(model).arrays().items():
        np.testing.assert_array_equal(values, read_tensor(model, held[tensor]))


@needs_torch
def test_what_cannot_be_trained_is_named(shared: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"DequantizeLinear-13 '.+'"):
        to_torch(load(shared / "models" / "cifar10_resnet8_qdq_tf2onnx.onnx"))


def small_network(*, dtype: Any = np.float32, batch: int | str = "n", end: str = "") -> Model:
    """Two Convs of one weight, BatchNormalization, a bias in a Constant node, a classifier behind an Identity."""
    generator = np.random.default_rng(11)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def values(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((0.4 * generator.standard_normal(shape)).astype(dtype), name)

    variance = numpy_helper.from_array(np.array([0.5, 2, 1, 1.5], dtype), "variance")
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=values("inner.name", 4)),
        helper.make_node("Identity", ["head"], ["head_too"]),
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "shared", "bias"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["b", "scale", "shift", "mean", "variance"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "shared"], ["e"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Reshape", ["f", "shape"], ["g"]),
        helper.make_node("Gemm", ["g", "head_too"], ["h"]),
    ]
    nodes.append(helper.make_node(end, ["h"], ["y"]) if end else helper.make_node("Identity", ["h"], ["y"]))
    weights = [values("stem", 4, 3, 3, 3), values("shared", 4, 4, 3, 3), values("head", 4, 5)]
    weights += [values(name, 4) for name in ("scale", "shift", "mean")] + [variance]
    weights.append(numpy_helper.from_array(np.array([batch if isinstance(batch, int) else -1, 4]), "shape"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", kind, [batch, 5])],
        weights,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


@needs_torch
def test_parameters_buffers_and_names() -> None:
    model = small_network()
    graph = to_torch(model)
    assert set(graph.parameters) == {"stem", "shared", "bias", "scale", "shift", "head"}
    assert set(graph.buffers) == {"mean", "variance"}
    assert_same_outputs(model, 1e-5)


@needs_torch
def test_gradient_of_a_shared_weight_is_that_of_the_network() -> None:
    """The directional derivative by torch, against differences of ONNX Runtime's outputs for written-back weights."""
    model, feeds = small_network(), random_feeds(small_network())
    graph = to_torch(model)
    graph.module(graph.tensors(feeds))["y"].sum().backward()
    weight = graph.arrays(["shared"])["shared"]
    direction = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
    step = 1e-2

    def total(amount: float) -> float:
        changed = write_back(model, {"shared": weight + np.float32(amount) * direction})
        return float(Runner(changed)(feeds)["y"].sum(dtype=np.float64))

    slope = (total(step) - total(-step)) / (2 * step)
    assert float((graph.parameters["shared"].grad.numpy() * direction).sum()) == pytest.approx(slope, rel=2e-2)


@needs_torch
def test_training_mode_moves_running_statistics_towards_the_batch() -> None:
    model = small_network()
    graph, feeds = to_torch(model), random_feeds(model, batch=4)
    shown = onnx.ModelProto()
    shown.CopyFrom(model.proto)
    shown.graph.output.append(helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None))
    activations = Runner(Model(shown))(feeds)["b"].astype(np.float64)
    before = graph.arrays(["mean", "variance"])
    graph.module.train()
    graph.module(graph.tensors(feeds))
    after = graph.arrays(["mean", "variance"])
    batch_mean, batch_var = activations.mean((0, 2, 3)), activations.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * batch_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["variance"], 0.9 * before["variance"] + 0.1 * batch_var, rtol=1e-4)


@needs_torch
def test_local_functions_are_inlined_and_their_arguments_are_weights() -> None:
    model = small_network()
    conv = model.proto.graph.node[2]
    body = [helper.make_node("Conv", ["image", "kernel"], ["result"], pads=[1, 1, 1, 1])]
    opsets = [helper.make_opsetid("", 15)]
    model.proto.functions.append(helper.make_function("mine", "Stem", ["image", "kernel"], ["result"], body, opsets))
    model.proto.opset_import.append(helper.make_opsetid("mine", 1))
    conv.CopyFrom(helper.make_node("Stem", ["x", "stem"], ["a"], domain="mine"))
    assert_same_outputs(model, 1e-5)
    assert "stem" in to_torch(model).parameters


@needs_torch
def test_nodes_need_not_be_sorted() -> None:
    model, feeds = small_network(), random_feeds(small_network())
    expected = Runner(model, ONE_THREAD)(feeds)["y"]
    nodes = list(model.proto.graph.node)
    del model.proto.graph.node[:]
    model.proto.graph.node.extend(reversed(nodes))
    np.testing.assert_allclose(torch_outputs(model, feeds)["y"], expected, rtol=1e-4, atol=1e-5)


@needs_torch
def test_nodes_in_a_circle_are_refused() -> None:
    model = small_network()
    model.proto.graph.node[1].input[0] = model.proto.graph.output[0].name
    with pytest.raises(UnsupportedModelError, match="which nothing computes before it"):
        to_torch(model)


@needs_torch
def test_float16_weights_come_back_as_they_are() -> None:
    model = small_network(dtype=np.float16)
    assert write_back(model, to_torch(model).arrays()).proto == model.proto


def test_write_back_changes_these_tensors_and_nothing_else() -> None:
    model = small_network()
    new = {"shared": np.full((4, 4, 3, 3), 0.5, np.float32), "bias": np.arange(4, dtype=np.float32)}
    result = write_back(model, new)
    held, original = tensors(result), tensors(model)
    for name, values in new.items():
        np.testing.assert_array_equal(read_tensor(result, held[name]), values)
        assert held[name].name == original[name].name
        held[name].CopyFrom(original[name])
    assert result.proto.SerializeToString() == model.proto.SerializeToString()


def test_write_back_leaves_other_external_data_where_it_is(shared: Path, tmp_path: Path) -> None:
    model = load(shared / "models" / "cifar10_resnet32_dynamo_ext.onnx")
    name = next(node.input[1] for node in model.proto.graph.node if node.op_type == "Conv")
    values = read_tensor(model, tensors(model)[name]) * np.float32(2)
    result = write_back(model, {name: values})
    for tensor, held in tensors(result).items():
        if tensor != name:
            assert held.SerializeToString() == tensors(model)[tensor].SerializeToString()
    onnxsep.save(result, tmp_path / "tuned.onnx", externalize=[name])
    saved = load(tmp_path / "tuned.onnx")
    np.testing.assert_array_equal(read_tensor(saved, tensors(saved)[name]), values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("nobody", np.zeros(4, np.float32), "no weight 'nobody'"),
        ("bias", np.zeros(5, np.float32), r"shape \[4\].*shape \[5\]"),
        ("bias", np.zeros(4, np.float64), "float32.*float64"),
    ],
)
def test_write_back_refuses_what_does_not_fit(name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_back(small_network(), {name: values})


# ---------------------------------------------------------------- optional packages


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys, onnxsep, onnxsep.training\nprint([name for name in sys.modules if 'torch' in name.split('.')[0]])"
    )
    assert run_python(code).strip() == "[]"


def test_missing_package_names_the_extra() -> None:
    code = (
        "import sys, onnxsep; sys.modules['torch'] = None\n"
        "from onnxsep.training import to_torch\n"
        f"try: to_torch(onnxsep.load({str(DIGITS)!r}))\n"
        "except onnxsep.errors.MissingDependencyError as error: print(error)"
    )
    said = run_python(code)
    assert "torch" in said
    assert "pip install onnxsep[finetune]" in said


@needs_torch
def test_torchvision_is_not_needed() -> None:
    code = (
        "import sys, onnxsep; sys.modules['torchvision'] = None\n"
        "from onnxsep.training import to_torch\n"
        f"print(len(to_torch(onnxsep.load({str(DIGITS)!r})).parameters) > 0)\n"
    )
    assert run_python(code).strip() == "True"


# ---------------------------------------------------------------- tuning


def noise(count: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, 3, 16, 16)).astype(dtype)


def disturbed(model: Model, *names: str) -> Model:
    """A student: the model with noise on some weights."""
    generator, held = np.random.default_rng(4), tensors(model)
    arrays = {name: read_tensor(model, held[name]) for name in names}
    return write_back(
        model, {name: (a + 0.3 * generator.standard_normal(a.shape)).astype(a.dtype) for name, a in arrays.items()}
    )


def quick(student: Model, teacher: Model, count: int = 32, **options: Any) -> TuneResult:
    """A short tuning with small batches."""
    x = noise(count, helper.tensor_dtype_to_np_dtype(teacher.proto.graph.input[0].type.tensor_type.elem_type))
    settings = {
        "names": ["shared"],
        "steps": 20,
        "batch_size": 8,
        "learning_rate": 0.05,
        "runtime": ONE_THREAD,
        **options,
    }
    return tune(student, teacher, open_data({"x": x}, student), **settings)


@needs_torch
def test_tuning_raises_the_accuracy_of_a_separated_network() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    sys.path.insert(0, str(DIGITS.parent))
    try:
        from data import load_split
        from evaluate import count_correct
    finally:
        sys.path.remove(str(DIGITS.parent))
    train, test = load_split()
    teacher = load(DIGITS)
    rewritten = onnxsep.rewrite(teacher, mode="depthwise", verify="none")
    data = open_data(train.images, teacher)
    names = rewritten.new_initializers
    options: dict[str, Any] = {"chosen": range(300), "steps": 120, "batch_size": 32, "runtime": ONE_THREAD}
    result = tune(rewritten.model, teacher, data, names, **options)
    tuned = write_back(rewritten.model, result.arrays)
    before, after, best = (count_correct(model.proto, test) for model in (rewritten.model, tuned, teacher))
    assert best - after < 0.25 * (best - before)
    assert result.held_out_after < 0.2 * result.held_out_before
    assert set(result.arrays) == set(names)


@needs_torch
@pytest.mark.parametrize("network", [{}, {"end": "Softmax"}, {"batch": 1}, {"batch": 4}, {"dtype": np.float16}])
def test_tuning_finds_its_way_back(network: dict[str, Any]) -> None:
    """Scores and probabilities, batches of any and of a fixed size, half precision."""
    teacher = small_network(**network)
    student = disturbed(teacher, "shared")
    size = network.get("batch", 16)
    result = quick(student, teacher, steps=40)
    assert result.held_out_after < 0.5 * result.held_out_before
    assert result.arrays["shared"].dtype == network.get("dtype", np.float32)
    feeds = {"x": noise(200, network.get("dtype", np.float32))[-size:]}
    goal = Runner(teacher)(feeds)["y"].astype(np.float64)
    first, last = (
        np.linalg.norm(Runner(model)(feeds)["y"] - goal) for model in (student, write_back(student, result.arrays))
    )
    assert last < 0.8 * first


@needs_torch
def test_same_seed_same_result() -> None:
    teacher = small_network()
    student = disturbed(teacher, "shared")
    first, again, other = (quick(student, teacher, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrays["shared"], again.arrays["shared"])
    assert first.held_out_after == again.held_out_after
    assert not np.array_equal(first.arrays["shared"], other.arrays["shared"])


@needs_torch
@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_tuning_never_returns_something_worse(rate: float) -> None:
    """A rate that destroys the network, and one that makes the loss NaN or infinite."""
    teacher = small_network()
    student = disturbed(teacher, "shared")
    result = quick(student, teacher, learning_rate=rate)
    assert result.held_out_after == result.held_out_before
    assert result.best_step == 0
    assert not result.arrays
    (note,) = result.notes
    if rate == 1e30:
        assert result.steps < 20
        assert f"at step {result.steps + 1}: " in note
        assert "the weights of step 0" in note
    else:
        assert "stay as they were" in note


@needs_torch
def test_nothing_to_gain_leaves_the_weights() -> None:
    teacher = small_network()
    result = quick(teacher, teacher, steps=5)
    assert result.held_out_before == pytest.approx(0, abs=1e-6)
    assert result.held_out_after <= result.held_out_before


@needs_torch
def test_interrupt_passes_and_threads_are_restored() -> None:
    import torch

    before = torch.get_num_threads()

    def stop(words: str, done: int, total: int) -> None:
        assert torch.get_num_threads() == 1
        assert (done, total) == (1, 20)
        assert words.startswith("tuning: loss ")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(small_network(), small_network(), progress=stop)
    assert torch.get_num_threads() == before


@needs_torch
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ["nobody"]}, OptionError, "'nobody'"),
        ({"names": ["mean"]}, OptionError, "'mean'"),
        ({"names": []}, OptionError, "no weights"),
        ({"steps": -1}, OptionError, "-1"),
        ({"batch_size": 0}, OptionError, "of 0"),
        ({"learning_rate": float("nan")}, OptionError, "nan"),
        ({"count": 1}, DataError, "1 samples are too few .*; give more$"),
        ({"count": 0}, DataError, "empty"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quick(small_network(), small_network(), **options)


@needs_torch
def test_teacher_of_other_outputs_is_refused() -> None:
    teacher = small_network()
    teacher.proto.graph.node[-2].output[0] = teacher.proto.graph.node[-1].input[0] = "other"
    teacher.proto.graph.node[-1].output[0] = teacher.proto.graph.output[0].name = "z"
    with pytest.raises(OptionError, match="'z'"):
        quick(small_network(), teacher)


@needs_torch
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"z": x}, "the input 'x' is missing"),
        (lambda x: {"x": x[:, :2]}, "cannot be run"),
    ],
)
def test_data_of_another_model(change: Callable[[np.ndarray], dict[str, np.ndarray]], message: str) -> None:
    """What fits the model that the data were opened for need not fit this one."""
    model, other = small_network(), small_network()
    feeds = change(noise(8))
    ((name, array),) = feeds.items()
    value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *array.shape[1:]])
    other.proto.graph.input[0].CopyFrom(value)
    data = open_data(feeds, other)
    with pytest.raises((FeedError, OptionError, UnsupportedModelError), match=message):
        tune(model, model, data, steps=1, runtime=ONE_THREAD)


@needs_torch
@pytest.mark.parametrize("teaches", [True, False])
def test_outputs_that_are_not_finite(teaches: bool) -> None:
    good, broken = small_network(), small_network()
    tensors(broken)["head"].raw_data = np.full((4, 5), np.nan, np.float32).tobytes()
    student, teacher = (good, broken) if teaches else (broken, good)
    with pytest.raises((FeedError, TrainingError), match="not finite"):
        quick(student, teacher)


# ---------------------------------------------------------------- the loss and the augmentation


@needs_torch
def test_probabilities_are_compared_as_scores() -> None:
    import torch

    ours, target = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32) * 3
    ours, target = (z - z.mean(1, keepdims=True) for z in (ours, target))
    softmax = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (ours, target)]
    for scores, goal in ((ours, target), softmax):
        loss = Objective(torch, Reference(torch, [{"y": goal}]))({"y": torch.from_numpy(scores)}, {"y": goal})
        assert float(loss) == pytest.approx(np.square(ours - target).mean() / target.var(), rel=1e-4)


@needs_torch
def test_dense_outputs_are_compared_relative_to_their_variance() -> None:
    import torch

    target = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    for scale in (1, 1000):
        wanted: dict[str, np.ndarray] = {"y": scale * target, "index": np.arange(3)}
        loss = Objective(torch, Reference(torch, [wanted]))({"y": torch.from_numpy(scale * (target + 0.5))}, wanted)
        assert float(loss) == pytest.approx(0.25 / target.var(), rel=1e-4)


@pytest.mark.parametrize(("shape", "axes"), [((4, 3, 24, 32), (2, 3)), ((4, 24, 32, 3), (1, 2))])
def test_augmented_images_are_windows_of_the_reflected_image(shape: tuple[int, ...], axes: tuple[int, int]) -> None:
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layout = image_layout({"x": images})
    assert layout == ("x", axes)
    moved = Augment(*layout, np.random.default_rng(1))({"x": images})["x"]
    assert not np.array_equal(moved, images)
    for image, result in zip(images, moved, strict=True):
        margins = [(size // 8, size // 8) if axis + 1 in axes else (0, 0) for axis, size in enumerate(image.shape)]
        padded = np.pad(image, margins, "reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)
        mirrored = np.flip(result, axes[1] - 1)
        assert any((windows == either).all((-3, -2, -1)).any() for either in (result, mirrored))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 7, 24, 24), (4, 3, 24), (4, 24)])
def test_what_is_no_image_is_not_augmented(shape: tuple[int, ...]) -> None:
    assert image_layout({"x": np.zeros(shape, np.float32)}) is None


def test_several_inputs_are_not_augmented() -> None:
    image = np.zeros((1, 3, 32, 32), np.float32)
    assert image_layout({"left": image, "right": image}) is None
