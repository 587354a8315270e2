"""The latency of a model whose layers get other forms, from times of its layers.

    latency = that of the whole model + sum over the replaced layers of (their time in the new form - as they are)

Each difference is measured within one minute, the two sides taking turns: first how long each layer of the model takes
as a share of the whole model (``PieceTime.share``), then how long each form takes as a share of its layer
(``FormTime.ratio``). A difference is share * (ratio - 1) of the whole model's time; what a slow minute of the machine
does to both sides of a ratio is nearly gone from it.
"""

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.cache import Cache
from onnxsep.planner.latency_times import FormTime, Machine, PieceTime, Times
from onnxsep.planner.latency_work import Form, Work, row_key, work_of
from onnxsep.planner.pieces import key_of
from onnxsep.running.feeds import make_feeds
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions, runtime_version
from onnxsep.running.timing import PIECES, SHARES, Call, Timed, clock_for, measure_times, processor

_TOGETHER = 5  # forms that take turns with their layer
_SURE = 2  # standard errors
_UNSURE = 0.1  # relative standard error of what ran too rarely for one
_MS = 1000
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Then:
    """What is done to a model before it runs: the whole one, and each piece in each form.

    Attributes:
        name: What it is, with all that times depend on; "" for nothing.
        make: From a model and inputs of it to the one that runs, with the same inputs.
    """

    name: str
    make: Callable[[Model, Mapping[str, Any]], Model]


AS_IT_IS = Then("", lambda model, _: model)


@dataclass(frozen=True)
class FormLatency:
    """What a form of a layer costs.

    Attributes:
        ms: Milliseconds of the layer in this form, with what the runtime fuses with it.
        ratio: The same as a share of the layer's time as it is.
        ratio_error: Standard error.
        change: What the whole model's time changes by, as a share of it; negative: it gets faster.
        change_error: Standard error.
    """

    ms: float
    ratio: float
    ratio_error: float
    change: float
    change_error: float

    @property
    def is_slower(self) -> bool:
        """Whether the layer gets slower, by more than may be chance."""
        return self.ratio - 1 > _SURE * self.ratio_error


@dataclass(frozen=True)
class Latencies:
    """What forms of a model's layers cost.

    Attributes:
        whole_ms: Milliseconds of a run of the model as it is.
        machine: Where that was measured.
        rows: What each form costs, or why that is not known.
        share: The time of the model as a share of that of the user's, of which it was made by quantising; else 1.
        share_error: Standard error.
    """

    whole_ms: float
    machine: Machine
    rows: Mapping[Any, FormLatency | str]
    share: float = 1.0
    share_error: float = 0.0

    def of(self, row: Replacement) -> FormLatency | str:
        """What one form costs, or why that is not known."""
        return self.rows.get(row_key(row), "it was not measured")

    def promised(self, chosen: Iterable[Replacement]) -> tuple[float, float]:
        """The time of the model with these forms, as a share of that of the user's, and the standard error.

        Layers of a kind share their error, as they share what was measured.
        """
        costs = [found for row in chosen if isinstance(found := self.of(row), FormLatency)]
        errors: dict[tuple[float, float], float] = {}
        for one in costs:
            errors[one.ms, one.ratio] = errors.get((one.ms, one.ratio), 0.0) + one.change_error
        own = 1 + sum(one.change for one in costs)
        spread = math.sqrt(sum(error**2 for error in errors.values()))
        return self.share * own, math.hypot(self.share * spread, self.share_error * own)


def latencies(
    model: Model,
    sites: Sites,
    rows: Sequence[Replacement],
    runtime: RuntimeOptions,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    cache: Path | None = None,
    then: Then = AS_IT_IS,
    progress: Progress | None = None,
) -> Latencies:
    """Measure what forms of layers cost on this machine.

    Args:
        model: The model.
        sites: Its layers.
        rows: Forms that layers may get.
        runtime: Threads and provider.
        input_shapes: Of the whole model's inputs, where dimensions are free.
        cache: A folder where what was measured is kept, item by item, and found again.
        then: What is done to models before they are timed, such as ``onnxsep.planner.int8.int8``.
        progress: Told of every piece.

    Raises:
        UnsupportedModelError: The runtime cannot run the model.
        FeedError: Inputs cannot be made for it.
        OptionError: The folder is no cache; the provider is not there.
        ModelSaveError: The folder cannot be written.
    """
    runtime.check()
    work = work_of(model, sites, rows)
    timer = _Timer(model, work, runtime, None if cache is None else Cache(cache), then, progress)
    return latencies_of(work, timer.times(input_shapes or {}), timer.failures)


def latencies_of(work: Work, times: Times, failures: Mapping[Form, str] | None = None) -> Latencies:
    """What forms cost, from times.

    Args:
        work: The forms.
        times: Those of the model's pieces.
        failures: Why some were not measured.
    """
    found: dict[Any, FormLatency | str] = {}
    for row, form in work.forms.items():
        if isinstance(form, str):
            found[row] = form
            continue
        piece, time = times.pieces.get(form[0]), times.forms.get(form[0], {}).get(form[1])
        if piece is None or time is None:
            found[row] = (failures or {}).get(form, "it was not measured")
            continue
        change = piece.share * (time.ratio - 1)
        error = math.hypot(piece.error * (time.ratio - 1), piece.share * time.error)
        found[row] = FormLatency(time.ms, time.ratio, time.error, change, error)
    return Latencies(times.whole_ms, times.machine, found)


def this_machine(runtime: RuntimeOptions) -> Machine:
    """What times that are measured here hold for."""
    return Machine(
        runtime=runtime_version(),
        provider=runtime.provider,
        threads=runtime.threads,
        processor=processor(),
        system=platform.system(),
    )


class _Timer:
    """Measures what a cache does not hold."""

    def __init__(
        self,
        model: Model,
        work: Work,
        runtime: RuntimeOptions,
        cache: Cache | None,
        then: Then,
        progress: Progress | None,
    ) -> None:
        self._model, self._work, self._runtime = model, work, runtime
        self._cache, self._then, self._progress = cache, then, progress
        self._machine = this_machine(runtime)
        self._clock = clock_for(runtime.threads, on_cpu=runtime.provider == CPU)
        self.failures: dict[Form, str] = {}

    def times(self, input_shapes: Mapping[str, tuple[int, ...]]) -> Times:
        """The times of all pieces and forms."""
        whole_ms, pieces = self._shares(input_shapes)
        forms: dict[str, dict[str, FormTime]] = {}
        done, total = 0, len(self._work.models)
        for key in pieces:
            for form, time in self._of_piece(key):
                forms.setdefault(key, {})[form[1]] = time
                done += 1
                if self._progress is not None:
                    self._progress("timing forms of layers", done, total)
        return Times(machine=self._machine, whole_ms=whole_ms, pieces=pieces, forms=forms)

    def _shares(self, input_shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, dict[str, PieceTime]]:
        """The time of the whole model, and the share of each piece in it."""
        whole = key_of(self._model)
        about = {"shapes": {name: list(shape) for name, shape in input_shapes.items()}, "model": whole}
        found: dict[str, PieceTime] = {}
        missing: list[str] = []
        for key in self._work.pieces:
            known = self._find(PieceTime, {**about, "piece": key})
            if known is None:
                missing.append(key)
            else:
                found[key] = known
        if missing or not found:
            announce(self._progress, "timing layers")
            found.update(self._measured(missing, about, input_shapes))
        some = next(iter(found.values()), None)
        return (some.ms / some.share if some is not None else math.nan), {
            key: found[key] for key in self._work.pieces if key in found
        }

    def _measured(
        self, missing: Sequence[str], about: Mapping[str, object], input_shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, PieceTime]:
        feeds = make_feeds(self._model, input_shapes=input_shapes).arrays
        try:
            whole = self._call(self._model, feeds)
        except CannotRun as error:
            raise UnsupportedModelError(
                f"the runtime cannot run the model, so nothing can be timed: {error}"
            ) from error
        calls = {}
        for key in missing:
            piece = self._work.pieces[key]
            try:
                calls[key] = self._call(piece.model, piece.feeds())
            except CannotRun as error:
                why = f"the runtime cannot run it alone: {error}"
                self.failures.update(dict.fromkeys(self._work.of(key), why))
        timed = measure_times([whole, *calls.values()], [{}], None, self._told, SHARES, self._clock)
        found = {}
        for key, one in zip(calls, timed[1:], strict=True):
            share, spread = ratio_of(one)
            found[key] = PieceTime(ms=share * timed[0].figure * _MS, share=share, error=spread)
            self._keep({**about, "piece": key}, found[key])
        return found

    def _of_piece(self, key: str) -> Iterable[tuple[Form, FormTime]]:
        """The times of the forms of one piece."""
        missing: dict[Form, Call] = {}
        piece = self._work.pieces[key]
        for form, model in self._work.of(key).items():
            known = self._find(FormTime, {"piece": key, "form": form[1]})
            if known is not None:
                yield form, known
                continue
            try:
                missing[form] = self._call(model, piece.feeds())
            except CannotRun as error:
                self.failures[form] = f"the runtime cannot run it: {error}"
                continue
            if len(missing) == _TOGETHER:
                yield from self._side_by_side(key, missing)
                missing = {}
        if missing:
            yield from self._side_by_side(key, missing)

    def _side_by_side(self, key: str, forms: Mapping[Form, Call]) -> list[tuple[Form, FormTime]]:
        piece = self._work.pieces[key]
        as_it_is = self._call(piece.model, piece.feeds())
        timed = measure_times([as_it_is, *forms.values()], [{}], None, None, PIECES, self._clock)
        found = []
        for form, one in zip(forms, timed[1:], strict=True):
            ratio, error = ratio_of(one)
            found.append((form, FormTime(ms=one.figure * _MS, ratio=ratio, error=error)))
            self._keep({"piece": key, "form": form[1]}, found[-1][1])
        return found

    def _call(self, model: Model, feeds: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
        """What runs a model on these inputs.

        Raises:
            CannotRun: It cannot be run.
        """
        runner = Runner(self._then.make(model, feeds), self._runtime)
        runner(feeds)  # within the time limit, which timed runs do without
        return lambda _: runner.alone(feeds)

    def _told(self, _: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("timing layers", done, total)

    def _find(self, kind: Any, what: Mapping[str, object]) -> Any:
        return None if self._cache is None else self._cache.find(kind, {**what, **self._where()})

    def _keep(self, what: Mapping[str, object], found: PieceTime | FormTime) -> None:
        if self._cache is not None:
            self._cache.keep({**what, **self._where()}, found)

    def _where(self) -> dict[str, object]:
        return {"machine": self._machine.model_dump(), "then": self._then.name, "schema": 1}


def ratio_of(timed: Timed) -> tuple[float, float]:
    """How long a model takes as a share of the first one's time, and the standard error."""
    found = timed.against_first
    assert found is not None
    return found.value, found.value * _UNSURE if found.standard_error is None else found.standard_error
