"""The errors that onnxsep raises, and how their messages spell options.

Every message says what happened, where (the file or the node) and what to do. The command line prints the message and
exits with the class's ``exit_status``, without a traceback. A message names an option through :func:`spelled`: as the
parameter that it is in Python, or with the dashes that it has on the command line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, ClassVar

_flags: dict[tuple[str, Any], str] = {}  # those that are not the option's name behind two dashes
_dashes = False
_NOTHING = object()


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


class EvaluationError(OnnxsepError):
    """A model cannot be run or measured, or not side by side with the others."""


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


class TargetError(VerificationError):
    """Nothing keeps within the targets; nothing was written.

    ``report`` says the least that can be had (``onnxsep.planner.report.PlanReport``).
    """


def spelled(option: str, value: Any = _NOTHING, *, hint: str = "") -> str:
    """An option as the user has to write it.

    Args:
        option: its name in Python.
        value: what it is, or should be, set to.
        hint: what a value looks like, for the command line, where it has another form than in Python.
    """
    if not _dashes:
        if value is _NOTHING:
            return option
        return f"{option}={_text(value)}"
    flag = _flags.get((option, None), "--" + option.replace("_", "-"))
    if value is _NOTHING:
        return f"{flag} {hint}" if hint else flag
    if isinstance(value, bool) or (option, value) in _flags:
        return _flags.get((option, value), flag)
    return f"{flag} {value if isinstance(value, str) else _text(value)}"


def worded(command_line: str, python: str = "") -> str:
    """The first words on the command line, the others in Python, where one cannot do the same as the other."""
    return command_line if _dashes else python


def _text(value: Any) -> str:
    number = isinstance(value, Real) and not isinstance(value, Integral)
    return f"{value:g}" if number else repr(value)


def spell(option: str, flag: str, value: Any = None) -> None:
    """Say what an option is called on the command line; with a value: what says that value there."""
    _flags[option, value] = flag


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """Within it, messages spell options as the command line does."""
    global _dashes
    before, _dashes = _dashes, True
    try:
        yield
    finally:
        _dashes = before
