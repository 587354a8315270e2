"""Inputs without a first axis for samples: a scalar, a state whose batch is its second axis; preprocessing."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import onnxsep
from onnxsep.data import Preprocessing, open_data
from onnxsep.errors import DataError, OptionError
from onnxsep.model.io import load

SILERO = Path(__file__).resolve().parents[2] / "shared" / "models" / "silero_vad_spox.onnx"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 4, 10)).astype(np.float32)
STATE = RNG.standard_normal((2, 1, 4)).astype(np.float32)
GAIN = np.float32(0.5)


def network() -> onnx.ModelProto:
    """y = GlobalAveragePool(Relu(Conv(x * gain + state[0]))) with a state [2, batch, 4] and a scalar gain."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["scaled"]),
        helper.make_node("Gather", ["state", "zero"], ["row"], axis=0),
        helper.make_node("Unsqueeze", ["row", "last"], ["column"]),
        helper.make_node("Add", ["scaled", "column"], ["a"]),
        helper.make_node("Conv", ["a", "w0"], ["c0"], name="first", pads=[1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="conv", pads=[1, 1]),
        helper.make_node("Relu", ["c1"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("x", TensorProto.FLOAT, ["N", 4, 10]),
        value("state", TensorProto.FLOAT, [2, "N", 4]),
        value("gain", TensorProto.FLOAT, []),
    ]
    constants = {
        "w0": RNG.standard_normal((16, 4, 3)).astype(np.float32) / 3,
        "w1": RNG.standard_normal((16, 16, 3)).astype(np.float32) / 7,
        "zero": np.int64(0),
        "last": np.array([2], np.int64),
    }
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, ["N", 16])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


STATES, GAINS = np.repeat(STATE[None], 24, 0), np.repeat(GAIN, 24)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "state": STATE, "gain": GAIN},
        {"x": X[:, None], "state": STATE, "gain": GAIN},
        {"x": X, "state": STATES, "gain": GAIN},
        {"x": X, "state": STATE, "gain": GAINS},
        {"x": X, "state": STATES, "gain": GAINS},
        {"x": X, "state": np.repeat(STATE, 24, 1), "gain": GAIN},
    ],
    ids=["once", "elements", "states", "gains", "each", "batch"],
)
def test_each_form_gives_the_same_samples(arrays: dict[str, Any]) -> None:
    data = open_data({**arrays, "y": np.arange(24)}, load(network()))
    assert len(data) == 24
    assert data.labels is not None
    assert data.labels.tolist() == list(range(24))
    feeds = list(data.feeds())
    assert len(feeds) == 24
    for index, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], X[index : index + 1])
        np.testing.assert_array_equal(feed["state"], STATE)
        np.testing.assert_array_equal(feed["gain"], GAIN)
    reference = open_data({"x": X, "state": STATE, "gain": GAIN}, load(network()))
    assert data.fingerprint() != reference.fingerprint() or data.labels is None  # labels count
    assert open_data(arrays, load(network())).fingerprint() == reference.fingerprint()


def test_each_sample_gets_its_own() -> None:
    states = RNG.standard_normal((24, 2, 1, 4)).astype(np.float32)
    gains = RNG.standard_normal(24).astype(np.float32)
    data = open_data({"x": X, "state": states, "gain": gains}, load(network()))
    (feed,) = data.feeds([17])
    np.testing.assert_array_equal(feed["state"], states[17])
    np.testing.assert_array_equal(feed["gain"], gains[17])


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "state": STATES[:7], "gain": GAIN},
        {"x": X, "state": STATE, "gain": GAINS[:23]},
        {"x": X, "state": STATE[:1], "gain": GAIN},
        {"x": X[:, :3], "state": STATE, "gain": GAIN},
    ],
)
def test_other_counts_and_shapes_are_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        open_data(arrays, load(network()))


def test_nan_in_what_all_samples_share() -> None:
    with pytest.raises(DataError, match=r"'gain'.*holds NaN or infinity"):
        open_data({"x": X, "state": STATE, "gain": np.float32(np.nan)}, load(network()))


def test_the_commands_take_such_data(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X, state=STATE, gain=GAIN)
    data = ["--data", tmp_path / "d.npz", "--threads", "1"]
    for command in (
        ["rewrite", tmp_path / "m.onnx", tmp_path / "o.onnx", "--mode", "depthwise", *data],
        ["quantize", tmp_path / "m.onnx", tmp_path / "q.onnx", *data],
        ["evaluate", tmp_path / "m.onnx", tmp_path / "o.onnx", "--runs", "0", "--no-memory", *data],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not SILERO.exists(), reason="../shared is missing")
def test_a_voice_model() -> None:
    x = RNG.standard_normal((3, 512)).astype(np.float32)
    data = {"input": x, "state": np.zeros((2, 1, 128), np.float32), "sr": np.int64(16000)}
    report = onnxsep.evaluate([SILERO, SILERO], data=data, runs=0, memory=False)
    assert report.samples == 3


IMAGENET: dict[str, Any] = {"scale": "1/255", "mean": (0.4, 0.5, 0.6), "std": [0.2, 0.2, 0.3]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_preprocessing_as_a_path_or_a_dict(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('scale = "1/255"\nmean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.2, 0.3]\n')
    weight = numpy_helper.from_array(RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [value("y", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    arrays = {**IMAGENET, "mean": np.array(IMAGENET["mean"]), "scale": np.float64(1 / 255)}
    given: list[Any] = [Preprocessing.from_values(IMAGENET), IMAGENET, arrays, file, str(file)]
    fed = [open_data(images, load(model), preprocessing=one).fingerprint() for one in given]
    assert set(fed) == {fed[0]}
    assert open_data(images, load(model)).fingerprint() != fed[0]
    shared: dict[str, Any] = {"data": images, "preprocessing": IMAGENET}
    onnxsep.evaluate([model, model], runs=0, memory=False, **shared)
    onnxsep.rewrite(model, mode="depthwise", include_first=True, force=True, **shared)
    onnxsep.quantize(model, data=images, preprocessing=str(file))
    wrong: Any
    for wrong, words in (
        ({"scale": -1}, "scale"),
        ({"mode": 1}, "mode"),
        (tmp_path / "no.toml", r"no\.toml"),
        (3, "dict"),
    ):
        functions: list[Any] = [onnxsep.quantize, onnxsep.evaluate]
        functions += [onnxsep.finetune] if find_spec("torch") else []
        for function in functions:
            with pytest.raises(OptionError, match=words):
                function(tmp_path / "none.onnx", data=images, preprocessing=wrong)
        with pytest.raises(OptionError, match=words):
            onnxsep.rewrite(tmp_path / "none.onnx", mode="depthwise", data=images, preprocessing=wrong)
        with pytest.raises(OptionError, match=words):
            onnxsep.compress(tmp_path / "none.onnx", "spatial-int8", data=images, preprocessing=wrong)
