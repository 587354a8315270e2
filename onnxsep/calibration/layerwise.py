"""Fitting the factors of a whole network to calibration data, Conv by Conv.

Two networks move forward side by side (``onnxsep.calibration.frontier``): the original, which says what each Conv's
output should be, and the one whose Convs so far are replaced, which says what the next Conv really reads (paper 002,
equation 10).
In the second a replaced Conv stands as its layers where these are quicker (``onnxsep.calibration.factored``), else as
the one dense Conv that its factors multiply to, a block as its own new nodes (``onnxsep.calibration.own_nodes``). Every
node of either network runs about once for each batch, so the cost grows linearly with depth.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.dense import as_dense
from onnxsep.calibration.factored import as_layers
from onnxsep.calibration.fitting import Told, fit, fit_bias
from onnxsep.calibration.outcomes import (
    FELL_BACK,
    SHARED,
    UNFIT,
    outcome_of,
    plain_outcome,
    read_bias,
    told,
    unfit,
)
from onnxsep.calibration.own_nodes import own_nodes
from onnxsep.calibration.refinement import Half, Pair
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.samples import prior_of, sample, usable_tail
from onnxsep.calibration.schedule import Step, Tail, make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.factors import Factorized, from_weights
from onnxsep.engine.planning import Plan, in_main_graph, naming
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import CalibrationError, FactorizationError
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import opset_version
from onnxsep.model.io import Model
from onnxsep.modes.base import Factors
from onnxsep.options.progress import Progress, announce
from onnxsep.running.runtime import RuntimeOptions

NOT_FITTED = "its factors are those of the weights alone, for it cannot be fitted: {}"


def calibrate(
    model: Model,
    sites: Sites,
    plan: Plan,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    progress: Progress | None = None,
    blocks: Mapping[Place, Factorized] | None = None,
) -> Calibrated:
    """Fit every replacement of the plan that stands in the main graph.

    Args:
        model: the source.
        sites: where its Convs are.
        plan: what to replace; not changed.
        batches: inputs by name, in the model's own types; the first dimension counts images.
        options: how.
        runtime: how pieces of the networks are run.
        progress: told of every Conv that is done, with its error before and after.
        blocks: tensors of the plan's blocks, by their places; others are those of the weights alone.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        PassError: a mode broke a promise.
    """
    walk = Walk(model, batches, options, runtime)
    return _Calibrator(model, sites, plan, walk, options, runtime, blocks or {}).run(progress)


class _Calibrator:
    def __init__(
        self,
        model: Model,
        sites: Sites,
        plan: Plan,
        walk: Walk,
        options: CalibrationOptions,
        runtime: RuntimeOptions,
        blocks: Mapping[Place, Factorized],
    ) -> None:
        self._model, self._sites, self._plan, self._walk, self._options = model, sites, plan, walk, options
        self._runtime, self._opset = runtime, opset_version(model.proto, sites.scopes, 0)
        self._replacements = {row.site.place: row for row in plan.convs if in_main_graph(row.site)}
        self._rewritten = walk.frontier.fork()
        own = own_nodes(model, sites, plan, copied=walk.copied, given=blocks)
        for tensor in own.tensors:
            self._rewritten.add_initializer(tensor)
        self._replaced = own.nodes
        self._halves: dict[Place, Half] = {}  # Convs that may be fitted again with one behind or before them
        self._done = Calibrated(samples=walk.samples)
        self._failed: BaseException | None = None

    def run(self, progress: Progress | None) -> Calibrated:
        sites = [row.site for row in self._replacements.values()]
        again = self._options.refine > 0 and any(row.init == "joint" for row in self._plan.replacements)
        steps = make_schedule(self._model, self._sites.scopes, sites, pairs=again)
        for number, step in enumerate(steps):
            told = partial(_announced, progress, step.site.name, number, len(steps))
            told("")
            self._advance(step, told)
            replacement = self._replacements[step.site.place]
            with naming(replacement.mode, step.site.name), one_thread():
                try:
                    self._options.needs.check(step.site.place)
                    found = self._calibrate(step, replacement, told)
                except UNFIT as error:
                    self._failed = self._failed or error
                    found = self._unfitted(step, replacement, unfit(error))
            if progress:
                progress(f"{step.site.name}: {found}", number + 1, len(steps))
        if self._failed is not None and not any(one.errors for one in self._done.by_place.values()):
            raise CalibrationError(f"no Conv can be fitted: {unfit(self._failed)}") from self._failed
        self._done.note_nested(self._plan)
        return self._done

    def _unfitted(self, step: Step, replacement: ConvReplacement, reason: str) -> str:
        """Take the factors of the weights alone for a Conv that cannot be fitted; gives the reason."""
        site, key = step.site, replacement.key
        outcome = self._done.outcomes.get(key)
        if outcome is None:
            outcome = plain_outcome(self._model, self._sites, replacement)
            self._done.outcomes[key] = outcome
        if isinstance(outcome, Factorized):
            bias = read_bias(self._model, self._sites, site)
            if replacement.new_bias:
                stored = np.zeros(site.conv.out_channels) if bias is None else bias
                outcome = replace(outcome, bias=stored.astype(STORED_TYPES[site.dtype]))
            self._done.by_place[site.place] = outcome
            self._done.notes[site.place] = NOT_FITTED.format(reason)
            self._replace(replacement, outcome.factors, None)
        return f"not fitted: {reason}"

    def _advance(self, step: Step, told: Told) -> None:
        def running(batch: int, batches: int) -> None:
            told(f"running {batch} of {batches}")

        self._walk.advance(step, running)
        if self._replaced:
            nodes = [node for index in step.nodes for node in self._replaced.get(index, [self._walk.nodes[index]])]
            self._rewritten.advance(nodes, step.keep, running)
        else:  # up to the first replaced Conv both networks are the same
            self._rewritten = self._walk.frontier.fork()

    def _calibrate(self, step: Step, replacement: ConvReplacement, tell: Told) -> str:
        """Fit one Conv and put it into the rewritten network; gives its error in words."""
        site, key, mode, init = step.site, replacement.key, replacement.mode, replacement.init
        try:
            weight, old_bias = read_weight(self._model, self._sites, site), read_bias(self._model, self._sites, site)
        except FactorizationError as error:
            self._done.outcomes[key] = str(error)
            return str(error)
        tell("gathering")
        samples, tail = self._sample(step, replacement, weight, old_bias)
        prior = prior_of(self._options, weight, samples)
        if site.conv.bias and site.bias is None:  # a computed bias is not known here, and so not what is clipped
            tail = tail.unclipped
        earlier = self._done.outcomes.get(key)
        if isinstance(earlier, Factorized):
            factors = earlier.factors
            new_bias = replacement.new_bias and init != "svd"
            result = fit_bias(mode, site.conv, factors, samples, tail, old_bias=old_bias, new_bias=new_bias)
            self._done.notes[site.place] = SHARED
        else:
            result = fit(
                mode,
                site.conv,
                replacement.rank,
                weight,
                samples,
                tail,
                init=init,
                old_bias=old_bias,
                new_bias=replacement.new_bias,
                prior=prior,
                told=tell,
                alone=from_weights(self._model, self._sites, replacement, weight) if init == "svd" else None,
            )
            if result.fell_back and not replacement.exact:
                self._done.notes[site.place] = FELL_BACK
        outcome = outcome_of(replacement, weight, result, init)
        if isinstance(outcome, str):
            self._done.outcomes.setdefault(key, outcome)
            return outcome
        # Bias and errors are of this Conv alone, the factors of all that share its weight.
        self._done.outcomes.setdefault(key, replace(outcome, bias=None, errors=None))
        half = Half(step, replacement, tail, weight, old_bias, prior, result)
        del samples
        self._store(half, outcome)
        return told(self._refined(step, half).fit)

    def _store(self, half: Half, outcome: Factorized) -> None:
        """Take the factors of a Conv as its result, and let the rewritten network compute what they give."""
        site = half.step.site
        self._done.by_place[site.place] = outcome
        stored = outcome.factors
        self._replace(half.replacement, stored, half.fit.bias)
        self._halves[site.place] = replace(half, fit=replace(half.fit, factors=stored))

    def _refined(self, step: Step, half: Half) -> Half:
        """Fit this Conv again, together with the one before it, where that is possible and gains something."""
        first = None if step.before is None else self._halves.get(step.before.place)
        if first is None or first.replacement.exact or not (self._alone(first) and self._alone(half)):
            return half
        before = self._rewritten.fork()
        pair = Pair(first, self._halves[step.site.place], self._walk, self._rewritten, self._resampled, self._runtime)
        found = pair.refine(self._options.refine)
        if found is None:
            return half
        halves = [replace(one, fit=fit) for one, fit in zip((first, half), found, strict=True)]
        outcomes = [outcome_of(one.replacement, one.weight, one.fit, "joint") for one in halves]
        fitting = [outcome for outcome in outcomes if isinstance(outcome, Factorized)]
        if len(fitting) < len(halves):  # too large for the stored type
            self._rewritten = before
            return half
        for one, outcome in zip(halves, fitting, strict=True):
            self._done.outcomes[one.replacement.key] = replace(outcome, bias=None, errors=None)
            self._store(one, outcome)
            if self._done.notes.get(one.step.site.place) == FELL_BACK:
                del self._done.notes[one.step.site.place]
        return halves[1]

    def _alone(self, half: Half) -> bool:
        """Whether all its factors are fitted, no other Conv has them, and its bias is known."""
        key = half.replacement.key
        shared = sum(row.key == key for row in self._plan.convs) > 1
        joint = half.replacement.init == "joint"
        return joint and not shared and (half.step.site.bias is not None or not half.conv.bias)

    def _resampled(self, half: Half) -> Samples:
        return self._sample(half.step, half.replacement, half.weight, half.old_bias)[0]

    def _sample(
        self, step: Step, replacement: ConvReplacement, weight: Array, old_bias: Array | None
    ) -> tuple[Samples, Tail]:
        """Rows of what the Conv reads and of what it should compute, and as much of the tail as these have data for."""
        # Algorithm 1 of paper 002 knows the original network alone, Algorithm 2 also what it delivers.
        other = None if replacement.init == "response" else self._rewritten
        mixed, centre, seed = replacement.init == "compensated", replacement.new_bias, self._options.seed
        tail = usable_tail(self._walk, step, (self._walk.frontier, self._rewritten))
        found = sample(self._walk, step, tail, weight, old_bias, other=other, mixed=mixed, centre=centre, seed=seed)
        return found, tail

    def _replace(self, replacement: ConvReplacement, factors: Factors, bias: Array | None) -> None:
        """Let the rewritten network compute what the factors give."""
        site, copied = replacement.site, self._walk.copied
        index = site.place[1]
        node = self._walk.nodes[index]
        found = as_layers(node, replacement, factors, bias, self._opset, copied=copied)
        if found is None:
            dense = replacement.mode.reconstruct(site.conv, factors)
            one, tensors = as_dense(node, site, dense, bias, copied=copied)
            found = [one], tensors
        self._replaced[index], new = found
        for tensor in new:
            self._rewritten.add_initializer(tensor)


def _announced(progress: Progress | None, name: str, done: int, total: int, words: str) -> None:
    announce(progress, f"{name}: {words}" if words else name, done, total)
