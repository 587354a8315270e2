"""What has to be timed to know what forms of layers cost: pieces of the model, each kind once, and their forms."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.planner.block_pieces import BlockPiece
from onnxsep.planner.pieces import Cutter, Piece, key_of

Form = tuple[str, str]
"""The keys of a piece and of one with a form in the place of its layer."""


@dataclass(frozen=True)
class Work:
    """The pieces of a model.

    Attributes:
        pieces: Those that differ, by their keys.
        places: The key of each layer's piece, by its place.
        forms: What each row is, by its layer's place, mode and rank; or why it cannot be timed.
        models: The forms that differ, by their keys, to those of their pieces.
        words: What each of them is, in words.
    """

    pieces: dict[str, Piece] = field(default_factory=dict)
    places: dict[Place, str] = field(default_factory=dict)
    forms: dict[tuple[Place, str, tuple[int, ...]], Form | str] = field(default_factory=dict)
    models: dict[Form, Model] = field(default_factory=dict)
    words: dict[Form, str] = field(default_factory=dict)

    def of(self, key: str) -> Mapping[Form, Model]:
        """The forms of one piece."""
        return {form: model for form, model in self.models.items() if form[0] == key}


def row_key(row: Replacement) -> tuple[Place, str, tuple[int, ...]]:
    """What tells the rows of one model apart."""
    return row.site.place, _mode_of(row), tuple(row.rank)


def _mode_of(row: Replacement) -> str:
    """The mode; of a block with its settings."""
    given = row.mode.given.items() if isinstance(row, BlockReplacement) else ()
    return " ".join((row.mode.name, *(f"{name}={value}" for name, value in given)))


def work_of(model: Model, sites: Sites, rows: Iterable[Replacement]) -> Work:
    """Cut out the layers of some rows, each with its forms.

    Args:
        model: The model.
        sites: Its layers.
        rows: Forms that layers may get.
    """
    found, cutter = Work(), Cutter(model, sites)
    reasons: dict[Place, str] = {}
    known: dict[tuple[str, str, tuple[int, ...]], Form | str] = {}
    blocks: dict[tuple[Place, ...], BlockPiece | str] = {}
    for row in rows:
        place = row.site.place
        if isinstance(row, BlockReplacement):
            if row.site.nodes not in blocks:
                blocks[row.site.nodes] = cutter.block(row.site)
            found.forms[row_key(row)] = _block_form(found, blocks[row.site.nodes], row)
            continue
        if place not in found.places and place not in reasons:
            _cut(found, reasons, cutter, row.site)
        if place in reasons:
            found.forms[row_key(row)] = reasons[place]
            continue
        key = found.places[place]
        which = (key, row.mode.name, tuple(row.rank))
        if which not in known:
            known[which] = _formed(found, key, row)
        found.forms[row_key(row)] = known[which]
    return found


def _cut(found: Work, reasons: dict[Place, str], cutter: Cutter, site: ConvSite) -> None:
    piece = cutter.piece(site)
    if isinstance(piece, str):
        reasons[site.place] = piece
        return
    found.pieces.setdefault(piece.key, piece)
    found.places[site.place] = piece.key


def _block_form(found: Work, piece: BlockPiece | str, row: BlockReplacement) -> Form | str:
    if isinstance(piece, str):
        return piece
    found.pieces.setdefault(piece.key, piece)
    return _kept(found, piece.key, piece.with_row(row), _mode_of(row))


def _formed(found: Work, key: str, row: ConvReplacement) -> Form | str:
    made = found.pieces[key].with_form(row.mode, row.rank)
    return _kept(found, key, made, f"{row.mode.name} {'x'.join(map(str, row.rank))}".strip())


def _kept(found: Work, key: str, made: Model | str, words: str) -> Form | str:
    if isinstance(made, str):
        return made
    form = (key, key_of(made))
    found.models.setdefault(form, made)
    found.words.setdefault(form, words)
    return form
