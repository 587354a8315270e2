"""What a plan measures: what is kept is taken, and the rest measured by whoever works, and kept as soon as known."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from onnxsep.calibration.schedule import make_schedule
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.errors import CalibrationError, spelled
from onnxsep.graph.places import Place
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.block_candidates import BlockSurvey
from onnxsep.planner.carried import Outcome, choice_of, fit_choice, put_together
from onnxsep.planner.carrying_out import Carried
from onnxsep.planner.file_size import FileSizes
from onnxsep.planner.job import Job, Sent, Stand
from onnxsep.planner.kept import Kept, hash_of
from onnxsep.planner.measuring import Dense, Measured
from onnxsep.planner.one_layer import Form, LayerFound, Piece, is_complete, key_of, measure_layer, wanted
from onnxsep.running.crew import Alone, Crew, Gone

_HOPELESS = 16  # forms over which workers ended, and none that one has measured
Latency = Callable[[ConvReplacement], int]
Rows = Mapping[Place, Sequence[ConvReplacement]]


class Survey:
    """Measures candidates, and carries out plans.

    Args:
        job: The job, in this process.
        crew: Who works.
        sent: The job for others, where there are some.
        kept: What is kept; None: nothing.

    Attributes:
        dropped: Forms that are not measured, for workers ended over them, in words.
    """

    def __init__(
        self, job: Job, crew: Crew | None = None, sent: Callable[[], Sent] | None = None, kept: Kept | None = None
    ) -> None:
        self._job, self._crew, self._sent, self._kept = job, crew or Alone(), sent, kept
        self._for_others: Sent | None = None
        self.dropped: list[str] = []

    def measured(
        self, rows: Rows, around: Dense | None, size: FileSizes, latency: Latency, progress: Progress | None
    ) -> dict[Place, list[Measured]]:
        """Fit and measure the candidates of all layers that have some; the layer left alone is the first of each.

        Args:
            rows: Candidates by the place of the layer, of the main graph.
            around: The layers that a plan has replaced; None: the source.
            size: Counts bytes.
            latency: Nanoseconds that the model takes more with a form.
            progress: Told of every layer that is done.

        Raises:
            CalibrationError: The data cannot be used, or the runtime cannot run the model on them.
            FactorizationError: A weight cannot be read.
            PassError: A mode broke a promise.
        """
        return _Round(self, self._job, rows, around, latency, progress).measured(size)

    def measured_blocks(
        self,
        rows: Sequence[BlockReplacement],
        size: FileSizes,
        latency: Callable[[Replacement], int],
        progress: Progress | None,
    ) -> list[Measured]:
        """Fit and measure forms of blocks, each alone; by this process. The errors are those of ``measured``."""
        if not rows:
            return []
        announce(progress, "measuring blocks", 0, len(rows))
        return list(BlockSurvey(self._job, rows, self._kept).measured(size, latency, progress))

    def shared(self) -> Job | Sent:
        """The job for whoever works."""
        if self._sent is None:
            return self._job
        self._for_others = self._for_others or self._sent()
        return self._for_others

    @property
    def said(self) -> tuple[str, ...]:
        """Lines for the report."""
        return (*(self._kept.said if self._kept is not None else ()), *self.dropped)

    @property
    def crew(self) -> Crew:
        """Who works."""
        return self._crew

    @property
    def kept(self) -> Kept | None:
        """What is kept."""
        return self._kept

    def carried(self, plans: Sequence[Plan], progress: Progress | None) -> list[Carried]:
        """Carry out plans.

        Args:
            plans: A row for each layer; those that cannot be fitted are left alone.
            progress: Told of every layer that is fitted.

        Raises:
            CalibrationError: The data cannot be used, or the runtime cannot run the model.
            PassError: A mode broke a promise.
        """
        known: dict[int, Outcome] = {}
        names = [[(*row.site.place, key_of(row)) for row in plan.replacements] for plan in plans]
        for number, name in enumerate(names):
            found = None if self._kept is None else self._kept.outcome(_plain(name))
            if found is not None:
                known[number] = found
        missing = [number for number in range(len(plans)) if number not in known]
        for number, outcome in self._outcomes([plans[number] for number in missing], progress):
            known[missing[number]] = outcome
            if self._kept is not None:
                self._kept.keep_outcome(_plain(names[missing[number]]), outcome)
        return [put_together(self._job, plan, known[number]) for number, plan in enumerate(plans)]

    def _outcomes(self, plans: Sequence[Plan], progress: Progress | None) -> Iterator[tuple[int, Outcome]]:
        choices = [choice_of(self._job, plan) for plan in plans]
        alone = partial(fit_choice, self._job, tell=lambda _: None, progress=progress)
        if self._sent is None or len(plans) < 2:
            for number, choice in enumerate(choices):
                yield number, alone(choice)
            return
        announce(progress, "carrying out plans", 0, len(plans))
        with closing(self._crew.each(fit_choice, [self.shared()], choices)) as found:
            for done, (number, outcome) in enumerate(found, start=1):
                yield number, alone(choices[number]) if isinstance(outcome, Gone) else outcome
                if progress:
                    progress("carrying out plans", done, len(plans))


def _plain(name: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(one) for one in name]


class _Round:
    """The candidates of one round."""

    def __init__(
        self, survey: Survey, job: Job, rows: Rows, around: Dense | None, latency: Latency, progress: Progress | None
    ) -> None:
        self._survey, self._job, self._latency, self._progress = survey, job, latency, progress
        chosen = [site for site in job.by_place.values() if rows.get(site.place)]
        self._layers = tuple(step.site.place for step in make_schedule(job.model, job.sites.scopes, chosen))
        self._rows, self._around, self._hash = rows, around, hash_of(around)
        self._every = around is not None  # effects are asked for
        kept = survey.kept
        self._known = {place: LayerFound() if kept is None else kept.layer(self._what(place)) for place in self._layers}
        self._written = dict(self._known)

    def measured(self, size: FileSizes) -> dict[Place, list[Measured]]:
        pieces = [self._piece(place, self._rows[place]) for place in self._layers if not self._is_complete(place)]
        done = len(self._layers) - len(pieces)
        announce(self._progress, "measuring candidates", done, len(self._layers))
        lost = []
        for piece, found in self._results(pieces):
            if isinstance(found, Gone):
                lost.append(piece)
                continue
            done += 1
            self._told(piece.place, done)
        for place in self._again(lost):
            done += 1
            self._told(place, done)
        return {place: list(self._candidates(place, size)) for place in self._layers}

    def _told(self, place: Place, done: int) -> None:
        if self._progress:
            self._progress(self._job.by_place[place].name, done, len(self._layers))

    def _what(self, place: Place) -> dict[str, object]:
        return {"place": list(place), "layers": [list(one) for one in self._layers], "around": self._hash}

    def _is_complete(self, place: Place) -> bool:
        return is_complete(self._rows[place], self._known[place], self._latency, all_effects=self._every)

    def _piece(self, place: Place, rows: Sequence[ConvReplacement], *, every: bool = False) -> Piece:
        modes = self._job.modes
        forms = tuple(Form(modes.index(row.mode), row.rank, self._latency(row)) for row in rows)
        return Piece(place, forms, self._known[place], self._every or every)

    def _results(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, LayerFound | Gone]]:
        """What comes of pieces; it is kept, also where an interrupt comes."""
        if not pieces:
            return
        survey, stand = self._survey, Stand(self._around, self._layers)

        def told(number: int, found: LayerFound) -> None:
            self._learn(pieces[number].place, found)

        try:
            with closing(survey.crew.each(measure_layer, [survey.shared(), stand], pieces, told)) as results:
                for number, found in results:
                    if isinstance(found, LayerFound):
                        self._learn(pieces[number].place, found)
                        self._write(pieces[number].place)
                    yield pieces[number], found
        finally:
            for place in {piece.place for piece in pieces}:
                self._write(place)

    def _learn(self, place: Place, found: LayerFound) -> None:
        forms = {**self._known[place].forms, **found.forms}
        self._known[place] = found.model_copy(update={"forms": forms})

    def _write(self, place: Place) -> None:
        if self._survey.kept is not None and self._known[place] != self._written[place]:
            self._survey.kept.keep_layer(self._what(place), self._known[place])
            self._written[place] = self._known[place]

    def _again(self, lost: Sequence[Piece]) -> Iterator[Place]:
        """Measure what a worker ended over form by form; a form over which another one ends is dropped."""
        singles = []
        for piece in lost:
            unknown = [row for row in self._rows[piece.place] if self._is_open(piece.place, row)]
            singles += [(row, self._piece(piece.place, [row], every=True)) for row in unknown]
        rows = {id(piece): row for row, piece in singles}
        ended: dict[Place, list[tuple[ConvReplacement, str]]] = {}
        good = 0
        for piece, found in self._results([piece for _, piece in singles]):
            if isinstance(found, Gone):
                ended.setdefault(piece.place, []).append((rows[id(piece)], found.why))
            else:
                good += 1
            if not good and sum(map(len, ended.values())) >= _HOPELESS:
                raise CalibrationError(
                    f"workers end before they have measured anything ({found.why if isinstance(found, Gone) else ''});"
                    f" use fewer {spelled('workers')}, or fewer {spelled('samples')}, which need less memory"
                )
        for place, forms in ended.items():
            self._drop(place, forms)
        yield from (piece.place for piece in lost)

    def _is_open(self, place: Place, row: ConvReplacement) -> bool:
        known = self._known[place].forms.get(key_of(row))
        return known is None or (known.effect is None and known.held_out is not None)

    def _drop(self, place: Place, forms: Sequence[tuple[ConvReplacement, str]]) -> None:
        names = ", ".join(f"{row.mode.name} {'x'.join(map(str, row.rank))}" for row, _ in forms)
        self._survey.dropped.append(
            f"{self._job.by_place[place].name}: {names} left out, for two workers ended over it ({forms[0][1]})"
        )
        gone = {key_of(row) for row, _ in forms}
        self._rows = {**self._rows, place: [row for row in self._rows[place] if key_of(row) not in gone]}

    def _candidates(self, place: Place, size: FileSizes) -> Iterator[Measured]:
        site, known, rows = self._job.by_place[place], self._known[place], self._rows[place]
        yield Measured.as_it_is(site)
        for row in wanted(rows, known.forms, self._latency, all_effects=self._every):
            found = known.forms[key_of(row)]
            assert found.held_out is not None
            assert found.effect is not None
            assert known.alone is not None
            more, effect = size.change(row), found.effect - known.alone
            deciding = None
            if found.deciding is not None and known.alone_deciding is not None:
                deciding = found.deciding - known.alone_deciding
            one = Measured(site, row, row.parameters, row.macs, more, found.held_out, effect, self._latency(row))
            yield replace(one, deciding=deciding)
