"""Time as a budget of plans: what forms of layers cost, as far as a search has asked, and what a whole model takes."""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError, UnsupportedModelError
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.cache import Cache
from onnxsep.planner.latency import AS_IT_IS, CPU, FormLatency, Latencies, latencies, ratio_of, this_machine
from onnxsep.planner.latency_file import latencies_from
from onnxsep.planner.latency_times import FormTime
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.pieces import key_of
from onnxsep.planner.quantized import Quantized
from onnxsep.running.feeds import make_feeds
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions
from onnxsep.running.timing import THOROUGH, clock_for, measure_times

_NS = 1_000_000  # nanoseconds of a millisecond: budgets are whole numbers
Row = TypeVar("Row", bound=Replacement)


class Timings:
    """What forms of a model's layers cost.

    Args:
        find: Measures it, or reads it from a file.
        keep_slower: Whether forms stay that make their layer slower: another budget may need them.
    """

    def __init__(self, find: Callable[[Sequence[Replacement]], Latencies], *, keep_slower: bool = False) -> None:
        self._find, self._keep_slower = find, keep_slower
        self._known: Latencies | None = None

    def usable(self, rows: Mapping[Place, Sequence[Row]]) -> tuple[dict[Place, list[Row]], dict[Place, str]]:
        """Find out what forms cost.

        Args:
            rows: Forms by the place of the layer.

        Returns:
            Those whose time is known and no longer than their layer's, and why layers have none, by their places.

        Raises:
            OptionError: None of the model's layers can be timed; or as what finds it out.
            UnsupportedModelError: The runtime cannot run the model.
        """
        asked = [row for several in rows.values() for row in several]
        if not asked and self._known is not None:
            return {}, {}
        if not asked:
            raise OptionError("no form pays for any layer, so there is nothing that could change the latency")
        found = self._find(asked)
        before = {} if self._known is None else self._known.rows
        self._known = replace(found if self._known is None else self._known, rows={**before, **found.rows})
        if not math.isfinite(self._known.whole_ms):
            raise OptionError(f"no layer can be timed: {self._known.of(asked[0])}")
        kept, reasons = {}, {}
        for place, several in rows.items():
            kept[place] = [row for row in several if self._is_usable(row)]
            if several and not kept[place]:
                first = self._known.of(several[0])
                reasons[place] = first if isinstance(first, str) else "no form of it is faster"
        return kept, reasons

    def _is_usable(self, row: Replacement) -> bool:
        found = self.known.of(row)
        return isinstance(found, FormLatency) and (self._keep_slower or not found.is_slower)

    @property
    def known(self) -> Latencies:
        """All that was found out."""
        assert self._known is not None
        return self._known

    @property
    def whole(self) -> int:
        """Nanoseconds of the model with no layer replaced: quantised, where that is what is shipped."""
        return round(self.known.whole_ms * _NS)

    @property
    def original(self) -> int:
        """Nanoseconds of the model as the user gave it."""
        return round(self.known.whole_ms / self.known.share * _NS)

    def change(self, row: Replacement) -> int:
        """Nanoseconds that the model takes more (negative: less) with one form of a layer."""
        found = self.known.of(row)
        return round(found.change * self.whole) if isinstance(found, FormLatency) else 0

    def ratio(self, row: Replacement) -> float | None:
        """The time of a layer in one form, as a share of its own; None where that is not known."""
        found = self.known.of(row)
        return found.ratio if isinstance(found, FormLatency) else None

    def of(self, rows: Iterable[Replacement]) -> int:
        """Nanoseconds that the model takes with several: the sum."""
        return self.whole + sum(map(self.change, rows))


@dataclass(frozen=True)
class Timer:
    """Who measures times: this process, or what has it done elsewhere.

    Attributes:
        latencies: As :func:`onnxsep.planner.latency.latencies`.
        whole: As :func:`whole_ratio`; None: that.
    """

    latencies: Callable[..., Latencies] = latencies
    whole: Callable[..., tuple[float, float]] | None = None

    @property
    def ratio(self) -> Callable[..., tuple[float, float]]:
        """Times whole models side by side."""
        return self.whole or whole_ratio


def timings_for(
    model: Model,
    sites: Sites,
    options: PlanOptions,
    scratch: str | None,
    progress: Progress | None,
    quantized: Quantized | None = None,
    timer: Timer | None = None,
) -> Timings | None:
    """What a plan with these options knows of times; None where no budget asks for them.

    Args:
        model: The model.
        sites: Its layers.
        options: Those of the plan.
        scratch: Where measurements are kept if no cache is named.
        progress: Told of what is measured.
        quantized: What quantises models before they are timed.
        timer: Measures; None: this process.
    """
    kinds = {one.kind for one in options.targets}
    kept = scratch if options.cache is None else options.cache
    if not options.times:
        return None

    then = AS_IT_IS if quantized is None else quantized.then

    def find(rows: Sequence[Replacement]) -> Latencies:
        if options.latency_from is not None:
            return latencies_from(options.latency_from, model, sites, rows, then.name)
        cache, clock = None if kept is None else Path(kept), timer or Timer()
        shapes, runtime = options.shapes, options.run_with
        found = clock.latencies(
            model, sites, rows, runtime, input_shapes=shapes, cache=cache, then=then, progress=progress
        )
        if quantized is None:
            return found
        share, error = clock.ratio(model, quantized.source.model, runtime, shapes, cache, progress)
        return replace(found, share=share, share_error=error)

    return Timings(find, keep_slower=bool(kinds & {"params", "size"}))


def scratch_for(options: PlanOptions) -> "nullcontext[None] | tempfile.TemporaryDirectory[str]":
    """A folder for what is measured in several rounds, where times are a budget and no cache is named."""
    wanted = options.times
    kept = options.cache is not None or options.latency_from is not None
    return tempfile.TemporaryDirectory(prefix="onnxsep-") if wanted and not kept else nullcontext()


def whole_ratio(
    source: Model,
    made: Model,
    runtime: RuntimeOptions,
    input_shapes: Mapping[str, tuple[int, ...]],
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """How long a model takes as a share of another's time, the two taking turns, and the standard error.

    Args:
        source: The other model.
        made: The model.
        runtime: Threads and provider.
        input_shapes: Of the inputs, where dimensions are free.
        cache: A folder where it is kept, and found again: the same cache gives the same plan.
        progress: Told how far it is.

    Raises:
        FeedError: Inputs cannot be made for them.
        UnsupportedModelError: The runtime cannot run one.
    """
    kept = None if cache is None else Cache(Path(cache))
    shapes = {name: list(shape) for name, shape in input_shapes.items()}
    about = {"shapes": shapes, "model": key_of(source), "made": key_of(made), "schema": 1}
    about["machine"] = this_machine(runtime).model_dump()
    known = None if kept is None else kept.find(FormTime, about)
    if known is not None:
        return known.ratio, known.error
    announce(progress, "timing the whole model")
    feeds = make_feeds(source, input_shapes=input_shapes).arrays
    runners = [Runner(one, runtime) for one in (source, made)]
    try:
        for runner in runners:
            runner(feeds)  # within the time limit, which timed runs do without
    except CannotRun as error:
        raise UnsupportedModelError(f"the runtime cannot run the model, so it cannot be timed: {error}") from error
    clock = clock_for(runtime.threads, on_cpu=runtime.provider == CPU)
    timed = measure_times([one.alone for one in runners], [feeds], None, progress, THOROUGH, clock)[1]
    ratio, spread = ratio_of(timed)
    if kept is not None:
        kept.keep(about, FormTime(ms=timed.figure * 1000, ratio=ratio, error=spread))
    return ratio, spread
