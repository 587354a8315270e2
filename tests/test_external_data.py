"""Weights in data files: what may be opened, what is read, how they are copied, and which files are left in the end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsep.errors import ModelLoadError, ModelSaveError, OptionError
from onnxsep.model import datafile
from onnxsep.model.external import DataFolder
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.model.saving import save
from onnxsep.model.tensors import tensor_protos

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")

# Three weights, large enough for alignment to a page, of the model that most tests use.
SHAPE = (40, 50)
WEIGHTS = {
    name: np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) for seed, name in enumerate("abc")
}
DATA = b"".join(array.tobytes() for array in WEIGHTS.values())
SIZE = len(DATA) // 3


def outside(name: str, **keys: object) -> onnx.TensorProto:
    """A float tensor [40, 50] with these keys of external data; None leaves one out."""
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=SHAPE, data_location=TensorProto.EXTERNAL)
    for key, value in keys.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """x + a + b + ..., which needs every weight."""
    names = [tensor.name for tensor in tensors]
    values = ["x", *(f"sum_{name}" for name in names[:-1]), "y"]
    nodes = [
        helper.make_node("Add", [values[i], name], [values[i + 1]], name=f"add_{name}") for i, name in enumerate(names)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        initializer=tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def write(path: Path, *, location: str | None = None) -> Path:
    """The model with a, b and c one after the other in one data file."""
    location = location or f"{path.name}.data"
    tensors = [outside(name, location=location, offset=index * SIZE, length=SIZE) for index, name in enumerate(WEIGHTS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_of(*tensors).SerializeToString())
    data = path.parent / location
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_bytes(DATA)
    return path


def write_single(folder: Path, content: bytes = DATA[:SIZE], /, **keys: object) -> Path:
    """A model with one weight in w.bin, and these keys."""
    (folder / "w.bin").write_bytes(content)
    keys = {"location": "w.bin"} | keys
    (folder / "m.onnx").write_bytes(model_of(outside("a", **keys)).SerializeToString())
    return folder / "m.onnx"


def changed(path: Path, **options: Any) -> Model:
    """The model, loaded and changed a little, so that it is no longer the file's."""
    model = load(path, **options)
    model.proto.producer_name = "changed"
    model.pristine = False
    return model


def assert_weights(path: Path, **options: Any) -> None:
    """The saved model has the three weights, by our own reader and by ONNX Runtime."""
    model = load(path, **options)
    for tensor in model.proto.graph.initializer:
        np.testing.assert_array_equal(read_tensor(model, tensor), WEIGHTS[tensor.name[0]])
    x: npt.NDArray[np.float32] = np.ones(SHAPE, np.float32)
    expected = x
    for tensor in model.proto.graph.initializer:
        expected = expected + WEIGHTS[tensor.name[0]]
    if not options:  # ONNX Runtime has no way to follow links
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ---------------------------------------------------------------- where data may lie


def absolute(folder: Path, elsewhere: Path) -> str:
    return str(elsewhere)


def parent(folder: Path, elsewhere: Path) -> str:
    return "../elsewhere/secret.bin"


def parent_from_below(folder: Path, elsewhere: Path) -> str:
    (folder / "sub").mkdir()
    return "sub/../../elsewhere/secret.bin"


def link(folder: Path, elsewhere: Path) -> str:
    (folder / "link.bin").symlink_to(elsewhere)
    return "link.bin"


def link_to_link(folder: Path, elsewhere: Path) -> str:
    (folder / "other.bin").symlink_to(elsewhere)
    (folder / "link.bin").symlink_to("other.bin")
    return "link.bin"


def folder_link(folder: Path, elsewhere: Path) -> str:
    (folder / "sub").symlink_to(elsewhere.parent)
    return "sub/secret.bin"


def climb_from_link(folder: Path, elsewhere: Path) -> str:
    # By its text this is inside the folder; on the disk ".." is the parent of the link's target.
    (elsewhere.parent / "deeper").mkdir()
    (folder / "sub").symlink_to(elsewhere.parent / "deeper")
    return "sub/../secret.bin"


def hard_link(folder: Path, elsewhere: Path) -> str:
    (folder / "hard.bin").hardlink_to(elsewhere)
    return "hard.bin"


def pipe(folder: Path, elsewhere: Path) -> str:
    os.mkfifo(folder / "pipe.bin")
    return "pipe.bin"


def device(folder: Path, elsewhere: Path) -> str:
    (folder / "zero.bin").symlink_to("/dev/zero")
    return "zero.bin"


def subfolder(folder: Path, elsewhere: Path) -> str:
    (folder / "sub").mkdir()
    return "sub"


def itself(folder: Path, elsewhere: Path) -> str:
    (folder / "loop.bin").symlink_to("loop.bin")
    return "loop.bin"


def memory_address(folder: Path, elsewhere: Path) -> str:
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(WEIGHTS["a"].tobytes())
    return "*/_ORT_MEM_ADDR_/*"


def nul(folder: Path, elsewhere: Path) -> str:
    return "w.bin\0.txt"


def absent(folder: Path, elsewhere: Path) -> str:
    return "absent.bin"


def nowhere(folder: Path, elsewhere: Path) -> str:
    return ""


Place = Callable[[Path, Path], str]


def place(tmp_path: Path, make: Place) -> Path:
    """A model whose weight is where ``make`` says; beside its folder there is a file that it must not read."""
    folder = tmp_path / "model"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere" / "secret.bin"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(WEIGHTS["a"].tobytes())
    return write_single(folder, location=make(folder, elsewhere))


@posix_only
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absolute, "not a path relative to the model"),
        (parent, "leads outside the model's folder"),
        (parent_from_below, "leads outside the model's folder"),
        (climb_from_link, "leads outside the model's folder"),
        (pipe, "not a regular file"),
        (subfolder, "not a regular file"),
        (itself, "leads back to itself"),
        (memory_address, "not a path relative to the model"),
        (nul, "not a path relative to the model"),
        (absent, "'absent.bin' .* is missing. Put it there"),
        (nowhere, "not in which file"),
    ],
)
@pytest.mark.parametrize("follow_links", [False, True])
def test_never_opened(tmp_path: Path, make: Place, message: str, follow_links: bool) -> None:
    path = place(tmp_path, make)
    with pytest.raises(ModelLoadError, match=message) as error:
        load(path, follow_links=follow_links)
    assert str(error.value).startswith(str(path))


@posix_only
@pytest.mark.parametrize("make", [link, link_to_link, folder_link, hard_link])
def test_links_that_lead_outside_only_where_asked_for(tmp_path: Path, make: Place) -> None:
    path = place(tmp_path, make)
    with pytest.raises(ModelLoadError, match="pass follow_links=True"):
        load(path)
    assert_weights(path, follow_links=True)


@posix_only
def test_device_is_refused_even_where_links_are_followed(tmp_path: Path) -> None:
    path = place(tmp_path, device)
    with pytest.raises(ModelLoadError, match="is a link that leads outside"):
        load(path)
    with pytest.raises(ModelLoadError, match="not a regular file"):
        load(path, follow_links=True)


@posix_only
@pytest.mark.parametrize("location", ["./w.bin", "sub/../w.bin", "../model/w.bin", "link.bin", "sub/link.bin"])
def test_what_stays_inside_is_allowed(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to("w.bin")
    (folder / "sub" / "link.bin").symlink_to("../w.bin")
    model = load(write_single(folder, location=location))
    np.testing.assert_array_equal(read_tensor(model, model.proto.graph.initializer[0]), WEIGHTS["a"])


@posix_only
def test_model_in_a_cache_of_links(tmp_path: Path) -> None:
    # The layout of model hubs' caches: the files that a user names are links to files named after their content.
    write(tmp_path / "blobs" / "m.onnx", location="m.onnx_data")
    (tmp_path / "blobs" / "m.onnx").rename(tmp_path / "blobs" / "0abc")
    (tmp_path / "blobs" / "m.onnx_data").rename(tmp_path / "blobs" / "1def")
    snapshot = tmp_path / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    (snapshot / "m.onnx").symlink_to("../../blobs/0abc")
    (snapshot / "m.onnx_data").symlink_to("../../blobs/1def")
    with pytest.raises(ModelLoadError, match="follow_links=True"):
        load(snapshot / "m.onnx")
    model = load(snapshot / "m.onnx", follow_links=True)
    assert model.base_dir == snapshot
    before = listing(tmp_path / "blobs")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(model, elsewhere / "m.onnx")
    assert names(elsewhere) == {"m.onnx", "m.onnx_data"}
    assert_weights(elsewhere / "m.onnx")  # no links any more
    save(changed(snapshot / "m.onnx", follow_links=True), snapshot / "m.onnx")
    assert_weights(snapshot / "m.onnx")
    assert (snapshot / "m.onnx_data").is_symlink()
    assert listing(tmp_path / "blobs") == before


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offset": "-1"}, "the offset of its external data is not a valid number: '-1'"),
        ({"offset": "x"}, "not a valid number"),
        ({"offset": ""}, "not a valid number"),
        ({"offset": "1_0"}, "not a valid number"),
        ({"offset": " 4"}, "not a valid number"),
        ({"offset": "4.0"}, "not a valid number"),
        ({"offset": "٣"}, "not a valid number"),
        ({"offset": "9" * 5000}, "not a valid number"),
        ({"offset": "9" * 19}, "which has only 8000 bytes"),
        ({"offset": 1}, "needs bytes 1 to 8001 .* has only 8000 bytes"),
        ({"length": "-8000"}, "the length of its external data is not a valid number"),
        ({"length": 7999}, "needs 8000 bytes .* has length 7999"),
        ({"length": 8001}, "needs 8000 bytes .* has length 8001"),
        ({"length": 0}, "has length 0"),
    ],
)
def test_bad_slots(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    path = write_single(tmp_path, **keys)
    with pytest.raises(ModelLoadError, match=message) as error:
        load(path)
    assert "tensor 'a'" in str(error.value)


def test_slot_given_twice(tmp_path: Path) -> None:
    tensor = outside("a", location="w.bin")
    tensor.external_data.add(key="location", value="../other.bin")
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "m.onnx").write_bytes(model_of(tensor).SerializeToString())
    with pytest.raises(ModelLoadError, match="gives 'location' twice"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("data_type", [TensorProto.STRING, TensorProto.UNDEFINED, 99])
def test_types_without_a_size(tmp_path: Path, data_type: int) -> None:
    tensor = outside("a", location="w.bin")
    tensor.data_type = data_type
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "m.onnx").write_bytes(model_of(tensor).SerializeToString())
    with pytest.raises(ModelLoadError, match="cannot be external data"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", DATA[: SIZE - 1]])
def test_data_file_too_short(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelLoadError, match=f"has only {len(content)} bytes. The data file is cut short"):
        load(write_single(tmp_path, content))


def test_offset_and_length_may_be_left_out(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, int], int]] = [({}, 0), ({"length": SIZE}, 0), ({"offset": 3 * 4}, 12)]
    for keys, start in cases:
        model = load(write_single(tmp_path, DATA, **keys))
        values = read_tensor(model, model.proto.graph.initializer[0])
        assert values.tobytes() == DATA[start : start + SIZE]
        assert values.shape == SHAPE


def test_empty_tensor(tmp_path: Path) -> None:
    tensor = outside("a", location="w.bin", length=0)
    tensor.dims[0] = 0
    (tmp_path / "w.bin").write_bytes(b"")
    (tmp_path / "m.onnx").write_bytes(model_of(tensor).SerializeToString())
    model = changed(tmp_path / "m.onnx")
    assert read_tensor(model, tensor).shape == (0, 50)
    saved = load(save(model, tmp_path / "n.onnx").path)
    assert read_tensor(saved, saved.proto.graph.initializer[0]).shape == (0, 50)


def test_every_place_is_checked(tmp_path: Path) -> None:
    bad = outside("hidden", location="../secret.bin")
    good = onnx.TensorProto(name="index", data_type=TensorProto.INT64, dims=[1], int64_data=[1])
    attributes = [
        onnx.AttributeProto(name="any", t=bad),
        onnx.AttributeProto(name="any", tensors=[good, bad]),
        onnx.AttributeProto(name="any", sparse_tensor=onnx.SparseTensorProto(values=bad, indices=good)),
        onnx.AttributeProto(name="any", g=onnx.GraphProto(initializer=[bad])),
    ]
    models = []
    for attribute in attributes:
        model = model_of(numpy_helper.from_array(WEIGHTS["a"], "a"))
        node = onnx.NodeProto(op_type="Any", domain="d", attribute=[attribute])
        model.graph.node.append(node)
        models.append(model)
        model = model_of(numpy_helper.from_array(WEIGHTS["a"], "a"))
        model.functions.add(name="f", domain="d", node=[node])
        models.append(model)
    models.append(model_of(numpy_helper.from_array(WEIGHTS["a"], "a")))
    models[-1].training_info.add(algorithm=onnx.GraphProto(initializer=[bad]))
    for model in models:
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelLoadError, match="leads outside the model's folder"):
            load(tmp_path / "m.onnx")


# ---------------------------------------------------------------- reading


def test_reads_only_the_slot(tmp_path: Path) -> None:
    path = write_single(tmp_path, offset=2**35)
    (tmp_path / "w.bin").unlink()
    with (tmp_path / "w.bin").open("wb") as file:
        file.seek(2**35)
        file.write(WEIGHTS["a"].tobytes())
        file.truncate(2**36)  # 64 GB, nearly all of it a hole: no machine reads that in a test
    model = load(path)
    values = read_tensor(model, model.proto.graph.initializer[0])
    np.testing.assert_array_equal(values, WEIGHTS["a"])
    assert values.flags.owndata or values.base is not None
    (tmp_path / "w.bin").write_bytes(bytes(SIZE))
    np.testing.assert_array_equal(values, WEIGHTS["a"])  # in memory of its own


@posix_only
def test_files_are_checked_again_at_each_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(DATA)
    folder = tmp_path / "model"
    path = write(folder / "m.onnx", location="w.bin")
    model = changed(path)
    (folder / "w.bin").unlink()
    before = listing(folder)
    for change, message in (
        (lambda: None, "missing"),
        (lambda: (folder / "w.bin").symlink_to(secret), "leads outside"),
        (lambda: (folder / "w.bin").hardlink_to(secret), "hard link"),
        (lambda: (folder / "w.bin").write_bytes(DATA[:-1]), "has only 23999 bytes"),
    ):
        change()
        with pytest.raises(ModelLoadError, match=message):
            read_tensor(model, model.proto.graph.initializer[2])
        with pytest.raises(ModelLoadError, match=f"{message}|became shorter while it was copied"):
            save(model, folder / "out.onnx")
        (folder / "w.bin").unlink(missing_ok=True)
        assert listing(folder) == before


@posix_only
@pytest.mark.parametrize(("swap", "message"), [("hardlink_to", "hard link"), ("symlink_to", "cannot be read")])
def test_file_swapped_between_check_and_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str, message: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(DATA)
    path = write(tmp_path / "model" / "m.onnx", location="w.bin")
    model = load(path)
    real = os.open

    def swapped(file: Path, flags: int) -> int:
        """The worst moment for another process to put a link in the file's place."""
        file.unlink()
        getattr(file, swap)(tmp_path / "secret.bin")
        return real(file, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(ModelLoadError, match=message):
        read_tensor(model, model.proto.graph.initializer[0])


# ---------------------------------------------------------------- saving a changed model


def test_changed_model_gets_one_new_data_file(tmp_path: Path) -> None:
    source = tmp_path / "in" / "m.onnx"
    write(source)
    before = listing(source.parent)
    out = tmp_path / "out"
    out.mkdir()
    model = changed(source)
    unsaved = model.proto.SerializeToString()
    saved = save(model, out / "m.onnx")
    assert model.proto.SerializeToString() == unsaved
    assert listing(source.parent) == before
    assert saved.data_path is not None
    assert re.fullmatch(r"m\.onnx\.[0-9a-f]{8}\.data", saved.data_path.name)
    assert names(out) == {"m.onnx", saved.data_path.name}
    assert saved.size_bytes == sum(path.stat().st_size for path in out.iterdir())
    assert_weights(saved.path)
    onnx.checker.check_model(str(saved.path), full_check=True)


def test_slots_are_aligned_and_shared_as_in_the_source(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"?" * 4 + DATA)
    (tmp_path / "v.bin").write_bytes(DATA)
    small = outside("a_small", location="v.bin", offset=0, length=80)
    del small.dims[:]
    small.dims.extend([1, 20])
    tensors = [
        outside("a", location="w.bin", offset=4, length=SIZE, checksum="0123"),
        small,
        outside("b", location="w.bin", offset=4 + SIZE),
        outside("a_again", location="./w.bin", offset=4, length=SIZE),
        outside("a_other_file", location="v.bin", offset=0, length=SIZE),
        outside("c", checksum="4567", length=SIZE, location="w.bin", offset=4 + 2 * SIZE),
    ]
    proto = model_of(*tensors)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    saved = save(changed(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    model = load(saved.path)
    written = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    keys = {name: {entry.key: entry.value for entry in tensor.external_data} for name, tensor in written.items()}
    assert saved.data_path is not None
    assert {key["location"] for key in keys.values()} == {saved.data_path.name}
    assert (keys["a"]["checksum"], keys["c"]["checksum"]) == ("0123", "4567")
    assert [entry.key for entry in written["c"].external_data] == ["checksum", "length", "location", "offset"]
    offsets = {name: int(key["offset"]) for name, key in keys.items()}
    assert offsets["a"] == offsets["a_again"]
    assert len(set(offsets.values())) == 5
    assert all(offsets[name] % 4096 == 0 for name in ("a", "b", "c", "a_other_file"))
    assert offsets["a_small"] % 64 == 0
    for old, new in zip(tensors, model.proto.graph.initializer, strict=True):
        values = read_tensor(Model(proto, base_dir=tmp_path), old)
        np.testing.assert_array_equal(read_tensor(model, new), values)
    # Nothing else differs from the source.
    for tensor in (*tensor_protos(proto), *tensor_protos(model.proto)):
        del tensor.external_data[:]
    proto.producer_name = "changed"
    assert model.proto.SerializeToString() == proto.SerializeToString()


def test_saving_again_and_again_keeps_one_data_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    for _ in range(3):
        saved = save(changed(path), path)
        assert saved.data_path is not None
        assert names(tmp_path) == {"m.onnx", saved.data_path.name}
        assert_weights(path)


def test_new_factors_go_to_the_data_file(tmp_path: Path) -> None:
    model = changed(write(tmp_path / "m.onnx"))
    initializers = model.proto.graph.initializer
    for name in ("a_new", "b_kept"):
        initializers.append(numpy_helper.from_array(WEIGHTS[name[0]], name))
        model.proto.graph.node.add(op_type="Add", input=["x", name], output=[f"{name}_out"])
    initializers.append(numpy_helper.from_array(np.ones(3, np.float32), "tiny"))
    before = model.proto.SerializeToString()
    saved = save(model, tmp_path / "n.onnx", externalize=["a_new", "tiny", "not there"])
    assert model.proto.SerializeToString() == before
    result = load(saved.path)
    inline = {tensor.name for tensor in result.proto.graph.initializer if tensor.HasField("raw_data")}
    assert inline == {"b_kept", "tiny"}
    for old, new in zip(initializers, result.proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(read_tensor(model, old), read_tensor(result, new))
    onnxruntime.InferenceSession(str(saved.path), providers=["CPUExecutionProvider"])


def test_factors_stay_inside_where_the_model_has_no_data_file(tmp_path: Path) -> None:
    proto = model_of(*(numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()))
    saved = save(proto, tmp_path / "m.onnx", externalize=["a"])
    assert saved.data_paths == ()
    assert saved.path.read_bytes() == proto.SerializeToString()


def test_weights_join_external_data_where_the_model_would_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in" / "m.onnx")
    model = changed(path)
    model.proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS["a"], "inside"))
    model.proto.graph.node.add(op_type="Add", input=["x", "inside"], output=["inside_out"])
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", SIZE)
    saved = save(model, tmp_path / "n.onnx")
    result = load(saved.path)
    assert len(saved.data_paths) == 1
    for old, new in zip(model.proto.graph.initializer, result.proto.graph.initializer, strict=True):
        assert new.data_location == TensorProto.EXTERNAL
        np.testing.assert_array_equal(read_tensor(model, old), read_tensor(result, new))


# ---------------------------------------------------------------- saving an unchanged model


def test_unchanged_in_the_same_folder_shares_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    saved = save(load(path), tmp_path / "n.onnx")
    assert saved.data_paths == (tmp_path / "m.onnx.data",)
    assert names(tmp_path) == {"m.onnx", "m.onnx.data", "n.onnx"}
    assert saved.path.read_bytes() == path.read_bytes()
    # Both need the data now, so neither may take it away.
    save(changed(path), path)
    assert "m.onnx.data" in names(tmp_path)
    assert_weights(saved.path)


def test_unchanged_in_another_folder_copies_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "m.onnx", location="deep/er/w.bin")
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the second time the same data is there
        saved = save(load(path), tmp_path / "out" / "n.onnx")
        assert saved.data_paths == (tmp_path / "out" / "deep" / "er" / "w.bin",)
        assert saved.data_paths[0].read_bytes() == DATA
        assert saved.path.read_bytes() == path.read_bytes()
        assert names(tmp_path / "out") == {"n.onnx", "deep", "deep/er", "deep/er/w.bin"}


def test_data_file_under_two_locations_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(DATA)
    tensors = [outside("a", location="w.bin"), outside("b", location="./w.bin", offset=SIZE)]
    (tmp_path / "in" / "m.onnx").write_bytes(model_of(*tensors).SerializeToString())
    (tmp_path / "out").mkdir()
    for _ in range(2):
        saved = save(load(tmp_path / "in" / "m.onnx"), tmp_path / "out" / "m.onnx")
        assert saved.data_paths == (tmp_path / "out" / "w.bin",)
        assert saved.size_bytes == saved.path.stat().st_size + len(DATA)
        assert listing(tmp_path / "out") == listing(tmp_path / "in")


def other_content(out: Path) -> None:
    (out / "w.bin").write_bytes(DATA[::-1])


def longer(out: Path) -> None:
    (out / "w.bin").write_bytes(DATA + b"!")


def link_to_the_same(out: Path) -> None:
    (out / "w.bin").symlink_to(out.parent / "in" / "w.bin")


def broken_link(out: Path) -> None:
    (out / "w.bin").symlink_to("nowhere")


def hard_link_to_the_same(out: Path) -> None:
    (out / "w.bin").hardlink_to(out.parent / "other.bin")


def folder_there(out: Path) -> None:
    (out / "w.bin").mkdir()


@posix_only
@pytest.mark.parametrize(
    "occupy", [other_content, longer, link_to_the_same, broken_link, hard_link_to_the_same, folder_there]
)
def test_place_of_the_data_is_taken(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    path = write(tmp_path / "in" / "m.onnx", location="w.bin")
    (tmp_path / "other.bin").write_bytes(DATA)
    out = tmp_path / "out"
    out.mkdir()
    occupy(out)
    before = listing(out)
    sources = listing(tmp_path / "in")
    saved = save(load(path), out / "n.onnx")
    assert saved.data_path is not None
    assert saved.data_path.name.startswith("n.onnx.")
    assert_weights(saved.path)
    assert listing(tmp_path / "in") == sources
    assert {name: content for name, content in listing(out).items() if name in before} == before


@posix_only
@pytest.mark.parametrize("location", ["sub/../w.bin", "../in/w.bin", "n.onnx", "sub/w.bin"])
def test_location_that_would_be_elsewhere_at_the_target(tmp_path: Path, location: str) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    path = write(tmp_path / "in" / "m.onnx", location=location)
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").symlink_to(tmp_path / "elsewhere")
    saved = save(load(path), out / "n.onnx")
    assert saved.data_path is not None
    assert names(out) == {"n.onnx", "sub", saved.data_path.name}
    assert_weights(saved.path)
    assert names(tmp_path / "elsewhere") == set()


def test_location_with_dots_is_not_made_at_the_target(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    path = write(tmp_path / "in" / "m.onnx", location="sub/../w.bin")
    (tmp_path / "out").mkdir()
    saved = save(load(path), tmp_path / "out" / "n.onnx")
    assert saved.data_path is not None
    assert names(tmp_path / "out") == {"n.onnx", saved.data_path.name}


# ---------------------------------------------------------------- old data files


def test_old_data_goes_with_the_old_model(tmp_path: Path) -> None:
    write(tmp_path / "in" / "m.onnx")
    write(tmp_path / "out" / "n.onnx")
    (tmp_path / "out" / "n.onnx.notes").write_bytes(b"named after it, but not used by it")
    saved = save(changed(tmp_path / "in" / "m.onnx"), tmp_path / "out" / "n.onnx")
    assert saved.data_path is not None
    assert names(tmp_path / "out") == {"n.onnx", "n.onnx.notes", saved.data_path.name}
    assert names(tmp_path / "in") == {"m.onnx", "m.onnx.data"}


def test_old_data_of_another_name_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", location="weights.bin")
    save(changed(path), path)
    assert (tmp_path / "weights.bin").read_bytes() == DATA
    assert len(names(tmp_path)) == 3


def test_old_data_in_a_subfolder_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", location="sub/m.onnx.data")
    save(changed(path), path)
    assert (tmp_path / "sub" / "m.onnx.data").read_bytes() == DATA


def test_old_data_that_the_source_needs_stays(tmp_path: Path) -> None:
    # The source is another file, in a name that no scan for *.onnx files finds.
    write(tmp_path / "m.onnx")
    (tmp_path / "source.model").write_bytes((tmp_path / "m.onnx").read_bytes())
    source = changed(tmp_path / "source.model")
    save(source, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == DATA
    np.testing.assert_array_equal(read_tensor(source, source.proto.graph.initializer[1]), WEIGHTS["b"])


def test_old_data_that_another_model_mentions_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    write(tmp_path / "OTHER.ONNX", location="m.onnx.data")
    save(changed(path), path)
    assert_weights(tmp_path / "OTHER.ONNX")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "OTHER.ONNX").unlink()
    write(path)
    save(changed(path), path)
    assert "m.onnx.data" not in names(tmp_path)


@posix_only
def test_old_data_behind_links_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "one.bin").write_bytes(DATA)
    (tmp_path / "two.bin").write_bytes(DATA)
    (tmp_path / "m.onnx.link").symlink_to("one.bin")
    (tmp_path / "m.onnx.hard").hardlink_to(tmp_path / "two.bin")
    for location in ("m.onnx.link", "m.onnx.hard"):
        tensors = [outside(name, location=location, offset=i * SIZE) for i, name in enumerate(WEIGHTS)]
        path.write_bytes(model_of(*tensors).SerializeToString())
        save(changed(path, follow_links=True), path)
        assert {"one.bin", "two.bin", "m.onnx.link", "m.onnx.hard"} <= names(tmp_path)
        assert_weights(path)


@posix_only
def test_old_data_of_a_target_that_is_a_link_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    path.rename(tmp_path / "real.model")  # still needs m.onnx.data
    path.symlink_to("real.model")
    save(model_of(numpy_helper.from_array(WEIGHTS["a"], "a")), path)
    assert_weights(tmp_path / "real.model")


def test_old_target_that_is_not_a_model(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx")
    (tmp_path / "n.onnx").write_bytes(b"n.onnx.data is mentioned here")
    (tmp_path / "n.onnx.data").write_bytes(b"mine")
    before = listing(tmp_path)
    with pytest.raises(OptionError, match=r"n\.onnx would overwrite a file that holds no ONNX model"):
        save(changed(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    assert listing(tmp_path) == before


def test_data_file_as_target(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    before = listing(tmp_path)
    for model in (load(path), changed(path)):
        with pytest.raises(OptionError, match=r"would overwrite .*m\.onnx\.data, which is read as external data"):
            save(model, tmp_path / "m.onnx.data")
    assert listing(tmp_path) == before


# ---------------------------------------------------------------- failures in the middle

LIMITED = """
import resource, sys
from onnxsep.errors import ModelSaveError
from onnxsep.model.io import load
from onnxsep.model.saving import save
model = load(sys.argv[1])
model.pristine = sys.argv[3] == "unchanged"
if not model.pristine:
    model.proto.producer_name = "changed"
resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
try:
    save(model, sys.argv[2])
except ModelSaveError as error:
    print(error)
"""


@pytest.mark.parametrize("state", ["changed", "unchanged"])
@pytest.mark.parametrize("target", ["m.onnx", "n.onnx"])
@pytest.mark.parametrize("zeros", [False, True])
def test_disk_full_while_writing_data(tmp_path: Path, state: str, target: str, zeros: bool) -> None:
    # A limit on the size of files fails just as a full disk does: an OSError in the middle of a write.
    pytest.importorskip("resource", reason="no limits on file size on this system")
    path = write(tmp_path / "in" / "m.onnx", location="deep/w.bin")
    if zeros:  # a hole at the end of a sparse file needs its own check
        (path.parent / "deep" / "w.bin").write_bytes(bytes(len(DATA)))
    out = tmp_path / "out"
    write(out / "m.onnx")
    before, sources = listing(out), listing(path.parent)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(out / target), state], capture_output=True, text=True, check=True
    )
    assert f"{target} was not written: File too large" in run.stdout
    assert listing(out) == before
    assert listing(path.parent) == sources


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "m.onnx", location="deep/w.bin")
    out = tmp_path / "out"
    out.mkdir()
    (out / "deep").write_bytes(b"a file")
    saved = save(load(path), out / "m.onnx")  # the place is taken: the data gets a new name
    assert_weights(saved.path)
    assert (out / "deep").read_bytes() == b"a file"
    with pytest.raises(ModelSaveError, match="is not a folder"):
        save(changed(path), out / "deep" / "m.onnx")
    assert len(names(out)) == 3


@pytest.mark.parametrize("moment", [1, 2])
def test_interrupt_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    path = write(tmp_path / "m.onnx")
    before = listing(tmp_path)
    real, calls = os.fsync, []

    def interrupted(file: int) -> None:
        """Ctrl-C after the data file (1) or the temporary .onnx (2) is written."""
        real(file)
        calls.append(file)
        if len(calls) == moment:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(changed(path), path)
    assert len(calls) == moment
    assert listing(tmp_path) == before


# ---------------------------------------------------------------- size

MEASURED = """
import resource, sys
from onnxsep.model.io import load, read_tensor
from onnxsep.model.saving import save
model = load(sys.argv[1])
if sys.argv[3] == "changed":
    model.proto.producer_name = "changed"
read_tensor(model, model.proto.graph.initializer[1])
save(model, sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak // 1024 if sys.platform == "darwin" else peak)
"""


@pytest.mark.parametrize("state", ["changed", "unchanged"])
def test_large_data_is_copied_in_little_memory(tmp_path: Path, state: str) -> None:
    pytest.importorskip("resource", reason="the peak of memory is not known on this system")
    peaks = []
    for rows in (1, 300 * 2**20 // 200):
        folder = tmp_path / str(rows)
        (folder / "out").mkdir(parents=True)
        large = outside("a", location="w.bin", offset=0, length=rows * 200)
        del large.dims[:]
        large.dims.extend([rows, 50])
        last = outside("b", location="w.bin", offset=rows * 200, length=SIZE)
        (folder / "m.onnx").write_bytes(model_of(large, last).SerializeToString())
        with (folder / "w.bin").open("wb") as file:
            file.seek(rows * 200)
            file.write(WEIGHTS["b"].tobytes())
        command = [sys.executable, "-c", MEASURED, str(folder / "m.onnx"), str(folder / "out" / "n.onnx"), state]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        result = load(folder / "out" / "n.onnx")
        np.testing.assert_array_equal(read_tensor(result, result.proto.graph.initializer[1]), WEIGHTS["b"])
        (data,) = [path for path in (folder / "out").iterdir() if path.name != "n.onnx"]
        assert data.stat().st_size >= rows * 200 + SIZE
        source = folder / "w.bin"
        if sys.platform != "win32" and source.stat().st_blocks * 512 < 2**20:  # where the file system has holes
            assert data.stat().st_blocks * 512 < 8 * 2**20
    assert peaks[1] - peaks[0] < 16 * 1024  # KiB, of 300 MB of data


def test_data_folder_without_a_model(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", location="w.bin")
    folder = DataFolder(tmp_path)
    with folder.open("w.bin") as file:
        assert file.read() == DATA
    assert folder.read(outside("b", location="w.bin", offset=SIZE)).tobytes() == WEIGHTS["b"].tobytes()
