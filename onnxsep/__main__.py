"""``python -m onnxsep``."""

from onnxsep.cli import main

main()
