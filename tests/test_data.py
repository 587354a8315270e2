"""Datasets: every source becomes the same feeds, and data that does not fit is refused with its place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import parser
from PIL import Image

from onnxsep.data import Dataset, Preprocessing, open_data
from onnxsep.errors import DataError, OptionError
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import Runner, RuntimeOptions


def parse(graph: str) -> Model:
    return Model(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}'))


def one(dims: str = "n,3", kind: str = "float") -> Model:
    return parse(f"g ({kind}[{dims}] image) => ({kind}[{dims}] y) {{ y = Identity(image) }}")


def two(a: str = "n,3", b: str = "n,2") -> Model:
    return parse(f"g (float[{a}] a, int64[{b}] b) => (float[{a}] y) {{ y = Identity(a) }}")


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def collect(data: Dataset, name: str = "image", **options: Any) -> np.ndarray:
    return np.concatenate([feed[name] for feed in data.feeds(**options)])


def images(folder: Path, count: int, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    """Write image files 00.png, 01.png, ...; their pixels [count, height, width, 3]."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (count, *size, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return pixels


# ---------------------------------------------------------------- the same samples from every source


def test_every_source_gives_the_same_feeds(tmp_path: Path) -> None:
    x, y = values(7, 3), np.arange(7) % 3
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.NPZ", x=x, y=y)
    (tmp_path / "x.NPZ.npz").rename(tmp_path / "x.NPZ")  # NumPy adds the usual ending
    np.savez_compressed(tmp_path / "named.npz", image=x.astype(">f4"), y=y[:, None])
    rows = "".join(f"{number},{label}\n" for number, label in enumerate(y))
    (tmp_path / "y.csv").write_text(rows)
    opened = [
        open_data(tmp_path / "x.npy", one(), labels=tmp_path / "y.csv"),
        open_data(str(tmp_path / "x.NPZ"), one()),
        open_data(tmp_path / "named.npz", one()),
        open_data(x, one(), labels=y),
        open_data({"x": x, "y": y}, one()),
        open_data([{"image": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}], one()),
        open_data((part for part in np.split(x, 7)), one(), labels=y),
    ]
    for data in opened:
        assert len(data) == 7
        assert data.labels is not None
        assert data.labels.tolist() == y.tolist()
        feeds = list(data.feeds(batch=3))
        assert [len(feed["image"]) for feed in feeds] == [3, 3, 1]
        assert all(feed["image"].dtype == np.float32 and feed["image"].dtype.isnative for feed in feeds)
        np.testing.assert_array_equal(collect(data, batch=3), x)
        np.testing.assert_array_equal(collect(data), x)  # again, and with another batch
        np.testing.assert_array_equal(collect(data, indices=[5, 0, 3, 3], batch=2), x[[5, 0, 3, 3]])
    assert len({data.fingerprint() for data in opened}) == 1


def test_images_of_a_folder(tmp_path: Path) -> None:
    pixels = images(tmp_path / "flat", 5)
    data = open_data(tmp_path / "flat", one("n,3,4,6"), preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)))
    assert data.names == ["00.png", "01.png", "02.png", "03.png", "04.png"]
    assert data.labels is None
    assert data.notes == ("images as RGB, 4 x 6 pixels, NCHW, (pixel / 255 - 0.5) / 0.25",)
    expected = ((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(collect(data, batch=2), expected, atol=1e-6)
    np.testing.assert_allclose(collect(data, indices=[4, 1]), expected[[4, 1]], atol=1e-6)


def test_images_with_labels(tmp_path: Path) -> None:
    images(tmp_path / "data" / "dog", 2)
    images(tmp_path / "data" / "cat", 3)
    data = open_data(tmp_path / "data", one("n,3,4,6"), need_labels=True)
    assert data.classes == ["cat", "dog"]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    (tmp_path / "flat.csv").write_text("name,class\n01.png,dog\n00.png,ant\nother.png,bee\n")
    images(tmp_path / "flat", 2)
    flat = open_data(tmp_path / "flat", one("n,3,4,6"), labels=tmp_path / "flat.csv", need_labels=True)
    assert flat.classes == ["ant", "dog"]
    assert flat.labels is not None
    assert flat.labels.tolist() == [0, 1]
    assert flat.notes[-1] == "1 lines of 'flat.csv' name no sample"
    with pytest.raises(DataError, match=r"flat' has no labels.*class.*'y'.*\(labels\)"):
        open_data(tmp_path / "flat", one("n,3,4,6"), need_labels=True)


def test_images_are_read_only_when_they_are_needed(tmp_path: Path) -> None:
    images(tmp_path / "flat", 4)
    (tmp_path / "flat" / "02.png").write_bytes(b"damaged")
    data = open_data(tmp_path / "flat", one("n,3,4,6"))
    feeds = data.feeds(batch=1)
    next(feeds)
    next(feeds)
    with pytest.raises(DataError, match=r"cannot read the image .*02\.png"):
        next(feeds)
    assert len(collect(data, indices=[0, 1, 3])) == 3


def test_an_npy_file_stays_on_the_disk(tmp_path: Path) -> None:
    """What is written to the file later is seen: the array was not read into memory."""
    x = values(50, 3)
    np.save(tmp_path / "x.npy", x)
    data = open_data(tmp_path / "x.npy", one())
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r+")
    on_disk[7] = 5
    on_disk.flush()
    feed = next(data.feeds([7, 8]))["image"]
    assert type(feed) is np.ndarray
    np.testing.assert_array_equal(feed, [[5, 5, 5], x[8]])


def test_feeds_belong_to_the_caller() -> None:
    x = values(4, 3)
    data = open_data(x, one())
    for feed in data.feeds():
        feed["image"][:] = 0
    np.testing.assert_array_equal(collect(data), x)
    assert x.any()


# ---------------------------------------------------------------- how arrays divide into samples


def test_several_inputs(tmp_path: Path) -> None:
    a, b = values(6, 3), np.arange(12).reshape(6, 2)
    np.savez(tmp_path / "ab.npz", a=a, b=b, extra=np.zeros(3))
    data = open_data(tmp_path / "ab.npz", two())
    assert len(data) == 6
    assert len(data.notes) == 1
    assert "not used, as no input has the name: 'extra'" in data.notes[0]
    np.testing.assert_array_equal(collect(data, "b", indices=[4, 1]), b[[4, 1]])


def test_inputs_without_a_batch(tmp_path: Path) -> None:
    """A scalar beside a signal, as in a voice model: complete inputs, one for each sample, or a single one."""
    model = parse("g (float[n,t] a, int64 b) => (float[n,t] y) { y = Identity(a) }")
    a, b = values(5, 1, 8), np.arange(5)
    stacked = open_data({"a": a, "b": b}, model)
    assert len(stacked) == 5
    feeds = list(stacked.feeds([3, 1], batch=4))
    assert [feed["b"].tolist() for feed in feeds] == [3, 1]
    assert feeds[0]["b"].shape == ()
    np.testing.assert_array_equal(feeds[1]["a"], a[1])
    single = open_data({"a": a[0], "b": np.array(9)}, model)
    assert len(single) == 1
    assert next(single.feeds())["a"].shape == (1, 8)
    feeds = list(open_data([{"a": a[i], "b": b[i]} for i in range(5)], model).feeds())
    assert [feed["b"].item() for feed in feeds] == [0, 1, 2, 3, 4]


def test_dimensions_of_different_names_may_differ() -> None:
    data = open_data({"a": values(6, 3), "b": np.ones((2, 2), np.int64)}, two("boxes,3", "classes,2"))
    assert len(data) == 1
    assert {name: array.shape for name, array in next(data.feeds()).items()} == {"a": (6, 3), "b": (2, 2)}


def test_a_fixed_batch_is_obeyed(tmp_path: Path) -> None:
    x = values(10, 3)
    data = open_data(x, one("4,3"))
    assert data.batch == 4
    assert [len(feed["image"]) for feed in data.feeds(batch=7)] == [4, 4]
    assert list(data.batches([9, 8, 7, 6, 5])) == [[9, 8, 7, 6]]
    assert data.notes == (
        "the model takes 4 samples at a time: the last 2 of 10 are left where a batch cannot be filled up",
    )
    for few in (lambda: open_data(x[:3], one("4,3")), lambda: next(data.feeds([1, 2, 3]))):
        with pytest.raises(DataError, match="the model takes 4 samples at a time, and there are 3"):
            few()
    assert open_data(x[:8], one("4,3")).notes == ()
    assert [len(feed["image"]) for feed in open_data(x, one("1,3")).feeds(batch=5)] == [1] * 10
    images(tmp_path / "flat", 5)
    folder = open_data(tmp_path / "flat", one("2,3,4,6"))
    assert [len(feed["image"]) for feed in folder.feeds()] == [2, 2]
    assert "the last 1 of 5" in folder.notes[-1]


def test_feeds_of_a_fixed_batch_are_samples_of_their_own() -> None:
    feeds = [values(4, 3, seed=seed) for seed in range(3)]
    data = open_data(feeds, one("4,3"))
    assert len(data) == 3
    for feed, expected in zip(data.feeds(batch=2), feeds, strict=True):
        np.testing.assert_array_equal(feed["image"], expected)


def test_samples_of_different_shapes_share_no_feed() -> None:
    shapes = [(2, 3, 5), (1, 3, 5), (3, 3, 7), (1, 3, 5)]
    feeds = [{"image": values(*shape)} for shape in shapes]
    data = open_data(feeds, one("n,3,w"))
    assert len(data) == 7
    assert [feed["image"].shape for feed in data.feeds()] == [(3, 3, 5), (3, 3, 7), (1, 3, 5)]


def test_an_iterator_is_read_once_and_may_reuse_its_array() -> None:
    def generator() -> Iterator[dict[str, np.ndarray]]:
        array = np.empty((1, 3), np.float32)
        for number in range(4):
            array[:] = number
            yield {"image": array}

    data = open_data(generator(), one())
    for _ in range(2):
        np.testing.assert_array_equal(collect(data)[:, 0], [0, 1, 2, 3])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_any_division_gives_every_sample_once(sizes: list[int], batch: int, draw: st.DataObject) -> None:
    x = np.arange(sum(sizes), dtype=np.float32)[:, None].repeat(3, 1)
    data = open_data(np.split(x, np.cumsum(sizes)[:-1]), one())
    indices = draw.draw(st.lists(st.integers(0, len(x) - 1), min_size=1))
    np.testing.assert_array_equal(collect(data, indices=indices, batch=batch), x[indices])
    assert [i for part in data.batches(indices, batch) for i in part] == indices
    assert max(len(part) for part in data.batches(indices, batch)) <= batch


def test_types_of_arrays(tmp_path: Path) -> None:
    for kind, array in (
        ("float16", values(2, 3).astype(np.float16)),
        ("bfloat16", values(2, 3).astype(ml_dtypes.bfloat16)),
        ("uint8", np.arange(6, dtype=np.uint8).reshape(2, 3)),
        ("string", np.array([["a", "b", "ü"], ["", "e", "f"]])),
    ):
        np.savez(tmp_path / "x.npz", x=array)
        data = open_data(tmp_path / "x.npz", one("n,3", kind))
        assert collect(data).tolist() == array.tolist()
        assert len(data.fingerprint()) == 64


# ---------------------------------------------------------------- samples and fingerprints


def test_samples_are_chosen_by_the_seed() -> None:
    data = open_data(values(1000, 3), one())
    first = data.sample(100, 5)
    assert first == data.sample(100, 5) == sorted(set(first))
    assert len(first) == 100
    assert first != data.sample(100, 6)
    assert 350 < np.mean(first) < 650  # from everywhere, not from the start
    everything = list(range(1000))
    assert data.sample(None, 0) == data.sample(1000, 0) == data.sample(5000, 3) == everything
    with pytest.raises(OptionError, match="must be 1 or more, not 0"):
        data.sample(0, 0)
    with pytest.raises(OptionError, match="seed"):
        data.sample(1, -1)
    with pytest.raises(OptionError, match="batch must be 1"):
        next(data.feeds(batch=0))


def test_a_fingerprint_changes_with_what_is_fed(tmp_path: Path) -> None:
    x, y = values(4, 3), np.arange(4)
    base = open_data(x, one(), labels=y).fingerprint()
    changed = x.copy()
    changed[3, 2] += 1
    other = [
        open_data(changed, one(), labels=y).fingerprint(),
        open_data(x, one(), labels=y[::-1]).fingerprint(),
        open_data(x, one()).fingerprint(),
        open_data(x[:3], one(), labels=y[:3]).fingerprint(),
        open_data(x[::-1], one(), labels=y).fingerprint(),
    ]
    assert len({base, *other}) == 6
    data = open_data(x, one(), labels=y)
    assert data.fingerprint([0, 1, 2]) == other[3]

    images(tmp_path / "flat", 3)
    model = one("n,3,4,6")
    base = open_data(tmp_path / "flat", model).fingerprint()
    other = [open_data(tmp_path / "flat", model, preprocessing=Preprocessing(mean=(0.5,))).fingerprint()]
    (tmp_path / "flat").rename(tmp_path / "moved")
    assert open_data(tmp_path / "moved", model).fingerprint() == base
    Image.new("RGB", (6, 4)).save(tmp_path / "moved" / "02.png")
    other.append(open_data(tmp_path / "moved", model).fingerprint())
    assert len({base, *other}) == 3
    (tmp_path / "moved" / "01.png").unlink()
    data = open_data(tmp_path / "moved", model)
    (tmp_path / "moved" / "00.png").unlink()
    with pytest.raises(DataError, match=r"00\.png"):
        data.fingerprint()


# ---------------------------------------------------------------- data that cannot be used


def with_nan(value: float) -> NDArray[np.float32]:
    x = values(30, 3)
    x[21, 1] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": values(5, 4)}, r"'image' \(float32 \[n, 3\]\) has shape \[5, 4\], expected \[samples, 3\]"),
        ({"x": values(3)}, r"has shape \[3\], expected \[samples, 3\]"),
        ({"x": values(0, 3)}, r"is empty: its shape is \[0, 3\]"),
        ({"x": values(5, 3).astype(np.float64)}, r"has type float64; nothing is cast.*\.astype\('float32'\)"),
        ({"x": np.ones((5, 3), np.uint8)}, r"has type uint8; arrays are taken as they are, images too: .*x / 255"),
        ({"x": np.ones((5, 3), np.int64)}, r"has type int64$"),
        ({"x_train": values(5, 3)}, r"no array for input 'image'.*found: 'x_train'.*or 'x' for the only one"),
        ({"y": np.arange(3)}, "no array for input 'image'"),
        ({"x": with_nan(np.nan)}, "holds NaN or infinity in sample 21"),
        ({"x": with_nan(-np.inf)}, "holds NaN or infinity in sample 21"),
        ({"x": values(5, 3), "y": np.arange(4)}, "array 'y': there are 4 labels for 5 samples"),
        ({"x": values(5, 3), "y": np.full(5, 0.5)}, "array 'y': labels must be integers"),
        ({"x": values(2, 3), "y": np.array([0, -3])}, "array 'y': the label of sample 1 is -3"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=rf"data\.npz'.*{message}"):
        open_data(tmp_path / "data.npz", one())
    with pytest.raises(DataError, match=message):
        open_data(arrays, one())


def test_swapped_axes_are_named() -> None:
    with pytest.raises(DataError, match=r"expected \[samples, 3, 8, 9\]; it would fit after \.transpose\(0, 3, 1, 2\)"):
        open_data(values(2, 8, 9, 3), one("n,3,8,9"))
    with pytest.raises(DataError, match=r"it would fit after \.transpose\(0, 2, 3, 1\)"):
        open_data(values(2, 3, 8, 9), one("n,8,9,3"))


@pytest.mark.parametrize(
    ("a", "b"), [("n,3", "n,2"), ("?,3", "?,2"), ("unk__1,3", "unk__2,2"), ("batch_a,3", "batch_b,2"), ("1,3", "1,2")]
)
def test_arrays_of_different_length(a: str, b: str) -> None:
    model = two(a, b)
    with pytest.raises(DataError, match="hold different numbers of samples: 'a' has 6, 'b' has 5"):
        open_data({"a": values(6, 3), "b": np.ones((5, 2), np.int64)}, model)


def test_fixed_first_dimensions_that_differ_are_no_batch() -> None:
    model = two("4,3", "2,2")
    with pytest.raises(DataError, match=r"first dimensions of the inputs differ.*\[samples, \.\.\.\]"):
        open_data({"a": values(8, 3), "b": np.ones((8, 2), np.int64)}, model)
    data = open_data({"a": values(5, 4, 3), "b": np.ones((5, 2, 2), np.int64)}, model)
    assert [feed["b"].shape for feed in data.feeds()] == [(2, 2)] * 5


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "holds no feeds"),
        (iter(()), "holds no feeds.*used up"),
        ([{"x": values(2, 3)}, "x"], "feed 1 is a str: a feed must be arrays by input name"),
        ([{"x": values(2, 3)}, {"y": [1, 2]}], "feed 1: there is no array for input 'image'"),
        ([{"x": values(2, 3)}, {"x": values(2, 4)}], r"feed 1: .*has shape \[2, 4\], expected \[n, 3\]"),
        ([{"x": values(4, 3)}, {"x": with_nan(np.inf)}], "feed 1: .*infinity in sample 25"),
        ([{"x": values(2, 3), "y": [0, 1]}, {"x": values(2, 3)}], "1 of 2 feeds have labels"),
        (17, "data must be a path, arrays, an iterable of feeds or a dataset, not int"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(feeds, one())


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing' does not exist"):
        open_data(tmp_path / "missing", one())
    Image.new("RGB", (6, 4)).save(tmp_path / "single.png")
    with pytest.raises(DataError, match=r"single\.png' is neither a folder of images nor.*put them into a folder"):
        open_data(tmp_path / "single.png", one("n,3,4,6"))
    np.save(tmp_path / "good.npy", values(100, 3))
    good = (tmp_path / "good.npy").read_bytes()
    for name, content in {"empty.npy": b"", "cut.npy": good[:-40], "head.npy": good[:9], "text.npz": b"text"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}' is no \.npz or \.npy file"):
            open_data(tmp_path / name, one())
    np.save(tmp_path / "pickled.npy", np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"pickled\.npy"):
        open_data(tmp_path / "pickled.npy", one())


def test_models_that_take_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has no inputs"):
        open_data(values(1, 3), parse("g () => (float y) { y = Constant<value_float = 1.0>() }"))
    with pytest.raises(DataError, match="'s' is not a tensor"):
        open_data(values(1, 3), parse("g (seq(float[3]) s) => (seq(float[3]) y) { y = Identity(s) }"))
    images(tmp_path / "flat", 1)
    with pytest.raises(DataError, match=r"images can be given for one input only.*'a'.*'b'"):
        open_data(tmp_path / "flat", two())


def test_preprocessing_is_for_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(2, 3))
    for source in (tmp_path / "x.npy", values(2, 3), [{"x": values(2, 3)}]):
        open_data(source, one(), preprocessing=Preprocessing())
        with pytest.raises(DataError, match="are for images; arrays are taken as they are"):
            open_data(source, one(), preprocessing=Preprocessing(scale=1))


# ---------------------------------------------------------------- trained models


def test_accuracy_of_trained_models(shared: Path, tmp_path: Path) -> None:
    """The settings that a model was trained with, found by default or given, reach its accuracy on image files."""
    with np.load(shared / "data" / "cifar10_webp.npz") as packed:
        (tmp_path / "sprite.webp").write_bytes(packed["test_lossless_1k"].tobytes())
        labels = packed["y_test_lossless_1k"][:200]
    sprite = np.asarray(Image.open(tmp_path / "sprite.webp").convert("RGB"))
    pixels = sprite.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)[:200]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "images" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    imagenet = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for name, preprocessing in (
        ("cifar10_resnet20_ts", imagenet),
        ("cifar10_resnet8_tf2onnx", Preprocessing(scale=1)),
        ("cifar10_resnet8_qdq_tf2onnx", None),
    ):
        model = load(shared / "models" / f"{name}.onnx")
        data = open_data(tmp_path / "images", model, preprocessing=preprocessing, need_labels=True)
        runner = Runner(model, RuntimeOptions(threads=1))
        outputs = np.concatenate([next(iter(runner(feed).values())) for feed in data.feeds(batch=50)])
        assert data.labels is not None
        assert (outputs.argmax(1) == data.labels).mean() > 0.84  # measured on 1,000: 0.915, 0.881, 0.877
