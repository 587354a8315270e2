"""Images as values for a model: reading, preprocessing, and the files of a folder."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnxsep.data.image_folder import find_images
from onnxsep.data.images import ImageReader
from onnxsep.data.preprocessing import Preprocessing
from onnxsep.errors import DataError, OptionError
from onnxsep.model.io import Model
from onnxsep.running.inputs import model_inputs

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def model(dims: list[int | str | None] | None, elem_type: int = TensorProto.FLOAT) -> Model:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"])],
        "one",
        [helper.make_tensor_value_info("image", elem_type, dims)],
        [helper.make_tensor_value_info("y", elem_type, None)],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def reader(
    dims: list[int | str | None] | None = None, elem_type: int = TensorProto.FLOAT, **options: Any
) -> ImageReader:
    proto = model(dims or ["n", 3, 4, 6], elem_type).proto
    return ImageReader.for_input(proto, next(iter(model_inputs(proto))), Preprocessing(**options))


def pixels(height: int = 4, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


# ---------------------------------------------------------------- values


def test_floats_are_from_0_to_1_by_default(tmp_path: Path) -> None:
    image = pixels()
    values = reader().read(save(tmp_path / "a.png", image))
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, image.transpose(2, 0, 1) / np.float32(255))


def test_mean_and_std_are_in_the_units_of_the_scale(tmp_path: Path) -> None:
    image = pixels()
    path = save(tmp_path / "a.png", image)
    expected = (image / 255 - IMAGENET["mean"]) / IMAGENET["std"]
    np.testing.assert_allclose(reader(**IMAGENET).read(path), expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    in_bytes: dict[str, Any] = {name: tuple(255 * value for value in values) for name, values in IMAGENET.items()}
    values = reader(scale=1, **in_bytes).read(path)
    np.testing.assert_allclose(values, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("elem_type", "dtype"),
    [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)],
)
def test_values_have_the_type_of_the_input(tmp_path: Path, elem_type: int, dtype: type) -> None:
    image = pixels()
    values = reader(elem_type=elem_type).read(save(tmp_path / "a.png", image))
    assert values.dtype == dtype
    np.testing.assert_allclose(values, image.transpose(2, 0, 1) / 255, rtol=1e-3 if dtype is np.float16 else 1e-15)


def test_integer_inputs_take_pixels(tmp_path: Path) -> None:
    image = pixels()
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(reader(elem_type=TensorProto.UINT8).read(path), image.transpose(2, 0, 1))
    signed = reader(elem_type=TensorProto.INT8).read(path)
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed, image.transpose(2, 0, 1).astype(int) - 128)
    # Quantised by hand: q = round(p / 255 / 0.008) - 60, for which std is 0.008 and mean 60 * 0.008.
    custom = reader(elem_type=TensorProto.INT8, scale=1 / 255, mean=(0.48,), std=(0.008,)).read(path)
    expected = image.transpose(2, 0, 1) / 255 / 0.008 - 60
    assert np.abs(custom - expected).max() <= 0.5 + 1e-9


def test_color_and_layout(tmp_path: Path) -> None:
    image = pixels()
    path = save(tmp_path / "a.png", image)
    scale: dict[str, Any] = {"scale": 1}
    np.testing.assert_array_equal(reader(["n", 4, 6, 3], **scale).read(path), image)
    np.testing.assert_array_equal(reader(["n", 4, 6, 3], color="BGR", **scale).read(path), image[:, :, ::-1])
    gray = reader([1, 1, 4, 6], **scale).read(path)
    np.testing.assert_array_equal(gray[0], np.asarray(Image.fromarray(image).convert("L")))
    both = reader([1, 3, 4, 3], layout="NHWC", size=(3, 4), **scale)
    assert both.read(save(tmp_path / "b.png", pixels(3, 4))).shape == (3, 4, 3)
    bgr_mean = reader(["n", 4, 6, 3], color="BGR", scale=1, mean=(1, 2, 3)).read(path)
    np.testing.assert_array_equal(bgr_mean, image[:, :, ::-1] - np.array([1.0, 2.0, 3.0]))


def test_the_channels_may_be_known_from_the_conv_only(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], [1.0] * 6)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made = ImageReader.for_input(proto, next(iter(model_inputs(proto))), Preprocessing(size=(4, 6)))
    assert (made.layout, made.color) == ("NCHW", "RGB")
    assert made.read(save(tmp_path / "a.png", pixels())).shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("dims", "options", "message"),
    [
        (["n", 3], {}, "takes no images.*four dimensions"),
        (None, {}, "takes no images"),
        (["n", 16, 8, 8], {}, "not clear where the channels"),
        (["n", 3, 8, 3], {}, "not clear where the channels"),
        (["n", 16, 8, 8], {"layout": "NCHW"}, "has 16 channels as NCHW, but images in RGB have 3"),
        (["n", 3, 8, 8], {"color": "GRAY"}, "has 3 channels as NCHW, but images in GRAY have 1"),
        (["n", 1, 8, 8], {"mean": (0.1, 0.2, 0.3)}, "takes one channel"),
        (["n", 3, "h", "w"], {}, r"leaves the size of images open.*size"),
        (["n", 3, 8, "w"], {"size": (9, 9)}, r"size 9 x 9 does not fit .*\[n, 3, 8, w\]"),
        (["n", 3, 8, 8], {"mean": (123.675, 116.28, 103.53)}, "do not suit pixels from 0 to 1.*set scale to 1"),
        (["n", 3, 8, 8], {"std": (58.0,)}, "do not suit pixels from 0 to 1"),
    ],
)
def test_preprocessing_that_does_not_fit_the_input(
    dims: list[int | str | None] | None, options: dict[str, Any], message: str
) -> None:
    proto = model(dims).proto
    with pytest.raises(DataError, match=message):
        ImageReader.for_input(proto, next(iter(model_inputs(proto))), Preprocessing(**options))


@pytest.mark.parametrize(
    "options",
    [{"scale": 1 / 255}, {"scale": 1, "mean": (128.0,)}, {"scale": 2}, {"scale": 1 / 255, "mean": (0.5,)}],
)
def test_values_that_an_integer_input_cannot_hold(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="holds integers from 0 to 255"):
        reader(elem_type=TensorProto.UINT8, **options)


def test_the_reader_says_what_it_does() -> None:
    assert str(reader(mean=(0.5,), std=(0.25,))) == "images as RGB, 4 x 6 pixels, NCHW, (pixel / 255 - 0.5) / 0.25"
    assert str(reader(["n", 4, 6, 1], TensorProto.INT8)) == "images as GRAY, 4 x 6 pixels, NHWC, (pixel - 128)"


# ---------------------------------------------------------------- sizes


def test_a_crop_is_that_of_torchvision(tmp_path: Path) -> None:
    """Resize(256) and CenterCrop(224): the shorter side to 256, the longer one in proportion, the middle cut out."""
    photo = Image.fromarray(pixels(75, 100)).resize((500, 375), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "wide.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "high.png")
    made = reader(["n", 224, 224, 3], scale=1)
    for name, size in (("wide", (341, 256)), ("high", (256, 341))):
        resized = Image.open(tmp_path / f"{name}.png").resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = np.asarray(resized)[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(made.read(tmp_path / f"{name}.png"), expected)


def test_the_share_that_a_crop_keeps(tmp_path: Path) -> None:
    """A red frame of an eighth of each side is cut off by a crop of 0.75, and seen with 1."""
    image = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    image[8:-8, 8:-8] = (0, 255, 0)
    path = save(tmp_path / "frame.png", image)
    cut = reader(["n", 24, 24, 3], scale=1, crop=0.75).read(path)
    assert (cut[:, :, 1] > 128).all()
    whole = reader(["n", 24, 24, 3], scale=1, crop=1.0).read(path)
    assert (whole[0] == (255, 0, 0)).all()
    assert (whole[12, 12] == (0, 255, 0)).all()


def test_a_crop_for_an_oblong_input_keeps_the_aspect(tmp_path: Path) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[15:45, 15:45] = 255  # a square remains one
    values = reader(["n", 20, 40, 3], scale=1, crop=1.0).read(save(tmp_path / "a.png", image))[:, :, 0] > 127
    assert values.any(axis=0).sum() == 20
    assert values[10].sum() == 20
    assert values.any(axis=1).all()


def test_stretch_keeps_everything(tmp_path: Path) -> None:
    image = np.zeros((20, 80, 3), np.uint8)
    image[:, :40] = 255
    path = save(tmp_path / "a.png", image)
    stretched = reader(["n", 20, 20, 3], scale=1, resize="stretch").read(path)
    assert (stretched[:, :8] == 255).all()
    assert (stretched[:, 12:] == 0).all()


def test_the_right_size_is_not_touched(tmp_path: Path) -> None:
    image = pixels(5, 7)
    path = save(tmp_path / "a.png", image)
    for options in ({"crop": 0.5}, {"resize": "stretch"}):
        np.testing.assert_array_equal(reader(["n", 5, 7, 3], scale=1, **options).read(path), image)


def test_a_very_long_image_needs_little_memory(tmp_path: Path) -> None:
    """Resized as a whole, it would have 256 x 5 million pixels."""
    image = np.zeros((2, 40000, 3), np.uint8)
    image[:, 19999:] = 200
    values = reader(["n", 224, 224, 3], scale=1).read(save(tmp_path / "long.png", image))
    assert values.shape == (224, 224, 3)
    assert values.max() == 200


# ---------------------------------------------------------------- kinds of files


def test_modes_become_what_the_model_takes(tmp_path: Path) -> None:
    rgb = pixels()
    picture = Image.fromarray(rgb)
    alpha = Image.fromarray(pixels(channels=1, seed=1))
    made = reader(["n", 4, 6, 3], scale=1)

    rgba = picture.copy()
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(made.read(tmp_path / "rgba.png"), rgb)  # alpha is dropped

    gray = pixels(channels=1)
    save(tmp_path / "gray.png", gray)
    np.testing.assert_array_equal(made.read(tmp_path / "gray.png"), np.stack([gray] * 3, -1))
    Image.merge("LA", (Image.fromarray(gray), alpha)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(made.read(tmp_path / "la.png"), np.stack([gray] * 3, -1))

    Image.fromarray(rgb).quantize(256).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(made.read(tmp_path / "palette.png"), picture.quantize(256).convert("RGB"))
    picture.quantize(24).save(tmp_path / "clear.png", transparency=bytes(range(24)))
    np.testing.assert_array_equal(made.read(tmp_path / "clear.png"), picture.quantize(24).convert("RGB"))

    Image.fromarray(gray > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(made.read(tmp_path / "bits.png")[:, :, 0], (gray > 99) * 255)
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(made.read(tmp_path / "cmyk.tif"), rgb)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    """Pillow alone would cut everything above 255 to white."""
    wide = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    if suffix == ".pgm":  # older Pillow reads it, but writes none
        (tmp_path / "wide.pgm").write_bytes(b"P5 6 4 65535\n" + wide.astype(">u2").tobytes())
    else:
        save(tmp_path / f"wide{suffix}", wide)
    values = reader([1, 1, 4, 6], scale=1).read(tmp_path / f"wide{suffix}")[0]
    assert np.abs(values - wide / 257.0).max() <= 0.5


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    for number, array in enumerate((np.ones((4, 6), np.float32), np.ones((4, 6), np.int32))):
        path = save(tmp_path / f"{number}.tif", array)
        with pytest.raises(DataError, match=rf"{number}\.tif' has pixels of 32 bits"):
            reader([1, 1, 4, 6]).read(path)


def test_the_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    image = pixels()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(reader(["n", 4, 6, 3], scale=1).read(tmp_path / "turned.png"), image)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    Image.fromarray(pixels(64, 64)).save(tmp_path / "good.jpg")
    good = (tmp_path / "good.jpg").read_bytes()
    contents = {"empty.png": b"", "text.jpg": b"a, b", "cut.jpg": good[: len(good) // 2], "head.jpg": good[:20]}
    Image.fromarray(pixels(64, 64)).save(tmp_path / "good.png")
    png = (tmp_path / "good.png").read_bytes()
    contents["cut.png"] = png[: len(png) // 2]
    contents["damaged.png"] = png[:100] + bytes(200) + png[300:]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read the image .*{name}"):
            reader().read(tmp_path / name)
    with pytest.raises(DataError, match=r"missing\.png"):
        reader().read(tmp_path / "missing.png")


# ---------------------------------------------------------------- folders


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_flat_folder(tmp_path: Path) -> None:
    fill(tmp_path, "b.PNG", "a.Jpeg", "c 日本 'x'.webp", "labels.csv", ".hidden.png", ".DS_Store", "Thumbs.db")
    found = find_images(tmp_path)
    assert found.names == ("a.Jpeg", "b.PNG", "c 日本 'x'.webp")
    assert found.paths == tuple(tmp_path / name for name in found.names)
    assert found.labels is None
    assert found.classes is None
    assert found.notes == ("not used, as their names are not those of images: 1 files, such as 'labels.csv'",)


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "dog/2.png", "dog/1.png", "cat/3.png", "cat/readme.txt", ".cache/x.png", "Zebra/0.png")
    found = find_images(tmp_path)
    assert found.names == ("Zebra/0.png", "cat/3.png", "dog/1.png", "dog/2.png")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 2]
    assert found.classes == ["Zebra", "cat", "dog"]
    assert found.notes[0] == "3 class folders: 'Zebra' is class 0, 'dog' is class 2"
    assert len(found.notes) == 2
    assert "cat/readme.txt" in found.notes[1]


def test_what_a_user_may_not_expect_of_class_folders(tmp_path: Path) -> None:
    fill(tmp_path / "numbers", "0/a.png", "2/a.png", "10/a.png")
    assert any("'10' is class 1" in note for note in find_images(tmp_path / "numbers").notes)
    fill(tmp_path / "padded", "00/a.png", "01/a.png", "10/a.png")
    assert find_images(tmp_path / "padded").notes == ("3 class folders: '00' is class 0, '10' is class 2",)
    fill(tmp_path / "one", "images/a.png")
    assert any("every label is 0" in note for note in find_images(tmp_path / "one").notes)
    fill(tmp_path / "gap", "a/1.png", "c/1.png")
    (tmp_path / "gap" / "b").mkdir()
    gap = find_images(tmp_path / "gap")
    assert gap.labels is not None
    assert gap.labels.tolist() == [0, 2]
    assert gap.notes == ("the class folder 'b' holds no images", "3 class folders: 'a' is class 0, 'c' is class 2")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty"):
        find_images(tmp_path / "empty")
    fill(tmp_path / "texts", "a.txt")
    with pytest.raises(DataError, match=r"no images in .*texts.*'a\.txt'.*\.jpeg"):
        find_images(tmp_path / "texts")
    fill(tmp_path / "mixed", "a.png", "cat/b.png")
    with pytest.raises(DataError, match=r"holds images \('a\.png'\) and folders \('cat'\)"):
        find_images(tmp_path / "mixed")
    fill(tmp_path / "deep", "train/cat/b.png")
    with pytest.raises(DataError, match=r"class folder .*train'.* holds a folder \('cat'\)"):
        find_images(tmp_path / "deep")
    with pytest.raises(DataError, match="cannot read the folder"):
        find_images(tmp_path / "missing")


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs rights on Windows")
def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path, "real/a.png")
    links = tmp_path / "links"
    links.mkdir()
    (links / "b.png").symlink_to(tmp_path / "real" / "a.png")
    assert find_images(links).names == ("b.png",)
    classes = tmp_path / "classes"
    classes.mkdir()
    (classes / "cat").symlink_to(tmp_path / "real")
    assert find_images(classes).names == ("cat/a.png",)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only text as names")
def test_names_that_are_not_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(raw))
    found = find_images(tmp_path)
    assert reader().read(found.paths[0]).shape == (3, 4, 6)
    Path(os.fsdecode(raw)).write_bytes(b"no")
    with pytest.raises(DataError) as caught:
        reader().read(found.paths[0])
    str(caught.value).encode("utf-8")  # can be printed


# ---------------------------------------------------------------- settings


def test_settings_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        'scale = "1/127.5"\nmean = 1\nstd = [0.5, 0.25, 1]\nlayout = "nhwc"\nsize = [224, 192]\ncolor = "bgr"\n'
        'resize = "Stretch"\ncrop = 1\n'
    )
    assert Preprocessing.load(tmp_path / "p.toml") == Preprocessing(
        1 / 127.5, (1.0,), (0.5, 0.25, 1.0), "NHWC", (224, 192), "BGR", "stretch", 1.0
    )
    (tmp_path / "empty.toml").write_text("")
    assert Preprocessing.load(tmp_path / "empty.toml") == Preprocessing()


def test_settings_from_texts() -> None:
    values = {"scale": "1/255", "mean": "0.485, 0.456,0.406", "std": "0.5", "size": "224x192", "crop": ".9"}
    made = Preprocessing.from_values(values)
    assert made == Preprocessing(1 / 255, (0.485, 0.456, 0.406), (0.5,), size=(224, 192), crop=0.9)
    assert Preprocessing.from_values({"size": 32}).size == (32, 32)
    assert Preprocessing.from_values({"size": "224,192"}).size == (224, 192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meen = 1", r"p\.toml: there is no key 'meen', did you mean 'mean'\?"),
        ("[image]\nmean = 1", "there is no key 'image'; known keys: scale, mean"),
        ("mean = ", "is not a TOML file"),
        ("mean = [1, 2]", r"p\.toml: mean must be one value, or three"),
        ("mean = 'a'", "mean: 'a' is not a number"),
        ("mean = true", "mean: True is not a number"),
        ("mean = nan", "mean must be finite"),
        ("std = 0", "std must be positive"),
        ("scale = 0", "scale must be a positive number"),
        ("scale = '1/0'", "scale: '1/0' is not a number"),
        ("scale = inf", "scale must be a positive number"),
        ("size = [1, 2, 3]", "size must be a height and a width"),
        ("size = 0", "size must be a height and a width"),
        ("size = 2.5", "size must be whole numbers"),
        ("crop = 1.5", "crop must be above 0"),
        ("layout = 'NHCW'", "layout must be one of NCHW, NHWC, not 'NHCW', did you mean 'NHWC'"),
        ("color = 'YUV'", "color must be one of RGB, BGR, GRAY, not 'YUV'"),
        ("resize = 'squash'", "resize must be one of crop, stretch"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(OptionError, match=message):
        Preprocessing.load(tmp_path / "p.toml")


def test_settings_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match=r"binary\.toml' is not a TOML file"):
        Preprocessing.load(tmp_path / "binary.toml")
    with pytest.raises(OptionError, match=r"cannot read .*missing\.toml"):
        Preprocessing.load(tmp_path / "missing.toml")
