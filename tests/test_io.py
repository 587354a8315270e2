"""Loading and saving .onnx files: what is refused, what comes back, and that a failed save changes nothing."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from onnxsep.errors import ModelLoadError, ModelSaveError
from onnxsep.model import datafile
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.model.saving import save
from onnxsep.model.tensors import tensor_protos

RNG = np.random.default_rng(0)
NUMBERS = range(TensorProto.FLOAT, TensorProto.STRING)


def make_model(*weights: onnx.TensorProto) -> onnx.ModelProto:
    """A chain of Adds, one for each weight; small, valid, and every weight is used."""
    nodes, value = [], "x"
    for weight in weights:
        nodes.append(helper.make_node("Add", [value, weight.name], [f"{weight.name}_sum"], name=f"add_{weight.name}"))
        value = f"{weight.name}_sum"
    nodes.append(helper.make_node("Relu", [value], ["y"], name="relu"))
    shape = list(weights[0].dims) if weights else [4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializer=weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="somebody")
    model.ir_version = 8
    return model


def floats(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content: to see that nothing was left, lost or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- what is not a model


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing\.onnx does not exist"):
        load(tmp_path / "nothing.onnx")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a folder"):
        load(tmp_path)


def test_file_used_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match="cannot be read: Not a directory"):
        load(tmp_path / "file" / "model.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no fifos on this system")
def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        load(tmp_path / "pipe.onnx")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users on this system")
def test_no_permission_to_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save(make_model(), path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything, so be somebody else for a moment
    try:
        with pytest.raises(ModelLoadError, match="cannot be read: Permission denied"):
            load(path)
    finally:
        os.seteuid(user)


GRAPH = make_model(floats("w", 30, 30)).SerializeToString()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b2c\nsize 94042171\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (LFS, "Git LFS pointer, fetch the real file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image"),
        (b"PK\x03\x04\x14\0\0\0", "zip archive"),
        (b'{"irVersion": "8", "graph": {}}', "JSON file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"ir_version: 8\ngraph {\n  name: 'g'\n}\n", "text file, not a binary ONNX file"),
        ("модель ".encode() * 60, "text file"),
        (bytes(range(255, 0, -1)) * 8, "is not a complete ONNX file"),
        (bytes(1000), "is not a complete ONNX file"),
        (floats("w", 3, 4).SerializeToString(), "is not a complete ONNX file|is not an ONNX model"),
        (GRAPH[: len(GRAPH) // 2], "cut short or damaged"),
        (GRAPH[:100], "cut short or damaged"),
        (b"\x08\x08", "is not an ONNX model"),
        (onnx.ModelProto(ir_version=8, graph=onnx.GraphProto()).SerializeToString(), "imports no operator set"),
        (onnx.ModelProto(graph=onnx.GraphProto(name="g")).SerializeToString(), "is not an ONNX model"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))


def test_cut_at_every_byte_is_an_error_or_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    content = make_model(floats("w", 3)).SerializeToString()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelLoadError):
            load(path)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelLoadError):
        load(path)


SEED_MODEL = make_model(
    floats("w", 2, 3), helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
).SerializeToString()


@settings(max_examples=500)
@given(st.dictionaries(st.integers(0, len(SEED_MODEL) - 1), st.integers(0, 255), min_size=1, max_size=3))
def test_what_loads_can_be_read_and_saved(tmp_path_factory: pytest.TempPathFactory, changes: dict[int, int]) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytes(changes.get(place, byte) for place, byte in enumerate(SEED_MODEL))
    (folder / "changed.onnx").write_bytes(content)
    with contextlib.suppress(ModelLoadError):
        model = load(folder / "changed.onnx")
        assert save(model, folder / "copy.onnx").path.read_bytes() == content
        for tensor in tensor_protos(model.proto):
            if tensor.data_type in NUMBERS:
                assert read_tensor(model, tensor).shape == tuple(tensor.dims)


def test_over_two_gigabytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**31)
    with pytest.raises(ModelLoadError, match="over 2 GB: this is a zip archive"):
        load(path)


def damaged(**changes: Any) -> onnx.TensorProto:
    tensor = floats("w", 3, 4)
    for name, value in changes.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        elif name == "float_data":
            tensor.ClearField("raw_data")
            tensor.float_data.extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (damaged(raw_data=b"123"), "'w' has 3 bytes of data .* need 48"),
        (damaged(raw_data=b""), "has 0 bytes"),
        (damaged(dims=[3, -4]), "negative dimension"),
        (damaged(dims=[2**40, 2**40]), "has 48 bytes"),
        (damaged(float_data=[1.0] * 11), "has 11 values of data .* need 12"),
        (damaged(float_data=[]), "has 0 values"),
        (damaged(data_type=TensorProto.DOUBLE), "need 96"),
        (damaged(data_type=TensorProto.STRING), "has 0 values"),
    ],
)
@pytest.mark.parametrize("from_memory", [True, False])
def test_tensor_that_does_not_fit_its_shape(
    tmp_path: Path, tensor: onnx.TensorProto, message: str, from_memory: bool
) -> None:
    model = make_model(tensor)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match=message):
        load(model if from_memory else tmp_path / "bad.onnx")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    content = make_model(floats("w", 3)).SerializeToString()
    function = onnx.FunctionProto(name="function_name", domain="function_domain", input=["function_input"])
    content += onnx.ModelProto(functions=[function]).SerializeToString()
    for name in (b"Relu", b"add_w", b"w_sum", b"function_name", b"function_domain", b"function_input"):
        (tmp_path / "bad.onnx").write_bytes(content.replace(name, b"\xff" * len(name)))
        with pytest.raises(ModelLoadError, match="not UTF-8"):
            load(tmp_path / "bad.onnx")


def test_external_data_needs_a_path() -> None:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    with pytest.raises(ModelLoadError, match=r"came from memory .* Pass the path"):
        load(make_model(tensor))
    with pytest.raises(ModelLoadError, match="Pass the path"):
        save(make_model(tensor), "out.onnx")


# ---------------------------------------------------------------- what comes back


def test_load_gives_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = make_model(floats("w", 3))
    save(proto, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    model = load("m.onnx")
    assert model == Model(proto, Path("m.onnx"), tmp_path, follow_links=False, pristine=True)
    assert load(model) is model
    memory = load(proto)
    assert memory.proto is proto
    assert (memory.path, memory.base_dir, memory.pristine) == (None, None, False)


def test_every_tensor_is_found() -> None:
    made: list[str] = []

    def tensor() -> onnx.TensorProto:
        made.append(f"tensor{len(made)}")
        return numpy_helper.from_array(np.array([1], np.int64), made[-1])

    def sparse() -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(values=tensor(), indices=tensor(), dims=[9])

    def node(**attribute: Any) -> onnx.NodeProto:
        return onnx.NodeProto(op_type="Any", attribute=[onnx.AttributeProto(name="any", **attribute)])

    def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        return onnx.GraphProto(initializer=[tensor()], sparse_initializer=[sparse()], node=nodes)

    main = graph(
        node(t=tensor()),
        node(tensors=[tensor(), tensor()]),
        node(sparse_tensor=sparse()),
        node(sparse_tensors=[sparse(), sparse()]),
        node(g=graph(node(g=graph(node(t=tensor()))))),
        node(graphs=[graph(), graph()]),
    )
    function = onnx.FunctionProto(
        node=[node(t=tensor()), node(g=graph())], attribute_proto=[onnx.AttributeProto(name="default", t=tensor())]
    )
    training = onnx.TrainingInfoProto(initialization=graph(), algorithm=graph())
    model = onnx.ModelProto(graph=main, functions=[function], training_info=[training])
    found = [tensor.name for tensor in tensor_protos(model)]
    assert sorted(found) == sorted(made)
    assert found[0] == main.initializer[0].name


NUMPY_TYPES = [
    np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32,
    np.uint64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip
TYPED = {
    TensorProto.FLOAT: ("float_data", np.float32),
    TensorProto.DOUBLE: ("double_data", np.float64),
    TensorProto.INT64: ("int64_data", np.int64),
    TensorProto.UINT32: ("uint64_data", np.uint64),
    TensorProto.UINT64: ("uint64_data", np.uint64),
}


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(item) for item in NUMPY_TYPES]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_reads_what_numpy_wrote(array: npt.NDArray[Any]) -> None:
    raw = numpy_helper.from_array(array, "w")
    typed = helper.make_tensor("w", raw.data_type, array.shape, array.ravel().tolist())
    for tensor in (raw, typed):
        model = load(make_model(tensor))
        values = read_tensor(model, tensor)
        assert values.dtype == array.dtype
        assert values.shape == array.shape
        np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize(
    ("data_type", "dtype"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
        (TensorProto.INT4, ml_dtypes.int4),
        (TensorProto.UINT4, ml_dtypes.uint4),
    ],
)
def test_reads_the_small_types(tmp_path: Path, data_type: int, dtype: Any) -> None:
    array = np.array([[0, 1, 2], [3, 4, -2 if data_type != TensorProto.UINT4 else 2], [1, 0, 1]]).astype(dtype)
    raw = helper.make_tensor("w", data_type, array.shape, packed_bytes(array), raw=True)
    typed = helper.make_tensor("w", data_type, array.shape, array.astype(np.float32).ravel().tolist())
    outside = onnx.TensorProto(name="w", data_type=data_type, dims=array.shape, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="w.bin")
    outside.external_data.add(key="offset", value="3")
    (tmp_path / "w.bin").write_bytes(b"???" + packed_bytes(array) + b"?")
    for tensor in (raw, typed, outside):
        (tmp_path / "m.onnx").write_bytes(make_model(tensor).SerializeToString())
        values = read_tensor(load(tmp_path / "m.onnx"), tensor)
        if data_type not in (TensorProto.INT4, TensorProto.UINT4):  # older versions of onnx have a type of their own
            assert values.dtype == array.dtype
        np.testing.assert_array_equal(values.astype(np.float32), array.astype(np.float32))


def packed_bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype not in (ml_dtypes.int4, ml_dtypes.uint4):
        return array.tobytes()
    nibbles = np.append(array.ravel().astype(np.int8).astype(np.uint8) & 15, np.uint8(0))
    return bytes(nibbles[0 : array.size : 2] | nibbles[1 : array.size + 1 : 2] << 4)


def test_reads_strings_and_refuses_unknown_types() -> None:
    words = numpy_helper.from_array(np.array(["a", "ü"], dtype=object), "w")
    assert read_tensor(load(make_model(words)), words).tolist() == ["a", "ü"]
    unknown = onnx.TensorProto(name="w", dims=[2], raw_data=b"ab", data_type=99)
    model = load(make_model(unknown))  # carried over as it is
    with pytest.raises(ModelLoadError, match="'w' of type 99 cannot be read"):
        read_tensor(model, unknown)


def test_array_lives_without_the_proto() -> None:
    weight = floats("w", 3, 4)
    expected = numpy_helper.to_array(weight).copy()
    model = load(make_model(weight))
    values = read_tensor(model, model.proto.graph.initializer[0])
    model.proto.graph.initializer[0].raw_data = bytes(48)
    np.testing.assert_array_equal(values, expected)


# ---------------------------------------------------------------- saving


def test_unchanged_models_keep_their_bytes(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "models").rglob("*.onnx"))
    assert len(paths) >= 15
    for source in paths:
        folder = tmp_path / source.stem
        folder.mkdir()
        elsewhere = save(load(source), folder / "copy.onnx")
        beside = save(load(folder / "copy.onnx"), folder / "again.onnx")
        in_place = save(load(folder / "again.onnx"), folder / "again.onnx")
        for saved in (elsewhere, beside, in_place):
            assert saved.path.read_bytes() == source.read_bytes()
            assert saved.data_paths == elsewhere.data_paths
        data = [path for path in source.parent.iterdir() if path.name.startswith(source.name + ".")]
        assert listing(folder) == {path.name: path.read_bytes() for path in data} | {
            name: source.read_bytes() for name in ("copy.onnx", "again.onnx")
        }
        assert elsewhere.size_bytes == source.stat().st_size + sum(path.stat().st_size for path in data)


def test_fields_in_another_order_are_copied_as_they_are(tmp_path: Path) -> None:
    # protobuf allows any order of fields; a file in another order than ours must still come out byte for byte.
    model = make_model(floats("w", 3))
    opset = onnx.ModelProto(opset_import=model.opset_import).SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.opset_import[:]
    content = opset + rest.SerializeToString()
    assert content != model.SerializeToString()
    (tmp_path / "a.onnx").write_bytes(content)
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == content


def test_pristine_flag_is_not_believed(tmp_path: Path) -> None:
    save(make_model(floats("w", 3)), tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    model.proto.producer_name = "changed in place"
    save(model, tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "b.onnx").producer_name == "changed in place"


def test_source_replaced_since_it_was_loaded(tmp_path: Path) -> None:
    first = make_model(floats("w", 3))
    save(first, tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    save(make_model(floats("v", 5)), tmp_path / "a.onnx")
    save(model, tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "b.onnx") == first
    (tmp_path / "a.onnx").unlink()
    save(model, tmp_path / "c.onnx")
    assert onnx.load(tmp_path / "c.onnx") == first


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    proto = make_model(floats("w", 30, 30))
    before = proto.SerializeToString()
    saved = save(proto, tmp_path / "m.onnx")
    assert proto.SerializeToString() == before == saved.path.read_bytes()
    assert (saved.data_path, saved.size_bytes) == (None, len(before))
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(make_model(floats("w", 30, 30)), path)
    model = load(path)
    model.proto.producer_name = "changed"
    save(model, path)
    assert listing(tmp_path) == {"m.onnx": model.proto.SerializeToString()}


# ---------------------------------------------------------------- over the size of one file


def large_model() -> onnx.ModelProto:
    """Weights at all the places where runtimes accept external data, one in a function, and one too small to leave."""

    def branch(name: str, node: onnx.NodeProto, *weights: onnx.TensorProto) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [600])
        return helper.make_graph([node], name, [], [output], initializer=weights)

    then = branch("then", helper.make_node("Identity", ["in_branch"], ["then_out"]), floats("in_branch", 600))
    other = branch("else", helper.make_node("Constant", [], ["else_out"], value=floats("in_else", 600)))
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [600], RNG.standard_normal(600).tolist())
    model = make_model(floats("small", 600), typed)
    model.graph.initializer.extend([floats("w800", 800, 600), floats("w400", 400, 600)])
    model.graph.initializer.extend([floats("tiny", 255), floats("not_tiny", 256)])
    inner = helper.make_node("Constant", [], ["inner"], value=floats("in_function", 600))
    model.functions.append(helper.make_function("local", "F", [], ["inner"], [inner], list(model.opset_import)))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.extend(
        [
            helper.make_node("Add", ["y", "w800"], ["plus800"]),
            helper.make_node("Add", ["y", "w400"], ["plus400"]),
            helper.make_node("Constant", [], ["c500"], value=floats("c_value", 500, 600)),
            helper.make_node("Add", ["y", "c500"], ["plus500"]),
            helper.make_node("If", ["condition"], ["chosen"], then_branch=then, else_branch=other),
            helper.make_node("F", [], ["from_function"], domain="local"),
        ]
    )
    model.graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    matrices = {"plus800": [800, 600], "plus400": [400, 600], "plus500": [500, 600]}
    for name, shape in (matrices | {"chosen": [600], "from_function": [600]}).items():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def run(model: bytes | str, condition: bool) -> list[npt.NDArray[Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(
        None, {"x": np.linspace(-1, 1, 600, dtype=np.float32), "condition": np.array(condition)}
    )
    return outputs


MOVABLE = ["c_value", "in_branch", "in_else", "not_tiny", "small", "typed", "w400", "w800"]  # 4.09 MB together


@pytest.mark.parametrize(("limit", "outside"), [(5_000_000, []), (4_000_000, MOVABLE), (6_500, MOVABLE)])
def test_weights_leave_a_file_that_would_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, outside: list[str]
) -> None:
    proto = large_model()
    unsaved = proto.SerializeToString()
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", limit)
    saved = save(proto, tmp_path / "m.onnx")
    assert proto.SerializeToString() == unsaved
    assert saved.path.stat().st_size <= limit
    model = load(saved.path)
    written = list(tensor_protos(model.proto))
    assert sorted(tensor.name for tensor in written if tensor.data_location == TensorProto.EXTERNAL) == outside
    assert (saved.data_path is None) == (not outside)
    for old, new in zip(tensor_protos(proto), written, strict=True):
        assert (old.name, old.data_type, list(old.dims)) == (new.name, new.data_type, list(new.dims))
        np.testing.assert_array_equal(numpy_helper.to_array(old), read_tensor(model, new))
    onnx.checker.check_model(str(saved.path))
    for condition in (True, False):
        for before_save, after in zip(run(unsaved, condition), run(str(saved.path), condition), strict=True):
            np.testing.assert_array_equal(before_save, after)


def test_only_data_location_differs_when_tensors_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = large_model()
    typed = proto.graph.initializer[1]  # onnx would give back raw data for it
    typed.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(typed), typed.name))
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 1_000_000)
    whole = onnx.load(save(proto, tmp_path / "m.onnx").path)  # reads external data back into the proto
    for tensor in tensor_protos(whole):
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    for tensor in tensor_protos(proto):
        tensor.ClearField("data_location")
    assert whole.SerializeToString() == proto.SerializeToString()


def test_too_large_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 300)
    with pytest.raises(ModelSaveError, match="without its large tensors the model still has over 300 bytes"):
        save(large_model(), tmp_path / "m.onnx")
    assert listing(tmp_path) == {}


def test_tensor_that_does_not_fit_is_not_written_over_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = large_model()
    proto.graph.initializer[2].raw_data += bytes(8)
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 10_000)
    with pytest.raises(ModelSaveError, match="tensor 'w800' has data that does not fit it"):
        save(proto, tmp_path / "m.onnx")
    assert listing(tmp_path) == {}


def test_fields_from_a_newer_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = b"\xa2\x9c\x01\x05later"  # field 2500: not in any version of onnx
    content = make_model(floats("w", 600, 600)).SerializeToString() + unknown
    proto = onnx.ModelProto.FromString(content)
    assert save(proto, tmp_path / "m.onnx").path.read_bytes() == content
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 10_000)
    with pytest.raises(ModelSaveError, match="does not know"):
        save(proto, tmp_path / "n.onnx")
    assert list(listing(tmp_path)) == ["m.onnx"]


# ---------------------------------------------------------------- targets


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelSaveError, match="missing is not a folder"):
        save(make_model(), tmp_path / "missing" / "m.onnx")
    assert listing(tmp_path) == {}


def test_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ModelSaveError, match="file is not a folder"):
        save(make_model(), tmp_path / "file" / "m.onnx")
    assert listing(tmp_path) == {"file": b"mine"}


def test_target_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelSaveError, match="it is a folder"):
        save(make_model(), tmp_path)
    assert listing(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no fifos on this system")
def test_target_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelSaveError, match="not a regular file"):
        save(make_model(), tmp_path / "m.onnx")
    assert stat.S_ISFIFO((tmp_path / "m.onnx").stat().st_mode)
    with pytest.raises(ModelSaveError, match="not a regular file"):
        save(make_model(), os.devnull)


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ModelSaveError, match="was not written: File name too long"):
        save(make_model(), tmp_path / ("x" * 300 + ".onnx"))
    with pytest.raises(ModelSaveError, match="no file can have this name"):
        save(make_model(), tmp_path / "nul\0.onnx")
    with pytest.raises(ModelLoadError, match=r"cannot be read: .*null"):
        load(tmp_path / "nul\0.onnx")
    assert listing(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are another thing on Windows")
def test_permissions(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    mask = os.umask(0o027)
    try:
        save(make_model(), path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    save(make_model(floats("w", 3)), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_is_replaced_and_its_file_stays(tmp_path: Path) -> None:
    others = make_model(floats("v", 5)).SerializeToString()
    (tmp_path / "real.onnx").write_bytes(others)
    (tmp_path / "real.onnx").chmod(0o600)
    proto = make_model(floats("w", 3))
    for name, leads_to in (("m.onnx", "real.onnx"), ("n.onnx", "nowhere")):
        (tmp_path / name).symlink_to(leads_to)
        save(proto, tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == proto.SerializeToString()
    assert (tmp_path / "real.onnx").read_bytes() == others
    assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == 0o600
    assert sorted(listing(tmp_path)) == ["m.onnx", "n.onnx", "real.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_unchanged_onto_itself_touches_nothing(tmp_path: Path) -> None:
    save(make_model(floats("w", 3)), tmp_path / "real.onnx")
    (tmp_path / "m.onnx").symlink_to("real.onnx")
    before = (tmp_path / "real.onnx").stat()
    save(load(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    after = (tmp_path / "real.onnx").stat()
    assert (tmp_path / "m.onnx").is_symlink()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# ---------------------------------------------------------------- failures in the middle


def test_file_size_limit_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="no limits on file size on this system")
    save(make_model(floats("w", 3)), tmp_path / "m.onnx")
    before = listing(tmp_path)
    script = (
        "import resource, sys, numpy, onnx\n"
        "from onnxsep.model.saving import save\n"
        "from onnxsep.errors import ModelSaveError\n"
        "graph = onnx.GraphProto(initializer=[onnx.numpy_helper.from_array(numpy.ones((300, 300), 'f'), 'w')])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    save(onnx.ModelProto(graph=graph), sys.argv[1])\n"
        "except ModelSaveError as error:\n"
        "    print(error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=True
    )
    assert "m.onnx was not written: File too large" in finished.stdout
    assert listing(tmp_path) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    path = tmp_path / "m.onnx"
    save(make_model(floats("w", 3)), path)
    before = listing(tmp_path)
    proto = large_model()
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 1_000_000)
    real = Path.replace

    def interrupted(source: Path, target: Path) -> Path:
        """Ctrl-C at the worst moments: around the rename."""
        if when == "after":
            real(source, target)
        signal.raise_signal(signal.SIGINT)
        return target

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(proto, path)
    if when == "before":
        assert listing(tmp_path) == before
    else:  # the new model is complete
        assert load(path).proto.graph.node[0].name == "add_small"
        assert len(listing(tmp_path)) == 2


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.STRING])
def test_part_of_a_tensor_is_not_taken_for_the_whole(kind: int) -> None:
    part = TensorProto(name="w", data_type=kind, dims=[4], raw_data=bytes(16))
    part.segment.begin, part.segment.end = 0, 2
    with pytest.raises(ModelLoadError, match="segments are not supported"):
        read_tensor(Model(onnx.ModelProto()), part)
