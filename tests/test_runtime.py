import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsep.errors import MissingDependencyError, ModelLoadError, OptionError
from onnxsep.model.io import Model, load
from onnxsep.running.reasons import readable_reason
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions, available_providers

ONE_THREAD = RuntimeOptions(threads=1)


def parse(graph: str, opsets: str = '"" : 17') -> Model:
    return Model(parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]> {graph}"))


def matmul_weight(rows: int, columns: int, start: float = 0.0) -> np.ndarray:
    return np.arange(start, start + rows * columns, dtype=np.float32).reshape(rows, columns)


def save_external(folder: Path, weight: np.ndarray, location: str = "weights.bin") -> Path:
    """A MatMul whose weight lies at ``location``; the data file itself is for the test to write."""
    tensor = numpy_helper.from_array(weight, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="length", value=str(weight.nbytes))
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [tensor],
    )
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def conv(elem_type: int, name: str = "my conv") -> Model:
    weight = helper.make_tensor("w", elem_type, [2, 3, 3, 3], np.ones(54))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name=name)],
        "conv",
        [helper.make_tensor_value_info("x", elem_type, [1, 3, "height", 8])],
        [helper.make_tensor_value_info("y", elem_type, [1, 2, "h", 6])],
        [weight],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_outputs_come_by_name_in_the_models_order() -> None:
    model = parse("g (float[2,3] x) => (float[2,3] z, float[2,3] a) { a = Neg(x) z = Abs(x) }")
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    outputs = Runner(model)({"x": x})
    assert list(outputs) == ["z", "a"]
    np.testing.assert_array_equal(outputs["z"], np.abs(x))
    np.testing.assert_array_equal(outputs["a"], -x)


def test_a_pristine_model_is_read_from_its_file(tmp_path: Path) -> None:
    # The proto in memory says something else, so that the source shows.
    path = tmp_path / "model.onnx"
    path.write_bytes(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }").proto.SerializeToString())
    model = load(path)
    model.proto.graph.node[0].op_type = "Abs"
    x = np.array([1, -2], np.float32)
    np.testing.assert_array_equal(Runner(model, ONE_THREAD)({"x": x})["y"], -x)
    model.pristine = False
    np.testing.assert_array_equal(Runner(model, ONE_THREAD)({"x": x})["y"], np.abs(x))


@pytest.mark.parametrize("pristine", [True, False])
def test_external_weights_are_found_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    weight = matmul_weight(4, 300)
    path = save_external(tmp_path / "model", weight)
    weight.tofile(tmp_path / "model" / "weights.bin")
    model = load(path)
    model.pristine = pristine
    monkeypatch.chdir(tmp_path / "elsewhere")
    # A file of the same name where the process stands must not be taken.
    (weight + 1).tofile("weights.bin")
    outputs = Runner(model, ONE_THREAD)({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(outputs["y"], weight.sum(axis=0, keepdims=True))


@pytest.mark.parametrize("pristine", [True, False])
def test_optimisations_read_external_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: bool) -> None:
    # The runtime multiplies the weight of the Conv by that of the Mul, so it needs the data before the first run.
    weight, scale = matmul_weight(2, 3 * 3 * 3).reshape(2, 3, 3, 3), np.full((2, 1, 1), 3, np.float32)
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scale, "s")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 1, 1])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    model = load(path)
    model.pristine = pristine
    runner = Runner(model, ONE_THREAD)
    assert not list(temporary.iterdir())  # what an old runtime needs there is gone
    outputs = runner({"x": np.ones((1, 3, 3, 3), np.float32)})
    np.testing.assert_array_equal(outputs["y"].ravel(), 3 * weight.sum(axis=(1, 2, 3)))


def test_no_place_for_the_file_that_an_old_runtime_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matmul_weight(4, 300)
    path = save_external(tmp_path, weight)
    weight.tofile(tmp_path / "weights.bin")
    model = load(path)
    model.pristine = False
    monkeypatch.setattr("onnxsep.running.runtime._FOLDER_KEY_SINCE", (1_000,))  # every runtime is old
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(CannotRun, match=r"^a temporary copy of the model cannot be written: .*missing"):
        Runner(model)


def make_link(link: Path, target: str) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system lets the user make no symbolic links")


@pytest.mark.parametrize("pristine", [True, False])
def test_links_out_of_the_folder_are_followed_where_the_user_asked(tmp_path: Path, pristine: bool) -> None:
    # The layout of a model hub's cache: all files are links into a folder of blobs.
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs").mkdir()
    weight = matmul_weight(4, 300, start=7)
    path = save_external(tmp_path / "snapshot", weight)
    shutil.move(path, tmp_path / "blobs" / "model")
    weight.tofile(tmp_path / "blobs" / "data")
    make_link(path, "../blobs/model")
    make_link(tmp_path / "snapshot" / "weights.bin", "../blobs/data")
    model = load(path, follow_links=True)
    model.pristine = pristine
    before = model.proto.SerializeToString()
    outputs = Runner(model, ONE_THREAD)({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(outputs["y"], weight.sum(axis=0, keepdims=True))
    assert model.proto.SerializeToString() == before
    model.follow_links = False
    with pytest.raises(ModelLoadError, match="outside the model's folder"):
        Runner(model, ONE_THREAD)


def test_missing_external_data_is_a_load_error(tmp_path: Path) -> None:
    weight = matmul_weight(4, 300)
    path = save_external(tmp_path, weight)
    weight.tofile(tmp_path / "weights.bin")
    model = load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"weights\.bin"):
        Runner(model)
    model.base_dir = None
    with pytest.raises(ModelLoadError, match="from memory"):
        Runner(model)


def test_too_large_for_one_proto(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real limit is 2 GB, which no test should need: a lower limit takes the same way.
    monkeypatch.setattr("onnxsep.running.runtime._LARGEST_PROTO", 10_000)
    small, large = conv(TensorProto.FLOAT), conv(TensorProto.FLOAT)
    large.proto.graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.float32), "unused"))
    Runner(small, ONE_THREAD)
    with pytest.raises(CannotRun, match="larger than 2 GB"):
        Runner(large, ONE_THREAD)


def test_sequences_maps_optionals_and_strings() -> None:
    sequence = parse("g (float[2] x) => (seq(float[2]) y) { n = Neg(x) y = SequenceConstruct(x, n) }")
    x = np.array([1, -2], np.float32)
    elements = Runner(sequence, ONE_THREAD)({"x": x})["y"]
    assert isinstance(elements, list)
    np.testing.assert_array_equal(elements, [x, -x])
    maps = parse(
        "g (float[1,2] x) => (seq(map(int64,float)) y) { y = ai.onnx.ml.ZipMap<classlabels_int64s=[3,5]>(x) }",
        '"" : 17, "ai.onnx.ml" : 3',
    )
    assert Runner(maps, ONE_THREAD)({"x": x[None]})["y"] == [{3: 1.0, 5: -2.0}]
    text = parse("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    words = np.array(["a", "é"], object)
    assert Runner(text, ONE_THREAD)({"x": words})["y"].tolist() == ["a", "é"]


def test_no_kernel_names_the_operator() -> None:
    with pytest.raises(CannotRun, match=r"^Could not find an implementation for Conv\(11\) node with name 'my conv'$"):
        Runner(conv(TensorProto.DOUBLE))


def test_bfloat16_arrays_cannot_be_exchanged() -> None:
    model = parse("g (bfloat16[2] x) => (float[2] y) { y = Cast<to=1>(x) }")
    with pytest.raises(CannotRun, match=r"tensor\(bfloat16\) \('x'\)"):
        Runner(model)


def test_run_time_failures_are_one_line() -> None:
    reshape = parse("g (float[2,3] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }")
    reshape.proto.graph.node[0].name = "fold/1"
    with pytest.raises(CannotRun) as caught:
        Runner(reshape)({"x": np.ones((2, 3), np.float32), "s": np.array([4, 4])})
    message = str(caught.value)
    assert message.startswith("Reshape node 'fold/1': ")
    assert message.endswith(
        "The input tensor cannot be reshaped to the requested shape. Input shape:{2,3}, requested shape:{4,4}"
    )
    for noise in ("ONNXRuntimeError", ".h:", "onnxruntime::", "\n"):
        assert noise not in message
    with pytest.raises(CannotRun, match="missing"):
        Runner(conv(TensorProto.FLOAT))({})
    with pytest.raises(CannotRun, match="Got: 4 Expected: 3"):
        Runner(conv(TensorProto.FLOAT))({"x": np.ones((1, 4, 8, 8), np.float32)})


def test_models_that_the_runtime_refuses() -> None:
    with pytest.raises(CannotRun, match=r"^my\.ops:Foo\(-1\) is not a registered function/op$"):
        Runner(parse("g (float[2] x) => (float[2] y) { y = my.ops.Foo(x) }", '"" : 17, "my.ops" : 1'))
    future = conv(TensorProto.FLOAT)
    future.proto.ir_version = 99
    with pytest.raises(CannotRun, match=r"^Unsupported model IR version: 99, max supported IR version: \d+$"):
        Runner(future)


def test_negative_models(shared: Path) -> None:
    folder = shared / "models" / "negative"
    with pytest.raises(CannotRun, match=r"^com\.microsoft\.extensions:DecodeImage.*not a registered"):
        Runner(load(folder / "neg_custom_domain_decodeimage.onnx"))
    with pytest.raises(CannotRun, match=r"^Could not find an implementation for Add\(1\) node with name 'Plus30'$"):
        Runner(load(folder / "neg_opset1_constant_weights_cntk.onnx"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Failed to load model with error: /src/core/load_utils.h:46"
            " void onnxruntime::load::Validate(const std::unordered_map<std::basic_string<char>, int>&, bool)"
            " Opset 99 is under development (see f(x)).\n",
            "Opset 99 is under development (see f(x)).",
        ),
        (
            r"[ONNXRuntimeError] : 1 : FAIL : D:\a\_work\graph\model.cc:182 onnxruntime::Model::Model Bad (really).",
            "Bad (really).",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running If node."
            " Name:'a' Status Message: Non-zero status code returned while running Conv node. Name:'b'"
            " Status Message: too small",
            "If node 'a': Conv node 'b': too small",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /a b/m.onnx failed:/src/x.cc:3 T ns::F(T) const"
            " [with T = int] why",
            "why",
        ),
        ("", "the runtime gave no reason"),
    ],
)
def test_readable_reason(text: str, reason: str) -> None:
    assert readable_reason(text) == reason


def test_providers() -> None:
    assert "CPUExecutionProvider" in available_providers()
    with pytest.raises(OptionError, match=r"unknown provider 'TPU'.*CPUExecutionProvider"):
        Runner(conv(TensorProto.FLOAT), RuntimeOptions(provider="TPU"))


def test_threads_and_optimisation_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    made = []
    session = onnxruntime.InferenceSession

    def record(source: bytes, settings: Any, **others: Any) -> Any:
        made.append(settings)
        return session(source, settings, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    Runner(conv(TensorProto.FLOAT), RuntimeOptions(threads=3, optimize=False))
    Runner(conv(TensorProto.FLOAT))
    assert (made[0].intra_op_num_threads, made[0].inter_op_num_threads) == (3, 1)
    assert made[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert made[1].intra_op_num_threads == 0
    assert made[1].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with pytest.raises(OptionError, match="threads"):
        Runner(conv(TensorProto.FLOAT), RuntimeOptions(threads=-1))


def test_custom_operator_library(tmp_path: Path) -> None:
    model = conv(TensorProto.FLOAT)
    with pytest.raises(OptionError, match=r"missing\.so.* not found"):
        Runner(model, RuntimeOptions(custom_op_libraries=(tmp_path / "missing.so",)))
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(OptionError, match=r"text\.so.* cannot be loaded"):
        Runner(model, RuntimeOptions(custom_op_libraries=(tmp_path / "text.so",)))


def test_custom_operator_library_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler to build a custom-operator library with")
    # The one function that the runtime calls; it registers nothing but leaves a trace.
    (tmp_path / "ops.c").write_text(
        "#include <stdio.h>\n"
        'void *RegisterCustomOps(void *options, const void *api) { fclose(fopen("registered", "w")); return 0; }\n'
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "ops.so", tmp_path / "ops.c"], check=True)
    monkeypatch.chdir(tmp_path)
    Runner(conv(TensorProto.FLOAT), RuntimeOptions(custom_op_libraries=(Path("ops.so"),)))
    assert (tmp_path / "registered").is_file()


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_does_not_import_the_runtime() -> None:
    code = "import sys, onnxsep.running.comparison, onnxsep.running.feeds; print('onnxruntime' in sys.modules)"
    assert in_new_process(code).stdout.strip() == "False"


def test_a_missing_runtime_is_named() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from onnxsep import errors\nfrom onnxsep.running import runtime\n"
        "try: runtime.available_providers()\n"
        "except errors.MissingDependencyError as error: print(error)"
    )
    assert "pip install onnxruntime" in in_new_process(code).stdout
    assert issubclass(MissingDependencyError, Exception)


def test_the_runtime_prints_nothing(tmp_path: Path) -> None:
    # The declared output shape is wrong, and an initialiser is unused: the runtime warns of both by default.
    model = parse("g (float[2,3] x) => (float[2,4] y) { y = Relu(x) }")
    model.proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    onnx.save(model.proto, tmp_path / "model.onnx")
    run = "import numpy as np; feeds = {'x': np.ones((2, 3), np.float32)}; path = " + repr(str(tmp_path / "model.onnx"))
    plain = (
        f"{run}\nimport onnxruntime as o; o.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, feeds)"
    )
    assert in_new_process(plain).stderr != ""
    imports = "from onnxsep.model import io; from onnxsep.running import runtime"
    ours = f"{run}\n{imports}; runtime.Runner(io.load(path))(feeds)"
    finished = in_new_process(ours)
    assert (finished.stdout, finished.stderr) == ("", "")
