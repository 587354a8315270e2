"""``check``: a model against a reference, for CI.

``structure`` writes a model as text, ``statements`` and ``words`` read and write its parts, ``alignment`` pairs the
lines of two texts, ``diff``, ``weights`` and ``outputs`` compare, ``render`` and ``formats`` show the result.
``layers`` compares the tensors within two models, which ``network`` and ``matching`` find; ``layer_rows`` says what
that means; ``feeding`` has the inputs.
"""

from onnxsep.checking.api import check
from onnxsep.checking.result import CheckResult, Difference, PartResult

__all__ = ["CheckResult", "Difference", "PartResult", "check"]
