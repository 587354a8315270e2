"""Kits that measure, on the device that counts, what forms of a model's layers cost."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.profiling.api import ProfileResult, profile
    from onnxsep.profiling.report import ProfileReport
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {"onnxsep.profiling.api": ("ProfileResult", "profile"), "onnxsep.profiling.report": ("ProfileReport",)},
    )

__all__ = ["ProfileReport", "ProfileResult", "profile"]
