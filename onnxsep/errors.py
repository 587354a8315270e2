"""The errors that onnxsep raises.

Every message says what happened, where (the file or the node) and what to do. The command line prints the message and
exits with the class's ``exit_status``, without a traceback.
"""

from typing import Any, ClassVar


class OnnxsepError(Exception):
    """Base of every error that onnxsep raises on purpose."""

    exit_status: ClassVar[int] = 1


class ModelLoadError(OnnxsepError):
    """The model, or data that it refers to, cannot be read or may not be read."""


class ModelSaveError(OnnxsepError):
    """The result cannot be written; the target is as it was before."""


class UnsupportedModelError(OnnxsepError):
    """The model holds something that a rewrite could not carry over unchanged."""


class OptionError(OnnxsepError):
    """An option has a value that cannot be used: a rank out of range, a pattern that matches nothing."""


class ModeNotFoundError(OnnxsepError):
    """No mode of that name is installed."""


class FactorizationError(OnnxsepError):
    """A weight cannot be factorised."""


class CalibrationError(OnnxsepError):
    """Factors cannot be fitted to the calibration data."""


class FeedError(OnnxsepError):
    """The inputs given for a model do not fit it."""


class DataError(OnnxsepError):
    """The calibration or evaluation data cannot be used."""


class ReportError(OnnxsepError):
    """A saved report cannot be read."""


class TrainingError(OnnxsepError):
    """Training cannot go on, and there are no better weights than those at its start."""


class TimeLimitError(OnnxsepError):
    """A run of a model took longer than it may."""

    exit_status: ClassVar[int] = 3


class PassError(OnnxsepError):
    """A pass broke one of its own promises; this is a bug in the pass."""


class MissingDependencyError(OnnxsepError):
    """An optional package is needed for this and not installed."""


class VerificationError(OnnxsepError):
    """The result does not compute what it should; nothing was written.

    ``report`` is the rewrite's report (``onnxsep.rewriting.report.RewriteReport``) where the rewrite came so
    far, else None.
    """

    exit_status = 3

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
