"""What nodes of the main graph depend on, and what depends on them."""

from collections.abc import Collection, Iterable
from functools import cached_property

from onnxsep.graph.index import Index
from onnxsep.graph.scopes import reads

_RANDOM = ("Random", "Bernoulli", "Multinomial")  # beginnings of the names of operators that give something else


class Dependencies:
    """Indices of nodes of the main graph by what they compute from what.

    Args:
        index: Of the model.
        inputs: The tensors that a run is given.
    """

    def __init__(self, index: Index, inputs: Collection[str]) -> None:
        self._index, self._inputs = index, inputs
        self._nodes = index.nodes[0]

    def makers(self, names: Iterable[str]) -> list[int]:
        """The nodes that compute these tensors."""
        return [place[1] for name in names if (place := self._index.place(name)) is not None]

    def before(self, names: Iterable[str], known: Collection[int] = ()) -> set[int]:
        """Nodes that the tensors depend on, but for those that are known and what only these depend on."""
        found: set[int] = set()
        stack = self.makers(names)
        while stack:
            index = stack.pop()
            if index in found or index in known:
                continue
            found.add(index)
            stack += self.makers(reads(self._nodes[index]))
        return found

    def behind(self, names: Iterable[str]) -> set[int]:
        """Nodes that depend on one of the tensors."""
        changed, found = set(names), set[int]()
        for index, node in enumerate(self._nodes):
            if not changed.isdisjoint(reads(node)):
                found.add(index)
                changed.update(name for name in node.output if name)
        return found

    @cached_property
    def constant(self) -> set[int]:
        """Nodes that depend on no input of the graph."""
        moving = set(self._inputs)
        constant: set[int] = set()
        for index, node in enumerate(self._nodes):
            if moving.isdisjoint(reads(node)) and not node.op_type.startswith(_RANDOM):
                constant.add(index)
            else:
                moving.update(name for name in node.output if name)
        return constant
