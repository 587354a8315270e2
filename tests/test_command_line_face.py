"""What the command line shows and proposes: help, examples, choices, words that may be meant, completion."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import numpy_helper
from terminal import on_terminal

import onnxsep
from onnxsep.cli.derived import COMMANDS
from onnxsep.options.patterns import no_match
from onnxsep.options.proposals import proposing, recipes

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_cnn.onnx"
ALL = [
    *("inspect", "plan", "rewrite", "prune", "finetune", "quantize", "compress"),
    *("evaluate", "check", "profile", "report", "rerun", "modes", "recipes"),
]

# Help


def test_help_lists_the_commands_under_headings_in_the_order_of_use() -> None:
    for flag in ("-h", "--help"):
        lines = run(flag, columns=100).stdout.splitlines()
        named = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[:1] and line[2] != " "]
        assert [name for name in named if name in ALL] == ALL
        headings = [line for line in lines if line.endswith(":") and not line.startswith((" ", "Usage"))]
        assert headings == [
            *("Options:", "Make a model smaller:", "Measure and compare:", "Reports:", "What there is:"),
        ]
        assert "..." not in "".join(lines[1:])  # no summary is cut


@pytest.mark.parametrize("name", ALL)
def test_each_command_has_short_help_and_an_example_that_it_takes(name: str) -> None:
    done = run(name, "-h", columns=80)
    assert done.returncode == 0
    assert done.stdout == run(name, "--help", columns=80).stdout
    example = done.stdout.split("\nExample:\n")[1]
    assert len(example.splitlines()) == 1  # it can be copied
    words = shlex.split(example)
    assert words[:2] == ["onnxsep", name]
    narrow = run(name, "-h", columns=60).stdout
    assert max(map(len, narrow.splitlines())) <= 60
    assert shlex.split(narrow.split("\nExample:\n")[1].replace("\\\n", "")) == words  # as a shell joins the lines
    # The parser takes it: what is wrong is only that there are no such files. (torch takes seconds to be imported.)
    if name not in ("modes", "recipes", "finetune"):
        assert run(*words[1:], cwd=Path("/")).returncode == 1


def test_choices_are_shown(tmp_path: Path) -> None:
    assert "--format qdq|qoperator" in run("quantize", "-h").stdout
    assert "--format text|json|github|junit" in run("check", "-h").stdout
    assert "--verify auto|full|local|none" in run("rewrite", "-h").stdout
    assert "--layout NCHW|NHWC" in run("rewrite", "-h").stdout
    assert not [name for name in COMMANDS if "list[" in run(name, "-h").stdout.split("\nOptions:")[1]]


# Did you mean


@pytest.mark.parametrize(
    ("line", "meant", "status"),
    [
        ("rewrit {model} out.onnx", "'rewrite'", 2),
        ("quantise {model} out.onnx", "'quantize'", 2),
        ("rewrite {model} out.onnx --moed spatial", "--mode", 2),
        ("rewrite {model} out.onnx --mode spatail", "'spatial'", 1),
        ("inspect {model} --mode depthwise_spatial", "'depthwise-spatial'", 1),
        ("rewrite {model} out.onnx --mode spatial --verify ful", "'full'", 2),
        ("check {model} {model} --format jsn", "'json'", 2),
        ("rewrite {model} out.onnx --mode spatial --only blok1_conv1", "'block1_conv1'", 1),
        ("rewrite {model} out.onnx --mode spatial --skip BLOCK2_CONV1", "'block2_conv1'", 1),
        ("prune {model} out.onnx --sparsity 0.5 --only conv2*", "'block1_conv2' or 'block2_conv2'", 1),
        ("quantize {model} out.onnx --data {data} --exclude hed_conv", "'head_conv'", 1),
        ("compress {model} out.onnx --data {data} --recipe fited-int8", "'fitted-int8'", 1),
        ("compress {model} out.onnx --data {data} --recipe bad.toml", "'mode'", 1),
        ("rewrite {model} out.onnx --plan plan.toml", "'mode'", 1),
    ],
)
def test_what_may_be_meant_is_named(line: str, meant: str, status: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((20, 1, 8, 8), np.float32))
    (tmp_path / "bad.toml").write_text('[[steps]]\ncommand = "rewrite"\nmod = "spatial"\n')
    plan = run("rewrite", DIGITS, "--mode", "spatial", "--dry-run", "--plan-out", tmp_path / "plan.toml", "--quiet")
    assert plan.returncode == 0
    text = (tmp_path / "plan.toml").read_text().replace("mode = ", "mdoe = ")
    (tmp_path / "plan.toml").write_text(text)
    words = [word.format(model=DIGITS, data=tmp_path / "data.npz") for word in line.split()]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == status
    message = done.stderr.splitlines()[-1]
    assert meant in message
    assert "did you mean" in message or "Possible options" in message
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_like_nothing_names_nothing() -> None:
    assert "did you mean" not in run("frobnicate").stderr
    assert "did you mean" not in run("rewrite", DIGITS, "o.onnx", "--mode", "spatial", "--only", "zzz").stderr
    assert "did you mean" not in run("rewrite", DIGITS, "o.onnx", "--mode", "xyzzy").stderr


def test_patterns_are_held_against_whole_names_and_their_last_parts() -> None:
    names = ["/backbone/stages.0/conv_in/Conv", "/backbone/stages.1/gate", "/head/fc", "/head/Fc"]
    for pattern, meant in {
        "conv_in": "'/backbone/stages.0/conv_in/Conv'",
        "*STAGES*": "'/backbone/stages.0/conv_in/Conv' or '/backbone/stages.1/gate'",
        "gaet": "'/backbone/stages.1/gate'",
        "/head/fcc": "'/head/fc'",
    }.items():
        assert f"did you mean {meant}?" in str(no_match("only", pattern, names, "layer")), pattern
    assert "did you mean" not in str(no_match("only", "*", [], "layer"))
    assert "the model has no layer" in str(no_match("only", "x", [], "layer"))


# Completion


def completed(shell: str, line: str) -> list[str]:
    """What is proposed for the last word of a line, which is cut into words as that shell's script does."""
    words = line.split(" ")
    asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    if shell == "bash":
        asked = {
            "_ONNXSEP_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**asked, "_ONNXSEP_COMPLETE": f"complete_{shell}"}.items():
            patched.setenv(name, value)
        found = run().stdout
    return [one.split("\t")[0] for one in found.splitlines() if one]


def test_bash_is_told_commands_options_modes_choices_and_recipes() -> None:
    assert completed("bash", "onnxsep ") == ALL
    assert completed("bash", "onnxsep re") == ["rewrite", "report", "rerun", "recipes"]
    assert completed("bash", "onnxsep rewrite a b --mod") == ["--mode"]
    assert {"--mode", "--rank", "--help"} <= set(completed("bash", "onnxsep rewrite a b --"))
    assert completed("bash", "onnxsep rewrite a b --mode ") == sorted(onnxsep.available_modes())
    assert completed("bash", "onnxsep inspect a -m spatial -m spat") == ["spatial", "spatial-depthwise"]
    assert completed("bash", "onnxsep quantize a b --format ") == ["qdq", "qoperator"]
    assert completed("bash", "onnxsep check a b --format j") == ["json", "junit"]
    assert completed("bash", "onnxsep rewrite a b --color ") == ["RGB", "BGR", "GRAY"]
    assert completed("bash", "onnxsep compress a b --recipe f") == ["fitted-int8"]
    assert completed("bash", "onnxsep recipes ") == recipes() == [one.stem for one in _recipe_files()]
    assert completed("bash", "onnxsep rewrite mod") == []  # the shell then proposes files


def _recipe_files() -> list[Path]:
    return sorted((Path(onnxsep.__file__).parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_are_told_the_same(shell: str) -> None:
    for line, word in {
        "onnxsep rew": "rewrite",
        "onnxsep rewrite a b --mode tu": "tucker",
        "onnxsep quantize a b --format qo": "qoperator",
        "onnxsep rewrite a b --init jo": "joint",
    }.items():
        assert word in "\n".join(completed(shell, line))


def test_proposals_that_cannot_be_found_are_none() -> None:
    assert proposing("onnxsep.no_such_module:names")("a") == []
    assert proposing("onnxsep.options.proposals:no_such_function")("a") == []


SHELLS = {
    "bash": """
        source {script}
        COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
        $(complete -p onnxsep | sed -e 's/.*-F //' -e 's/ .*//') onnxsep
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """,
    "fish": "source {script}; complete -C '{line}'",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes_a_mode(shell: str, tmp_path: Path) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    where = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{where}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = subprocess.run(
        [where / "onnxsep"],
        env={**environment, "_ONNXSEP_COMPLETE": f"source_{shell}"},
        capture_output=True,
        check=True,
    ).stdout
    (tmp_path / "script").write_bytes(script)
    line = "onnxsep rewrite in.onnx out.onnx --mode tuc"
    text = SHELLS[shell].format(script=tmp_path / "script", words=line, count=len(line.split()), line=line)
    done = subprocess.run([program, "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert [one.split("\t")[0] for one in done.stdout.splitlines()] == ["tucker"], done.stderr


# What was written


def test_the_data_file_is_named_with_its_size(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "out").mkdir()
    done = run("rewrite", "in/m.onnx", "out/r.onnx", "--mode", "spatial", "--report", "r.json", cwd=tmp_path)
    (data,) = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".data"]
    own, beside = (tmp_path / "out" / "r.onnx").stat().st_size, data.stat().st_size
    words = f"wrote out/r.onnx ({own:,} bytes) and its data file {data.name} ({beside:,} bytes) in "
    assert done.stdout.splitlines()[-1].startswith(words)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["output_bytes"] == own + beside
    assert (report["output_data"], report["output_data_bytes"]) == ([data.name], beside)
    _, shown = on_terminal("report", tmp_path / "r.json", columns=60)
    assert words.replace(" ", "") in shown.text.replace("\n", "").replace(" ", "")


def test_several_data_files_are_counted(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    for number, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        (tmp_path / f"{number % 2}.bin").touch()
        with (tmp_path / f"{number % 2}.bin").open("ab") as file:
            offset = file.tell()
            file.write(values.tobytes())
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {
            "location": f"{number % 2}.bin",
            "offset": str(offset),
            "length": str(values.nbytes),
        }.items():
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    # Nothing is replaced, so that the model stays as it is and keeps its files.
    done = run("rewrite", "m.onnx", "r.onnx", "--mode", "fold", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    beside = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert f"bytes) and its 2 data files ({beside:,} bytes) in " in done.stdout.splitlines()[-1]
