"""The README: every command is run, and must print what the README shows (numbers within 2 %, times aside)."""

import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import command_line
import pytest
from digits import digits_in
from scripts import run_script_here

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's models, where the commands leave their files for those that follow."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "models", path / "models")
    return path


def commands() -> list[tuple[str, list[str]]]:
    """(command, lines that it prints) for each command in a console block, in order."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def run(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    if arguments[0] == "onnxsep":
        return command_line.run(*arguments[1:], cwd=folder, columns=80)
    if arguments[0] == "python":
        return run_script_here(folder / arguments[1], *arguments[2:], cwd=folder)
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, check=False)


def run_python(folder: Path, code: str) -> list[str]:
    """The lines that an example prints."""
    done = command_line.called(lambda: exec(code, {}), "python", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def same_line(shown: str, printed: str) -> bool:
    """Whether two lines agree but for spaces, times and the last digits of numbers; `` ...`` leaves out the end."""
    if shown.endswith(" ..."):
        shown = shown.removesuffix(" ...")
        printed = " ".join(printed.split()[: len(shown.split())])
    shown, printed = (re.sub(r"in \d+\.\d s$", "", line) for line in (shown, printed))
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (shown, printed)]
    numbers = [[float(text.replace(",", "")) for text in NUMBER.findall(line)] for line in (shown, printed)]
    close = (math.isclose(a, b, rel_tol=0.02) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and all(close)


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines are those shown; ``...`` stands for any number of lines."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(matches(shown[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and same_line(shown[0], printed[0]) and matches(shown[1:], printed[1:])


def test_commands_print_what_the_readme_shows(folder: Path) -> None:
    assert len(commands()) >= 12
    for command, shown in commands():
        status = 0
        if shown and (stated := re.fullmatch(r"\[exit status (\d+)\]", shown[0])):
            status, shown = int(stated[1]), shown[1:]
        done = run(folder, shlex.split(command))
        assert done.returncode == status, f"{command}\n{done.stderr}"
        printed = done.stdout.splitlines()
        assert matches(shown, printed), f"{command}\nthe README shows\n{shown}\nprinted is\n{printed}"


def test_python_examples_run(folder: Path) -> None:
    first, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (printed,) = run_python(folder, first)
    before, after = map(int, printed.split())
    assert after < before == 186_314
    digits_in(folder)
    (printed,) = run_python(folder, second)
    assert 0.9 < float(printed) <= 1
    assert (folder / "shrunk.onnx").is_file()


@pytest.mark.parametrize("command", ["plan", "rewrite", "prune", "finetune", "quantize", "compress", "report"])
def test_every_option_is_in_the_readme(command: str) -> None:
    done = run(ROOT, ["onnxsep", command, "--help"])
    listed = set(re.findall(r"--[a-z][-a-z]+", done.stdout))
    # Those that every command shares, and --help itself, need no row.
    shared = {"--help", "--debug", "--threads", "--provider", "--custom-op-library", "--follow-links", "--no-verify"}
    missing = {option for option in listed - shared if option not in README}
    assert not missing


def test_the_comparison_can_fail() -> None:
    assert same_line("a 1,000 (0.50) in 0.1 s", "a  1,001 (0.50) in 9.9 s")
    assert not same_line("a 1,000", "a 1,100")
    assert not same_line("a 1,000", "b 1,000")
    assert same_line("a 1,000 ...", "a 1,000 b 7")
    assert not same_line("a 1,000 b ...", "a 1,000 c 7")
    assert not matches(["a", "...", "z"], ["a", "b"])
