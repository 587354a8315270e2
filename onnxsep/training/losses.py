"""What training lowers: cross-entropy with labels, the distance to a teacher's outputs, or both.

    loss = (1 - w) * teacher's term + w * cross-entropy,      w = the label weight

The teacher's term is ``Objective`` (outputs as they are, of any network), or, for classifiers, the Kullback-Leibler
divergence of probabilities that are softened by a temperature T, times T^2 so that gradients do not shrink with T.
Where a graph ends in a Softmax, its logarithm stands for the class scores: both terms are the same for the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import OptionError, spelled
from onnxsep.training.choices import TeacherTerm
from onnxsep.training.objective import Objective, Reference, are_probabilities

Arrays = Mapping[str, NDArray[Any]]
_LEAST = 1e-12  # a probability below this counts as this


@dataclass(frozen=True)
class LossSettings:
    """What the loss is made of.

    Attributes:
        teacher_term: None where there is no teacher.
        label_weight: Share of the cross-entropy, 0 to 1; above 0 only where there are labels.
        temperature: Of "soft".
        output: The output that holds class scores, where there is one.
    """

    teacher_term: TeacherTerm | None
    label_weight: float
    temperature: float
    output: str | None


@dataclass(frozen=True)
class Outcome:
    """The loss of a batch.

    Attributes:
        loss: A torch scalar, the mean over samples.
        correct: Samples whose highest score is that of the label, or of the teacher's choice where there are no labels;
            None where there are no class scores.
    """

    loss: Any
    correct: int | None


class Loss:
    """The loss for batches.

    Args:
        torch: The package.
        settings: What it is made of.
        ours: Outputs of the model for some samples.
        reference: What the teacher's outputs are like; None where there is no teacher.

    Attributes:
        knows_choice: Whether the teacher has class scores, whose highest one is its choice.

    Raises:
        FeedError: The teacher's outputs cannot be learnt from.
        OptionError: Softened outputs are asked for and there are no class scores.
    """

    def __init__(self, torch: Any, settings: LossSettings, ours: Arrays, reference: Reference | None) -> None:
        self._torch, self._settings = torch, settings
        self._objective = None
        if reference is not None and settings.teacher_term == "outputs":
            self._objective = Objective(torch, reference)
        output = settings.output
        self.knows_choice = reference is not None and output is not None and reference.has(output)
        if settings.teacher_term == "soft" and not self.knows_choice:
            raise OptionError(
                f"softened outputs ({spelled('loss', 'soft')}) need an output with class scores; use"
                f" {spelled('loss', 'outputs')}, or {spelled('output', hint='NAME')}"
            )
        self._ours_are_probabilities = output is not None and _are_probabilities(ours[output])
        self._theirs_are_probabilities = (
            reference is not None and output is not None and reference.are_probabilities(output)
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the model and the teacher must both have."""
        if self._objective is not None:
            return self._objective.outputs
        return (self._settings.output,) if self._settings.teacher_term and self._settings.output else ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The outputs of the model that it reads."""
        own = () if self._settings.output is None else (self._settings.output,)
        return tuple(dict.fromkeys((*self.outputs, *own)))

    def __call__(self, found: Mapping[str, Any], wanted: Arrays | None, labels: NDArray[np.int64] | None) -> Outcome:
        """The loss for one batch.

        Args:
            found: Outputs of the model as tensors.
            wanted: Outputs of the teacher, where there is one.
            labels: Classes, [samples], where there are any.
        """
        settings, functional = self._settings, self._torch.nn.functional
        scores = teacher = classes = None
        if settings.output is not None:
            scores = self._logits(found[settings.output], probabilities=self._ours_are_probabilities)
            if wanted is not None and settings.output in wanted:
                array = np.asarray(wanted[settings.output], np.float32)
                tensor = self._torch.from_numpy(array).to(scores.device)
                teacher = self._logits(tensor, probabilities=self._theirs_are_probabilities)
        terms = []
        if labels is not None and scores is not None:
            classes = self._torch.from_numpy(np.asarray(labels, np.int64)).to(scores.device)
            if settings.label_weight:
                terms.append(settings.label_weight * functional.cross_entropy(scores, classes))
        elif teacher is not None:
            classes = teacher.argmax(1)
        if settings.label_weight < 1 and wanted is not None:
            if self._objective is not None:
                term = self._objective(found, wanted)
            else:
                assert teacher is not None
                assert scores is not None
                heat = settings.temperature
                goal, ours = (teacher / heat).log_softmax(1), (scores / heat).log_softmax(1)
                term = heat**2 * functional.kl_div(ours, goal, log_target=True, reduction="batchmean")
            terms.append((1 - settings.label_weight) * term)
        correct = None
        if classes is not None and scores is not None:
            correct = int((scores.detach().argmax(1) == classes).sum())
        return Outcome(sum(terms), correct)

    def _logits(self, values: Any, *, probabilities: bool) -> Any:
        """Class scores [samples, classes], also from [samples, classes, 1, 1]."""
        values = values.reshape(values.shape[0], values.shape[1])
        return values.clamp(min=_LEAST).log() if probabilities else values


def _are_probabilities(values: NDArray[Any]) -> bool:
    return are_probabilities(np.asarray(values, np.float32))
