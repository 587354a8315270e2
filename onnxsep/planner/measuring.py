"""Candidates of all layers, measured: fitted to data, then put into the network alone, each in its turn.

In the first round each is fitted and measured with all other layers as they are. Effects do not add up, so a second
round stands around a plan (``Around``): a layer is fitted to what the layers before it, already replaced, deliver, and
measured with all other layers replaced as the plan says.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.candidates import Candidate, Gathered, fit_candidates, gather
from onnxsep.calibration.outcomes import UNFIT, outcome_of
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import naming, site_macs, takes_new_bias
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.file_size import FileSize
from onnxsep.running.runtime import RuntimeOptions

Dense = Mapping[Place, tuple[Array, Array | None]]
"""Weights [out_channels, in_channels / group, *kernel_shape] and biases of layers that stand for replaced ones."""
_WORSE = 1.3  # so many times the held-out error of one that costs no more: it need not be measured


@dataclass(frozen=True)
class Measured:
    """A layer in one form, and what was measured of it.

    Attributes:
        site: The layer.
        row: What takes its place; None where it is left alone.
        parameters: Weights and biases.
        macs: For the batch of the model, or one sample where it is free; None where sizes are not known.
        bytes: What the file has more than the source's, nodes and names included.
        held_out: Relative error of its own output behind its activation, on positions that the fit has not seen.
        effect: On the network's output, as what adds up (``output_distance.Effect.additive``), less that of the layer
            left alone: nothing in the first round, and around a plan that of all the others.
        latency: Nanoseconds that the model takes more; 0 where times do not matter.
        ram: Bytes of activations that are alive while it runs; 0 where they do not matter.
        instead: The form that ``held_out`` and ``effect`` were measured of, where it is not this one.
    """

    site: ConvSite
    row: ConvReplacement | None
    parameters: int
    macs: int | None
    bytes: int
    held_out: float
    effect: float
    latency: int = 0
    ram: int = 0
    instead: str = ""

    @classmethod
    def as_it_is(cls, site: ConvSite) -> "Measured":
        """The layer left alone."""
        return cls(site, None, site.conv.parameters, site_macs(site), 0, 0.0, 0.0)

    def is_like(self, other: "Measured") -> bool:
        """Whether it is the same form of the same layer."""
        return self.site.place == other.site.place and self.words == other.words

    @property
    def words(self) -> str:
        """Its form."""
        return "left alone" if self.row is None else f"{self.row.mode.name} {'x'.join(map(str, self.row.rank))}"


@dataclass(frozen=True)
class Samples:
    """What candidates are fitted to and measured on.

    Attributes:
        fitted: Gives the feeds of the fits.
        options: How they are sampled.
        runtime: How pieces of the network are run.
    """

    fitted: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
    options: CalibrationOptions
    runtime: RuntimeOptions


def measure(
    model: Model,
    sites: Sites,
    rows: Mapping[Place, Sequence[ConvReplacement]],
    samples: Samples,
    walk: EffectWalk,
    *,
    around: Dense | None = None,
    latency: Callable[[ConvReplacement], int] = lambda _: 0,
    progress: Progress | None = None,
) -> dict[Place, list[Measured]]:
    """Fit and measure the candidates of all layers that have some; the layer left alone is the first of each.

    Args:
        model: The source.
        sites: Its layers.
        rows: Candidates by the place of the layer, of the main graph.
        samples: What they are fitted to.
        walk: Measures effects; it is at its beginning, and around the same plan.
        around: The layers that a plan has replaced; None: the source.
        latency: Nanoseconds that the model takes more with a form.
        progress: Told of every layer that is done.

    Raises:
        CalibrationError: The data cannot be used, or the runtime cannot run the model on them.
        FactorizationError: A weight cannot be read.
        PassError: A mode broke a promise.
    """
    size, found = FileSize(model, sites.light), dict[Place, list[Measured]]()
    chosen = [site for site in sites.found if isinstance(site, ConvSite) and rows.get(site.place)]
    gathered = gather(model, sites, chosen, samples.fitted(), samples.options, samples.runtime, replaced=around)
    announce(progress, "measuring candidates", 0, len(chosen))
    for number, one in enumerate(gathered, start=1):
        site = one.site
        effect = walk.at(site)
        alone = 0.0 if around is None else effect(one.weight, _own_bias(one)).additive
        made = [Measured.as_it_is(site)]
        fits = sorted(_fits(one, rows[site.place]), key=lambda fit: fit.row.parameters)
        for fit in _worth_it(fits, latency) if around is None else fits:
            row, more = fit.row, size.of([fit.row]) - size.source
            value = effect(fit.weight, fit.bias).additive - alone
            made.append(Measured(site, row, row.parameters, row.macs, more, fit.held_out, value, latency(row)))
        found[site.place] = made
        if progress:
            progress(site.name, number, len(chosen))
    return found


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
    """The candidates that can be fitted and stored, each as the dense layer that it equals."""
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


def _worth_it(fits: Sequence[_Fit], latency: Callable[[ConvReplacement], int]) -> Iterator[_Fit]:
    """Without those whose own error is far above that of one that costs no more."""
    for fit in fits:
        cheaper = (
            other.held_out
            for other in fits
            if other.row.parameters <= fit.row.parameters
            and (other.row.macs or 0) <= (fit.row.macs or 0)
            and latency(other.row) <= latency(fit.row)
        )
        if fit.held_out <= _WORSE * min(cheaper, default=fit.held_out):
            yield fit
