"""Rewrite the reference graphs from what onnxsep makes today: ``make golden``. Review the difference.

python tests/update_golden.py
"""

from pathlib import Path

from golden.cases import CASES, FOLDER

import onnxsep

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits"
MODES = ("depthwise", "spatial")


def main() -> None:
    """Write every reference."""
    for mode in MODES:
        for name, build in CASES.items():
            result = onnxsep.rewrite(build(), mode=mode)
            onnxsep.check(result.model, FOLDER / f"{name}_{mode}.txt", update=True)
        result = onnxsep.rewrite(DIGITS / "digits_cnn.onnx", mode=mode)
        onnxsep.check(result.model, DIGITS / f"digits_cnn_{mode}.txt", update=True)


if __name__ == "__main__":
    main()
