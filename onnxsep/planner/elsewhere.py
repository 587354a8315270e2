"""Latencies that a worker of a cluster measures: one at a time, while nothing else of ours runs.

It has what is kept of times here, and what it measures is kept here too.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.graph.places import Place
from onnxsep.model.files import write_text
from onnxsep.model.io import Model
from onnxsep.model.whole import inlined
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.cache import MARKER, Cache
from onnxsep.planner.grid import replacement
from onnxsep.planner.latency import AS_IT_IS, Latencies, Then, latencies
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.timings import whole_ratio
from onnxsep.running.crew import Crew
from onnxsep.running.runtime import RuntimeOptions

_TOGETHER = 4  # layers that are measured before what was found is kept
Files = dict[str, str]


class Elsewhere:
    """Where latencies are measured.

    Args:
        cluster: Its workers.
        resource: Those that have this one measure latencies.
    """

    def __init__(self, cluster: Any, resource: str) -> None:
        self._cluster, self._resource = cluster, resource
        cluster.check_resource(resource)

    def latencies(
        self,
        model: Model,
        sites: Sites,
        rows: Sequence[ConvReplacement],
        runtime: RuntimeOptions,
        *,
        input_shapes: Mapping[str, tuple[int, ...]] | None = None,
        cache: Path | None = None,
        then: Then = AS_IT_IS,
        progress: Progress | None = None,
    ) -> Latencies:
        """See :func:`onnxsep.planner.latency.latencies`."""
        layers: dict[Place, list[ConvReplacement]] = {}
        for row in rows:
            layers.setdefault(row.site.place, []).append(row)
        several, done = list(layers.values()), 0
        sent = inlined(model)
        found: Latencies | None = None
        modes = tuple(dict.fromkeys(row.mode for row in rows))
        announce(progress, "timing forms of layers", 0, len(several))
        while found is None or done < len(several):
            some = [row for layer in several[done : done + _TOGETHER] for row in layer]
            forms = [(row.site.place, modes.index(row.mode), row.rank) for row in some]
            work = (sent, dict(input_shapes or {}), modes, forms, runtime, then)
            more: Latencies = self._with_files(_latencies, work, cache)
            found = more if found is None else replace(found, rows={**found.rows, **more.rows})
            done += _TOGETHER
            if progress:
                progress("timing forms of layers", min(done, len(several)), len(several))
        return found

    def ratio(
        self,
        source: Model,
        made: Model,
        runtime: RuntimeOptions,
        input_shapes: Mapping[str, tuple[int, ...]],
        cache: Any = None,
        progress: Progress | None = None,
    ) -> tuple[float, float]:
        """See :func:`onnxsep.planner.timings.whole_ratio`."""
        announce(progress, "timing the whole model")
        work = (inlined(source), inlined(made), runtime, dict(input_shapes))
        found: tuple[float, float] = self._with_files(_ratio, work, None if cache is None else Path(cache))
        return found

    def _with_files(self, task: Callable[..., Any], work: tuple[Any, ...], cache: Path | None) -> Any:
        before = {} if cache is None else _read(Cache(cache).path)
        found, files = self._cluster.once(task, work, before, resource=self._resource)
        if cache is not None:
            for name, text in files.items():
                write_text(cache / Path(name).name, text)
        return found


def elsewhere_for(options: PlanOptions, crew: Crew) -> Elsewhere | None:
    """Where latencies are measured; None: here.

    Raises:
        OptionError: No worker has the resource.
    """
    return None if options.latency_resource is None else Elsewhere(crew, options.latency_resource)


def _read(folder: Path) -> Files:
    return {
        path.name: path.read_text(encoding="utf-8", errors="replace")
        for path in folder.glob("*.json")
        if path.name != MARKER
    }


def _in_a_folder(files: Files, work: Callable[[Path], Any]) -> tuple[Any, Files]:
    """What is found with these items of a cache, and the items that are new then."""
    with tempfile.TemporaryDirectory(prefix="onnxsep-") as name:
        folder = Cache(Path(name)).path
        for one, text in files.items():
            Path(folder, Path(one).name).write_text(text, encoding="utf-8")
        found = work(folder)
        return found, {one: text for one, text in _read(folder).items() if one not in files}


def _latencies(work: tuple[Any, ...], files: Files, _: None, tell: Callable[[object], None]) -> tuple[Any, Files]:
    model, shapes, modes, forms, runtime, then = work
    sites = find_sites(model, shapes, linear_layers=any(mode.linear_layers for mode in modes))
    by_place = {site.place: site for site in sites.found if isinstance(site, ConvSite)}
    rows = [replacement(by_place[place], modes[mode], rank) for place, mode, rank in forms]
    return _in_a_folder(
        files,
        lambda folder: latencies(model, sites, rows, runtime, input_shapes=shapes, cache=folder, then=then),
    )


def _ratio(work: tuple[Any, ...], files: Files, _: None, tell: Callable[[object], None]) -> tuple[Any, Files]:
    source, made, runtime, shapes = work
    return _in_a_folder(files, lambda folder: whole_ratio(source, made, runtime, shapes, folder))
