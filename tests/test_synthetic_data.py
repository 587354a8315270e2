"""Images that are made up: ``--data synthetic``."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from command_line import run
from digits import split
from onnx import TensorProto, helper
from PIL import Image

import onnxsep
from onnxsep.data import open_data
from onnxsep.data.synthetic import dead_leaves
from onnxsep.errors import DataError
from onnxsep.model.io import Model

DIGITS = Path(__file__).parents[1] / "models/digits/digits_cnn.onnx"


def model(dims: list[int | str | None], elem_type: int = TensorProto.FLOAT) -> Model:
    value = helper.make_tensor_value_info("image", elem_type, dims)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"])],
        "one",
        [value],
        [helper.make_tensor_value_info("y", elem_type, dims)],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def gradients(image: Image.Image | np.ndarray) -> np.ndarray:
    grey = np.asarray(image, np.float64).mean(axis=2)
    return np.asarray(np.abs(np.diff(grey, axis=1)).ravel())


def test_an_image_depends_on_its_number_and_size_alone() -> None:
    first = dead_leaves(7, (20, 30))
    assert first.size == (30, 20)
    assert first.tobytes() == dead_leaves(7, (20, 30)).tobytes()
    assert first.tobytes() != dead_leaves(8, (20, 30)).tobytes()


def test_images_are_smooth_areas_with_edges_as_photographs_are() -> None:
    steps = np.concatenate([gradients(dead_leaves(number, (64, 64))) for number in range(20)])
    assert np.median(steps) < 2  # of 255: most of it is smooth
    assert np.quantile(steps, 0.97) > 20  # and there are edges
    shuffled = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    assert np.median(gradients(shuffled)) > 20  # noise has no smooth areas


@pytest.mark.parametrize(
    ("dims", "elem_type", "size", "shape"),
    [
        (["n", 3, 5, 7], TensorProto.FLOAT, (5, 7), (4, 3, 5, 7)),
        (["n", 5, 7, 3], TensorProto.FLOAT, (5, 7), (4, 5, 7, 3)),
        (["n", 3, 1, 2], TensorProto.FLOAT, (1, 2), (4, 3, 1, 2)),
        ([4, 1, 6, 6], TensorProto.UINT8, (6, 6), (4, 1, 6, 6)),
    ],
)
def test_they_go_in_as_images_of_a_folder_do(
    tmp_path: Path, dims: list[int | str | None], elem_type: int, size: tuple[int, int], shape: tuple[int, ...]
) -> None:
    entry = model(dims, elem_type)
    for number in range(1, 5):
        dead_leaves(number, size).save(tmp_path / f"{number}.png")
    made_up, real = (open_data(source, entry).feed(range(4))["image"] for source in ("synthetic:4", tmp_path))
    assert made_up.shape == shape
    np.testing.assert_array_equal(made_up, real)


def test_a_path_of_this_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = model(["n", 3, 4, 4])
    assert len(open_data("synthetic", entry)) == 300
    (tmp_path / "synthetic").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "synthetic" / "a.png")
    assert len(open_data("synthetic", entry)) == 1


@pytest.mark.parametrize("words", ["synthetic:0", "synthetic:", "synthetic:-1", "synthetic:9999999", "synthetic:1.5"])
def test_a_number_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(DataError, match=r"from 1 to 100,000, as in synthetic:300"):
        open_data(words, model(["n", 3, 4, 4]))


def test_inputs_that_take_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="takes no images"):
        open_data("synthetic", model(["n", 4]))
    with pytest.raises(DataError, match=r"size of images open.*size"):
        open_data("synthetic", model(["n", 3, "h", "w"]))
    with pytest.raises(DataError, match="does not exist"):
        open_data("synthetics", model(["n", 3, 4, 4]))


def test_they_have_no_labels() -> None:
    with pytest.raises(DataError, match="has no labels"):
        open_data("synthetic", model(["n", 3, 4, 4]), need_labels=True)


def test_a_rewrite_fitted_to_them_is_nearer_on_digits() -> None:
    """Measured on real digits, which look nothing like the images."""
    digits = split()[1].images
    logits = [outputs(DIGITS, digits)]
    for data in (None, "synthetic:100"):
        made = onnxsep.rewrite(DIGITS, mode="depthwise", data=data, verify="none")
        logits.append(outputs(made.model.proto.SerializeToString(), digits))
    wanted, alone, fitted = logits
    assert np.linalg.norm(fitted - wanted) < 0.6 * np.linalg.norm(alone - wanted)


def outputs(source: Path | bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


def test_the_command_says_what_the_data_are_and_can_be_run_again(tmp_path: Path) -> None:
    made, report, again = (tmp_path / name for name in ("made.onnx", "run.json", "again.onnx"))
    words = ("--mode", "spatial", "--data", "synthetic:40", "--scale", "1/255", "--report", report)
    done = run("rewrite", DIGITS, made, *words)
    assert done.returncode == 0, done.stderr
    assert "fitted (joint) to 36 samples of 40 synthetic images" in done.stdout
    assert "real ones are better" in done.stdout
    assert run("rerun", report, again).returncode == 0
    assert again.read_bytes() == made.read_bytes()


def test_the_preprocessing_is_not_tried_on_them(tmp_path: Path) -> None:
    done = run("quantize", DIGITS, tmp_path / "made.onnx", "--data", "synthetic:40")
    assert done.returncode == 0, done.stderr
    assert "nothing shows that the model was made for that: images that are made up cannot" in done.stdout
