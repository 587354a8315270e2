"""Text from a model never reaches a terminal or a log as anything but text."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper

from onnxsep.reporting.printable import printable

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "two\n::error::lines",
    "back\rspace",
    "\u202egnp",
    "[red]markup[/red]",
    "c1\x9b2J",
    "\x07",
]
# Control characters but the line end, and marks of direction.
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def hostile(text: str) -> onnx.ModelProto:
    """A model in which everything that has a name has this one, where names may be equal."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype("f"), f"w{text}")
    nodes = [
        helper.make_node("Conv", [f"x{text}", f"w{text}"], [f"t{text}"], name=f"conv{text}", pads=[1] * 4),
        helper.make_node(f"op{text}", [f"t{text}"], [f"y{text}"], name=f"node{text}", domain=f"d{text}"),
    ]
    values = [helper.make_tensor_value_info(f"{name}{text}", TensorProto.FLOAT, [f"n{text}", 4, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, f"g{text}", values[:1], values[1:], [weight], doc_string=text)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(f"d{text}", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name=text, producer_version=text)
    model.metadata_props.add(key=text, value=text)
    return model


@pytest.mark.parametrize("text", HOSTILE)
def test_no_command_prints_it(text: str, tmp_path: Path) -> None:
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    onnx.save(hostile(text), path)
    onnx.save(hostile(text + "other"), other)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 4, 8, 8), np.float32))
    commands: list[list[Any]] = [
        ["inspect", path],
        ["inspect", path, "--json"],
        *(["check", path, other, "--no-outputs", "--format", kind] for kind in ("text", "json", "github", "junit")),
        ["check", path, tmp_path / "r.txt", "--update"],
        ["rewrite", path, "--dry-run", "--mode", "spatial", "--include-first", "--force"],
        ["rewrite", path, tmp_path / "o.onnx", "--mode", "spatial", "--include-first", "--force"],
        ["prune", path, tmp_path / "o.onnx", "--sparsity", "0.5"],
        ["evaluate", path, "--data", tmp_path / "d.npz", "--runs", "0"],
        ["quantize", path, tmp_path / "o.onnx", "--data", tmp_path / "d.npz"],
    ]
    for command in commands if text in HOSTILE[:2] else commands[:6]:
        done = run(*command)
        printed = done.stdout + done.stderr
        assert printed
        assert "internal error" not in printed
        assert not FORBIDDEN.search(printed), (command[0], FORBIDDEN.search(printed))
        if "github" not in command:
            assert not re.search(r"^\s*::", printed, re.MULTILINE), command
        if "m.onnx" in printed and "[red]" in text and command == ["inspect", path]:
            assert "[red]markup[/red]" in printed


def test_a_command_for_github_is_one_of_ours(tmp_path: Path) -> None:
    text = "two\n::error::lines"
    onnx.save(hostile(text), tmp_path / "m.onnx")
    onnx.save(hostile(text + "other"), tmp_path / "other.onnx")
    done = run("check", tmp_path / "m.onnx", tmp_path / "other.onnx", "--no-outputs", "--format", "github")
    commands = [line for line in done.stdout.splitlines() if line.lstrip().startswith("::")]
    assert commands
    assert all(re.match(r"::(error|notice) file=", line) for line in commands)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße 你好", "Grüße 你好"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("\u2028", "\\u2028"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
