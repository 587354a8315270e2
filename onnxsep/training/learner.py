"""The torch copy of a model while it is trained: what the optimiser moves, and what of it the model is to have."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from onnxsep.training.batches import Feeds
from onnxsep.training.bridge import TorchGraph
from onnxsep.training.choices import BatchNorm, Precision
from onnxsep.training.converters import import_torch
from onnxsep.training.full_precision import full_precision
from onnxsep.training.norms import Norms
from onnxsep.training.parallel import Group


class Learner:
    """A module in training.

    In float32 it is what it is (steps on a GPU may multiply in TF32, as torch does by default). In bfloat16 layers
    multiply numbers of 16 bits, with sums in 32; weights, their gradients' sums, the loss and everything that is
    measured stay in float32 (torch's autocast).

    Args:
        graph: The model as a torch module, on its device. Those of its parameters that want gradients are trained.
        batch_norm: "train" and "insert" use the batch's statistics, "frozen" leaves them.
        precision: Of the steps.
        keep_zeros: Whether weights that are zero stay so.
        norms: The norms that were put in, for training only.
        group: The processes that train together; this one alone by default.
        outputs: Those that the loss reads; needed where there are several processes.

    Attributes:
        parameters: What the optimiser moves, by name.
    """

    def __init__(
        self,
        graph: TorchGraph,
        *,
        batch_norm: BatchNorm = "train",
        precision: Precision = "float32",
        keep_zeros: bool = False,
        norms: Norms | None = None,
        group: Group | None = None,
        outputs: Collection[str] = (),
    ) -> None:
        self._torch, self.graph, self._norms = import_torch(), graph, norms
        self.group = group or Group(self._torch, graph.module.device())
        self._call = self.group.wrapped(graph.module, outputs)
        self._moves_statistics, self._reduced = batch_norm != "frozen", precision == "bfloat16"
        self._steps = False  # whether it is being trained, and not measured
        self._trained = {name: value for name, value in graph.parameters.items() if value.requires_grad}
        self.parameters = {**self._trained, **(norms.scales if norms else {})}
        self._zeros = {}
        if keep_zeros:
            zeros = {name: (value.detach() == 0) for name, value in self._trained.items() if value.dim() > 1}
            self._zeros = {name: where for name, where in zeros.items() if bool(where.any())}

    @property
    def zeros(self) -> int:
        """Weights that stay zero."""
        return sum(int(where.sum()) for where in self._zeros.values())

    def outputs(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name; floats in float32."""
        tensors = self.graph.tensors(feeds)
        if not self._steps:
            with full_precision():
                found: dict[str, Any] = self.graph.module(tensors)
            return found
        with self._torch.autocast(self.group.device.type, self._torch.bfloat16, self._reduced):
            found = self._call(tensors)
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}

    @contextmanager
    def training(self) -> Iterator[None]:
        """Batch statistics and Dropout as they are in training; measuring is done outside."""
        self.graph.module.train(self._moves_statistics)
        self._steps = True
        try:
            yield
        finally:
            self._steps = False
            self.graph.module.eval()
        if self._moves_statistics:  # each process has seen its share of every batch
            self.group.mean_of(list(self._statistics().values()))

    def rehearse(self, feeds: Feeds) -> None:
        """Compute a step without its gradients and effects.

        Raises:
            UnsupportedModelError: torch cannot.
        """
        with self._torch.no_grad(), self._torch.autocast(self.group.device.type, self._torch.bfloat16, self._reduced):
            self.graph.module(self.graph.tensors(feeds))

    def alone(self) -> Any:
        """A context in which gradients are added up without the other processes."""
        return self._call.no_sync() if self.group.count > 1 else nullcontext()

    def clear_zeros(self) -> None:
        """Set the weights to zero that are to stay zero."""
        with self._torch.no_grad():
            for name, where in self._zeros.items():
                self.parameters[name].masked_fill_(where, 0.0)

    def values(self) -> dict[str, Any]:
        """Copies of everything that training changes, to go on from."""
        return {name: value.detach().clone() for name, value in self._changing().items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from what :meth:`values` gave."""
        present = self._changing()
        with self._torch.no_grad():
            for name, value in values.items():
                present[name].copy_(value)

    def kept(self) -> dict[str, Any]:
        """Copies of the weights, and running statistics if they were trained, that the model is to have, by name."""
        values = {**self._trained, **(self.graph.buffers if self._moves_statistics else {})}
        folded = self._norms.folded() if self._norms else {}
        return {name: folded[name] if name in folded else value.detach().clone() for name, value in values.items()}

    def finish(self, kept: Mapping[str, Any]) -> None:
        """Make the graph what it is to be: without norms of ours, with the values that :meth:`kept` gave."""
        if self._norms:
            self._norms.remove()
        present = {**self.graph.parameters, **self.graph.buffers}
        with self._torch.no_grad():
            for name, value in kept.items():
                present[name].copy_(value)

    def _changing(self) -> dict[str, Any]:
        return {**self.parameters, **(self._statistics() if self._moves_statistics else {})}

    def _statistics(self) -> dict[str, Any]:
        return {**self.graph.buffers, **(self._norms.statistics if self._norms else {})}
