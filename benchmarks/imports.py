"""What it costs to import onnxsep and to start its command line, beside the imports that they cannot do without.

    python benchmarks/imports.py [--repeats 15]

Each is a fresh process; rounds of all of them follow one another, so that a busy machine disturbs all alike. Printed is
the median of the processor seconds (user and system), and the median over the rounds of the ratio to the other side of
the same round.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

ONNX, TYPER = "import onnx", "import typer"
PYTHON = {
    ONNX: None,
    "import onnxsep": ONNX,
    "from onnxsep import load": ONNX,
    "from onnxsep import rewrite": ONNX,
    TYPER: None,
}
COMMANDS = {"--version": TYPER, "--help": TYPER, "rewrite --help": TYPER}


def seconds(words: list[str]) -> float:
    """Processor seconds of a process."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    sides = {code: ["-c", code] for code in PYTHON}
    sides |= {f"onnxsep {words}": ["-m", "onnxsep", *words.split()] for words in COMMANDS}
    beside = PYTHON | {f"onnxsep {words}": other for words, other in COMMANDS.items()}
    for words in sides.values():
        seconds(words)  # compiled, and read from the disk
    rounds = [{name: seconds(words) for name, words in sides.items()} for _ in range(repeats)]
    for name, other in beside.items():
        ratio = "" if other is None else f"{median(one[name] / one[other] for one in rounds):.2f} times {other!r}"
        print(f"{name:30} {median(one[name] for one in rounds):.3f} s  {ratio}")


if __name__ == "__main__":
    main()
