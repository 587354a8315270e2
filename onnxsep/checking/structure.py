r"""The structure of a model as text: one statement a line, made to be reviewed in a pull request and compared.

    onnxsep structure, version 1
    ir_version 8
    opset ai.onnx 17
    graph @main
      input %image: float32[$batch, 3, 32, 32]
      weight %conv.weight: float32[16, 3, 3, 3]
      %features = Conv(%image, %conv.weight) {pads = [1, 1, 1, 1]} @conv -> float32[$batch, 16, 32, 32]
        # onnxsep.mode = depthwise
      constant %axes: int64[1] = [1]
      ...
      output %scores: float32[$batch, 10]

Names carry a mark: ``%`` a tensor, ``@`` a node or a graph, ``$`` a symbolic dimension; a name that is not a plain word
is quoted as in JSON. Nodes stand in stored order. Weights and Constant nodes are declared just before the first node
that uses them, unused ones at the end, so their order in the file does not matter. ``_`` is an optional input or output
that is left out, ``?`` a type or a dimension that is not known, ``[...]`` a shape of unknown rank. The types after
``->`` come from ONNX's shape inference, which sees more in newer versions of onnx.

Values are shown for integers, booleans and strings of at most 16 elements, because those are shapes, axes and pads;
floating-point and quantised tensors are declared with their type alone. Text of more than 200 bytes and attribute
lists of more than 64 values stand as a digest.

What onnxsep says of the nodes that it made stands at these nodes, also where the file holds it once for all.

Left out, because every export changes them: doc strings, producer, producer version, model version. Left out too: the
position of a weight among the graph's inputs, and stored types of tensors inside the graph, which inference replaces.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
from google.protobuf import text_format
from google.protobuf.message import Message
from onnx import TensorProto

from onnxsep.checking.structure_tensors import (
    StructureTensor,
    Tensors,
    consumers,
    graphs,
    is_constant_tensor,
    metadata_of,
    uses,
)
from onnxsep.checking.structure_words import (
    PLAIN,
    node_word,
    operator_word,
    quoted,
    string_text,
    symbols,
    tensor_type_text,
    tensor_word,
    type_text,
    word,
)
from onnxsep.graph.marks import KEY, PREFIX, Marks, Said, function_key, nested_key
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model

HEADER = "onnxsep structure, version 1"
INDENT = "  "


@dataclass(frozen=True)
class Structure:
    """The text of a model, and the tensors that it declares, in the order of the text."""

    lines: tuple[str, ...]
    tensors: tuple[StructureTensor, ...]

    @property
    def text(self) -> str:
        """The lines, each ended by a line feed."""
        return "".join(f"{line}\n" for line in self.lines)


def describe(model: Model) -> Structure:
    """The structure of ``model``; equal models give equal text, and no weight is read or copied.

    Raises:
        ModelLoadError: a small tensor in an external file cannot be read.
    """
    writer = _Writer(model)
    writer.model()
    return Structure(tuple(writer.lines), tuple(writer.tensors.found))


_Entries = Iterable[onnx.StringStringEntryProto]
_Declared = dict[str, list[tuple[str, Callable[[], None]]]]  # by tensor name: type, and what writes the declaration


@dataclass
class _Block:
    """What one graph or function body needs to know about its tensors."""

    depth: int
    path: str  # before the names of its tensors, to make them unique
    key: str | None  # of the graph, for its marks; None where there are none
    types: Mapping[str, str]  # inferred types as text
    infos: dict[str, list[onnx.StringStringEntryProto]]  # metadata of tensors, taken out when written
    annotations: dict[str, _Entries]  # quantisation annotations, taken out when written
    consumers: dict[str, set[str]]  # operators that read a tensor, nested graphs included


class _Writer:
    def __init__(self, model: Model) -> None:
        self._source = model
        self._known = frozenset(symbols(model.proto))
        self._marks = Marks(model.proto)
        self.lines: list[str] = []
        self.tensors = Tensors(model, self.lines)

    def model(self) -> None:
        proto, inferred = self._source.proto, infer_shapes(skeleton(self._source))
        self._line(0, HEADER)
        self._line(0, f"ir_version {proto.ir_version}")
        if proto.domain:
            self._line(0, f"domain {word(proto.domain)}")
        self._opsets(0, proto.opset_import)
        self._metadata(0, (entry for entry in proto.metadata_props if entry.key != KEY or self._marks.unreadable))
        self._messages(0, "device configuration", getattr(proto, "configuration", ()))  # since onnx 1.18
        for function in sorted(proto.functions, key=lambda f: (f.domain, f.name, getattr(f, "overload", ""))):
            self._function(function)
        self._graph(0, "graph", "", "", proto.graph, inferred.graph)
        for index, training in enumerate(proto.training_info):
            path = f"training {index} "
            self._line(0, "training")
            self._graph(1, "initialization graph", f"{path}initialization > ", None, training.initialization, None)
            self._graph(1, "algorithm graph", f"{path}algorithm > ", None, training.algorithm, None)
            for kind in ("initialization", "update"):
                for entry in getattr(training, f"{kind}_binding"):
                    self._line(1, f"{kind} {tensor_word(entry.key)} = {tensor_word(entry.value)}")

    def _line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def _metadata(self, depth: int, entries: _Entries, of: str = "", said: Said | None = None) -> None:
        marks = ((PREFIX + key, value) for key, value in (said or {}).items())
        for key, value in sorted([*((entry.key, entry.value) for entry in entries), *marks]):
            text = value if re.fullmatch(PLAIN, value) else string_text(value.encode("utf-8"))
            self._line(depth, f"# {of}{word(key)} = {text}")

    def _messages(self, depth: int, keyword: str, messages: Iterable[Message]) -> None:
        for message in messages:
            self._line(depth, f"{keyword} {quoted(text_format.MessageToString(message, as_one_line=True).strip())}")

    def _opsets(self, depth: int, opsets: Iterable[onnx.OperatorSetIdProto]) -> None:
        for domain, version in sorted((opset.domain or "ai.onnx", opset.version) for opset in opsets):
            self._line(depth, f"opset {word(domain)} {version}")

    def _function(self, function: onnx.FunctionProto) -> None:
        title = operator_word(function.domain, function.name, getattr(function, "overload", ""))
        self._line(0, f"function {title}")
        self._opsets(1, function.opset_import)
        self._metadata(1, getattr(function, "metadata_props", ()))
        infos = getattr(function, "value_info", ())
        block = _Block(
            depth=1,
            path=f"function {title} > ",
            key=function_key(function),
            types={info.name: type_text(info.type) for info in infos},
            infos=metadata_of(infos),
            annotations={},
            consumers=consumers(function.node),
        )
        for name in sorted(function.attribute):
            self._line(1, f"attribute {word(name)}")
        for attribute in sorted(function.attribute_proto, key=lambda attribute: attribute.name):
            name = word(attribute.name)
            self._line(1, f"attribute {name} = {self.tensors.attribute(attribute, f'{block.path}{name}')}")
        for name in function.input:
            self._line(1, f"input {tensor_word(name)}")
        self._nodes(block, {}, function.node, ())
        for name in function.output:
            self._line(1, f"output {tensor_word(name)}")

    def _graph(
        self, depth: int, title: str, path: str, key: str | None, graph: onnx.GraphProto, twin: onnx.GraphProto | None
    ) -> None:
        self._line(depth, title + node_word(graph.name))
        self._metadata(depth + 1, getattr(graph, "metadata_props", ()))
        known = (*twin.value_info, *twin.output) if twin else graph.value_info
        weights = {tensor.name for tensor in graph.initializer} | {
            item.values.name for item in graph.sparse_initializer
        }
        block = _Block(
            depth=depth + 1,
            path=path,
            key=key,
            types={info.name: type_text(info.type, self._known) for info in known},
            infos=metadata_of((*graph.value_info, *(value for value in graph.input if value.name in weights))),
            annotations={item.tensor_name: item.quant_parameter_tensor_names for item in graph.quantization_annotation},
            consumers=consumers(graph.node),
        )
        declared: _Declared = {}
        inputs = {value.name: type_text(value.type) for value in graph.input}
        for tensor in graph.initializer:
            write = partial(self._weight, block, tensor, inputs.get(tensor.name))
            declared.setdefault(tensor.name, []).append((tensor_type_text(tensor), write))
        for sparse in graph.sparse_initializer:
            write = partial(self._sparse, block, "sparse weight", sparse.values.name, sparse)
            declared.setdefault(sparse.values.name, []).append((tensor_type_text(sparse), write))
        for value in graph.input:
            if value.name not in weights:
                self._port(block, "input", value)
        self._nodes(block, declared, graph.node, twin.node if twin else ())
        for value in graph.output:
            self._port(block, "output", value)
        for name in sorted({*block.infos, *block.annotations}):  # of tensors that are not defined in this graph
            self._tensor_notes(block, name)

    def _port(self, block: _Block, kind: str, value: onnx.ValueInfoProto) -> None:
        self._line(block.depth, f"{kind} {tensor_word(value.name)}: {type_text(value.type)}")
        self._metadata(block.depth + 1, getattr(value, "metadata_props", ()))
        if kind == "input":
            self._tensor_notes(block, value.name)

    def _tensor_notes(self, block: _Block, name: str) -> None:
        """Metadata of a tensor's value info, and its quantisation annotation; each is written once."""
        self._metadata(block.depth + 1, block.infos.pop(name, ()), of=f"{tensor_word(name)}: ")
        for entry in sorted(block.annotations.pop(name, ()), key=lambda entry: entry.key):
            target = f"{tensor_word(name)} {word(entry.key)}"
            self._line(block.depth + 1, f"quantization {target} = {tensor_word(entry.value)}")

    def _weight(self, block: _Block, tensor: TensorProto, as_input: str | None) -> None:
        kind = "weight" if as_input is None else "weight input"
        declared = "" if as_input in (None, tensor_type_text(tensor)) else f" declared {as_input}"
        self._declare(block, kind, tensor.name, tensor, declared)
        self._metadata(block.depth + 1, getattr(tensor, "metadata_props", ()))
        self._tensor_notes(block, tensor.name)

    def _constant(self, block: _Block, node: onnx.NodeProto) -> None:
        attribute, name = node.attribute[0], node.output[0]
        if attribute.HasField("sparse_tensor"):
            self._sparse(block, "sparse constant", name, attribute.sparse_tensor, node_word(node.name))
        else:
            self._declare(block, "constant", name, attribute.t, node_word(node.name))
            self._metadata(block.depth + 1, getattr(attribute.t, "metadata_props", ()), of="value: ")
            self._tensor_notes(block, name)
        self._metadata(block.depth + 1, getattr(node, "metadata_props", ()), said=self._marks.within(block.key, node))
        self._messages(block.depth + 1, "device", getattr(node, "device_configurations", ()))

    def _sparse(self, block: _Block, kind: str, name: str, sparse: onnx.SparseTensorProto, rest: str = "") -> None:
        self.tensors.collect_sparse(f"{block.path}{tensor_word(name)}", sparse)
        self._line(block.depth, f"{kind} {tensor_word(name)}: {tensor_type_text(sparse)}{rest}")
        self._tensor_notes(block, name)

    def _declare(self, block: _Block, kind: str, name: str, tensor: TensorProto, rest: str) -> None:
        self.tensors.collect(f"{block.path}{tensor_word(name)}", tensor)
        value = self.tensors.value(tensor, block.consumers.get(name, set()))
        self._line(block.depth, f"{kind} {tensor_word(name)}: {tensor_type_text(tensor)}{value}{rest}")

    def _nodes(
        self,
        block: _Block,
        declared: _Declared,
        nodes: Iterable[onnx.NodeProto],
        inferred: Sequence[onnx.NodeProto],
    ) -> None:
        """Nodes in stored order; what is ``declared``, and Constants, just before the node that uses them first."""
        kept = []
        for index, node in enumerate(nodes):
            if is_constant_tensor(node):
                kind = tensor_type_text(node.attribute[0].t)
                declared.setdefault(node.output[0], []).append((kind, partial(self._constant, block, node)))
            else:
                kept.append((node, inferred[index] if inferred else None))
        for node, twin in kept:
            for name, _ in uses([node]):
                for _, write in declared.pop(name, ()):
                    write()
            self._node(block, node, twin)
        unused = [(kind, name, write) for name, entries in declared.items() for kind, write in entries]
        for _, _, write in sorted(unused, key=lambda entry: entry[:2]):  # the type first: names may be ignored
            write()

    def _node(self, block: _Block, node: onnx.NodeProto, twin: onnx.NodeProto | None) -> None:
        outputs = ", ".join(map(tensor_word, node.output)) or "_"
        inputs = list(node.input)
        while inputs and not inputs[-1]:  # optional inputs may be left out or named "": the same
            inputs.pop()
        label = tensor_word(next(filter(None, node.output), "")) if node.output else word(node.op_type)
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        settings = [
            f"{name} = {self.tensors.attribute(attribute, f'{block.path}{label}, {name}')}"
            for name, attribute in ((word(attribute.name), attribute) for attribute in attributes)
            if not graphs(attribute)
        ]
        types = [block.types.get(name, "?") for name in node.output]
        self._line(
            block.depth,
            f"{outputs} = {operator_word(node.domain, node.op_type, getattr(node, 'overload', ''))}"
            f"({', '.join(map(tensor_word, inputs))})"
            + (f" {{{', '.join(settings)}}}" if settings else "")
            + node_word(node.name)
            + (f" -> {', '.join(types)}" if set(types) - {"?"} else ""),
        )
        depth = block.depth + 1
        self._metadata(depth, getattr(node, "metadata_props", ()), said=self._marks.within(block.key, node))
        self._messages(depth, "device", getattr(node, "device_configurations", ()))
        for attribute in attributes:
            self._metadata(depth, getattr(attribute.t, "metadata_props", ()), of=f"{word(attribute.name)}: ")
        for name in node.output:
            self._tensor_notes(block, name)
        others = {attribute.name: graphs(attribute) for attribute in twin.attribute} if twin else {}
        for attribute in attributes:
            for index, graph in enumerate(graphs(attribute)):
                name = word(attribute.name) + (f"[{index}]" if attribute.graphs else "")
                other = others[attribute.name][index] if others else None
                key, path = nested_key(block.key, node, attribute.name), f"{block.path}{label} {name} > "
                self._graph(depth, f"{name}: graph", path, key, graph, other)
