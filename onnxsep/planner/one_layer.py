"""The forms of one layer, fitted and measured: a piece of the work of a plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.candidates import Candidate, Gathered, fit_candidates
from onnxsep.calibration.outcomes import UNFIT, outcome_of
from onnxsep.engine.factors import Factorized
from onnxsep.engine.planning import naming, takes_new_bias
from onnxsep.engine.replacements import ConvReplacement, Replacement
from onnxsep.graph.places import Place
from onnxsep.layers.rank import Rank
from onnxsep.planner.grid import replacement
from onnxsep.planner.job import Job, Sent, Stand, here
from onnxsep.planner.output_distance import Effect
from onnxsep.reporting.records import Record

_WORSE = 1.3  # so many times the held-out error of one that costs no more: its effect need not be measured


class FormFound(Record):
    """What is known of a form of a layer."""

    held_out: float | None
    """Relative error of the layer's output on positions that the fit has not seen; None: it cannot be fitted."""
    effect: float | None = None
    """On the network's output, as what adds up; None: not measured."""
    deciding: float | None = None
    """What decides between forms, where it is another figure."""


class LayerFound(Record):
    """What is known of a layer, with the other layers as they are in a round."""

    alone: float | None = None
    """The effect of all the others, with this one left alone; None: not known yet."""
    alone_deciding: float | None = None
    forms: dict[str, FormFound] = Field(default_factory=dict)
    """By ``key_of``."""


@dataclass(frozen=True)
class Form:
    """A form to be measured.

    Attributes:
        mode: Its number among those of the job.
        rank: Of the mode.
        latency: Nanoseconds that the model takes more; 0 where times do not matter.
    """

    mode: int
    rank: Rank
    latency: int


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        place: The layer.
        forms: Those that are asked for.
        known: What is known of the layer already.
        all_effects: Whether effects are measured even of forms that are far worse than others.
    """

    place: Place
    forms: tuple[Form, ...]
    known: LayerFound
    all_effects: bool


def key_of(row: Replacement) -> str:
    """A form in words that no other form has."""
    given = "".join(f" {name}={value}" for name, value in sorted(row.mode.given.items()))
    return f"{row.mode.name}{given} {'x'.join(map(str, row.rank))} {row.init}{' bias' if row.new_bias else ''}"


def wanted(
    rows: Sequence[ConvReplacement],
    known: Mapping[str, FormFound],
    latency: Callable[[ConvReplacement], int],
    *,
    all_effects: bool,
) -> list[ConvReplacement]:
    """Those forms whose effects are asked for, the smallest first.

    Args:
        rows: The forms of a layer.
        known: What is known of them; those without a held-out error cannot be fitted.
        latency: Nanoseconds that the model takes more with one.
        all_effects: Whether those are asked for whose own error is far above that of one that costs no more.
    """
    errors = {
        key: found.held_out for key in map(key_of, rows) if (found := known.get(key)) and found.held_out is not None
    }
    fitted = [row for row in sorted(rows, key=lambda row: row.parameters) if key_of(row) in errors]
    if all_effects:
        return fitted
    costs = [(row.parameters, row.macs or 0, latency(row), errors[key_of(row)]) for row in fitted]

    def is_worth_it(own: tuple[int, int, int, float]) -> bool:
        cheaper = (other[3] for other in costs if all(a <= b for a, b in zip(other[:3], own[:3], strict=True)))
        return own[3] <= _WORSE * min(cheaper, default=own[3])

    return [row for row, own in zip(fitted, costs, strict=True) if is_worth_it(own)]


def is_complete(
    rows: Sequence[ConvReplacement],
    known: LayerFound,
    latency: Callable[[ConvReplacement], int],
    *,
    all_effects: bool,
) -> bool:
    """Whether all that is asked for of these forms is known."""
    asked = wanted(rows, known.forms, latency, all_effects=all_effects)
    return (
        known.alone is not None
        and all(key_of(row) in known.forms for row in rows)
        and all(known.forms[key_of(row)].effect is not None for row in asked)
    )


def measure_layer(sent: Job | Sent, stand: Stand, piece: Piece, tell: Callable[[LayerFound], None]) -> LayerFound:
    """Fit forms of a layer, and measure their effects.

    Args:
        sent: The job.
        stand: What the other layers are like.
        piece: Which forms.
        tell: Told what is known as soon as there is more.

    Raises:
        CalibrationError: The data cannot be used, or the runtime cannot run the model on them.
        FactorizationError: A weight cannot be read.
        PassError: A mode broke a promise.
    """
    job = here(sent)
    site = job.by_place[piece.place]
    rows = [replacement(site, job.modes[form.mode], form.rank) for form in piece.forms]
    times = {key_of(row): form.latency for row, form in zip(rows, piece.forms, strict=True)}
    with stand.position(job, piece.place) as position:
        gathered, walk = position.move_to(piece.place)
        effect = walk.at(site)
        nothing = Effect(walk.kind, 0.0, walk.samples)
        alone = nothing if stand.around is None else effect(gathered.weight, _own_bias(gathered))
        own = LayerFound(alone=alone.additive, alone_deciding=alone.deciding)
        forms = dict(piece.known.forms)
        unknown = [row for row in rows if (known := forms.get(key_of(row))) is None or known.effect is None]
        fits = {key_of(fit.row): fit for fit in _fits(gathered, unknown)}
        for key in map(key_of, unknown):
            forms[key] = FormFound(held_out=fits[key].held_out if key in fits else None)
        for row in wanted(rows, forms, lambda row: times[key_of(row)], all_effects=piece.all_effects):
            key = key_of(row)
            if forms[key].effect is None:
                found = effect(fits[key].weight, fits[key].bias)
                forms[key] = FormFound(held_out=fits[key].held_out, effect=found.additive, deciding=found.deciding)
                tell(own.model_copy(update={"forms": dict(forms)}))
    return own.model_copy(update={"forms": forms})


def _own_bias(one: Gathered) -> Array | None:
    """The bias of a layer as it is: zeros where it has none and what stands for it may have one."""
    if one.old_bias is None and takes_new_bias(one.site):
        return np.zeros(one.site.conv.out_channels)
    return one.old_bias


@dataclass(frozen=True)
class _Fit:
    row: ConvReplacement
    weight: Array
    bias: Array | None
    held_out: float


def _fits(one: Gathered, rows: Sequence[ConvReplacement]) -> Iterator[_Fit]:
    """The forms that can be fitted and stored, each as the dense layer that it equals."""
    site = one.site
    for mode in dict.fromkeys(row.mode for row in rows):
        own = [row for row in rows if row.mode is mode]
        asked = [Candidate(row.mode, row.rank, row.init) for row in own]
        with naming(mode, site.name), one_thread():
            fits = fit_candidates(
                site.conv,
                one.weight,
                one.samples,
                one.tail,
                asked,
                old_bias=one.old_bias,
                new_bias=own[0].new_bias,
                prior=one.prior,
            )
            try:
                for place, fit in fits:
                    outcome = outcome_of(own[place], one.weight, fit, own[place].init)
                    if isinstance(outcome, Factorized):
                        bias = None if outcome.bias is None else outcome.bias.astype(np.float64)
                        weight = mode.reconstruct(site.conv, outcome.factors)
                        yield _Fit(own[place], weight, bias, fit.held_out)
            except UNFIT:  # this form is none for this layer
                continue
