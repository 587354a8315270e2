"""The hook of pre-commit: every model that has a reference beside it is held against it.

    python -m onnxsep.checking.hook [OPTION ...] FILE [FILE ...]

A reference is NAME.txt beside NAME.onnx, as ``onnxsep check NAME.onnx NAME.txt --update`` writes it. Models without one
are not looked at. Options are those of ``onnxsep check``, in one word (``--ignore-names``, ``--rtol=1e-3``).
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxsep.checking.api import is_reference


def pairs(files: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """The models, each with its reference, that these files belong to, once each."""
    for path in sorted({Path(file).with_suffix("") for file in files}):
        model, reference = path.with_suffix(".onnx"), path.with_suffix(".txt")
        if model.is_file() and reference.is_file() and is_reference(reference):
            yield model, reference


def main(arguments: Sequence[str]) -> int:
    """The worst exit status of ``onnxsep check``; 0 where nothing is to be checked."""
    options = [one for one in arguments if one.startswith("-")]
    files = [one for one in arguments if not one.startswith("-")]
    worst = 0
    for model, reference in pairs(files):
        command = [sys.executable, "-m", "onnxsep", "check", str(model), str(reference), *options]
        worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
