"""Blocks of several nodes cut out of a model, to be timed as single layers are (``onnxsep.planner.pieces``)."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from onnxsep.engine.matches import BlockMatch
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.surgery import replace_matches
from onnxsep.errors import PassError
from onnxsep.graph.index import Index
from onnxsep.graph.places import Constant, Place
from onnxsep.model.io import Model
from onnxsep.planner.pieces import Cut, Piece, X, random_factors


@dataclass(frozen=True)
class BlockPiece(Piece):
    """A block of a model as it is, as a model of its own; its ``site`` is that of the block's anchor in the model.

    Attributes:
        places: Of its nodes here, by their places in the model.
        constants: Names of its constants here.
        input: Name of what it reads here.
    """

    places: Mapping[Place, Place] = field(repr=False)
    constants: Mapping[Constant, str] = field(repr=False)
    input: str

    def with_row(self, row: BlockReplacement) -> Model | str:
        """The piece with the block in another form; or why it has none."""
        match = row.site
        constants = {role: self._constant(constant) for role, constant in match.constants.items()}
        anchor = replace(
            match.anchor,
            place=self.places[match.anchor.place],
            weight=self._constant(match.anchor.weight),
            bias=None if match.anchor.bias is None else self._constant(match.anchor.bias),
            where="",
            made_by="",
            pinned=(),
        )
        roles = {role: self.places[place] for role, place in match.roles.items()}
        site: Any = replace(match, anchor=anchor, roles=roles, constants=constants, input=self.input)
        moved = replace(row, site=site)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        try:
            replace_matches(proto, [moved], {moved.site.place: random_factors(row)})
        except PassError as error:
            return str(error)
        return Model(proto)

    def _constant(self, constant: Constant) -> Constant:
        return Constant(0, self.constants[constant], ())


class BlockCut(Cut):
    """A piece while it is put together.

    Args:
        model: The model.
        all_scopes: Its graphs.
        index: Of the model.
        match: The block.
        read: Shape of what it reads.
        given: Shape of what it gives.
    """

    def __init__(
        self,
        model: Model,
        all_scopes: Sequence[Any],
        index: Index,
        match: BlockMatch,
        read: tuple[int, ...],
        given: tuple[int, ...],
    ) -> None:
        super().__init__(model, all_scopes, index, match.anchor, read)
        self._match, self._given = match, given

    def piece(self, tail: Sequence[Place], blocked: AbstractSet[str]) -> BlockPiece | str:
        """Put it together; the reason where that cannot be done.

        Args:
            tail: What the runtime computes together with the block's last node.
            blocked: Tensors that the runtime holds in blocks of channels.
        """
        match, places, constants = self._match, dict[Place, Place](), dict[Constant, str]()
        source = self._input(X, self._shape, anchored=match.input in blocked)
        names = {match.input: source}
        for place in (*match.nodes, *tail):
            if (reason := self._copied(place, names, blocked)) is not None:
                return reason
            places[place] = (0, len(self._nodes) - 1)
            for name in self._index.node(place).input:
                if name and (constant := self._index.constant(name, place[0])) is not None:
                    constants[constant] = names[name]
        end = self._index.node(tail[-1] if tail else match.place).output[0]
        outputs = self._outputs(names[end], end, blocked)
        return BlockPiece(Model(self._proto(outputs)), match.anchor, self._shapes, places, constants, source)

    def _output_shape(self) -> tuple[int, ...]:
        return self._given
