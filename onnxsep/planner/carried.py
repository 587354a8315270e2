"""A choice that is carried out, as a piece of work: what comes of it can be sent, kept, and put together again."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import Rejected
from onnxsep.engine.planning import Plan, drop
from onnxsep.graph.places import Place
from onnxsep.layers.rank import Rank
from onnxsep.options.progress import Progress
from onnxsep.planner.carrying_out import Carried, assembled, fitted
from onnxsep.planner.job import Job, Sent, here
from onnxsep.planner.output_distance import Effect

Choice = tuple[tuple[Place, int, Rank], ...]
"""The layers that get another form, in graph order: place, number of the form among those of the job, rank."""


@dataclass(frozen=True)
class Outcome:
    """What came of a choice.

    Attributes:
        layers: Of each layer that gets another form its new tensors, or why it is left alone.
        effect: Of all together.
    """

    layers: tuple[Factorized | str, ...]
    effect: Effect


def choice_of(job: Job, plan: Plan) -> Choice:
    """The choice that a plan is of."""
    return tuple((row.site.place, job.number_of(row.mode), row.rank) for row in plan.replacements)


def fit_choice(
    sent: Job | Sent, choice: Choice, tell: Callable[[object], None], progress: Progress | None = None
) -> Outcome:
    """Fit a choice, and measure its effect.

    Args:
        sent: The job.
        choice: Which.
        tell: Told nothing.
        progress: Told of every layer that is fitted.

    Raises:
        CalibrationError: The data cannot be used, or the runtime cannot run the model.
        PassError: A mode broke a promise.
    """
    job = here(sent)
    plan = Plan([job.row(place, mode, rank) for place, mode, rank in choice])
    places = [place for place, *_ in choice]
    factors = fitted(job.model, job.sites, plan, job.samples, progress)
    made = assembled(job.model, job.sites, plan, factors)
    left = [row.reason if isinstance(row, Rejected) else "" for row in plan.rows]
    layers = tuple(factors.get(place) or why for place, why in zip(places, left, strict=True))
    return Outcome(layers, job.walk(None).of(made.model))


def put_together(job: Job, plan: Plan, outcome: Outcome) -> Carried:
    """The plan as it was carried out, from what came of it; rows of layers that could not be fitted change."""
    factors = {}
    for row, layer in zip(plan.replacements, outcome.layers, strict=True):
        if isinstance(layer, str):
            drop(plan, row, layer)
        else:
            factors[row.site.place] = layer
    return replace(assembled(job.model, job.sites, plan, factors), effect=outcome.effect)
