"""Lines of a plan that are for blocks of several nodes: which block of the model each is."""

from collections.abc import Collection, Mapping, Sequence

from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.matches import BlockMatch, ConvSite, Match, Rejected
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.block import BlockMode


class BlockFinder:
    """Finds blocks by the layers that name them.

    Args:
        model: The model.
        sites: Its layers.
    """

    def __init__(self, model: Model, sites: Sites) -> None:
        self._model, self._sites = model, sites
        self._known: list[tuple[BlockMode, Mapping[Place, BlockMatch | Rejected]]] = []

    def at(self, item: ConvSite | Rejected, mode: BlockMode) -> BlockMatch:
        """The block that a layer names.

        Raises:
            OptionError: There is none for this mode, or the mode refuses it.
            PassError: The mode failed.
        """
        found = self._of(mode).get(item.place)
        if isinstance(found, Rejected):
            raise OptionError(f"mode {mode.name} cannot take it: {found.reason}")
        if found is None:
            raise OptionError(f"mode {mode.name} finds it in the block of another layer; name that one")
        if reason := mode.accepts(found.block):
            raise OptionError(f"mode {mode.name} cannot take it: {reason}")
        return found

    def _of(self, mode: BlockMode) -> Mapping[Place, BlockMatch | Rejected]:
        for known, found in self._known:
            if (known.name, known.given) == (mode.name, mode.given):
                return found
        rows = find_blocks(self._model, self._sites, mode)
        found = {row.place if isinstance(row, Rejected) else row.anchor.place: row for row in rows}
        self._known.append((mode, found))
        return found


def with_blocks(
    sites: Sites, blocks: Mapping[Place, BlockMatch], replaced: Collection[Place]
) -> Sequence[Match | Rejected]:
    """The layers of a model, with blocks in the place of those that they hold.

    Args:
        sites: The layers.
        blocks: By the places of the layers that name them.
        replaced: Places of layers that get a form of their own.

    Raises:
        OptionError: A layer of a block gets a form of its own, or is in two blocks.
    """
    held: dict[Place, BlockMatch] = {}
    for match in blocks.values():
        for place in match.nodes:
            other = held.setdefault(place, match)
            if other is not match or place in replaced:
                what = "has a form of its own" if other is match else f"is also in the block of {other.name!r}"
                raise OptionError(f"a node of the block of {match.name!r} {what}; leave the one or the other alone")
    found: list[Match | Rejected] = []
    for item in sites.found:
        if item.place in blocks:
            found.append(blocks[item.place])
        elif item.place not in held:
            found.append(item)
    return found
