"""Models and arrays from strangers: one message and status 1, or the right result; never an end of the process."""

import bz2
import itertools
import lzma
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run as run_cli
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.errors import FeedError, ModelLoadError
from onnxsep.model.functions import expansion
from onnxsep.model.io import load
from onnxsep.running.inputs import read_arrays

FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    shape: list[int | str | None] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", shape or [1, 4, 8, 8])],
        [value("y", None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=9)


def kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def conv(**attributes: Any) -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **({"pads": [1] * 4} | attributes))],
        {"w": kernel(4, 4, 3, 3)},
    )


def inspected(model: onnx.ModelProto, folder: Path) -> tuple[int, str]:
    """Exit status and all that was printed."""
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    done = run_cli("inspect", path)
    assert "internal error" not in done.stderr
    return done.returncode, done.stdout + done.stderr


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [-1, -2, -(2**63)])
@pytest.mark.parametrize("operator", ["Slice", "GatherND", "Reshape"])
def test_sizes_below_0_stand_for_unknown_ones(size: int, operator: str, tmp_path: Path) -> None:
    integers = {"Slice": ([0], [2**31 - 1], [0]), "GatherND": ([0, 0],), "Reshape": ([4, -1],)}[operator]
    names = [f"i{number}" for number in range(len(integers))]
    weights = {name: np.array(values, np.int64) for name, values in zip(names, integers, strict=True)}
    model = model_of([helper.make_node(operator, ["x", *names], ["y"])], weights, shape=[3, 4])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    model.graph.value_info.append(value("t", [size]))
    assert inspected(model, tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("EyeLike", {"k": 1}), ("RegexFullMatch", {"pattern": "a"}), ("LayerNormalization", {"axis": 2**31})],
)
def test_what_ends_onnx_s_process_leaves_the_convs(operator: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    """EyeLike and RegexFullMatch of an undeclared input read a null pointer; an axis of 2 ** 31 becomes negative."""
    model = conv()
    model.opset_import[0].version = 20
    model.graph.node.append(
        helper.make_node(operator, ["nobody", "w"][: 2 if operator[0] == "L" else 1], ["z"], **attributes)
    )
    status, text = inspected(model, tmp_path)
    assert status == 0
    assert "144 parameters" in text


def test_an_operator_outside_the_list_still_gives_shapes() -> None:
    """In a process of its own: GatherND of [1, 4, 8, 8] at [1, 1] gives [1, 4, 8, 8], which a Conv reads."""
    nodes = [
        helper.make_node("GatherND", ["x", "at"], ["t"]),
        helper.make_node("Conv", ["t", "w"], ["y"], pads=[1] * 4),
    ]
    model = model_of(nodes, {"at": np.zeros((1, 1), np.int64), "w": kernel(4, 4, 3, 3)})
    report = onnxsep.inspect(model, modes=["spatial"])
    assert report.convs[0].input_size == (8, 8)
    assert report.convs[0].macs == 64 * 144


def test_the_process_imports_nothing_from_the_folder_that_it_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("open('stolen', 'w')")
    monkeypatch.chdir(tmp_path)
    test_an_operator_outside_the_list_still_gives_shapes()
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 5])
def test_a_conv_whose_input_has_another_rank(rank: int, tmp_path: Path) -> None:
    model = conv()
    del model.graph.input[:]
    model.graph.input.append(value("x", [1] * rank))
    assert inspected(model, tmp_path)[0] == 0


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (0, 4, 3, 3), (4, 4, 0, 3)])
def test_a_conv_whose_weight_is_none(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": np.zeros(shape, np.float32)})
    assert inspected(model, tmp_path)[0] == 0


@pytest.mark.parametrize("size", [-1, 2**40, 2**62])
def test_a_constant_that_promises_too_much_is_not_made(size: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["n", "one"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    numbers = {"n": np.array([size, 4, 3, 3], np.int64), "one": np.array([1], np.int64)}
    assert inspected(model_of(nodes, numbers), tmp_path)[0] == 0


# ---------------------------------------------------------------- attributes, nodes, text


@pytest.mark.parametrize("name", ["strides", "pads", "dilations", "kernel_shape", "group", "auto_pad"])
@pytest.mark.parametrize(
    "kind",
    [0, AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.TENSOR, AttributeProto.STRINGS],
)
def test_an_attribute_of_another_type_is_named(name: str, kind: int, tmp_path: Path) -> None:
    model = conv()
    node = model.graph.node[0]
    del node.attribute[:]
    node.attribute.add(name=name, type=kind, f=1.0)
    status, text = inspected(model, tmp_path)
    assert status == 1
    assert "Conv 'conv'" in text
    assert repr(name) in text


@pytest.mark.parametrize(
    "attributes",
    [
        {"group": 0}, {"group": -1}, {"group": 3}, {"strides": [0, 1]}, {"strides": [-1, 1]}, {"dilations": [0, 0]},
        {"pads": [1]}, {"pads": [-9] * 4}, {"kernel_shape": [5, 5]}, {"strides": [1] * 9},
        {"auto_pad": b"\xff"}, {"auto_pad": "SAME"},
    ],
)  # fmt: skip
def test_attributes_with_odd_values(attributes: dict[str, Any], tmp_path: Path) -> None:
    assert inspected(conv(**attributes), tmp_path)[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.graph.node[0].input.pop(),
        lambda model: model.graph.node[0].output.pop(),
        lambda model: model.graph.node[0].ClearField("op_type"),
    ],
)
def test_nodes_that_lack_something(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = conv()
    change(model)
    assert inspected(model, tmp_path)[0] == 1


@pytest.mark.parametrize("text", [b"conv", b"MAKER", b"DOC", b"DIM", b"own"])
def test_text_that_is_not_utf8(text: bytes, tmp_path: Path) -> None:
    model = conv()
    model.producer_name, model.graph.doc_string = "MAKER", "DOC"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "DIM"
    content = model.SerializeToString()
    assert text in content
    (tmp_path / "m.onnx").write_bytes(content.replace(text, b"\xff" * len(text)))
    done = run_cli("inspect", tmp_path / "m.onnx")
    assert done.returncode == 1
    assert "UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- functions


def chain(count: int, calls: int) -> onnx.ModelProto:
    """Functions of which each calls the one before it, ``calls`` times."""
    standard, own = helper.make_opsetid("", 17), helper.make_opsetid("own", 1)
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [standard])]
    for number in range(1, count):
        names = ["a", *(f"t{call}" for call in range(1, calls)), "b"]
        nodes = [
            helper.make_node(f"f{number - 1}", [before], [after], domain="own")
            for before, after in itertools.pairwise(names)
        ]
        functions.append(helper.make_function("own", f"f{number}", ["a"], ["b"], nodes, [standard, own]))
    nodes = [
        helper.make_node(f"f{count - 1}", ["x"], ["t"], domain="own"),
        helper.make_node("Conv", ["t", "w"], ["y"], name="conv"),
    ]
    return model_of(nodes, {"w": kernel(4, 4, 3, 3)}, functions)


@pytest.mark.parametrize(("count", "calls", "nodes"), [(3, 1, 2), (3, 2, 5), (40, 2, 2**39 + 1), (1000, 3, 3**999 + 1)])
def test_calls_are_counted_without_being_expanded(count: int, calls: int, nodes: int) -> None:
    size = expansion(chain(count, calls))
    assert (size.nodes, size.depth) == (nodes, count)


def test_functions_that_multiply_are_inspected_without_sizes_behind_them() -> None:
    report = onnxsep.inspect(chain(40, 2), modes=["spatial"])
    assert report.convs[0].first
    assert "expand to" in report.notes[0]


def test_deep_functions_are_inspected() -> None:
    report = onnxsep.inspect(chain(600, 1), modes=["spatial"])
    assert report.convs[0].first


def test_few_calls_still_give_sizes() -> None:
    assert onnxsep.inspect(chain(5, 2), modes=["spatial"]).convs[0].input_size == (8, 8)


def test_functions_that_multiply_are_not_run() -> None:
    done = onnxsep.rewrite(chain(40, 2), mode="spatial", force=True, include_first=True)
    assert not done.report.verification.ran
    assert "expand to" in done.report.verification.reason


@pytest.mark.parametrize("length", [1, 2, 5])
def test_functions_that_call_themselves_are_refused(length: int) -> None:
    model = chain(length, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = f"f{length - 1}", "own"
    with pytest.raises(ModelLoadError, match="calls itself"):
        load(model)


def test_graphs_nested_without_end_are_refused() -> None:
    model = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 17)])
    graph = model.graph
    for _ in range(40):
        node = graph.node.add(op_type="If", input=["c"], output=["y"])
        graph = node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g
    with pytest.raises(ModelLoadError, match="nested"):
        load(model)


# ---------------------------------------------------------------- external data


@pytest.mark.parametrize(
    "location", ["w.bin", "../cwd/w.bin", "{cwd}/w.bin", "link", "a\0b", ".", "sub/../../cwd/w.bin"]
)
def test_a_constant_in_an_expression_is_read_beside_the_model_only(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """w.bin lies in the folder where the command runs, and not beside the model: it is never read."""
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    kernel(4, 4, 3, 3).tofile(tmp_path / "cwd/w.bin")
    (tmp_path / "model/link").symlink_to(tmp_path / "cwd/w.bin")
    constant = numpy_helper.from_array(kernel(4, 4, 3, 3), "c")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value=location.replace("{cwd}", str(tmp_path / "cwd")))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Transpose", ["c"], ["w"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    (tmp_path / "model/m.onnx").write_bytes(model_of(nodes).SerializeToString())
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(ModelLoadError, match="external data"):
        onnxsep.inspect(tmp_path / "model/m.onnx", modes=["spatial"])


def test_an_expression_of_external_constants_has_the_file_s_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = kernel(4, 4, 3, 3)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight, "c")),
        helper.make_node("Transpose", ["c"], ["w"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4),
    ]
    (tmp_path / "model").mkdir()
    onnx.save(
        model_of(nodes),
        tmp_path / "model/m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    np.zeros_like(weight).tofile(tmp_path / "w.bin")
    monkeypatch.chdir(tmp_path)
    done = onnxsep.rewrite(tmp_path / "model/m.onnx", mode="spatial", rank="full", force=True, include_first=True)
    assert done.report.convs[0].status == "replaced"
    assert done.report.verification.relative is not None
    assert done.report.verification.relative < 1e-4


# ---------------------------------------------------------------- arrays


def npz(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("x.npy", "w") as file:
        np.save(file, np.arange(4000, dtype=np.float32))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_archives(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    npz(path, compression)
    content = path.read_bytes()
    assert len(read_arrays(path)["x"]) == 4000
    rng = random.Random(0)
    messages = []
    for _ in range(40):
        wrong = bytearray(content)
        wrong[rng.randrange(len(wrong))] ^= 0xFF
        path.write_bytes(wrong)
        try:
            read_arrays(path)
        except FeedError as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert all("d.npz" in message for message in messages)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"'descr'", b"1234567"), (b"'<f4'", b"[],()"), (b"(4000,)", b"(10**9)"), (b"(4000,)", b"(-4000)"), (b"{", b"(")],
)
def test_damaged_headers(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, np.arange(4000, dtype=np.float32))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    for memory_map in (False, True):
        with pytest.raises(FeedError, match=r"d\.npy"):
            read_arrays(path, memory_map=memory_map)


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, np.arange(4000, dtype=np.float32))
    content = path.read_bytes().replace(b"(4000,), }" + b" " * 15, b"(4" + b"0" * 15 + b",), }" + b" " * 3)
    assert b"(40000" in content
    path.write_bytes(content)
    with pytest.raises(FeedError, match=r"d\.npy"):
        read_arrays(path)


def test_an_archive_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**20,)})
        file.write(bytes(2**22))
    entry = bytearray(path.read_bytes())
    place = entry.rindex(b"PK\x01\x02") + 24  # the size in the archive's directory, in which the whole is planned
    entry[place : place + 4] = (2**32 - 2**20).to_bytes(4, "little")
    path.write_bytes(entry)
    with pytest.raises(FeedError, match="in memory"):
        read_arrays(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.csv", "d.toml", "images/d.png", "m.onnx"])
def test_a_pipe_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / name)
    onnx.save(conv(), tmp_path / "sound.onnx")
    np.save(tmp_path / "sound.npy", np.zeros((4, 4, 8, 8), np.float32))
    model = tmp_path / ("m.onnx" if name == "m.onnx" else "sound.onnx")
    data = tmp_path / (name if name.startswith("d.np") else "images" if "images" in name else "sound.npy")
    options: list[str | Path] = ["--labels", tmp_path / name] if name == "d.csv" else []
    options += ["--preprocess", tmp_path / name] if name == "d.toml" else []
    done = run_cli("evaluate", model, "--data", data, "--runs", "0", *options)
    assert done.returncode == 1
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a = [" * 5000, b"", b"PK\x03\x04", lzma.compress(b"x"), bz2.compress(b"x")]
)
@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.csv", "p.toml", "s.npz", "d.png"])
def test_files_of_other_kinds(name: str, content: bytes, tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "m.onnx")
    np.save(tmp_path / "sound.npy", np.zeros((4, 4, 8, 8), np.float32))
    (tmp_path / "i").mkdir()
    path = tmp_path / ("i/d.png" if name == "d.png" else name)
    path.write_bytes(content)
    if name == "s.npz":
        done = run_cli("rewrite", tmp_path / "m.onnx", "--dry-run", "--mode", "spatial", "--statistics", path)
    else:
        data = {"d.csv": tmp_path / "sound.npy", "d.png": tmp_path / "i", "p.toml": tmp_path / "i"}.get(name, path)
        options = {"d.csv": ["--labels", path], "p.toml": ["--preprocess", path]}.get(name, [])
        done = run_cli("evaluate", tmp_path / "m.onnx", "--data", data, "--runs", "0", *options)
    assert done.returncode == 1
    assert "internal error" not in done.stderr
    assert done.stderr.count("\n") == 1
