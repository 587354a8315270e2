"""What ``data=`` takes from Python: batches of loaders, pairs of samples and classes, datasets with named columns."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import onnxsep
from onnxsep.data import batches, open_data
from onnxsep.data.dataset import Dataset
from onnxsep.errors import DataError, OptionError
from onnxsep.model.io import Model, load

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3, 4, 4)).astype(np.float32)
Y = RNG.integers(0, 5, 20)
PIXELS = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
NAMES = ["a", "b", "c", "d", "e"]
CLASSES = [0, 1, 2, 3, 4, 0]


def model(batch: int | str = "n", inputs: int = 1) -> onnx.ModelProto:
    """A classifier of five classes: a 1 x 1 Conv of the sum of its inputs, and the mean over the image."""
    weight = onnx.numpy_helper.from_array(
        np.random.default_rng(1).standard_normal((5, 3, 1, 1)).astype(np.float32), "w"
    )
    names = ["x", "z"][:inputs]
    nodes = [
        helper.make_node("Sum", names, ["s"]),
        helper.make_node("Conv", ["s", "w"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0),
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 4, 4]) for name in names]
    scores = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])]
    graph = helper.make_graph(nodes, "g", given, scores, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


MODEL = load(model())


def fed(data: Dataset, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in data.feeds()])


def in_batches(size: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(X), size):
        yield X[start : start + size], Y[start : start + size]


SOURCES: dict[str, Callable[[], Any]] = {
    "a generator of pairs": in_batches,
    "a list of pairs": lambda: list(in_batches()),
    "lists": lambda: [[x, y] for x, y in in_batches()],
    "one sample each": lambda: [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "one sample each, numpy's classes": lambda: zip(X, Y, strict=True),
    "classes [b, 1]": lambda: [(x, y[:, None]) for x, y in in_batches()],
    "inputs by name": lambda: [({"x": x}, y) for x, y in in_batches()],
    "inputs in a list": lambda: [([x], y) for x, y in in_batches()],
    "dicts": lambda: [{"pixel_values": x, "labels": y} for x, y in in_batches()],
    "dicts with y": lambda: ({"x": x, "y": y} for x, y in in_batches()),
    "a dataset without iterator": lambda: Numbered(),
}


class Numbered:
    """As a dataset of torch: samples by their numbers, which need not end in an IndexError."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return X[number % len(X)], int(Y[number % len(X)])


@pytest.mark.parametrize("name", SOURCES)
def test_samples_and_their_classes(name: str) -> None:
    data = open_data(SOURCES[name](), MODEL)
    np.testing.assert_array_equal(fed(data), X)
    np.testing.assert_array_equal(fed(data), X)  # it can be read again, whatever it was made from
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, Y)
    assert data.notes == ()


def test_torch_tensors_and_loaders() -> None:
    torch = pytest.importorskip("torch")
    tensors = torch.tensor(X, requires_grad=True), torch.tensor(Y)
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), tensors[1])
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    for source in (loader, iter(loader), dataset, [tensors], {"x": tensors[0], "y": tensors[1]}):
        data = open_data(source, MODEL)
        np.testing.assert_array_equal(fed(data), X)
        assert data.labels is not None
        np.testing.assert_array_equal(data.labels, Y)
    for source in (tensors[0], [tensors[0]], [(tensors[0],)]):
        data = open_data(source, MODEL)
        np.testing.assert_array_equal(fed(data), X)
        assert data.labels is None
    with pytest.raises(DataError, match=r"part 0 cannot be read as an array .*BFloat16"):
        open_data([(torch.tensor(X).bfloat16(), tensors[1])], MODEL)


def test_a_shuffling_loader_gives_all_steps_the_same_samples() -> None:
    torch = pytest.importorskip("torch")
    few = {"x": X[:16], "y": Y[:16]}  # so few that all are measured on, too
    dataset = torch.utils.data.TensorDataset(torch.tensor(few["x"]), torch.tensor(few["y"]))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    steps = [onnxsep.Prune(sparsity=0.2), onnxsep.Quantize(equalize=False, bias_correction=False)]
    done = onnxsep.compress(model(), onnxsep.Pipeline(steps), data=loader, runs=0)
    assert done.report.evaluation.samples == 16
    expected = onnxsep.evaluate(model(), data=few, runs=0, memory=False)  # in any order
    assert done.report.evaluation.models[0].top1 is not None
    assert expected.models[0].top1 is not None
    assert done.report.evaluation.models[0].top1.share.value == expected.models[0].top1.share.value


def test_a_fixed_batch_and_batches_of_another_size() -> None:
    data = open_data(in_batches(6), load(model(batch=4)))
    np.testing.assert_array_equal(fed(data), X)
    assert [len(feed["x"]) for feed in data.feeds()] == [4] * 5
    assert len(open_data(in_batches(3), load(model(batch=1)))) == len(X)


def test_several_inputs() -> None:
    two = load(model(inputs=2))
    data = open_data([(x, 2 * x, y) for x, y in in_batches()], two)
    np.testing.assert_array_equal(fed(data, "z"), 2 * X)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, Y)
    data = open_data([(x, 2 * x) for x, _ in in_batches()], two)
    np.testing.assert_array_equal(fed(data, "z"), 2 * X)
    assert data.labels is None
    data = open_data([((x, 2 * x), y) for x, y in in_batches()], two)
    np.testing.assert_array_equal(fed(data, "x"), X)
    with pytest.raises(DataError, match="feed 0 has 4 arrays, and the model 2 inputs"):
        open_data([(X, X, Y, Y)], two)


@pytest.mark.parametrize("beside", [np.eye(5, dtype=np.float32)[Y], Y[:, None].repeat(4, 1), Y.astype(np.float32)])
def test_what_is_no_class_is_not_taken_for_one(beside: np.ndarray) -> None:
    data = open_data([(X, beside)], MODEL)
    assert data.labels is None
    (note,) = data.notes
    assert "no class of each" in note
    given = open_data([(X, beside)], MODEL, labels=Y)
    assert given.labels is not None
    np.testing.assert_array_equal(given.labels, Y)


def test_secret_classes_are_none() -> None:
    data = open_data([(X, np.full(20, -1))], MODEL)
    assert data.labels is None
    assert "-1 everywhere" in data.notes[0]
    with pytest.raises(DataError, match="the label of sample 3 is -1"):
        open_data([(X, np.where(np.arange(20) == 3, -1, Y))], MODEL)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["a.png"], "feed 0 is a str"),
        ([X, "a.png"], "feed 1 is a str"),
        ([()], "feed 0 is a tuple"),
        ([(X, Y, Y)], "feed 0 has 3 arrays, and the model 1 inputs"),
        ([(X.transpose(0, 2, 3, 1), Y)], r"expected \[samples, 3, 4, 4\]; it would fit after .transpose"),
        ([(X.astype(np.float64), Y)], "nothing is cast silently"),
        ([({"q": X}, Y)], "no array for input 'x'"),
        ([(object(), Y)], "part 0 is a object, and no array or tensor"),
        ([(X, Y), (X, np.ones((20, 2)))], "1 of 2 feeds have labels"),
        (object(), "must be a path, arrays, an iterable of feeds or a dataset, not object"),
        (iter(()), "the iterable is empty"),
    ],
)
def test_what_cannot_be_used(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(source, MODEL)


def test_an_endless_generator_ends_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_KEPT", 10 * (X.nbytes + Y.nbytes))
    read = []

    def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            read.append(1)
            yield X, Y

    with pytest.raises(DataError, match=r"read once and kept, and hold more than .* \(after 10 items\): give fewer"):
        open_data(endless(), MODEL)
    assert len(read) == 11
    with pytest.raises(DataError, match="read once and kept"):
        onnxsep.compress(model(), onnxsep.Pipeline([onnxsep.Prune(sparsity=0.2)]), data=endless(), runs=0)
    assert len(open_data([(X, Y)] * 12, MODEL)) == 12 * len(X)  # a list is in memory anyway


def test_a_generator_may_fill_the_same_arrays_again() -> None:
    def reusing() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        x, y = np.empty_like(X[:5]), np.empty_like(Y[:5])
        for start in range(0, 20, 5):
            x[:], y[:] = X[start : start + 5], Y[start : start + 5]
            yield x, y

    data = open_data(reusing(), MODEL)
    np.testing.assert_array_equal(fed(data), X)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, Y)


def test_commands_take_the_classes_that_come_with_the_samples() -> None:
    found = onnxsep.evaluate(model(), data=in_batches(), runs=0, memory=False)
    scores = np.einsum("oi,nihw->no", np.random.default_rng(1).standard_normal((5, 3)), X) / 16
    assert found.models[0].top1 is not None
    assert found.models[0].top1.share.count == int((scores.argmax(1) == Y).sum())
    assert onnxsep.check(model(), model(), data=in_batches())
    assert onnxsep.quantize(model(), data=in_batches(), samples=8).report.calibration_samples == 8


class Table:
    """What ``onnxsep`` knows of a dataset of Hugging Face's library: the same names, no more."""

    def __init__(self, features: dict[str, Any], **columns: list[Any]) -> None:
        self.features, self.column_names, self._columns = features, list(columns), columns
        self.format = {"type": None}
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number >= len(self):
            raise IndexError(number)
        self.read.append(number)
        return {name: column[number] for name, column in self._columns.items()}


class_label = SimpleNamespace(names=NAMES)


def images(**others: list[Any]) -> dict[str, list[Any]]:
    return {"image": [Image.fromarray(one) for one in PIXELS], **others}


def own(features: dict[str, Any], columns: dict[str, list[Any]]) -> Any:
    return Table(features, **columns)


def real(features: dict[str, Any], columns: dict[str, list[Any]]) -> Any:
    library = pytest.importorskip("datasets")
    kinds = {
        name: library.ClassLabel(names=features[name].names)
        if name in features
        else library.Image()
        if isinstance(column[0], Image.Image)
        else library.Value("int64")
        if isinstance(column[0], int)
        else library.Array3D((3, 4, 4), "float32")
        for name, column in columns.items()
    }
    return library.Dataset.from_dict(columns, features=library.Features(kinds))


Made = Callable[[dict[str, Any], dict[str, list[Any]]], Any]
both = pytest.mark.parametrize("made", [own, real])
EXPECTED = (PIXELS.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)


@both
def test_a_dataset_of_images_and_classes(made: Made) -> None:
    source = made({"label": class_label}, images(label=CLASSES))
    data = open_data(source, MODEL)
    np.testing.assert_array_equal(fed(data), EXPECTED)
    assert data.labels is not None
    assert data.labels.tolist() == CLASSES
    assert data.classes == NAMES
    assert data.notes[0] == "images as RGB, 4 x 4 pixels, NCHW, pixel / 255"
    assert "a trial takes 8 samples or more, and there are 6" in data.notes[1]
    assert len(data.notes) == 2
    other = open_data(source, MODEL, preprocessing={"scale": 1, "mean": [1, 2, 3]})
    expected = PIXELS.transpose(0, 3, 1, 2) - np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(fed(other), expected)
    assert data.fingerprint() == open_data(source, MODEL).fingerprint() != other.fingerprint()
    found = onnxsep.evaluate(model(), data=source, runs=0, memory=False)
    assert (found.samples, found.classes) == (6, 5)


def test_images_are_decoded_when_they_are_needed() -> None:
    source = Table({}, **images(label=CLASSES))
    data = open_data(source, MODEL)
    source.read.clear()
    data.feed([4, 2])
    assert source.read == [4, 2]


def test_images_that_are_not_decoded() -> None:
    def stored(pixels: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    np.testing.assert_array_equal(fed(open_data(Table({}, img=list(map(stored, PIXELS))), MODEL)), EXPECTED)
    broken = Table({}, img=[{"bytes": b"no image", "path": None}])
    with pytest.raises(DataError, match="cannot read row 0 of the dataset: cannot identify image"):
        open_data(broken, MODEL).feed([0])


@both
def test_a_dataset_of_arrays(made: Made) -> None:
    data = open_data(made({}, {"pixel_values": X.tolist(), "label": Y.tolist()}), MODEL)
    np.testing.assert_array_equal(fed(data), X)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, Y)
    with pytest.raises(DataError, match="preprocessing are for images"):
        open_data(made({}, {"x": X.tolist()}), MODEL, preprocessing={"scale": 1})


@both
def test_two_columns_of_classes_are_not_chosen_between(made: Made) -> None:
    features = {"fine": class_label, "coarse": SimpleNamespace(names=["u", "v"])}
    source = made(features, images(fine=CLASSES, coarse=[0, 1] * 3))
    data = open_data(source, MODEL)
    assert data.labels is None
    assert "('fine', 'coarse'), of which none is used: give labels=dataset['fine']" in data.notes[-1]
    given = open_data(source, MODEL, labels=CLASSES)
    assert given.labels is not None
    assert given.labels.tolist() == CLASSES
    assert not any("none is used" in note for note in given.notes)


@both
def test_datasets_that_cannot_be_used(made: Made) -> None:
    source = made({}, images(label=[-1] * 6))
    assert open_data(source, MODEL).labels is None
    with pytest.raises(DataError, match=r"splits 'train', 'test': give one of them, such as data=dataset\['train'\]"):
        open_data({"train": source, "test": source}, MODEL)
    with pytest.raises(DataError, match="the dataset has no column 'x'; it has: 'label'"):
        open_data(made({}, {"label": CLASSES}), MODEL)
    with pytest.raises(DataError, match=r"several columns of images \('left', 'right'\)"):
        open_data(made({}, {"left": images()["image"], "right": images()["image"]}), MODEL)
    with pytest.raises(DataError, match="no labels, which are needed"):
        open_data(made({}, images()), MODEL, need_labels=True)


def test_no_rows_and_rows_of_several_shapes() -> None:
    with pytest.raises(DataError, match="the dataset has no rows"):
        open_data(Table({}, image=[]), MODEL)
    with pytest.raises(DataError, match="several shapes"):
        open_data(Table({}, x=[X[0], X[0][:, :2]]), MODEL)
    with pytest.raises(DataError, match="row 1 of the dataset, column 'x' is no array of numbers"):
        open_data(Table({}, x=[X[0].tolist(), [["a"]]]), MODEL)


def test_formats_streams_and_transforms_of_the_library() -> None:
    library = pytest.importorskip("datasets")
    source = real({"label": class_label}, images(label=CLASSES))
    first = open_data(source, MODEL).fingerprint()
    for other in (
        source.with_format("numpy"),
        source.to_iterable_dataset(),
        source.cast_column("image", library.Image(decode=False)),
    ):
        assert open_data(other, MODEL).fingerprint() == first
    scaled = source.with_transform(
        lambda rows: {
            "x": [np.asarray(one, np.float32).transpose(2, 0, 1) / 255 for one in rows["image"]],
            "label": rows["label"],
        }
    )
    data = open_data(scaled, MODEL)
    np.testing.assert_array_equal(fed(data), EXPECTED)
    assert data.labels is not None
    assert data.labels.tolist() == CLASSES


def test_a_model_that_takes_one_image_at_a_time() -> None:
    one: Model = load(model(batch=1))
    data = open_data(Table({}, **images(label=CLASSES)), one)
    assert [len(feed["x"]) for feed in data.feeds()] == [1] * 6


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        ({"meen": 1}, "meen = 1", "there is no key 'meen', did you mean 'mean'?"),
        ({"std": [1, 0, 1]}, "std = [1, 0, 1]", "std must be positive"),
        ({"layout": "NHCW"}, 'layout = "NHCW"', "layout must be one of NCHW, NHWC, not 'NHCW', did you mean 'NHWC'?"),
        ({"scale": "x"}, 'scale = "x"', "scale: 'x' is not a number"),
        ({"size": 1.5}, "size = 1.5", "size must be whole numbers of pixels"),
    ],
)
def test_preprocessing_as_a_dict_is_checked_as_a_file_is(
    values: dict[str, Any], text: str, message: str, tmp_path: Path
) -> None:
    place = tmp_path / "p.toml"
    place.write_text(text)
    source = Table({}, **images())
    said = []
    for given in (values, place, str(place)):
        with pytest.raises(OptionError) as caught:
            onnxsep.evaluate(model(), data=source, preprocessing=given, reference=model())
        said.append(str(caught.value).replace(f"{place}: ", "preprocessing: "))
    assert len(set(said)) == 1
    assert message in said[0]
    place.write_text("scale = 1\nmean = [1, 2, 3]")
    alike = {"scale": 1, "mean": [1, 2, 3]}
    fingerprints = {open_data(source, MODEL, preprocessing=one).fingerprint() for one in (alike, place, str(place))}
    assert len(fingerprints) == 1
    assert fingerprints != {open_data(source, MODEL).fingerprint()}
