"""``profile``: what is to be timed on another device, as a folder."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.errors import OptionError
from onnxsep.graph.places import Place
from onnxsep.model.content import content_hashes
from onnxsep.model.files import printable
from onnxsep.model.io import AnyModel, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.options.patterns import as_patterns, check_patterns, left_out
from onnxsep.options.progress import Progress, announce
from onnxsep.options.taking import takes
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.int8 import int8, quick
from onnxsep.planner.latency import AS_IT_IS
from onnxsep.planner.latency_file import ProfiledModel
from onnxsep.planner.latency_work import Work, row_key, work_of
from onnxsep.profiling.kit import Kit
from onnxsep.profiling.options import ProfileOptions
from onnxsep.profiling.report import ProfiledLayer, ProfileReport
from onnxsep.reporting.model_info import model_info
from onnxsep.running.feeds import make_feeds


@dataclass(frozen=True, repr=False)
class ProfileResult:
    """A kit, and the report of what is in it; ``save`` writes it."""

    kit: Kit
    report: ProfileReport
    reads: Reads = NOTHING
    progress: Progress | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<ProfileResult: {self.report.summary()}>"

    def save(self, folder: str | os.PathLike[str]) -> ProfileReport:
        """Write the kit.

        Args:
            folder: A new folder, an empty one, or a kit, which is replaced.

        Returns:
            The report, which says where it is.

        Raises:
            OptionError: Something else is in the folder.
            ModelSaveError: It cannot be written.
        """
        written = self.kit.save(Path(folder), self.reads, self.progress)
        return self.report.model_copy(update={"output": printable(folder), "output_bytes": written})


@takes(ProfileOptions)
def profile(model: AnyModel, options: ProfileOptions) -> ProfileResult:
    """Cut a model into pieces that can be timed on another device, each layer in every form that it may get.

    Writes nothing: ``ProfileResult.save`` does. The script in the folder, which needs onnxruntime and numpy only,
    writes ``latency.json``, and ``plan`` takes that for its latencies.

    Args:
        model: a file, a ModelProto, or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: an option cannot be used, or there is no layer to time.
        ModeNotFoundError: no such mode.
        UnsupportedModelError: the graph cannot be read.
        FeedError: inputs cannot be made for the model, or the input shapes do not fit it.
        QuantizationError: the model is to be quantised, and cannot be.
    """
    started = time.perf_counter()
    source = load(model, follow_links=options.follow_links)
    announce(options.teller, "finding the layers")
    modes = forms(options.modes)
    linear = any(mode.linear_layers for mode in modes)
    sites = find_sites(source, options.shapes, linear_layers=linear, transposed=True)
    feeds = make_feeds(source, input_shapes=options.shapes, seed=options.seed)
    reasons: dict[Place, str] = {}
    rows = [
        row
        for site in _layers(sites, options, reasons)
        for row in candidates(site, modes, round_ranks=options.round_ranks)
    ]
    announce(options.teller, "cutting out the layers")
    work = work_of(source, sites, rows)
    if not work.models:
        raise OptionError("there is no layer to time: " + _why(sites, work, reasons))
    timed = tuple(dict.fromkeys(row.site.name for row in rows if row.site.place in work.places))
    about = ProfiledModel(
        name="" if source.path is None else printable(source.path.name),
        graph=content_hashes(source).graph,
        layers=timed,
    )
    then = AS_IT_IS if options.quantized is None else int8(**options.quantized)
    whole = source if options.quantized is None else quick(source, feeds.arrays, options.quantized)
    kit = Kit(source, about, feeds.arrays, work, then, whole)
    report = ProfileReport(
        source=model_info(source),
        options=options.as_json(model=model),
        layers=tuple(_rows(sites, kit, rows, reasons)),
        pieces=len(work.pieces),
        forms=len(work.models),
        notes=(*sites.notes, *feeds.notes),
        seconds=time.perf_counter() - started,
    )
    return ProfileResult(kit, report, Reads.of(model, options.reads()), options.teller)


def _layers(sites: Sites, options: ProfileOptions, reasons: dict[Place, str]) -> Iterator[ConvSite]:
    """The layers to be timed; why the others are not goes into ``reasons``."""
    only, skip = as_patterns(options.only), as_patterns(options.skip)
    check_patterns([item.name for item in sites.found], only, skip, "convolution")
    for item in sites.found:
        reason = left_out(item.name, only, skip)
        if isinstance(item, Rejected):
            reason = item.reason
        elif not reason and item.first and not options.include_first:
            reason = "first Conv, reached straight from an input"
        elif not reason and item.made_by and not options.recurse:
            reason = f"made by onnxsep (mode {item.made_by})"
        reason = reason or options.stays_in_float(item.name)
        if reason:
            reasons[item.place] = reason
        elif isinstance(item, ConvSite):
            yield item


def _rows(sites: Sites, kit: Kit, rows: list[ConvReplacement], reasons: dict[Place, str]) -> Iterator[ProfiledLayer]:
    work, names = kit.work, kit.names
    count = Counter(row.site.place for row in rows if not isinstance(work.forms[row_key(row)], str))
    failed = {row.site.place: why for row in rows if isinstance(why := work.forms[row_key(row)], str)}
    for item in sites.found:
        place = item.place
        layer = ProfiledLayer(name=item.name, op_type=item.op_type, where=item.where)
        if not count[place]:
            why = reasons.get(place) or failed.get(place) or "no form pays"
            yield layer.model_copy(update={"reason": why})
            continue
        key = work.places[place]
        nodes = len(work.pieces[key].model.proto.graph.node)
        yield layer.model_copy(update={"piece": names[key], "nodes": nodes, "forms": count[place]})


def _why(sites: Sites, work: Work, reasons: dict[Place, str]) -> str:
    """Why there is nothing to time, of the first layer."""
    found = [*(why for why in work.forms.values() if isinstance(why, str)), *reasons.values()]
    if not sites.found:
        return "the model has no convolution"
    return found[0] if found else "no form pays for any"
