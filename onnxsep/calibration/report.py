"""What the factors were fitted to, as records."""

from onnxsep.data import PreprocessingReport
from onnxsep.reporting.records import Record


class TuneReport(Record):
    """What tuning by distillation did."""

    steps: int
    best_step: int
    """The step whose weights were taken; 0 where tuning did not help."""
    loss_before: float
    loss_after: float
    """Difference of the outputs on held-out samples; ``onnxsep.training`` says in which measure."""
    rate: float | None = None
    """The learning rate, relative to each tensor's values."""
    seconds: float
    notes: tuple[str, ...] = ()


class CalibrationReport(Record):
    """What the factors were fitted to."""

    init: str
    source: str
    """The data's file or folder, or the statistics file."""
    fingerprint: str
    """SHA-256 of the samples, or of the statistics."""
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged."""
    samples: int
    positions: int
    seed: int
    refine: int = 0
    """Rounds in which two Convs in a row were fitted again."""
    memory: int | None = None
    """Bytes that the fit was expected to need; None where it was not estimated."""
    notes: tuple[str, ...] = ()
    tune: TuneReport | None = None
