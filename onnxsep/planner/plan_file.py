"""Plans as records, and as the text of a TOML file.

    schema = 1
    onnxsep = "0.1.0"

    [model]
    name = "net.onnx"
    graph = "..."                                        # SHA-256, see onnxsep.model.content
    weights = "..."
    layers = 4

    [measured]                                           # where the plan was made by measurement: what, and on what
    data = "images"
    effect = 0.021

    [layers]
    "conv1" = { left = "first Conv" }                    # left alone, and why
    "conv2" = { mode = "spatial", rank = [12] }          # the rank itself
    "conv3" = { mode = "depthwise", rank = "energy=0.9" }  # a rule that chooses one, as for --rank
    "conv4" = { mode = "ghost-bottleneck" }              # a block of several layers, named by its first
    "conv5" = { left = "in the block of 'conv4'" }

    [inside."If 'choice', then_branch"]                  # layers of a nested graph, or of a function
    "conv" = { mode = "spatial", rank = [4], init = "svd" }

The second layer of one name in one graph is called ``"name#2"``.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxsep._version import __version__
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import BlockReplacement, Replacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError
from onnxsep.graph.places import Place
from onnxsep.layers.rank import Rank, RankPolicy
from onnxsep.model.content import content_hashes
from onnxsep.model.files import printable, write_text
from onnxsep.model.io import Model
from onnxsep.model.paths import Kind, Reads, check_paths
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.modes.settings import as_text
from onnxsep.options.tomlfile import read_toml
from onnxsep.planner.candidate import Candidate

SCHEMA = 1
Evidence = str | int | float
_HEAD = """\
# What becomes of each layer of a model. To carry it out: onnxsep rewrite IN.onnx OUT.onnx --plan THIS_FILE
# Lines may be changed. rank = [12] is the rank itself; "0.5", "energy=0.9", "paper" and "full" choose one as --rank
# does. left = "why" leaves a layer alone, as one without a line is. Also: init = "joint", round_ranks = 8.
"""
_LARGEST = 64_000_000  # bytes of a file that may be a plan
_WIDEST = 90  # where comments stand, at most


@dataclass(frozen=True)
class LayerPlan:
    """What is to become of one layer.

    Attributes:
        key: Its name; with ``#2``, ``#3``, ... for those behind the first of that name in the same graph.
        where: The nested graph or function that holds it, in words; "" for the main graph.
        mode: The form that it gets, by name or as an object; of a block mode, what the block gets that is named by this
            layer, the others of which are left alone; None: it is left alone.
        rank: The ranks themselves, or a rule that chooses them.
        round_ranks: What is chosen is made a multiple of this; 0: no rounding.
        init: How its factors are found; None: as the run says.
        settings: Those of the mode, by name.
        left: Why it is left alone.
        note: A comment.
    """

    key: str
    where: str = ""
    mode: str | Mode | BlockMode | None = None
    rank: Rank | RankPolicy = field(default_factory=lambda: RankPolicy("paper"))
    round_ranks: int = 0
    init: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    left: str = ""
    note: str = ""


@dataclass(frozen=True)
class PlannedModel:
    """The model that a plan was made for.

    Attributes:
        name: Of its file; "" where it has none.
        graph: Hash of its graph (``onnxsep.model.content``); "" where any will do.
        weights: Hash of its weights; "" where any will do.
        layers: How many of them were listed; None where that is not said.
    """

    name: str = ""
    graph: str = ""
    weights: str = ""
    layers: int | None = None


@dataclass(frozen=True, repr=False)
class PlanFile:
    """A plan: what is to become of each layer of a model, in graph order. Layers without a line are left alone."""

    layers: tuple[LayerPlan, ...]
    model: PlannedModel = PlannedModel()
    onnxsep: str = __version__
    path: Path | None = None
    """The file that it was read from."""
    measured: tuple[tuple[str, Evidence], ...] = ()
    """What it was made from, where it was made by measurement: for the reader, it changes nothing."""

    def __repr__(self) -> str:
        modes = Counter(
            layer.mode if isinstance(layer.mode, str) else layer.mode.name
            for layer in self.layers
            if layer.mode is not None
        )
        kinds = ", ".join(f"{count} {mode}" for mode, count in modes.items())
        left = f"{len(self.layers) - sum(modes.values())} left alone"
        return f"<PlanFile {self.name}: {len(self.layers)} layers: {', '.join(filter(None, (kinds, left)))}>"

    def __str__(self) -> str:
        return self.text()

    @property
    def name(self) -> str:
        """How messages call it."""
        return "the plan" if self.path is None else printable(self.path)

    def text(self) -> str:
        """The text of the file: the same for the same plan."""
        return "\n".join(self._lines()) + "\n"

    def save(self, path: str | os.PathLike[str], reads: Reads | None = None) -> None:
        """Write the file, atomically.

        Args:
            path: A new file, or a plan that is replaced.
            reads: Files that must not be overwritten.

        Raises:
            ModelSaveError: It cannot be written.
            OptionError: Something else is there.
        """
        check_paths(reads or Reads(), {PLAN: path})
        write_text(Path(path), self.text())

    def _lines(self) -> Iterator[str]:
        yield _HEAD.rstrip("\n")
        yield f"schema = {SCHEMA}"
        yield f"onnxsep = {quoted(self.onnxsep)}"
        yield ""
        yield "[model]"
        for key in ("name", "graph", "weights"):
            if text := getattr(self.model, key):
                yield f"{key} = {quoted(text)}"
        if self.model.layers is not None:
            yield f"layers = {self.model.layers}"
        if self.measured:
            yield ""
            yield "[measured]"
            for key, value in self.measured:
                yield f"{key} = {quoted(value) if isinstance(value, str) else value}"
        for where in dict.fromkeys(("", *(layer.where for layer in self.layers))):
            yield ""
            yield f"[inside.{quoted(where)}]" if where else "[layers]"
            yield from _aligned([layer for layer in self.layers if layer.where == where])


def _aligned(layers: Sequence[LayerPlan]) -> Iterator[str]:
    lines = [f"{quoted(layer.key)} = {{ {', '.join(_fields(layer))} }}" for layer in layers]
    width = max((len(line) for line, layer in zip(lines, layers, strict=True) if layer.note), default=0)
    for line, layer in zip(lines, layers, strict=True):
        yield f"{line:<{min(width, _WIDEST)}}  # {layer.note}" if layer.note else line


def _fields(layer: LayerPlan) -> Iterator[str]:
    if layer.mode is None:
        yield f"left = {quoted(layer.left or 'not chosen')}"
        return
    yield f"mode = {quoted(layer.mode if isinstance(layer.mode, str) else layer.mode.name)}"
    if isinstance(layer.mode, BlockMode):
        pass  # it has no rank
    elif isinstance(layer.rank, RankPolicy):
        yield f"rank = {quoted(str(layer.rank))}"
    else:
        yield f"rank = [{', '.join(map(str, layer.rank))}]"
    if layer.round_ranks:
        yield f"round_ranks = {layer.round_ranks}"
    if layer.init is not None:
        yield f"init = {quoted(layer.init)}"
    if layer.settings:
        yield f"settings = {{ {', '.join(f'{name} = {_scalar(value)}' for name, value in layer.settings.items())} }}"


def _scalar(value: object) -> str:
    return quoted(value) if isinstance(value, str) else as_text(value)


def quoted(text: str) -> str:
    """A text as TOML writes it, on one line: what cannot be seen is escaped."""
    short = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(short.get(char, char if char.isprintable() else _escaped(char)) for char in text) + '"'


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\U{ord(char):08X}"


def layer_keys(found: Sequence[ConvSite | Rejected]) -> dict[Place, tuple[str, str]]:
    """(where, key) of each layer by its place: no two are the same.

    Convolutions get theirs first, so that these are the same whether other layers are listed or not.
    """
    keys: dict[Place, tuple[str, str]] = {}
    for group in (
        [item for item in found if not _is_linear(item)],
        [item for item in found if _is_linear(item)],
    ):
        names = {(item.where, item.name) for item in group}
        taken = set(keys.values())
        for item in group:
            key, number = (item.where, item.name), 1
            while key in taken or (number > 1 and key in names):
                number += 1
                key = (item.where, f"{item.name}#{number}")
            taken.add(key)
            keys[item.place] = key
    return keys


def _is_linear(item: ConvSite | Rejected) -> bool:
    return item.op_type.removeprefix("QLinear").removesuffix("Integer") in ("Gemm", "MatMul")


def plan_of(
    model: Model,
    sites: Sites,
    plan: Plan,
    said: Mapping[Place, str],
    notes: Mapping[Place, str] = MappingProxyType({}),
    measured: tuple[tuple[str, Evidence], ...] = (),
) -> PlanFile:
    """The file of a plan that a run has made.

    Args:
        model: The model.
        sites: Its layers.
        plan: A row for each of them, or for the block that it is in.
        said: How factors are found, where the user has said that, by the place of the layer.
        notes: What is known of the form of a layer beside its costs, by its place.
        measured: What the plan was made from.

    Raises:
        ModelLoadError: Weights of the model cannot be read.
    """
    hashes = content_hashes(model)
    name = "" if model.path is None else printable(model.path.name)
    keys = layer_keys(sites.found)
    rows = {_first_place(row): row for row in plan.rows}
    blocks = {place: row for row in plan.replacements if isinstance(row, BlockReplacement) for place in row.site.nodes}
    layers: list[LayerPlan] = []
    for item in sites.found:
        where, key = keys[item.place]
        row = rows.get(item.place)
        if row is None:
            layers.append(LayerPlan(key, where, left=f"in the block of {blocks[item.place].site.name!r}"))
        elif isinstance(row, Rejected):
            layers.append(LayerPlan(key, where, left=row.reason))
        else:
            layers.append(_layer(row, key, where, said, notes))
    made_for = PlannedModel(name, hashes.graph, hashes.weights, len(layers))
    return PlanFile(tuple(layers), made_for, measured=measured)


def _first_place(row: Replacement | Rejected) -> Place:
    """Of the layer by which a row is named."""
    return row.place if isinstance(row, Rejected) else row.site.anchor.place


def _layer(row: Replacement, key: str, where: str, said: Mapping[Place, str], notes: Mapping[Place, str]) -> LayerPlan:
    more = notes.get(row.site.anchor.place)
    behind = f"; {more}" if more else ""
    if isinstance(row, BlockReplacement):
        with_others = f"; with {row.site.company}" if row.site.company else ""
        note = f"{row.site.parameters:,} -> {row.parameters:,} parameters{with_others}{behind}"
        return LayerPlan(key, where, row.mode, settings=row.mode.given, note=note)
    note = Candidate.of(row).instead_of(Candidate.as_it_is(row.site)) + behind
    return LayerPlan(key, where, row.mode, row.rank, init=said.get(row.site.place), settings=row.mode.given, note=note)


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, of any version of onnxsep."""
    try:
        content = read_toml(path) if path.stat().st_size < _LARGEST else {}
    except (OptionError, OSError):
        return False
    return isinstance(content.get("schema"), int) and isinstance(content.get("layers"), Mapping)


PLAN = Kind("plan_out", "plan of onnxsep", is_plan, option=True)
PLAN_TARGET = Kind("the plan", "plan of onnxsep", is_plan)
