"""Peak activation memory as a budget of plans.

What a form changes is the memory while the nodes run that take its layer's place: what they read and make lives beside
what the rest of the network holds then, whatever form other layers have. So the peak of a plan is the largest of its
layers' and of that of all other nodes: a form fits into a budget or does not, and nothing adds up. Forms of different
layers are measured together, one of each layer in one skeleton. ``graph.activation_memory`` says what is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

import onnx

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planned_costs import edited
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.activation_memory import live_bytes
from onnxsep.graph.places import Place
from onnxsep.planner.measuring import Measured
from onnxsep.running.sizes import Sizes


class PeakMemory:
    """What plans for one model need.

    Args:
        sites: Its layers.
        sizes: Of its tensors.

    Attributes:
        source: Bytes of the model as it is.

    Raises:
        OptionError: The size of a tensor is not known.
    """

    def __init__(self, sites: Sites, sizes: Sizes) -> None:
        self._sites, self._sizes = sites, sizes
        self.source = self.of(Plan())
        self._enough = self.source

    def keep_within(self, enough: int) -> None:
        """Say how much is to be enough, so that nodes are ordered for it."""
        self._enough = enough

    def of(self, plan: Plan) -> int:
        """Bytes that a plan needs."""
        found = self._sizes.activation_memory(edited(self._sites, plan)[0]).best_order
        if found is None:
            raise OptionError(
                f"{spelled('target')} ram= needs the sizes of all tensors, and some are not known;"
                f" {spelled('input_shapes', hint='NAME:DIMS')} gives those of inputs"
            )
        return found

    def others(self, layers: Sequence[ConvSite]) -> int:
        """Bytes while any node runs that is none of these layers."""
        own = {name for site in layers for name in self._outputs(site)}
        return max((found for name, found in self._live(self._sites.light).items() if name not in own), default=0)

    def added(self, measured: Mapping[Place, Sequence[Measured]]) -> dict[Place, list[Measured]]:
        """The same candidates with the bytes that are alive while each of them runs."""
        found: dict[Place, list[Measured]] = {place: [] for place in measured}
        for together in zip_longest(*measured.values()):
            several = [one for one in together if one is not None]
            light, _ = edited(self._sites, Plan([one.row for one in several if one.row is not None]))
            live = self._live(light)
            nodes = list(_by_outputs(light, [self._outputs(one.site) for one in several], self._made_before()))
            for one, names in zip(several, nodes, strict=True):
                found[one.site.place].append(replace(one, ram=max((live.get(name, 0) for name in names), default=0)))
        return found

    def of_row(self, row: ConvReplacement) -> int:
        """Bytes that are alive while one form runs."""
        light, _ = edited(self._sites, Plan([row]))
        live = self._live(light)
        (names,) = _by_outputs(light, [self._outputs(row.site)], self._made_before())
        return max((live.get(name, 0) for name in names), default=0)

    def _live(self, light: onnx.ModelProto) -> dict[str, int]:
        found = live_bytes(self._sizes.applied(light), self._sizes.idle, self._enough)
        return found or {}

    def _outputs(self, site: ConvSite) -> list[str]:
        return list(self._sites.light.graph.node[site.place[1]].output)

    def _made_before(self) -> set[str]:
        return {name for node in self._sites.light.graph.node for name in node.output}


def _by_outputs(light: onnx.ModelProto, outputs: Sequence[Sequence[str]], before: set[str]) -> Iterator[list[str]]:
    """For each layer, the tensors that the nodes in its place make: its own outputs, and the new ones before them."""
    found: dict[str, list[str]] = {}
    new: list[str] = []
    for node in light.graph.node:
        new += node.output
        if not before.isdisjoint(node.output):
            found.update((name, new) for name in node.output)
            new = []
    for names in outputs:
        yield [one for name in names for one in found.get(name, [])]
