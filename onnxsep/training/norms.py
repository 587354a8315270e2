"""BatchNormalization for training only: put behind Convs at the start, folded into them at the end.

Exporters fold BatchNormalization into the Conv in front of it. Such a network computes the same, but trains worse: a
large step changes the scale of everything behind, which batch statistics undo (S. Ioffe, C. Szegedy, Batch
Normalization, ICML 2015). So a Conv y = w * x + b is trained as

    y = s (w * x - m) / sqrt(v + e) + c,

where s and c are learnt for each channel, m and v are the mean and variance of w * x over the batch, and over all
batches in running averages. At the start m and v are measured on some training samples, s = sqrt(v + e) and c = b + m:
with running averages the network computes what it did, whatever m and v are. At the end, and whenever the network is
measured, the same formula is read as a Conv (B. Jacob et al., Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, CVPR 2018, 3.2), in double precision:

    w' = w s / sqrt(v + e)   (row by row: zeros stay zero),      b' = c - m s / sqrt(v + e).

So a Conv takes part if it has a bias, which w' and b' can go into; neither weight nor bias serves another node; no
BatchNormalization follows already; and a layer with weights follows somewhere, because the last layer's outputs are
the model's, whose scale is not free. The factors of a replaced Conv have one bias together, at the last one, so they
get one normalisation together. Gradients of the first ones do not depend on the scale either.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from onnxsep.graph.index import Index
from onnxsep.training.bridge import LAYERS, TorchGraph
from onnxsep.training.converters import import_torch
from onnxsep.training.module import Step

_EPSILON = 1e-5
_MOMENTUM = 0.1  # share of a batch in the running averages


@dataclass(frozen=True)
class _Place:
    """A Conv that gets a norm: its step, and the names of its weight and bias."""

    index: int
    weight: str
    bias: str


class Norms:
    """The norms of a module.

    They are in the module from then on; where its ``training`` is off, it computes with the folded weights.

    Args:
        graph: The model as a torch module. Its biases become c.
        feeds: Input tensors of some training samples, which give the first m and v.

    Attributes:
        scales: The parameters s by names of ours, which are no names in the graph.
        without_bias: Convs that could have a norm, had they a bias.
    """

    def __init__(self, graph: TorchGraph, feeds: Iterable[Mapping[str, Any]]) -> None:
        self._graph, self._torch = graph, import_torch()
        self._places, self.without_bias = _places(graph)
        steps = graph.module.steps()
        self._modules = [_norm_class()(steps[place.index].operation.call) for place in self._places]
        for place, module in self._all():
            graph.module.put(place.index, module)
        with self._torch.no_grad():
            for tensors in feeds:
                graph.module(tensors)
            for place, module in self._all():
                module.begin(graph.parameters[place.bias])
        graph.module.eval()
        self.scales = {self._name(place, "scale"): module.scale for place, module in self._all()}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def statistics(self) -> dict[str, Any]:
        """The running averages by names of ours."""
        found = {}
        for place, module in self._all():
            found[self._name(place, "mean")] = module.mean
            found[self._name(place, "variance")] = module.variance
        return found

    def folded(self) -> dict[str, Any]:
        """The weights and biases that the graph is to have, by name; tensors of their own."""
        found = {}
        parameters = self._graph.parameters
        with self._torch.no_grad():
            for place, module in self._all():
                weight, bias = module.folded(parameters[place.weight], parameters[place.bias])
                found[place.weight], found[place.bias] = weight, bias
        return found

    def remove(self) -> None:
        """Give the Convs back to themselves; their weights and biases are left as they are."""
        for place in self._places:
            self._graph.module.put(place.index, None)

    def _all(self) -> Iterable[tuple[_Place, Any]]:
        return zip(self._places, self._modules, strict=True)

    def _name(self, place: _Place, what: str) -> str:
        name = f"{what} behind {place.bias}"
        while name in self._graph.stored:
            name += "'"
        return name


def norm_places(graph: TorchGraph) -> int:
    """How many Convs would get a norm."""
    return len(_places(graph)[0])


def _places(graph: TorchGraph) -> tuple[list[_Place], tuple[str, ...]]:
    """The Convs that get a norm, and the outputs of those that would, had they a bias."""
    steps: list[Step] = graph.module.steps()
    stored = [onnx.TensorProto(name=name) for name in graph.parameters]
    nodes = [step.node for step in steps]
    index = Index(onnx.ModelProto(graph=onnx.GraphProto(node=nodes, initializer=stored)))
    readers = [[place for name in node.output for place in index.readers(name)] for node in nodes]
    leads_on = [False] * len(steps)  # whether a layer with weights comes behind a step
    for number in reversed(range(len(steps))):
        behind = readers[number]
        leads_on[number] = any(nodes[at].op_type in LAYERS or leads_on[at] for _, at in behind)
    found, without = [], []
    for number, step in enumerate(steps):
        names = step.operation.inputs
        following = {index.node(place).op_type for place in index.readers(step.node.output[0])}
        if step.node.op_type != "Conv" or not leads_on[number]:
            continue
        if "BatchNormalization" in following or following == {"Conv"}:
            continue
        own = [name for name in names[1:] if name in graph.parameters and len(index.uses(name)) == 1]
        if len(own) == len(names) - 1 == 2:
            found.append(_Place(number, own[0], own[1]))
        elif len(names) == 2 or not names[2]:
            without.append(step.node.output[0])
    return found, tuple(without)


@functools.cache
def _norm_class() -> Callable[..., Any]:
    """The class of a Conv with its norm; made here because its base can only be imported when it is needed."""
    import_torch()
    import torch

    class NormedConv(torch.nn.Module):
        """The Conv with its norm; before :meth:`begin` it computes the Conv and adds up sums for m and v."""

        mean: Any
        variance: Any
        scale: Any

        def __init__(self, conv: Callable[..., Any]) -> None:
            super().__init__()
            self._conv = conv
            self._sums: list[Any] = []  # of w * x, of its squares, and how many

        def forward(self, x: Any, weight: Any, bias: Any) -> Any:
            if not hasattr(self, "scale"):
                return self._recorded(self._conv(x, weight, None)) + bias.reshape(-1, *[1] * (weight.dim() - 2))
            if self.training:
                y = self._conv(x, weight, None)
                call = torch.nn.functional.batch_norm
                return call(y, self.mean, self.variance, self.scale, bias, True, _MOMENTUM, _EPSILON)
            return self._conv(x, *self.folded(weight, bias))

        def _recorded(self, y: Any) -> Any:
            axes = (0, *range(2, y.dim()))
            found = [y.sum(axes, dtype=_wide(y)), y.to(_wide(y)).square().sum(axes), y.numel() // y.shape[1]]
            self._sums = [old + new for old, new in zip(self._sums, found, strict=True)] if self._sums else found
            return y

        def begin(self, bias: Any) -> None:
            total, squares, count = self._sums
            mean = total / count
            variance = (squares / count - mean.square()).clamp(min=0)
            self.register_buffer("mean", mean.to(bias.dtype))
            self.register_buffer("variance", variance.to(bias.dtype))
            self.scale = torch.nn.Parameter((self.variance + _EPSILON).sqrt())
            bias.data += self.mean

        def folded(self, weight: Any, bias: Any) -> tuple[Any, Any]:
            wide = _wide(weight)
            factor = self.scale.to(wide) / (self.variance.to(wide) + _EPSILON).sqrt()
            rows = factor.reshape(-1, *[1] * (weight.dim() - 1))
            return (weight.to(wide) * rows).to(weight.dtype), (bias.to(wide) - self.mean.to(wide) * factor).to(
                bias.dtype
            )

    def _wide(tensor: Any) -> Any:
        return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64

    return NormedConv
