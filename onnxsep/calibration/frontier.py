"""Running a network piece by piece over the calibration inputs, with only its live tensors kept.

Calibration visits the Convs in order and needs the input of each from two networks, the original and the one that is
rewritten up to there. Running a prefix of the network for each Conv would cost the square of its depth. A frontier
keeps, for every batch of inputs, the tensors that nodes still to come will read, and moves on by running just the
nodes in between: a model of their own, cut at every live tensor, so any topology will do. Past a memory limit the
tensors go to files.
"""

import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.errors import CalibrationError, spelled
from onnxsep.graph.scopes import reads
from onnxsep.model.files import temporary_folder
from onnxsep.model.io import Model, read_tensor
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions


class Store:
    """Holds arrays in memory up to a limit, in files of a temporary folder beyond it.

    Args:
        limit: bytes of memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self.spilled = limit, 0, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def put(self, array: NDArray[Any]) -> "Kept":
        """Take an array; its space is free again when the result is no longer referred to."""
        if array.dtype == object or self._held + array.nbytes <= self._limit:
            self._held += array.nbytes
            kept = Kept(array, None)
            weakref.finalize(kept, self._release, array.nbytes)
            return kept
        if self._folder is None:
            self._folder = temporary_folder()
        self._count += 1
        path = Path(self._folder.name, f"{self._count}.npy")
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise CalibrationError(
                f"activations do not fit into memory and cannot be written to {path.parent}: "
                f"{error.strerror or error}; use fewer {spelled('samples')}, or set TMPDIR to a folder with more space"
            ) from error
        self.spilled += array.nbytes
        kept = Kept(None, path)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def _release(self, size: int) -> None:
        self._held -= size


class Kept:
    """An array that a store holds."""

    def __init__(self, array: NDArray[Any] | None, path: Path | None) -> None:
        self._array, self._path = array, path

    def get(self) -> NDArray[Any]:
        """The array; it must not be changed."""
        if self._array is not None:
            return self._array
        assert self._path is not None
        array: NDArray[Any] = np.load(self._path, allow_pickle=False)
        return array


class Frontier:
    """The live tensors of one network for every batch of inputs.

    Args:
        model: the network, only for its initialisers, operator sets and functions.
        batches: inputs by name, one mapping for each batch.
        options: how to run the pieces.
        store: where the tensors are kept.
    """

    def __init__(
        self, model: Model, batches: Iterable[Mapping[str, NDArray[Any]]], options: RuntimeOptions, store: Store
    ) -> None:
        self._model, self._options, self._store = model, options, store
        self._initializers = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in model.proto.graph.sparse_initializer}
        self._new: dict[str, onnx.TensorProto] = {}
        self._live = [{name: store.put(array) for name, array in batch.items()} for batch in batches]

    def fork(self) -> "Frontier":
        """A second frontier at the same place; the tensors are shared."""
        other = object.__new__(Frontier)
        other.__dict__.update(self.__dict__)
        other._new, other._live = dict(self._new), [dict(batch) for batch in self._live]
        return other

    def having(self, values: Mapping[str, Sequence[NDArray[Any]]]) -> "Frontier":
        """A fork with further tensors, each a value for every batch."""
        other = self.fork()
        for name, arrays in values.items():
            for batch, array in zip(other._live, arrays, strict=True):
                batch[name] = self._store.put(array)
        return other

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self._live)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        """Let nodes that are run later read this tensor."""
        self._new[tensor.name] = tensor

    def value(self, batch: int, name: str) -> NDArray[Any]:
        """A live tensor, or an initialiser."""
        if name not in self._live[batch] and name in self._initializers:
            array: NDArray[Any] = read_tensor(self._model, self._initializers[name])
            return array
        return self._live[batch][name].get()

    def shares(self, other: "Frontier", batch: int, name: str) -> bool:
        """Whether a live tensor is the same one in a frontier that this one was forked from, or the other way round."""
        return name in self._live[batch] and self._live[batch][name] is other._live[batch].get(name)

    def put(self, batch: int, name: str, value: "NDArray[Any] | Kept") -> Kept:
        """Another value for a live tensor, on which no other live tensor depends; gives the one before."""
        before = self._live[batch][name]
        self._live[batch][name] = value if isinstance(value, Kept) else self._store.put(value)
        return before

    def advance(
        self,
        nodes: Sequence[onnx.NodeProto],
        keep: Collection[str],
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run these nodes on every batch, then forget what is not in ``keep``.

        Args:
            nodes: in topological order; what they read is live, made by an earlier one of them, or an initialiser.
            keep: names of the tensors that are live afterwards.
            told: of each batch that begins, counted from 1, and how many there are.

        Raises:
            CalibrationError: the runtime cannot run the nodes, or they pass on something that is no tensor.
        """
        made = {name for node in nodes for name in node.output if name}
        wanted = [name for name in dict.fromkeys(keep) if name in made]
        if wanted:
            run = self.piece(nodes, wanted)
            for number, batch in enumerate(self._live):
                if told is not None:
                    told(number + 1, len(self._live))
                for name, array in run(number, {}).items():
                    if not isinstance(array, np.ndarray):
                        raise CalibrationError(
                            f"the model passes {name!r}, which is no tensor, from one Conv to the next; "
                            f"such a model can only be rewritten without {spelled('data')}"
                        )
                    batch[name] = self._store.put(array)
                _forget(batch, keep)  # before the next one is run: else the tensors of both sides were held
        for batch in self._live:
            _forget(batch, keep)

    def piece(
        self, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]
    ) -> Callable[[int, Mapping[str, NDArray[Any]]], dict[str, Any]]:
        """A part of the network that can be run several times; nothing is forgotten, and nothing kept.

        Args:
            nodes: as for ``advance``.
            wanted: tensors that they make.

        Returns:
            What gives these tensors for a batch, by its number; it is also given other values for live tensors.

        Raises:
            CalibrationError: the runtime cannot run the nodes; what is returned raises it too.
        """
        runner, inputs = self._runner(nodes, wanted)

        def run(batch: int, others: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
            live = self._live[batch]
            try:
                return runner({name: others[name] if name in others else live[name].get() for name in inputs})
            except CannotRun as error:
                raise CalibrationError(f"the runtime cannot run the model on the calibration data: {error}") from error

        return run

    def model(self, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> tuple[Model, list[str]]:
        """A part of the network as a model of its own, and the live tensors that are its inputs; as for ``piece``."""
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        made = {name for node in nodes for name in node.output}
        inputs = [name for name in read if self._live and name in self._live[0] and name not in made]
        graph = onnx.GraphProto(name="piece")
        graph.node.extend(nodes)
        for name in read:
            if name in inputs:
                continue
            if name in self._new or name in self._initializers:
                graph.initializer.append(self._new.get(name) or self._initializers[name])
            elif name in self._sparse:
                graph.sparse_initializer.append(self._sparse[name])
        for name in inputs:
            array = self._live[0][name].get()
            kind = (
                onnx.helper.np_dtype_to_tensor_dtype(array.dtype) if array.dtype != object else onnx.TensorProto.STRING
            )
            # No shape: it may depend on the data.
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        source = self._model
        proto = onnx.ModelProto(
            ir_version=max(source.proto.ir_version, 4), graph=graph
        )  # 4: initialisers are no inputs
        proto.opset_import.extend(source.proto.opset_import)
        proto.functions.extend(source.proto.functions)
        return Model(proto, path=source.path, base_dir=source.base_dir, follow_links=source.follow_links), inputs

    def _runner(self, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> tuple[Runner, list[str]]:
        piece, inputs = self.model(nodes, wanted)
        try:
            return Runner(piece, self._options), inputs
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run the model on the calibration data: {error}") from error


def _forget(batch: dict[str, Kept], keep: Collection[str]) -> None:
    for name in [name for name in batch if name not in keep]:
        del batch[name]
