import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsep.errors import FeedError, OptionError
from onnxsep.model.io import Model, load
from onnxsep.running.feeds import make_feeds, parse_input_shape
from onnxsep.running.runtime import Runner, RuntimeOptions


def parse(graph: str) -> Model:
    return Model(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}'))


def with_input(elem_type: int, dims: list[int | str | None] | None) -> Model:
    """A model with one input 'image', whose dims are given as ONNX stores them."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"])],
        "one",
        [helper.make_tensor_value_info("image", elem_type, dims)],
        [helper.make_tensor_value_info("y", elem_type, None)],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def shapes(model: Model, **options: Any) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in make_feeds(model, **options).arrays.items()}


# ---------------------------------------------------------------- random values


def test_same_seed_same_values() -> None:
    model = parse("g (float[2,3] a, float[2,3] b) => (float[2,3] y) { y = Add(a, b) }")
    first, again, other = make_feeds(model), make_feeds(model), make_feeds(model, seed=1)
    np.testing.assert_array_equal(first.arrays["a"], again.arrays["a"])
    assert not np.array_equal(first.arrays["a"], other.arrays["a"])
    assert not np.array_equal(first.arrays["a"], first.arrays["b"])
    with pytest.raises(OptionError, match="seed"):
        make_feeds(model, seed=-1)


@pytest.mark.parametrize(
    ("elem_type", "dtype"),
    [
        (TensorProto.FLOAT, np.float32),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    ],
)
def test_floats_are_standard_normal(elem_type: int, dtype: npt.DTypeLike) -> None:
    array = make_feeds(with_input(elem_type, [100, 100])).arrays["image"]
    assert array.dtype == np.dtype(dtype)
    values = array.astype(np.float64)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("elem_type", "dtype", "low", "high"),
    [
        (TensorProto.UINT8, np.uint8, 0, 255),
        (TensorProto.INT8, np.int8, -128, 127),
        (TensorProto.INT32, np.int32, 0, 1),
        (TensorProto.INT64, np.int64, 0, 1),
        (TensorProto.UINT16, np.uint16, 0, 1),
        (TensorProto.BOOL, np.bool_, 0, 1),
    ],
)
def test_ranges_of_integers(elem_type: int, dtype: npt.DTypeLike, low: int, high: int) -> None:
    array = make_feeds(with_input(elem_type, [100, 100])).arrays["image"]
    assert array.dtype == np.dtype(dtype)
    assert (int(array.min()), int(array.max())) == (low, high)


def test_initialisers_get_no_value() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    model.proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    assert list(make_feeds(model).arrays) == ["x"]
    with pytest.raises(
        FeedError, match=r"no input 'w' that needs a value; the model's inputs are: 'x' \(float32 \[2\]"
    ):
        make_feeds(model, input_shapes={"w": (2,)})


@pytest.mark.parametrize("as_initializer", [True, False])
def test_a_switch_gets_a_value_that_the_model_knows(as_initializer: bool) -> None:
    rate = numpy_helper.from_array(np.array(16000), "rate")
    model = parse("g (int64 sr, float[2] x) => (bool y) { y = Equal(rate, sr) }")
    if as_initializer:
        model.proto.graph.initializer.append(rate)
    else:
        model.proto.graph.node.insert(0, helper.make_node("Constant", [], ["rate"], value=rate))
    feeds = make_feeds(model)
    assert feeds.arrays["sr"].shape == ()
    assert feeds.arrays["sr"].dtype == np.int64
    assert feeds.arrays["sr"] == 16000
    assert feeds.notes == ("input 'sr': set to 16000, a value that the model compares it with",)
    assert Runner(model)(feeds.arrays)["y"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("g (string[2] x) => (string[2] y) { y = Identity(x) }", r"'x' \(string \[2\]\) holds strings.*with inputs"),
        (
            "g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }",
            r"'x' is not a tensor \(its type is sequence\).*verify='none'",
        ),
        (
            "g (optional(float[2]) x) => (bool y) { y = OptionalHasElement(x) }",
            r"'x' is not a tensor \(its type is optional\)",
        ),
        ("g (float8e4m3fn[2] x) => (float[2] y) { y = Cast<to=1>(x) }", r"'x' has element type 17.*verify='none'"),
    ],
)
def test_inputs_without_random_values(graph: str, message: str) -> None:
    with pytest.raises(FeedError, match=message):
        make_feeds(parse(graph))


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ([], ()),
        (["n"], (1,)),
        (["n", "features"], (1, 512)),
        (["n", 7], (1, 7)),
        ([5, "features"], (5, 512)),
        (["n", "time", 80], (1, 512, 80)),
        (["n", 80, "time"], (1, 80, 512)),
        ([2, "n", 128], (2, 1, 128)),  # the state of a recurrent layer
        ([3, "height", "width"], (3, 512, 512)),
        (["n", 3, "h", "w"], (1, 3, 64, 64)),
        ([4, 3, "h", 30], (4, 3, 64, 30)),
        (["n", "h", "w", 3], (1, 64, 64, 3)),
        ([None, None, None, None], (1, 3, 64, 64)),
        (["n", 2, "d", "h", "w"], (1, 2, 32, 32, 32)),
        ([None, None, None, None, None], (1, 1, 32, 32, 32)),
        (["n", "d", "h", "w", 1], (1, 32, 32, 32, 1)),
        ([0, 3, -1, 0], (1, 3, 64, 64)),  # how some exporters write free dimensions
        (["?", "?"], (1, 512)),  # not a name
        (["batch", "batch"], (1, 1)),
        ([2, 3, "batch_size", 5], (2, 3, 1, 5)),
    ],
)
def test_defaults(dims: list[int | str | None] | None, shape: tuple[int, ...]) -> None:
    assert shapes(with_input(TensorProto.FLOAT, dims)) == {"image": shape}


def test_every_default_is_reported() -> None:
    feeds = make_feeds(with_input(TensorProto.FLOAT, ["batch", 3, None, "w"]))
    assert feeds.notes == (
        "input 'image': free dimension 'batch' set to 1",
        "input 'image': free dimension at axis 2 set to 64",
        "input 'image': free dimension 'w' set to 64",
    )
    assert make_feeds(with_input(TensorProto.FLOAT, [1, 3, 8, 8])).notes == ()


def test_one_name_one_size() -> None:
    model = parse("g (float[2,b,4] state, float[n,b,w,h] x, float[w,q,b] z) => (float[2,b,4] y) { y = Neg(state) }")
    # The state makes b 1, and w is the first axis of z, so 1 too.
    assert shapes(model) == {"state": (2, 1, 4), "x": (1, 1, 1, 64), "z": (1, 512, 1)}
    given = make_feeds(model, input_shapes={"x": (2, 7, 6, 9)})
    assert {name: array.shape for name, array in given.arrays.items()} == {
        "state": (2, 7, 4),
        "x": (2, 7, 6, 9),
        "z": (6, 512, 7),
    }
    assert given.notes == (
        "input 'state': free dimension 'b' set to 7",
        "input 'z': free dimension 'w' set to 6",
        "input 'z': free dimension 'q' set to 512",
        "input 'z': free dimension 'b' set to 7",
    )
    with pytest.raises(FeedError, match="dimension 'b' to both 8 and 7"):
        make_feeds(model, input_shapes={"x": (2, 7, 6, 9), "state": (2, 8, 4)})


@pytest.mark.parametrize("dims", [None, ["n", None, "h", "w"]])
@pytest.mark.parametrize("as_initializer", [True, False])
def test_channels_come_from_the_conv_that_the_input_feeds(
    dims: list[int | str | None] | None, as_initializer: bool
) -> None:
    weight = numpy_helper.from_array(np.ones((8, 2, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Div", ["image", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w"], ["y"], group=4),
    ]
    scale = numpy_helper.from_array(np.array(2, np.float32), "scale")
    if not as_initializer:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [scale, weight] if as_initializer else [scale],
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feeds = make_feeds(model)
    assert feeds.arrays["image"].shape == (1, 8, 64, 64)
    assert "input 'image': free dimension at axis 1 set to 8" in feeds.notes
    assert Runner(model)(feeds.arrays)["y"].shape == (1, 8, 62, 62)


def test_unknown_rank_needs_a_shape() -> None:
    model = with_input(TensorProto.FLOAT, None)
    with pytest.raises(FeedError, match=r"of unknown rank.*with input_shapes"):
        make_feeds(model)
    assert shapes(model, input_shapes={"image": (2, 5)}) == {"image": (2, 5)}
    assert shapes(model, input_shapes={"image": ()}) == {"image": ()}


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (1, 3, 8, 8, 8), (1, 3, 0, 8), (1, 3, -2, 8)])
def test_shapes_that_contradict_the_model(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeedError, match=r"does not fit the model's: 'image' \(float32 \[n, 3, \?, w\]\)"):
        make_feeds(with_input(TensorProto.FLOAT, ["n", 3, None, "w"]), input_shapes={"image": shape})


def test_shapes_for_unknown_inputs_and_huge_ones() -> None:
    model = with_input(TensorProto.FLOAT, ["n", 3])
    with pytest.raises(FeedError, match=r"no input 'img'.*'image' \(float32 \[n, 3\]\)"):
        make_feeds(model, input_shapes={"img": (1, 3)})
    with pytest.raises(FeedError, match="3000000000000 elements"):
        make_feeds(model, input_shapes={"image": (10**12, 3)})


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("image:1,3,224,224", "image", (1, 3, 224, 224)),
        ("image:1x3x224x224", "image", (1, 3, 224, 224)),
        ("serving_default:0:1, 43844, 1", "serving_default:0", (1, 43844, 1)),
        ("xx:7", "xx", (7,)),
        ("sr:", "sr", ()),
    ],
)
def test_parse_input_shape(text: str, name: str, shape: tuple[int, ...]) -> None:
    assert parse_input_shape(text) == (name, shape)


@pytest.mark.parametrize(
    "text", ["", "image", "1,3", ":1,3", "image:1,,3", "image:1,0", "image:-1,3", "image:a", "x:1,3,"]
)
def test_parse_input_shape_refuses(text: str) -> None:
    with pytest.raises(OptionError, match="NAME:DIMS"):
        parse_input_shape(text)


@given(st.text(min_size=1), st.lists(st.integers(1, 10**6)), st.sampled_from(",x"))
def test_parse_input_shape_reads_what_is_written(name: str, dims: list[int], separator: str) -> None:
    assert parse_input_shape(f"{name}:{separator.join(map(str, dims))}") == (name, tuple(dims))


# ---------------------------------------------------------------- files


def two_inputs() -> Model:
    return parse("g (float[n,3] a, int64[2] b) => (float[n,3] y) { y = Neg(a) }")


def test_arrays_by_name(tmp_path: Path) -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([5, -6])
    np.savez(tmp_path / "in.npz", b=b, a=a)
    feeds = make_feeds(two_inputs(), inputs=tmp_path / "in.npz")
    assert list(feeds.arrays) == ["a", "b"]
    np.testing.assert_array_equal(feeds.arrays["a"], a)
    np.testing.assert_array_equal(feeds.arrays["b"], b)
    assert feeds.notes == ()


def test_the_only_input_may_be_x_or_npy(tmp_path: Path) -> None:
    image = np.ones((2, 3), np.float32)
    np.savez(tmp_path / "x.npz", x=image)
    np.savez(tmp_path / "named.npz", image=image)
    np.save(tmp_path / "only.npy", image)
    model = with_input(TensorProto.FLOAT, ["n", 3])
    for name in ("x.npz", "named.npz", "only.npy"):
        np.testing.assert_array_equal(make_feeds(model, inputs=tmp_path / name).arrays["image"], image)
    with pytest.raises(FeedError, match="no input 'x'"):
        make_feeds(two_inputs(), inputs=tmp_path / "only.npy")


def test_representations_that_keep_every_value(tmp_path: Path) -> None:
    """Byte order, memory layout and bfloat16's bits may change; values do not."""
    values = np.arange(6).reshape(2, 3)
    cases = {
        TensorProto.FLOAT: np.asfortranarray(values.astype(">f4")),
        TensorProto.BFLOAT16: values.astype(ml_dtypes.bfloat16),
        TensorProto.STRING: values.astype(np.str_),
    }
    for elem_type, array in cases.items():
        np.savez(tmp_path / "in.npz", x=array)
        read = make_feeds(with_input(elem_type, [2, 3]), inputs=tmp_path / "in.npz").arrays["image"]
        np.testing.assert_array_equal(read.astype(np.int64), values)
        assert read.dtype.isnative
        assert read.flags.c_contiguous
    np.savez(tmp_path / "in.npz", x=np.array(7))
    scalar = make_feeds(with_input(TensorProto.INT64, []), inputs=tmp_path / "in.npz").arrays["image"]
    assert scalar.shape == ()


FLOATS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": FLOATS, "c": FLOATS}, r"no input 'c'.*'a' \(float32 \[n, 3\]\), 'b' \(int64 \[2\]\)"),
        ({"a": FLOATS}, r"has no array for input 'b' \(int64 \[2\]\); it has: a"),
        ({"a": FLOATS.astype(np.float64)}, r"'a' .*has type float64; nothing is cast.*\.astype\('float32'\)"),
        ({"a": FLOATS.astype(np.int32)}, r"'a' .*has type int32$"),
        ({"a": np.ones((2, 4), np.float32)}, r"'a' .*has shape \[2, 4\]"),
        ({"a": np.ones((2, 3, 1), np.float32)}, r"'a' .*has shape \[2, 3, 1\]"),
        ({"a": np.ones((0, 3), np.float32)}, r"'a' .*is empty"),
        ({"a": np.where(np.eye(2, 3), np.nan, FLOATS)}, r"'a' .*holds NaN"),
        ({"b": np.array([1, 2], object)}, "no .npz or .npy file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    complete: dict[str, Any] = {"a": FLOATS, "b": np.array([0, 1])} | arrays
    if arrays.keys() == {"a"} and "no array" in message:
        del complete["b"]
    np.savez(tmp_path / "in.npz", **complete)
    with pytest.raises(FeedError, match=message):
        make_feeds(two_inputs(), inputs=tmp_path / "in.npz")


def test_a_given_shape_binds_the_file_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", a=FLOATS, b=np.array([0, 1]))
    make_feeds(two_inputs(), inputs=tmp_path / "in.npz", input_shapes={"a": (2, 3)})
    with pytest.raises(FeedError, match=r"shape \[2, 3\], not the given \[4, 3\]"):
        make_feeds(two_inputs(), inputs=tmp_path / "in.npz", input_shapes={"a": (4, 3)})


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    model = with_input(TensorProto.FLOAT, ["n", 3])
    np.savez_compressed(tmp_path / "good.npz", x=np.random.default_rng(0).random((50, 3)).astype(np.float32))
    good = (tmp_path / "good.npz").read_bytes()
    middle = len(good) // 2
    contents = {
        "empty.npz": b"",
        "text.npz": b"1, 2, 3",
        "pickle.npy": b"\x80\x04K\x01.",
        "cut.npz": good[:middle],
        "damaged.npz": good[:middle] + bytes(byte ^ 0xFF for byte in good[middle : middle + 20]) + good[middle + 20 :],
        "cut.npy": b"\x93NUMPY\x01\x00",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FeedError, match=name):
            make_feeds(model, inputs=tmp_path / name)
    with zipfile.ZipFile(tmp_path / "notes.npz", "w") as archive:
        archive.writestr("x", "text")
    with pytest.raises(FeedError, match="'image'"):
        make_feeds(model, inputs=tmp_path / "notes.npz")
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(FeedError, match="cannot read the inputs"):
            make_feeds(model, inputs=path)


# ---------------------------------------------------------------- trained models


def trained_models() -> list[str]:
    folder = Path(__file__).resolve().parents[2] / "shared" / "models"
    return sorted(path.name for path in folder.glob("*.onnx")) or ["missing"]


@pytest.mark.parametrize("name", trained_models())
def test_trained_models_run_on_default_feeds(shared: Path, name: str) -> None:
    model = load(shared / "models" / name)
    feeds = make_feeds(model)
    outputs = Runner(model, RuntimeOptions(threads=1))(feeds.arrays)
    assert [value.name for value in model.proto.graph.output] == list(outputs)
    assert all(np.isfinite(output).all() and output.size for output in outputs.values())


def test_the_voice_model_runs_on_given_shapes(shared: Path) -> None:
    model = load(shared / "models" / "silero_vad_spox.onnx")
    feeds = make_feeds(model, input_shapes={"input": (3, 576), "state": (2, 3, 128)})
    outputs = Runner(model, RuntimeOptions(threads=1))(feeds.arrays)
    assert {name: output.shape for name, output in outputs.items()} == {"output": (3, 1), "stateN": (2, 3, 128)}


def test_all_trained_models_are_there(shared: Path) -> None:
    assert len(list((shared / "models").glob("*.onnx"))) == 15
