"""What a check found."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from onnxsep.checking.layer_report import LayersReport
from onnxsep.data import PreprocessingReport
from onnxsep.reporting.records import MeasuredOn, Report


class Difference(BaseModel):
    """One difference.

    Attributes:
        where: The node, weight or output that it belongs to.
        message: What differs, in one line.
        reference_line: Line in the reference text, from 1; None where the reference is no text. For something new, the
            line after which it stands.
        expected: The lines of the reference; None where it has none.
        actual: The lines of the model; None where it has none.
    """

    model_config = ConfigDict(frozen=True)

    where: str
    message: str
    reference_line: int | None = None
    expected: str | None = None
    actual: str | None = None


class PartResult(BaseModel):
    """One part of a check: ``reason`` says why it was skipped, ``notes`` what was chosen for the user.

    ``measured_on`` is what outputs were compared on. ``layers`` is what the part of that name measured: it tells where
    an error arises, and judges nothing.
    """

    model_config = ConfigDict(frozen=True)

    name: Literal["structure", "weights", "outputs", "layers", "reference"]
    status: Literal["same", "differs", "skipped", "updated", "measured"]
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    measured_on: MeasuredOn | None = None
    layers: LayersReport | None = None


class CheckResult(Report):
    """What a check found.

    ``parts`` stand in the order structure, weights, outputs, layers; for an update it is ``reference`` alone.
    """

    model_config = ConfigDict(extra="ignore")  # same and exit_status follow from the parts

    row_field = "parts"
    command: Literal["check"] = "check"
    model: str
    reference: str
    options: dict[str, Any] = Field(default_factory=dict)
    """What was asked for: the models, and every option."""
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged."""
    parts: tuple[PartResult, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def same(self) -> bool:
        """Whether no part differs; a check that could compare nothing at all has not found the models the same."""
        statuses = {part.status for part in self.parts}
        return "differs" not in statuses and bool(statuses & {"same", "updated", "measured"})

    def __bool__(self) -> bool:
        return self.same

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """0 where the model is the same as the reference, else 3."""
        return 0 if self.same else 3
