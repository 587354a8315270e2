"""The U-Net for images of shapes, which the project trained, and the images that it was trained on."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from scripts import load_script

import onnxsep

FOLDER = Path(__file__).resolve().parents[1] / "models" / "shapes"
MODEL = FOLDER / "shapes_unet.onnx"
DATA = load_script(FOLDER / "shapes_data.py")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL)


def test_model_is_valid_and_small(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert MODEL.stat().st_size < 270_000
    convs = 9 * (3 * 12 + 12**2 + 12 * 24 + 24**2 + 24 * 32 + 32**2 + 48 * 24 + 24**2 + 24 * 12 + 12**2)
    transposed = 16 * (32 * 24 + 24 * 12)
    biases = 5 * 12 + 5 * 24 + 2 * 32 + 4
    assert onnxsep.inspect(model).totals.parameters == convs + transposed + 4 * 12 + biases


def test_model_finds_the_shapes_of_images_it_has_not_seen(model: onnx.ModelProto) -> None:
    test = DATA.draw("test", 60)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": test.images})[0].argmax(axis=1)
    stated = {entry.key: entry.value for entry in model.metadata_props}
    right = (found == test.labels).mean(axis=(1, 2))
    error = right.std() / np.sqrt(len(right))
    assert right.mean() == pytest.approx(float(stated["test_pixel_accuracy"]), abs=4 * error)
    for kind in range(1, len(DATA.CLASSES)):  # answering "background" everywhere is right on most pixels
        assert (found[test.labels == kind] == kind).mean() > 0.8, DATA.CLASSES[kind]


def test_images_are_drawn_from_their_seed_and_part() -> None:
    few, more = DATA.draw("train", 3), DATA.draw("train", 5)
    np.testing.assert_array_equal(few.images, more.images[:3])
    np.testing.assert_array_equal(few.labels, more.labels[:3])
    for other in (DATA.draw("test", 3), DATA.draw("train", 3, seed=1)):
        assert not np.array_equal(few.images, other.images)


@pytest.mark.parametrize(("kind", "corners"), [("square", 4), ("triangle", 3)])
def test_polygons_have_the_area_of_their_radius(kind: str, corners: int) -> None:
    """Of 300 shapes that touch no edge: the regular polygon with corners at 1.15 radii, inside which pixels lie."""
    source = np.random.default_rng(0)
    ratios = []
    for _ in range(300):
        state = source.bit_generator.state
        mask = DATA._mask(source, DATA.CLASSES.index(kind))
        again = np.random.default_rng()
        again.bit_generator.state = state
        radius = again.uniform(DATA.SMALLEST, DATA.LARGEST)
        if not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
            ratios.append(mask.sum() / (corners / 2 * np.sin(2 * np.pi / corners) * (1.15 * radius) ** 2))
    assert len(ratios) > 30
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
