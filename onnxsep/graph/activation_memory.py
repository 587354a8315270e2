"""Peak activation memory: the most bytes of live tensors while a model runs, from sizes alone.

What is counted, as memory planners of runtimes do (ONNX Runtime; E. Liberis and N. D. Lane 2019, arXiv:1910.05110):

- A tensor is alive from the node that makes it until the last node that reads it has run. Inputs are alive from the
  beginning, outputs until the end. While a node runs, what it reads and what it makes are both alive.
- Weights and whatever follows from constants and from sizes (Shape) do not count: they are no activations.
- **Views** take no bytes of their own: Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout.
- **In place**: an element-wise node (activation, BatchNormalization, Add, Mul, ...) writes over an operand of as many
  bytes that it alone reads, unless that is an input or an output of the graph. Nothing else does.
- **Integers**: a node between DequantizeLinear and QuantizeLinear is the integer operator that runtimes make of it: it
  reads and makes the integers, and a Relu or Clip before the QuantizeLinear belongs to it.
- A node with a graph within it (If, Loop, Scan) needs, while it runs, what the largest of its graphs needs.
- Scratch memory of kernels, padding and fragmentation are not counted.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnxsep.graph.counting import sizes_of_one
from onnxsep.graph.element_types import element_bits
from onnxsep.graph.execution_order import Program, Step, best_order, bytes_at, peak
from onnxsep.graph.index import RANDOM
from onnxsep.graph.scopes import Scope, is_standard, reads, scopes
from onnxsep.graph.shapes import KnownShapes

_VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_SIZES = frozenset({"Shape", "Size"})
_ONE_OUTPUT = frozenset({"BatchNormalization", "Dropout"})  # the others are for training
_FUSED = frozenset({"Clip", "Relu"})  # what runtimes fuse with the QuantizeLinear behind it
_ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization Cast Ceil Celu Clip Cos Cosh Div Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish LeakyRelu Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """.split()  # noqa: SIM905 - one name to a line would be fifty lines
)


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of live tensors at the worst moment of a run; None where the size of some tensor is not known.

    Attributes:
        best_order: where nodes run in the best order that is known.
        file_order: where they run in the order of the file.
        optimal: whether it is proved that no order needs less than the best one.
        unknown: tensors whose sizes are not known.
    """

    best_order: int | None
    file_order: int | None
    optimal: bool = True
    unknown: int = 0


def activation_memory(light: onnx.ModelProto, idle: Collection[int] = ()) -> ActivationMemory:
    """Peak activation memory of a model.

    A free first dimension (the batch) counts as 1. Functions must have been put in the place of their calls: what
    happens within one is not seen.

    Args:
        light: a skeleton with inferred shapes.
        idle: scopes, such as a branch of an If, that do not run and so need nothing.
    """
    planner = _Planner(light, idle)
    best, optimal = planner.peak(0, best=True)
    if planner.unknown:
        return ActivationMemory(None, None, optimal=False, unknown=len(planner.unknown))
    return ActivationMemory(best, planner.peak(0, best=False)[0], optimal)


def live_bytes(light: onnx.ModelProto, idle: Collection[int] = (), enough: int = 0) -> dict[str, int] | None:
    """Bytes that are alive while each node of the main graph runs, by the names of the tensors that it makes; no views.

    Parts of the order of nodes that cannot be done within ``enough`` bytes take as little as is known; None where the
    size of a tensor is not known. ``light`` and ``idle``: as for ``activation_memory``.
    """
    planner = _Planner(light, idle)
    found = planner.live(enough)
    return None if planner.unknown else found


@dataclass(eq=False)
class _Operation:
    """One node, or several that run as one; what it reads is no constant."""

    op_type: str
    reads: list[str]
    writes: list[str]
    nested: list[int] = field(default_factory=list)


class _Planner:
    """Programs of all graphs of a model."""

    def __init__(self, light: onnx.ModelProto, idle: Collection[int]) -> None:
        self._scopes = scopes(light)
        self._shapes = KnownShapes(self._scopes)
        self._idle = idle
        self._nested: dict[tuple[int, int], list[int]] = {}
        for scope in self._scopes:
            if scope.parent is not None and scope.holder is not None:
                self._nested.setdefault((scope.parent, scope.holder[0]), []).append(scope.index)
        self._constants: list[set[str]] = [set() for _ in self._scopes]
        for scope in self._scopes:  # parents first
            self._find_constants(scope)
        self.unknown: set[tuple[int, str]] = set()

    def peak(self, scope: int, *, best: bool) -> tuple[int, bool]:
        """Bytes of the tensors of a graph at the worst moment, and whether no order needs less."""
        program, _ = self._program(self._scopes[scope], best=best)
        if not best:
            return peak(program, range(len(program.steps))), True
        found = best_order(program)
        return found.peak, found.optimal

    def live(self, enough: int) -> dict[str, int]:
        """Bytes that are alive while what makes a tensor of the main graph runs, by the tensor."""
        program, makers = self._program(self._scopes[0], best=True)
        found = bytes_at(program, best_order(program, enough).steps)
        return {name: found[step] for name, step in makers.items()}

    def _is_constant(self, scope: int | None, name: str) -> bool:
        while scope is not None:
            if name in self._constants[scope]:
                return True
            scope = self._scopes[scope].parent
        return False

    def _find_constants(self, scope: Scope) -> None:
        """Tensors of a graph that follow from constants and sizes."""
        body, found = scope.body, self._constants[scope.index]
        if isinstance(body, onnx.GraphProto):
            found.update(tensor.name for tensor in body.initializer)
            found.update(tensor.values.name for tensor in body.sparse_initializer)
        for index, node in enumerate(body.node):
            if (scope.index, index) in self._nested or (is_standard(node) and node.op_type in RANDOM):
                continue
            if node.op_type in _SIZES or all(self._is_constant(scope.index, name) for name in node.input if name):
                found.update(name for name in node.output if name)

    def _operations(self, scope: Scope) -> list[_Operation]:
        found = []
        for index, node in enumerate(scope.body.node):
            op_type = node.op_type if is_standard(node) else ""
            made = node.output[:1] if op_type in _ONE_OUTPUT else node.output
            made = [name for name in made if name and name not in self._constants[scope.index]]
            if not made:
                continue
            nested = [inner for inner in self._nested.get((scope.index, index), ()) if inner not in self._idle]
            used = dict.fromkeys(name for name in reads(node) if not self._is_constant(scope.index, name))
            found.append(_Operation(op_type, list(used), made, nested))
        return found

    def _program(self, scope: Scope, *, best: bool) -> tuple[Program, dict[str, int]]:
        """The steps of a graph, and which of them makes each tensor."""
        body = scope.body
        assert isinstance(body, onnx.GraphProto)
        given = [value.name for value in body.input if value.name not in self._constants[scope.index]]
        outputs = {value.name for value in body.output if not self._is_constant(scope.index, value.name)}
        operations = as_integers(self._operations(scope), outputs)
        buffers = _Buffers(operations, given, outputs, lambda name: self._bytes(scope.index, name))
        extra = []
        for operation in operations:
            inner = max((self.peak(number, best=best)[0] for number in operation.nested), default=0)
            outer = sum(self._bytes(scope.index, name) for name in operation.writes)  # what the inner graph hands over
            extra.append(max(0, inner - outer))
        return buffers.program(extra)

    def _bytes(self, scope: int, name: str) -> int:
        """Bytes of a tensor; where that is not known it is noted, and 0."""
        shape, kind = self._shapes.of(scope, name), self._shapes.element_type(scope, name)
        sizes, bits = sizes_of_one(shape), element_bits(kind)
        if sizes is None or bits is None:
            self.unknown.add((scope, name))
            return 0
        return math.ceil(math.prod(sizes) * bits / 8)


def as_integers(operations: Sequence[_Operation], outputs: Collection[str]) -> list[_Operation]:
    """Operations between DequantizeLinear and QuantizeLinear as the integer ones that runtimes make of them."""
    makers = {name: operation for operation in operations for name in operation.writes}
    readers = _readers(operations)
    gone: set[_Operation] = set()

    def users(operation: _Operation) -> list[_Operation] | None:
        """What reads its outputs; None where one is an output of the graph, or nothing reads it."""
        if any(name in outputs or not readers.get(name) for name in operation.writes):
            return None
        return [user for name in operation.writes for user in readers[name]]

    def ends(operation: _Operation) -> list[_Operation] | None:
        """The QuantizeLinear nodes that alone take its outputs, and an activation before them."""
        found, before = users(operation), list[_Operation]()
        if found is not None and len(found) == 1 and found[0].op_type in _FUSED:
            before = found
            found = users(found[0])
        if found is None or any(user.op_type != "QuantizeLinear" for user in found):
            return None
        return [*before, *found]

    for operation in operations:
        sources = [makers.get(name) for name in operation.reads]
        if operation in gone or operation.op_type in ("QuantizeLinear", "DequantizeLinear") or not sources:
            continue
        if not all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            continue
        if (behind := ends(operation)) is None:
            continue
        gone.update(behind)
        operation.reads = [name for source in sources if source is not None for name in source.reads[:1]]
        operation.writes = [name for user in behind if user.op_type == "QuantizeLinear" for name in user.writes]
    left = [operation for operation in operations if operation not in gone]
    needed = {name for operation in left for name in operation.reads}.union(outputs)
    return [one for one in left if one.op_type != "DequantizeLinear" or not needed.isdisjoint(one.writes)]


def _readers(operations: Iterable[_Operation]) -> dict[str, list[_Operation]]:
    found: dict[str, list[_Operation]] = {}
    for operation in operations:
        for name in operation.reads:
            found.setdefault(name, []).append(operation)
    return found


class _Buffers:
    """Which tensors share their memory."""

    def __init__(
        self,
        operations: Sequence[_Operation],
        given: Sequence[str],
        outputs: Collection[str],
        size: Callable[[str], int],
    ) -> None:
        self._operations, self._size = operations, size
        self._root = self._views()
        self._given = {name: name for name in given}
        kept = {self._root.get(name, name) for name in outputs}
        users: dict[str, list[_Operation]] = {}
        for name, found in _readers(operations).items():
            real = (user for user in found if not self._is_view(user))
            users.setdefault(self._root.get(name, name), []).extend(real)
        self._number: dict[str, int] = {}
        self._sizes: list[int] = []
        for name in given:
            self._new(name)
        for operation in operations:
            if self._is_view(operation):
                continue
            over = self._written_over(operation, users, kept)
            for name in operation.writes:
                if over is not None:
                    self._number[name] = self._number[over]
                else:
                    self._new(name)
        self._kept = frozenset(self._number[name] for name in kept if name in self._number)

    def _is_view(self, operation: _Operation) -> bool:
        return operation.op_type in _VIEWS and operation.writes[0] in self._root

    def _views(self) -> dict[str, str]:
        """Tensors that are views, and whose."""
        found: dict[str, str] = {}
        for operation in self._operations:
            if operation.op_type in _VIEWS and len(operation.reads) == 1 and len(operation.writes) == 1:
                source = operation.reads[0]
                found[operation.writes[0]] = found.get(source, source)
        return found

    def _new(self, name: str) -> None:
        self._number[name] = len(self._sizes)
        self._sizes.append(self._size(name))

    def _written_over(
        self, operation: _Operation, users: Mapping[str, list[_Operation]], kept: Collection[str]
    ) -> str | None:
        """The operand that an element-wise operation writes over."""
        if operation.op_type not in _ELEMENTWISE or len(operation.writes) != 1:
            return None
        size = self._size(operation.writes[0])
        for name in operation.reads:
            source = self._root.get(name, name)
            alone = set(users.get(source, ())) == {operation}
            if not alone or source in kept or source in self._given or source not in self._number:
                continue
            if self._sizes[self._number[source]] == size:
                return source
        return None

    def program(self, extra: Sequence[int]) -> tuple[Program, dict[str, int]]:
        """The steps, and the number of the one that makes each tensor; what nothing makes is not counted.

        Args:
            extra: further bytes of each operation.
        """
        makers: dict[str, int] = {}
        steps: list[Step] = []
        alive = {self._number[name] for name in self._given}
        for operation, more in zip(self._operations, extra, strict=True):
            if self._is_view(operation):
                continue
            sources = [self._root.get(name, name) for name in operation.reads]
            before = tuple(dict.fromkeys(makers[name] for name in sources if name in makers))
            used = dict.fromkeys(self._number[name] for name in sources if name in self._number)
            made = dict.fromkeys(self._number[name] for name in operation.writes)
            new = tuple(number for number in made if number not in alive)
            alive.update(new)
            makers.update((name, len(steps)) for name in operation.writes)
            steps.append(Step(tuple(used), new, before, more))
        given = frozenset(self._number[name] for name in self._given)
        return Program(steps, self._sizes, given, self._kept), makers
