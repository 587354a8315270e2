"""ResNet-20 for CIFAR-10, which the project trained, and the int8 versions that its recipes made of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from scripts import load_script

import onnxsep

FOLDER = Path(__file__).resolve().parents[1] / "models" / "cifar"
MODEL = FOLDER / "cifar10_resnet20.onnx"


class Images(NamedTuple):
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def images(shared: Path) -> Images:
    unpack = load_script(shared / "data" / "unpack.py")
    with np.load(shared / "data" / "cifar10_webp.npz") as packed:
        return Images(unpack.sprite(packed["test_lossless_1k"]), packed["y_test_lossless_1k"].astype(np.int64))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL)


def stated(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def right(model: onnx.ModelProto, images: Any) -> npt.NDArray[np.bool_]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = load_script(FOLDER / "cifar_data.py").normalised(images.pixels)
    logits = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return np.asarray(logits.argmax(axis=1) == images.labels)


def test_model_is_valid_and_about_a_megabyte(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert 0.9e6 < MODEL.stat().st_size < 1.2e6
    report = onnxsep.inspect(model)
    # He et al. 2015 give 0.27 million: 19 Convs of 3 x 3, two shortcuts of 1 x 1, a Gemm
    convs = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 16 * 32 + 32 * 64
    biases = 7 * 16 + 7 * 32 + 7 * 64
    assert report.totals.parameters == convs + biases + 64 * 10 + 10
    assert sum((conv.weight_shape or ())[2:] == (3, 3) for conv in report.convs) == 19


def test_model_is_right_on_nine_of_ten_test_images(model: onnx.ModelProto, images: Images) -> None:
    accuracy = float(right(model, images).mean())
    assert accuracy >= 0.90
    # Another runtime may sum in another order and decide an image or two at the border differently.
    assert abs(float(stated(model)["test_accuracy"].split()[0]) - accuracy) < 2.5 / len(images.labels)


def test_committed_graph_is_what_the_script_writes(model: onnx.ModelProto) -> None:
    graph = load_script(FOLDER / "cifar_graph.py")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert graph.build(weights, metadata=stated(model), doc_string=model.doc_string) == model
    weights["stem_conv.bias"] = np.zeros(15, np.float32)
    with pytest.raises(ValueError, match=r"stem_conv\.bias"):
        graph.build(weights, metadata={}, doc_string="")


def test_data_script_prepares_what_the_model_reads(tmp_path: Path) -> None:
    module = load_script(FOLDER / "cifar_data.py")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.savez(
        tmp_path / "all.npz", x_train=pixels, y_train=np.arange(5), x_test=pixels[:2], y_test=np.arange(2)[:, None]
    )
    train, test = module.load(tmp_path / "all.npz")
    values = module.normalised(train.pixels)
    assert values.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(
            values[:, channel] * module.STD[channel] + module.MEAN[channel], pixels[..., channel] / 255, atol=1e-6
        )
    assert test.labels.tolist() == [0, 1]
    np.savez(tmp_path / "bad.npz", x_train=pixels / 255, y_train=np.arange(5), x_test=pixels, y_test=np.arange(5))
    with pytest.raises(ValueError, match=r"uint8 \[n, 32, 32, 3\]"):
        module.load(tmp_path / "bad.npz")


def shape_of(model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    """Nodes and weights; scales that are equal by chance share a tensor, so these are left out."""
    nodes = [
        (node.op_type, [(entry.name, entry.SerializeToString()) for entry in node.attribute])
        for node in model.graph.node
    ]
    weights = [(tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) > 1]
    return sorted(nodes), sorted(weights)  # in any order that is topological


@pytest.mark.parametrize("name", ["spatial", "depthwise"])
def test_compressed_models_are_what_their_recipes_make(name: str, model: onnx.ModelProto) -> None:
    """Without the images: fitting, training and calibration give other numbers, and the same graph."""
    steps = onnxsep.read_recipe(FOLDER / f"{name}_int8.toml").steps
    options = {step.name: dict(step.options) for step in steps}
    given = {key: options["rewrite"][key] for key in ("mode", "rank")}
    random = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    rewritten = onnxsep.rewrite(model, **given, data={"image": random}, samples=8, positions=2, verify="none").model
    made = onnxsep.quantize(rewritten, data={"image": random}, **{**options["quantize"], "samples": 16}).model
    reference = onnx.load(FOLDER / f"cifar10_resnet20_{name}_int8.onnx")
    assert shape_of(made.proto) == shape_of(reference)


@pytest.mark.parametrize(("name", "least", "share"), [("spatial", 0.89, 0.2), ("depthwise", 0.86, 0.07)])
def test_compressed_models_are_small_and_right(name: str, least: float, share: float, images: Images) -> None:
    path = FOLDER / f"cifar10_resnet20_{name}_int8.onnx"
    assert path.stat().st_size < share * MODEL.stat().st_size
    assert right(onnx.load(path), images).mean() >= least
