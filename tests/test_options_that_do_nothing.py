"""Options that would do nothing are refused before any work, in the same words by the commands and in Python."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.compression import Pipeline, Prune, compress
from onnxsep.data import Preprocessing, open_data
from onnxsep.errors import OptionError
from onnxsep.model.io import load
from onnxsep.quantization.measuring import split
from onnxsep.running.runtime import RuntimeOptions

RNG = np.random.default_rng(0)
ONE = RuntimeOptions(threads=1)


def network(batch: int | str = "n") -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) / 4, name)
        for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (4, 4, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["c", "w2"], ["y"], "second", pads=[1] * 4),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, 6, 6])
        for name, channels in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", samples(8))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["--samples", "8"], {"samples": 8}, "--samples chooses among those of --data, and there is none"),
        (
            ["--scale", "1/255"],
            {"preprocessing": Preprocessing(scale=1 / 255)},
            "preprocessing is for the images of --data, and there is none",
        ),
        (
            ["--mean", "0.5", "--inputs", "x.npy"],
            {"preprocessing": Preprocessing(mean=(0.5,)), "inputs": "x.npy"},
            "preprocessing is for the images of --data, and there is none",
        ),
        (["--update", "--data", "x.npy"], {"update": True, "data": "x.npy"}, "--update writes the reference and runs"),
        (["--update", "--inputs", "x.npy"], {"update": True, "inputs": "x.npy"}, "--update writes the reference and"),
        (["--update", "--layers"], {"update": True, "layers": True}, "--update writes the reference and runs nothing"),
        (
            ["--update", "--input-shape", "x:1,3,6,6"],
            {"update": True, "input_shapes": {"x": (1, 3, 6, 6)}},
            "--update writes the reference and runs nothing",
        ),
    ],
)
def test_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], options: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(folder)
    for reference in ("new.onnx", "new.txt") if "--update" in arguments else ("m.onnx",):
        done = run("check", "m.onnx", reference, *arguments, cwd=folder)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        with pytest.raises(OptionError) as raised:
            onnxsep.check(folder / "m.onnx", folder / reference, **options)
        for name in ("samples", "data", "inputs", "input_shape", "layers"):  # options are spelled as parameters
            words = re.sub(rf"--{name.replace('_', '-')}\b", name, words)
        assert words.replace("--update", "update=True") in str(raised.value)
    assert not list(folder.glob("new.*"))


def test_check_with_what_its_options_are_about(folder: Path) -> None:
    assert run("check", "m.onnx", "m.onnx", "--data", "x.npy", "--samples", 4, cwd=folder).returncode == 0
    assert run("check", "m.onnx", "new.txt", "--update", cwd=folder).returncode == 0
    assert (folder / "new.txt").exists()


@pytest.mark.parametrize("multiple", [5, 1, 7, 12, 32, -8])
def test_rounding_of_ranks(folder: Path, multiple: int) -> None:
    done = run("rewrite", "m.onnx", "out.onnx", "--mode", "spatial", f"--round-ranks={multiple}", cwd=folder)
    assert done.returncode == 2  # wrong usage
    assert not (folder / "out.onnx").exists()
    with pytest.raises(OptionError, match=f"round_ranks={multiple} is not 8 or 16"):
        onnxsep.rewrite(folder / "m.onnx", mode="spatial", round_ranks=multiple)
    assert f"--round-ranks {multiple} is not 8 or 16" in done.stderr


def test_a_device_and_no_step_that_trains(folder: Path) -> None:
    recipe = folder / "r.toml"
    recipe.write_text('[[steps]]\ncommand = "prune"\nsparsity = 0.5\n')
    done = run("compress", "m.onnx", "out.onnx", "--recipe", "r.toml", "--device", "cpu", "--quiet", cwd=folder)
    assert (done.returncode, "--device cpu is for steps that train" in done.stderr) == (1, True), done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "r.toml", "x.npy"]
    with pytest.raises(OptionError, match=r"device='cuda:0' is for steps that train, and there is none"):
        compress(network(), Pipeline([Prune(sparsity=0.5)]), device="cuda:0", work=folder / "work")
    done = run("compress", "m.onnx", "out.onnx", "--recipe", "r.toml", "--data", "x.npy", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_list_of_steps_is_no_recipe() -> None:
    steps: Any = [Prune(sparsity=0.5)]
    with pytest.raises(OptionError, match=r"recipe must be .* or a Pipeline, not "):
        compress(network(), steps)


@pytest.mark.parametrize(
    ("batch", "there", "most", "calibrate", "held_out"),
    [(5, 13, 5, 5, True), (5, 9, 5, 5, False), (5, 9, 7, 7, False), (5, 40, 12, 12, True), ("n", 13, 4, 4, True)],
)
def test_no_more_samples_than_asked_for(
    batch: int | str, there: int, most: int, calibrate: int, held_out: bool
) -> None:
    model = network(batch)
    found = split(open_data(samples(there), load(model)), most, seed=0)
    assert (len(found.fitted), found.unseen) == (calibrate, held_out)
    assert len(found.verified) % (batch if isinstance(batch, int) else 1) == 0 < len(found.verified)
    assert held_out == (not set(found.fitted) & set(found.verified))
    report = onnxsep.quantize(model, data=samples(there), samples=most, runtime=ONE).report
    assert report.calibration_samples == calibrate


def test_fewer_samples_than_a_batch(folder: Path) -> None:
    onnx.save(network(5), folder / "five.onnx")
    done = run("quantize", "five.onnx", "out.onnx", "--data", "x.npy", "--samples", 4, cwd=folder)
    words = "--samples 4: the model takes 5 samples at a time; ask for 5 or more"
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    with pytest.raises(OptionError, match=words.removeprefix("--").replace("samples 4", "samples=4", 1)):
        onnxsep.quantize(network(5), data=samples(13), samples=4)


def test_integer_ends_where_an_excluded_node_reads_the_input(folder: Path) -> None:
    """What can hold integers does; what cannot is said."""
    done = run(
        *("quantize", "m.onnx", "out.onnx", "--data", "x.npy", "--int8-io", "--exclude", "first", "--threads", 1),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "input 'x' stays in float: no quantised node reads it" in done.stdout
    graph = onnx.load(folder / "out.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
