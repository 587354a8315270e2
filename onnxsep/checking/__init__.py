"""``check``: a model against a reference, for CI.

``structure`` writes a model as text, ``statements`` and ``words`` read and write its parts, ``alignment`` pairs the
lines of two texts, ``diff``, ``weights`` and ``outputs`` compare, ``render`` and ``formats`` show the result.
``layers`` compares the tensors within two models, which ``network`` and ``matching`` find; ``layer_rows`` says what
that means; ``feeding`` has the inputs.
"""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.checking.api import check
    from onnxsep.checking.result import CheckResult, Difference, PartResult
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {"onnxsep.checking.api": ("check",), "onnxsep.checking.result": ("CheckResult", "Difference", "PartResult")},
    )

__all__ = ["CheckResult", "Difference", "PartResult", "check"]
