"""Blocks among the candidates of a plan: what may take the place of several nodes, and of the layers among them.

A block that gets another form excludes all forms of the layers in it, so its candidates stand with the first of these
layers and name the others (``Measured.covers``). They are fitted and measured in the first round, each alone; the
rounds around a plan keep the blocks that it has.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxsep.calibration.alone import fit_alone
from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import BlockReplacement, Replacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.options.progress import Progress
from onnxsep.planner.block_rows import members
from onnxsep.planner.file_size import FileSizes
from onnxsep.planner.job import Job
from onnxsep.planner.kept import Kept
from onnxsep.planner.measuring import Measured
from onnxsep.planner.one_layer import FormFound, LayerFound, key_of
from onnxsep.planner.replaced import replaced

_WORST = 1.0  # relative error of a block's output: one that is further off than its mean is no candidate
Measurements = Mapping[Place, Sequence[Measured]]


@dataclass(frozen=True)
class BlockSurvey:
    """Measures candidates of blocks.

    Attributes:
        job: What they are measured on.
        rows: The candidates.
        kept: What is kept; None: nothing.
    """

    job: Job
    rows: Sequence[BlockReplacement]
    kept: Kept | None = None

    def measured(
        self, size: FileSizes, latency: Callable[[Replacement], int], progress: Progress | None
    ) -> Iterator[Measured]:
        """Every candidate that can be fitted, alone in the network.

        Args:
            size: Counts bytes.
            latency: Nanoseconds that the model takes more with a form.
            progress: Told of every candidate that is done.

        Raises:
            CalibrationError: The data cannot be used, or the runtime cannot run the model on them.
            PassError: A mode failed.
        """
        known = {row.site.place: self._known(row.site.place) for row in self.rows}
        open_rows = [row for row in self.rows if key_of(row) not in known[row.site.place].forms]
        walk = self.job.walk(None) if open_rows else None
        samples = self.job.samples
        fits = fit_alone(self.job.model, self.job.sites, open_rows, samples.fitted(), samples.options, samples.runtime)
        for number, (row, made) in enumerate(fits, start=1):
            found, place = FormFound(held_out=None), row.site.place
            if isinstance(made, Factorized) and made.errors is not None and math.isfinite(made.errors.held_out):
                assert walk is not None
                found = FormFound(held_out=made.errors.held_out)
                if made.errors.held_out < _WORST:
                    effect = walk.of(replaced(self.job.model, [row], {row.site.place: made}))
                    if math.isfinite(effect.additive) and math.isfinite(effect.deciding):
                        found = found.model_copy(update={"effect": effect.additive, "deciding": effect.deciding})
            known[place] = LayerFound(forms={**known[place].forms, key_of(row): found})
            if self.kept is not None:
                self.kept.keep_layer(_what(place), known[place])
            if progress:
                progress(f"{row.site.name}: {row.mode.name}", number, len(open_rows))
        for row in self.rows:
            one = known[row.site.place].forms[key_of(row)]
            if one.held_out is not None and one.effect is not None:
                yield _measured(self.job.sites, row, one, size.change(row), latency(row))

    def _known(self, place: Place) -> LayerFound:
        return LayerFound() if self.kept is None else self.kept.layer(_what(place))


def joined(measured: Measurements, blocks: Sequence[Measured], sites: Sites) -> dict[Place, list[Measured]]:
    """Candidates of layers with those of blocks beside them, each with its first layer."""
    found = {place: list(several) for place, several in measured.items()}
    by_place = {item.place: item for item in sites.found if isinstance(item, ConvSite)}
    for one in blocks:
        for place in (one.site.place, *one.covers):
            found.setdefault(place, [Measured.as_it_is(by_place[place])])
        found[one.site.place].append(one)
    return found


def without_blocks(measured: Measurements) -> dict[Place, list[Measured]]:
    """The candidates of single layers alone."""
    return {place: [one for one in several if not one.is_block] for place, several in measured.items()}


def kept_blocks(measured: Measurements, chosen: Sequence[Measured], sites: Sites) -> dict[Place, list[Measured]]:
    """Candidates around a plan, with the blocks that it has as the only form of their layers."""
    fixed = [one for one in chosen if one.is_block]
    by_place = {item.place: item for item in sites.found if isinstance(item, ConvSite)}
    found = {place: list(several) for place, several in measured.items()}
    for one in fixed:
        for place in (one.site.place, *one.covers):  # left alone they would count for budgets, and cannot be chosen
            found[place] = [replace(Measured.as_it_is(by_place[place]), effect=math.inf)]
        found[one.site.place].append(one)
    return found


def _measured(sites: Sites, row: BlockReplacement, found: FormFound, more: int, latency: int) -> Measured:
    """What a candidate costs in place of the layers that it covers."""
    held = members(sites, row)
    alone = [Measured.as_it_is(site) for site in held]
    macs = None
    if row.macs is not None and row.site.macs is not None:
        macs = row.macs - row.site.macs + sum(one.macs or 0 for one in alone)
    assert found.held_out is not None
    assert found.effect is not None
    return Measured(
        row.site.anchor,
        row,
        row.parameters - row.site.parameters + sum(one.parameters for one in alone),
        macs,
        more,
        found.held_out,
        found.effect,
        latency,
        deciding=found.deciding,
        covers=tuple(site.place for site in held[1:]),
    )


def priced_block(sites: Sites, row: BlockReplacement, more: int) -> Measured:
    """What a candidate costs, before anything is measured of it; ``more``: bytes."""
    return _measured(sites, row, FormFound(held_out=math.nan, effect=math.nan), more, 0)


def _what(place: Place) -> dict[str, object]:
    return {"block": list(place)}
