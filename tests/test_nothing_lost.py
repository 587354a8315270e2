"""What a rewrite does not touch comes out byte for byte and in order: of real models, and of one that holds everything.

The comparison knows nothing of the engine. It takes both protos apart and allows only this: a Conv is replaced by
nodes that carry onnxsep's metadata, in its place; their weights are new; a weight that nothing uses any more is gone.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from exporters import EXPORTED, NEGATIVE
from google.protobuf.message import Message
from marked import marked
from onnx import TensorProto, helper, numpy_helper
from random_examples import some

import onnxsep
from onnxsep import Result

MODES = ("depthwise", "spatial")
MODELS = (*EXPORTED, *NEGATIVE)

# ---------------------------------------------------------------- the comparison


def same(source: Sequence[Message], result: Sequence[Message]) -> bool:
    """Equal protos in the same order, byte for byte."""
    return [item.SerializeToString() for item in source] == [item.SerializeToString() for item in result]


def rest(proto: Message, *fields: str) -> bytes:
    """The bytes of a proto without some fields."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for field in fields:
        copy.ClearField(field)
    return copy.SerializeToString()


def without_place(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor but for where its external data lies."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor.SerializeToString()
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    for entry in copy.external_data:
        if entry.key in ("location", "offset", "length"):
            entry.value = ""
    return copy.SerializeToString()


def is_new(node: onnx.NodeProto) -> bool:
    return any(entry.key == "onnxsep.mode" for entry in node.metadata_props)


def read_names(body: Any) -> Iterator[str]:
    """Every name that a graph or function, or a graph nested in it, reads."""
    for node in body.node:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from read_names(graph)
    yield from (getattr(output, "name", output) for output in body.output)


def mentioned(body: Any) -> set[str]:
    """Every name that something in a graph or function makes or reads."""
    stored = {tensor.name for tensor in getattr(body, "initializer", ())}
    return stored | set(read_names(body)) | {name for node in body.node for name in node.output}


class Comparison:
    """Compares a whole model; ``replaced`` counts the Convs that were replaced, ``gone`` the initialisers that went."""

    def __init__(self, source: onnx.ModelProto, result: onnx.ModelProto) -> None:
        source, result = marked(source), marked(result)
        self.replaced = 0
        self.gone: list[str] = []
        assert rest(source, "graph", "functions") == rest(result, "graph", "functions")
        assert len(source.functions) == len(result.functions)
        self._graph(source.graph, result.graph, set(read_names(result.graph)), source.ir_version)
        for old, new in zip(source.functions, result.functions, strict=True):
            assert rest(old, "node", "value_info") == rest(new, "node", "value_info")
            self._infos(old, new)
            self._nodes(old.node, new.node, set(read_names(new)), source.ir_version)

    def _graph(self, source: onnx.GraphProto, result: onnx.GraphProto, used: set[str], ir: int) -> None:
        edited = ("node", "initializer", "input", "value_info", "quantization_annotation")
        assert rest(source, *edited) == rest(result, *edited)
        kept = {tensor.name for tensor in result.initializer}
        gone = {tensor.name for tensor in source.initializer} - kept
        assert not gone & used  # only what nothing reads may go
        self.gone += gone
        old = [tensor for tensor in source.initializer if tensor.name not in gone]
        assert list(map(without_place, old)) == list(map(without_place, result.initializer[: len(old)]))
        new = [tensor.name for tensor in result.initializer[len(old) :]]
        own = {name for node in result.node if is_new(node) for name in node.input} | used
        assert set(new) <= own  # whatever was added is read
        inputs = [value for value in source.input if value.name not in gone]
        assert same(inputs, result.input[: len(inputs)])
        assert [value.name for value in result.input[len(inputs) :]] == (new if ir <= 3 else [])
        self._infos(source, result)
        notes = [note for note in source.quantization_annotation if note.tensor_name not in gone]
        assert same(notes, result.quantization_annotation)
        self._nodes(source.node, result.node, used, ir)

    @staticmethod
    def _infos(source: Any, result: Any) -> None:
        """Only the type of a tensor that went may be missing, and none may be new."""
        gone = mentioned(source) - mentioned(result)
        assert same([value for value in source.value_info if value.name not in gone], result.value_info)

    def _nodes(self, source: Any, result: Any, used: set[str], ir: int) -> None:
        """Walk both lists side by side: new nodes stand where their Conv, or the old weight, stood."""
        before = {node.SerializeToString() for node in source}
        made = {name: node for node in result if self._is_made(node, before) for name in node.output}
        left = list(result)
        for node in source:
            last = made.get(node.output[0]) if node.op_type in ("Conv", "ConvTranspose") else None
            if last is not None:
                while True:
                    new = left.pop(0)
                    assert self._is_made(new, before)
                    assert new.op_type in (node.op_type, "Add")
                    if new is last:
                        break
                self.replaced += 1
                continue
            if left and self._is_same_node(node, left[0], used, ir):
                left.pop(0)
            else:
                assert not set(node.output) & used, f"{node.op_type} {node.name} is lost"
            while left and left[0].op_type == "Constant" and self._is_made(left[0], before):
                left.pop(0)  # factors behind the old weight, or in its place
        assert not left

    @staticmethod
    def _is_made(node: onnx.NodeProto, before: set[bytes]) -> bool:
        """Whether this rewrite made the node; an earlier one may have made others."""
        return is_new(node) and node.SerializeToString() not in before

    def _is_same_node(self, source: onnx.NodeProto, result: onnx.NodeProto, used: set[str], ir: int) -> bool:
        graphs = [attribute.name for attribute in source.attribute if attribute.HasField("g")]
        if not graphs:
            return source.SerializeToString() == result.SerializeToString()
        if rest(source, "attribute") != rest(result, "attribute"):
            return False
        assert len(source.attribute) == len(result.attribute)
        for old, new in zip(source.attribute, result.attribute, strict=True):
            assert rest(old, "g") == rest(new, "g")
            if old.HasField("g"):
                self._graph(old.g, new.g, used | set(read_names(new.g)), ir)
        return True


def assert_nothing_lost(source: onnx.ModelProto, result: Result) -> None:
    comparison = Comparison(source, result.proto)
    assert comparison.replaced == result.report.totals.replaced
    assert sorted(comparison.gone) == sorted(result.report.removed_weights)
    for body in walk_bodies(marked(result.proto)):
        for node in filter(is_new, body.node):
            carried = {entry.key: entry.value for entry in node.metadata_props}
            assert set(carried) >= {"onnxsep.mode", "onnxsep.rank", "onnxsep.source"}


def walk_bodies(proto: onnx.ModelProto) -> Iterator[Any]:
    pending: list[Any] = [proto.graph, *proto.functions]
    while pending:
        body = pending.pop()
        yield body
        pending += [one.g for node in body.node for one in node.attribute if one.HasField("g")]


def content(proto: onnx.ModelProto, folder: Path) -> dict[str, bytes]:
    """The bytes of every external initialiser."""
    found = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
            found[tensor.name] = copy.raw_data
    return found


# ---------------------------------------------------------------- real models


@pytest.mark.parametrize(("name", "mode"), some(product(MODELS, MODES), 3))
def test_real_model(shared: Path, tmp_path: Path, name: str, mode: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    bytes_before = path.read_bytes()
    source = onnx.load(path, load_external_data=False)
    result = onnxsep.rewrite(path, mode=mode, verify="none")
    assert_nothing_lost(source, result)
    assert path.read_bytes() == bytes_before

    saved = result.save(tmp_path / "out.onnx")
    written = onnx.load(saved.path, load_external_data=False)
    assert Comparison(source, written).replaced == result.report.totals.replaced
    old, new = content(source, path.parent), content(written, tmp_path)
    assert {name: data for name, data in new.items() if name in old} == {
        name: data for name, data in old.items() if name in new
    }
    assert set(old) - set(new) <= set(result.report.removed_weights)
    if not result.report.totals.replaced:
        assert saved.path.read_bytes() == bytes_before

    again = onnxsep.rewrite(path, mode=mode, verify="none")
    assert again.proto.SerializeToString() == result.proto.SerializeToString()


@pytest.mark.parametrize("name", MODELS)
def test_real_model_of_which_nothing_is_rewritten(shared: Path, tmp_path: Path, name: str) -> None:
    """The file is copied byte for byte, in every mode, also with everything skipped."""
    path = shared / "models" / f"{name}.onnx"
    for number, mode in enumerate(MODES):
        result = onnxsep.rewrite(path, mode=mode, skip=["*"], verify="none")
        assert result.report.totals.replaced == 0
        saved = result.save(tmp_path / f"out{number}.onnx")
        assert saved.path.read_bytes() == path.read_bytes()
        for data in saved.data_paths:
            assert data.read_bytes() == (path.parent / data.name).read_bytes()


@pytest.mark.parametrize("name", some(MODELS, 4))
def test_real_model_in_both_modes_one_after_the_other(shared: Path, name: str) -> None:
    """What one mode made is split by the other with ``recurse``; left alone without it."""
    path = shared / "models" / f"{name}.onnx"
    for first, second in (MODES, MODES[::-1]):
        once = onnxsep.rewrite(path, mode=first, verify="none")
        for mode in MODES:
            again = onnxsep.rewrite(once.model, mode=mode, verify="none")
            made = {row.name for row in again.report.convs if row.status == "replaced"}
            new = {node.name for body in walk_bodies(marked(once.proto)) for node in body.node if is_new(node)}
            assert not made & new
            if mode == first:
                assert again.proto is once.proto
        before = once.proto.SerializeToString()
        twice = onnxsep.rewrite(once.model, mode=second, recurse=True, verify="none")
        assert_nothing_lost(once.proto, twice)
        assert once.proto.SerializeToString() == before


# ---------------------------------------------------------------- a model with everything


def values(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    made = numpy_helper.from_array(values(*shape), name)
    made.doc_string = f"values of {name}"
    return made


def note(proto: Any, *texts: str) -> None:
    """Metadata in an order that no sorting gives back."""
    for text in (*texts, "z last", "a first"):
        proto.metadata_props.add(key=text, value=f"{text}: \N{SNOWMAN}")


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    made = helper.make_tensor_value_info(name, kind, shape, doc_string=f"about {name}")
    for axis, dim in enumerate(made.type.tensor_type.shape.dim):
        dim.denotation = f"AXIS_{axis}"
    made.type.denotation = "IMAGE" if shape and len(shape) == 4 else "OTHER"
    note(made, name)
    return made


def conv(x: str, w: str, y: str) -> onnx.NodeProto:
    node = helper.make_node("Conv", [x, w], [y], name=f"conv/{y}", pads=[1, 1, 1, 1], doc_string=f"makes {y}")
    note(node, "layer")
    return node


def sparse(name: str) -> onnx.SparseTensorProto:
    where = numpy_helper.from_array(np.array([1, 4]), f"{name}_indices")
    return helper.make_sparse_tensor(tensor(name, 2), where, [2, 3])


def custom_node() -> onnx.NodeProto:
    """An operator of somebody's own, with every kind of attribute."""
    inner = helper.make_graph([helper.make_node("Neg", ["deep"], ["deeper"])], "inner", [], [value("deeper", [1])])
    attributes: dict[str, Any] = {
        "float": 0.1,
        "int": -7,
        "string": b"\xff\x00\xfe binary",
        "tensor": tensor("t", 3),
        "floats": [0.1, 0.2],
        "ints": [3, 1, 2],
        "strings": [b"\x80", "text"],
        "graph": inner,
        "tensors": [tensor("t1", 1), tensor("t2", 2, 2)],
        "graphs": [inner, inner],
        "sparse": sparse("s"),
        "sparses": [sparse("s1"), sparse("s2")],
        "type": helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", None, 3]),
        "types": [helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.STRING, None))],
    }
    node = helper.make_node("Everything", ["features", "", "deep"], ["odd", ""], name="custom", domain="some.where")
    for name, held in attributes.items():  # make_node would sort them
        attribute = helper.make_attribute(name, held)
        attribute.doc_string = f"about {name}"
        node.attribute.append(attribute)
    note(node, "custom")
    return node


def functions() -> list[onnx.FunctionProto]:
    made = []
    for number in (1, 2):
        stored = helper.make_node("Constant", [], ["w"], name="stored", value=tensor("w", 8, 8, 3, 3))
        leaky = helper.make_node("LeakyRelu", ["m"], ["b"], doc_string="with a slope from outside")
        leaky.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
        function = helper.make_function(
            "some.where",
            "Block",
            ["a"],
            ["b"],
            [stored, conv("a", "w", "m"), leaky],
            [helper.make_opsetid("", 21), helper.make_opsetid("some.where", 3)],
            attributes=["must_be_given"],
            attribute_protos=[helper.make_attribute("slope", 0.2, doc_string="default")],
            doc_string="a block",
            overload=f"v{number}",
            value_info=[value("m", [None, 8, "height", "width"])],
        )
        note(function, "block")
        made.append(function)
    return made


def training_info() -> onnx.TrainingInfoProto:
    step = helper.make_graph(
        [helper.make_node("Neg", ["trained"], ["trained_new"], name="step")],
        "algorithm",
        [],
        [value("trained_new", [8])],
    )
    start = helper.make_graph(
        [helper.make_node("Constant", [], ["zero"], value=tensor("zero", 8))],
        "initialization",
        [],
        [value("zero", [8])],
    )
    return helper.make_training_info(step, [("trained", "trained_new")], start, [("trained", "zero")])


def kitchen_sink() -> onnx.ModelProto:
    """Everything that ONNX can hold, around five Convs that can be rewritten.

    Their weights are an initialiser that is also an input, one that is shared by a Conv in a branch, one inside the
    branch, and one in each of two functions; a last Conv is first and stays.
    """
    node = helper.make_node
    branch = helper.make_graph(
        [conv("features", "shared", "b1"), conv("b1", "inner", "b2")],
        "then",
        [],
        [value("b2", [None, 8, None, None])],
        [tensor("inner", 8, 8, 3, 3), tensor("unused_inside", 2)],
        doc_string="the branch",
        value_info=[value("b1", ["n", 8, None, None])],
        sparse_initializer=[sparse("sparse_inside")],
    )
    note(branch, "branch")
    other = helper.make_graph([node("Identity", ["features"], ["e"])], "else", [], [value("e", [None, 8, None, None])])
    choice = node("If", ["flag"], ["chosen"], name="choice", then_branch=branch, else_branch=other)
    note(choice, "choice")
    calls = [
        node("Block", [x], [y], name=f"call {y}", domain="some.where", overload=overload, must_be_given=1)
        for x, y, overload in (("main", "c1", "v1"), ("c1", "c2", "v2"), ("c2", "c3", "v1"))
    ]
    graph = helper.make_graph(
        [
            conv("image", "first", "features"),
            node("Constant", [], ["deep"], value=tensor("deep", 1)),
            conv("features", "as_input", "f2"),
            conv("f2", "shared", "main"),
            choice,
            *calls,
            custom_node(),
            node("Sum", ["chosen", "c3"], ["result"], doc_string="the end"),
            node("Mul", ["trained", "trained"], ["squared"]),
        ],
        "everything",
        [
            value("image", ["n", 3, "height", None]),
            value("as_input", [8, 8, 3, 3]),
            value("flag", [], TensorProto.BOOL),
        ],
        [value("result", ["n", 8, None, None]), value("odd", [2]), value("squared", [8])],
        [
            tensor("first", 8, 3, 3, 3),
            tensor("unused", 5),
            tensor("shared", 8, 8, 3, 3),
            tensor("as_input", 8, 8, 3, 3),
            tensor("trained", 8),
            tensor("scale", 1),
        ],
        doc_string="the main graph",
        value_info=[value("features", ["n", 8, None, None]), value("nothing_makes_this", [1, "k"])],
        sparse_initializer=[sparse("sparse_main")],
    )
    note(graph, "graph")
    for name in ("features", "shared", "unused"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    model = helper.make_model(
        graph,
        producer_name="somebody",
        producer_version="1.2.3-beta",
        doc_string="a model",
        functions=functions(),
        opset_imports=[
            helper.make_opsetid("some.where", 3),
            helper.make_opsetid("", 21),
            helper.make_opsetid("never.used", 9),
        ],
        ir_version=10,
    )
    model.domain, model.model_version = "org.example", 42
    note(model, "model")
    model.training_info.append(training_info())
    return model


def unknown_field(number: int, payload: bytes) -> bytes:
    """A field that this version of ONNX does not have, as protobuf writes it (length-delimited)."""
    key, out = number << 3 | 2, bytearray()
    while key >= 0x80:
        out.append(key & 0x7F | 0x80)
        key >>= 7
    return bytes(out) + bytes([key, len(payload)]) + payload


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options", [{}, {"rank": "full", "force": True, "include_first": True}], ids=["default", "full"]
)
def test_kitchen_sink(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    source = kitchen_sink()
    onnx.checker.check_model(source)
    before = source.SerializeToString()
    result = onnxsep.rewrite(source, mode=mode, verify="none", **options)
    assert source.SerializeToString() == before
    assert result.report.totals.replaced == (7 if options else 6), [row.reason for row in result.report.convs]
    assert_nothing_lost(source, result)
    assert set(result.report.removed_weights) == {"as_input", "shared", "inner"} | ({"first"} if options else set())
    assert result.report.removed_inputs == ("as_input",)
    onnx.checker.check_model(result.proto)

    path = tmp_path / "in.onnx"
    path.write_bytes(before)
    saved = onnxsep.rewrite(path, mode=mode, verify="none", **options).save(tmp_path / "out.onnx")
    assert onnx.load(saved.path).SerializeToString() == result.proto.SerializeToString()


@pytest.mark.parametrize("mode", MODES)
def test_kitchen_sink_of_which_nothing_is_rewritten(tmp_path: Path, mode: str) -> None:
    source = kitchen_sink()
    path = tmp_path / "in.onnx"
    path.write_bytes(source.SerializeToString())
    for given in (path, source):
        for only, skip in ((["conv/features"], []), ([], ["*"])):
            result = onnxsep.rewrite(given, mode=mode, verify="none", only=only, skip=skip)
            assert result.report.totals.replaced == 0
            assert result.save(tmp_path / "out.onnx").path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_new_nodes_of_the_kitchen_sink_carry_the_old_ones_metadata(mode: str) -> None:
    result = onnxsep.rewrite(kitchen_sink(), mode=mode, verify="none")
    new = [node for body in walk_bodies(marked(result.proto)) for node in body.node if is_new(node)]
    sources = set()
    for node in new:
        carried = {entry.key: entry.value for entry in node.metadata_props}
        assert carried["onnxsep.mode"] == mode
        assert carried["onnxsep.rank"] == {"depthwise": "1", "spatial": "8"}[mode]
        sources.add(carried["onnxsep.source"])
        if node.op_type != "Constant":  # the old Constant node had none
            assert list(carried)[:3] == ["layer", "z last", "a first"]
    assert sources == {"conv/f2", "conv/main", "conv/b1", "conv/b2", "conv/m"}


@pytest.mark.parametrize("mode", MODES)
def test_fields_that_onnx_does_not_know_yet(tmp_path: Path, mode: str) -> None:
    """A file of a newer ONNX: what protobuf cannot name stays too, in the model, its graph and untouched nodes."""
    source = kitchen_sink()
    extra = unknown_field(900, b"from the future")
    for proto in (source.graph.node[1], source.graph.node[4], source.graph.initializer[1], source.graph):
        proto.MergeFromString(extra)
    source.MergeFromString(extra)
    data = source.SerializeToString()
    assert data.count(b"from the future") == 5
    path = tmp_path / "in.onnx"
    path.write_bytes(data)
    result = onnxsep.rewrite(path, mode=mode, verify="none")
    assert result.report.totals.replaced == 6
    assert_nothing_lost(source, result)
    assert result.save(tmp_path / "out.onnx").path.read_bytes().count(b"from the future") == 5


def swap(items: Any) -> None:
    """Exchange the last two members of a repeated field."""
    items.insert(len(items) - 2, items.pop())


DAMAGES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "producer": lambda model: model.ClearField("producer_version"),
    "model version": lambda model: model.ClearField("model_version"),
    "metadata of the model": lambda model: model.metadata_props.insert(0, model.metadata_props.pop(1)),
    "marks of the new nodes": lambda model: model.metadata_props.pop(),
    "opset imports": lambda model: swap(model.opset_import),
    "training information": lambda model: model.ClearField("training_info"),
    "doc string of the graph": lambda model: model.graph.ClearField("doc_string"),
    "unused initializer": lambda model: model.graph.initializer.pop(1),
    "initializers swapped": lambda model: model.graph.initializer.insert(0, model.graph.initializer.pop(1)),
    "initializer added": lambda model: model.graph.initializer.append(tensor("stray", 1)),
    "doc string of a tensor": lambda model: model.graph.initializer[0].ClearField("doc_string"),
    "sparse initializer": lambda model: model.graph.sparse_initializer.pop(),
    "annotation": lambda model: model.graph.quantization_annotation.pop(),
    "denotation": lambda model: model.graph.input[0].type.ClearField("denotation"),
    "symbolic size": lambda model: model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param"),
    "inputs swapped": lambda model: swap(model.graph.input),
    "value info": lambda model: model.graph.value_info.pop(),
    "value info added": lambda model: model.graph.value_info.append(value("stray", [1])),
    "nodes swapped": lambda model: swap(model.graph.node),
    "node lost": lambda model: model.graph.node.pop(),
    "metadata of a node": lambda model: model.graph.node[-3].ClearField("metadata_props"),
    "binary attribute": lambda model: model.graph.node[-3].attribute.pop(2),
    "function lost": lambda model: model.functions.pop(),
    "default of a function": lambda model: model.functions[0].ClearField("attribute_proto"),
    "node of a function": lambda model: model.functions[1].node.pop(),
    "initializer of a branch": lambda model: branch_of(model).initializer.pop(0),
    "metadata of a branch": lambda model: branch_of(model).ClearField("metadata_props"),
}


def branch_of(model: onnx.ModelProto) -> onnx.GraphProto:
    choice = next(node for node in model.graph.node if node.op_type == "If")
    return next(attribute.g for attribute in choice.attribute if attribute.name == "then_branch")


@functools.cache
def whole() -> tuple[onnx.ModelProto, onnxsep.Result]:
    """The kitchen sink and what it is rewritten to, of which nothing is lost."""
    source = kitchen_sink()
    result = onnxsep.rewrite(source, mode="spatial", verify="none")
    assert_nothing_lost(source, result)
    return source, result


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_comparison_sees_every_loss(damage: str) -> None:
    source, rewritten = whole()
    result = copy.deepcopy(rewritten)
    before = result.proto.SerializeToString()
    DAMAGES[damage](result.proto)
    assert result.proto.SerializeToString() != before
    with pytest.raises(AssertionError):
        assert_nothing_lost(source, result)


def test_all_kinds_of_attributes_are_in_the_kitchen_sink() -> None:
    """The test above is only worth something while its model holds everything that this version of ONNX knows."""
    kinds = {attribute.type for attribute in custom_node().attribute}
    assert kinds == set(onnx.AttributeProto.AttributeType.values()) - {onnx.AttributeProto.UNDEFINED}
    source = kitchen_sink()
    later = {"configuration"}  # multi-device, IR 11
    assert {field.name for field in source.DESCRIPTOR.fields} - later == {
        field.name for field, _ in source.ListFields()
    }
    assert {field.name for field in source.graph.DESCRIPTOR.fields} == {
        field.name for field, _ in source.graph.ListFields()
    }
    function = source.functions[0]
    assert {field.name for field in function.DESCRIPTOR.fields} == {field.name for field, _ in function.ListFields()}
