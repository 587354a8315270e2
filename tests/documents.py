"""Documents whose examples can be run: the commands in console blocks, what they print, and the Python blocks."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import command_line
from scripts import run_script_here

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it prints) for each command in a console block, in order."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def python_blocks(text: str) -> list[str]:
    """The Python examples, in order."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def check_commands(folder: Path, text: str) -> int:
    """Run every command in a folder, and fail where one does not print what is shown; how many there were."""
    found = commands(text)
    for command, shown in found:
        status = 0
        if shown and (stated := re.fullmatch(r"\[exit status (\d+)\]", shown[0])):
            status, shown = int(stated[1]), shown[1:]
        done = run(folder, shlex.split(command))
        assert done.returncode == status, f"{command}\n{done.stderr}"
        printed = done.stdout.splitlines()
        assert matches(shown, printed), f"{command}\nis shown to print\n{shown}\nand prints\n{printed}"
    return len(found)


def run(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, in this process where it is ours."""
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
