"""What stands beside a model or in it about its preprocessing: files, metadata, first layers; broken ones too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from PIL import Image
from preprocessing_models import digits_for, parse, saved, write_digits

from onnxsep.data import Preprocessing, open_data
from onnxsep.data.first_layers import read_first_layers
from onnxsep.data.model_metadata import read_metadata
from onnxsep.data.sidecars import from_hugging_face, from_timm, read_sidecars
from onnxsep.errors import DataError
from onnxsep.model.io import Model, load
from onnxsep.running.inputs import model_inputs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HF = "preprocessor_config.json"
IMAGENET = Preprocessing(mean=MEAN, std=STD)
VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "size": 224,
}
RESNET_TIMM = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": list(MEAN),
        "std": list(STD),
    },
}


def with_metadata(**entries: str) -> Model:
    model = parse("g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Identity(x) }")
    for key, value in entries.items():
        model.proto.metadata_props.add(key=key.replace("__", ".").replace("_of_", " "), value=value)
    return model


# ---------------------------------------------------------------- files beside the model


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (VIT, Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, resize="stretch")),
        (CONVNEXT, Preprocessing(mean=MEAN, std=STD, crop=0.875)),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "size": {"shortest_edge": 256},
                "do_normalize": False,
            },
            Preprocessing(crop=0.875),
        ),
        (
            {"image_mean": [0.5], "image_std": [0.5], "do_rescale": False, "do_resize": False},
            Preprocessing(1.0, (0.5,), (0.5,)),
        ),
        (
            {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True},
            Preprocessing(color="BGR"),
        ),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "rescale_factor": 1 / 127.5,
                "rescale_offset": True,
                "do_normalize": False,
            },
            Preprocessing(1 / 127.5, (1.0,)),
        ),
    ],
)
def test_hugging_face(content: dict[str, Any], expected: Preprocessing) -> None:
    said = from_hugging_face(content)
    assert said is not None
    assert said.preprocessing == expected


def test_interpolation_that_is_not_followed_is_said() -> None:
    for said in (from_hugging_face(CONVNEXT), from_timm(RESNET_TIMM)):
        assert said is not None
        assert said.notes == ("it asks for bicubic interpolation; images of another size are resized bilinearly",)


def test_timm() -> None:
    said = from_timm(RESNET_TIMM)
    assert said is not None
    assert said.preprocessing == Preprocessing(mean=MEAN, std=STD, crop=0.95)
    old = from_timm({"mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "squash"})
    assert old is not None
    assert old.preprocessing == Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, resize="stretch")


@pytest.mark.parametrize(
    "content", [{"model_type": "resnet"}, {"feature_size": 80, "feature_extractor_type": "Whisper"}, [], "x"]
)
def test_files_about_other_things_say_nothing(tmp_path: Path, content: object) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(content))
    assert read_sidecars(tmp_path / "m.onnx") is None


def test_which_file_is_followed(tmp_path: Path) -> None:
    model = tmp_path / "onnx" / "m.onnx"
    model.parent.mkdir()
    assert read_sidecars(model) is None
    (tmp_path / "config.json").write_text(json.dumps(RESNET_TIMM))
    said = read_sidecars(model)
    assert said is not None
    assert (said.preprocessing.mean, said.where) == (MEAN, "'config.json' above the model")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONVNEXT))
    both = read_sidecars(model)  # they agree on the values
    assert both is not None
    assert (both.preprocessing.mean, both.preprocessing.crop) == (MEAN, 0.875)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    with pytest.raises(
        DataError, match=r"contradict each other: 'preprocessor_config.json'.*0.5,0.5,0.5.*'config.json'.*0.485"
    ):
        read_sidecars(model)
    (tmp_path / "onnx" / "m.preprocess.toml").write_text("scale = 1\n")
    own = read_sidecars(model)
    assert own is not None
    assert own.preprocessing == Preprocessing(scale=1.0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (HF, "{", "is no JSON"),
        (HF, '{"image_mean": "red", "image_std": [1]}', "image_mean is 'red' and no"),
        (HF, '{"image_mean": [0.5, 0.5], "image_std": [1]}', "mean must be one value, or three"),
        (HF, '{"image_mean": [0.5], "image_std": [0]}', "std must be positive"),
        (HF, '{"image_mean": [0.5], "image_std": [1], "rescale_factor": null}', "_factor is None"),
        ("config.json", '{"pretrained_cfg": {"mean": [0.5], "std": ["x"]}}', "std is"),
        ("config.json", "\xff", "is no JSON"),
        ("m.preprocess.toml", "scale = ", "is not a TOML file"),
        ("m.preprocess.toml", "scales = 1", "did you mean 'scale'"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words) as caught:
        read_sidecars(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert "correct or remove it" in str(caught.value)


def test_a_broken_file_is_one_message_of_the_command(tmp_path: Path) -> None:
    model = saved(digits_for(1.0), tmp_path / "m.onnx")
    images = write_digits(tmp_path / "images", 10, classes=True)
    (tmp_path / "preprocessor_config.json").write_text("{")
    done = run("evaluate", model, "--data", images, "--runs", 0, "--no-memory")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "--mean" in done.stderr
    assert run("evaluate", model, "--data", images, "--runs", 0, "--no-memory", "--scale", 1).returncode == 0


def test_a_file_that_is_wrong_for_the_model_is_noticed(tmp_path: Path) -> None:
    model = load(saved(digits_for(1.0), tmp_path / "m.onnx"))
    images = write_digits(tmp_path / "images", 60)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0], "image_std": [1]}))
    found = open_data(images, model).preprocessing
    assert found is not None
    assert (found.taken_from, found.sure) == ("sidecar", False)
    assert "'preprocessor_config.json' beside the model (0 to 1) has" in found.warnings[0]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0], "image_std": [1], "do_rescale": False})
    )
    found = open_data(images, model).preprocessing
    assert found is not None
    assert (found.taken_from, found.sure, found.warnings) == ("sidecar", True, ())
    assert found.preprocessing == {"scale": 1.0}


# ---------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"onnxsep__preprocessing": '{"scale": 1, "color": "BGR"}'}, Preprocessing(scale=1.0, color="BGR")),
        (
            {"Image__NominalPixelRange": "NominalRange_0_255", "Image__BitmapPixelFormat": "Bgr8"},
            Preprocessing(1.0, color="BGR"),
        ),
        ({"Image__NominalPixelRange": "Normalized_0_1"}, Preprocessing()),
        ({"Image__NominalPixelRange": "normalized_1_1"}, Preprocessing(1 / 127.5, (1.0,))),
        (
            {"model_info_of_mean_values": "123.675 116.28 103.53", "model_info_of_scale_values": "58.395 57.12 57.375"},
            Preprocessing(1.0, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        ({"model_info_of_scale_values": "255.0"}, Preprocessing(1.0, std=(255.0,))),
        ({"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}, IMAGENET),
        ({"image_mean": "127.5", "image_std": "127.5"}, Preprocessing(1.0, (127.5,), (127.5,))),
        ({"preprocessor_config": json.dumps({"image_mean": MEAN, "image_std": STD})}, IMAGENET),
    ],
)
def test_metadata(entries: dict[str, str], expected: Preprocessing) -> None:
    said = read_metadata(with_metadata(**entries).proto)
    assert said is not None
    assert said.preprocessing == expected


def test_metadata_about_other_things() -> None:
    assert read_metadata(with_metadata(author="somebody", mean="0.5", task="detect", stride="32").proto) is None


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"onnxsep__preprocessing": "{"}, "metadata about its preprocessing cannot be used"),
        ({"onnxsep__preprocessing": '{"scales": 1}'}, "did you mean 'scale'"),
        ({"Image__NominalPixelRange": "0..255"}, "Image.NominalPixelRange is '0..255', and not one of"),
        ({"mean": "red", "std": "1"}, "mean is 'red' and no list of numbers"),
        ({"mean": "0.5", "std": "0"}, "std must be positive"),
    ],
)
def test_broken_metadata(entries: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_metadata(with_metadata(**entries).proto)


# ---------------------------------------------------------------- first layers


@pytest.mark.parametrize(
    ("nodes", "values", "expected"),
    [
        ("d = Div(x, a) y = Identity(d)", {"a": 255}, Preprocessing(scale=1.0)),
        ("d = Mul(x, a) e = Sub(d, b) y = Relu(e)", {"a": 1 / 127.5, "b": 1}, Preprocessing(scale=1.0)),
        (
            "d = Sub(x, a) e = Div(d, b) y = Relu(e)",
            {"a": np.reshape(MEAN, (1, 3, 1, 1)), "b": np.reshape(STD, (1, 3, 1, 1))},
            Preprocessing(scale=1 / 255),
        ),
        (
            "d = Sub(x, a) y = Relu(d)",
            {"a": np.reshape((103.939, 116.779, 123.68), (3, 1, 1))},
            Preprocessing(1.0, color="BGR"),
        ),
        ("d = Sub(x, a) y = Relu(d)", {"a": np.reshape((123.68, 116.779, 103.939), (3, 1, 1))}, Preprocessing(1.0)),
        ("d = Sub(a, x) e = Div(d, b) y = Relu(e)", {"a": 127.5, "b": -127.5}, Preprocessing(1.0)),
        (
            "y = BatchNormalization(x, s, b, m, v)",
            {"s": np.ones(3), "b": np.zeros(3), "m": (120, 115, 104), "v": (4000, 3900, 4100)},
            Preprocessing(1.0),
        ),
        (
            "y = BatchNormalization(x, s, b, m, v)",
            {"s": np.ones(3), "b": np.zeros(3), "m": MEAN, "v": np.square(STD)},
            Preprocessing(1 / 255),
        ),
        ("y = Relu(x)", {}, None),
        ("d = Mul(x, a) y = Relu(d)", {"a": 2}, None),
        ("d = Div(a, x) y = Relu(d)", {"a": 255}, None),
        ("d = Add(x, x) y = Relu(d)", {}, None),
        (
            "y = BatchNormalization(x, s, b, m, v)",
            {"s": np.ones(3), "b": np.zeros(3), "m": np.zeros(3), "v": np.ones(3)},
            None,
        ),
    ],
)
def test_first_layers(nodes: str, values: dict[str, Any], expected: Preprocessing | None) -> None:
    model = parse(f"g (float[n,3,8,8] x) => (float[n,3,8,8] y) {{ {nodes} }}", **values)
    said = read_first_layers(model, next(model_inputs(model.proto)))
    assert (None if said is None else said.preprocessing) == expected


def test_first_layers_are_followed(tmp_path: Path) -> None:
    inner = digits_for(1 / 255)
    graph = inner.proto.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["scaled" if one == name else one for one in node.input]
    graph.node.insert(0, onnx.helper.make_node("Div", [name, "most"], ["scaled"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(255, np.float32), "most"))
    found = open_data(write_digits(tmp_path, 30), inner).preprocessing
    assert found is not None
    assert (found.taken_from, found.preprocessing, found.sure) == ("model", {"scale": 1.0}, True)
    assert found.notes == ("preprocessing: 0 to 255, from the model's first layers (Div)",)


# ---------------------------------------------------------------- images that cannot be read


def test_bad_images_are_left_out_counted_and_named(tmp_path: Path) -> None:
    images = write_digits(tmp_path / "images", 30, classes=True)
    model = saved(digits_for(1.0), tmp_path / "m.onnx")
    (images / "3" / "bad.png").write_bytes(b"no image")
    (images / "7" / "worse.png").write_bytes(b"")
    common = ("evaluate", model, "--data", images, "--runs", 0, "--no-memory", "--json")
    failed = run(*common)
    assert failed.returncode == 1
    assert "cannot read the image" in failed.stderr
    done = run(*common, "--skip-bad")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["samples"] == 30
    assert report["models"][0]["top1"]["share"]["value"] >= 0.98
    note = next(note for note in report["notes"] if "left out" in note)
    assert note == "warning: 2 of 32 images cannot be read and are left out: '3/bad.png', '7/worse.png'"
    assert report["options"]["skip_bad"] is True


def test_labels_for_all_images_fit_those_that_are_left(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("L", (8, 8), number * 20).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"bad")
    data = open_data(tmp_path, digits_for(1.0), skip_bad=True, labels=[number % 10 for number in range(12)])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 0, 1]
    assert len(data) == 11
    with pytest.raises(DataError, match="5 labels for 11 samples"):
        open_data(tmp_path, digits_for(1.0), skip_bad=True, labels=[0] * 5)


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"none of the 1 images of .* can be read: cannot read the image"):
        open_data(tmp_path, digits_for(1.0), skip_bad=True)


def test_no_bad_images_say_nothing(tmp_path: Path) -> None:
    images = write_digits(tmp_path, 10)
    assert open_data(images, digits_for(1.0), skip_bad=True).notes == open_data(images, digits_for(1.0)).notes
