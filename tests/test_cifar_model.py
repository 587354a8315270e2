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
