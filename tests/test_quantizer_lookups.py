"""Tables for the runtime's quantiser change its time and nothing else; what is read again is known without a search."""

import contextlib
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.quantization import toolkit
from onnxsep.quantization.lookups import Lookups
from onnxsep.quantization.pending import Pending

Format = Literal["qdq", "qoperator"]


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values / 4, name)


def network(blocks: int) -> onnx.ModelProto:
    """Shared weights, residual Adds, a pool, a Concat, a Pad, a Relu that is an output, a Gemm and a Clip before it."""
    weights = [tensor("shared", 4, 4, 3, 3), tensor("dense", 5, 32), tensor("offset", 5)]
    weights.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"))
    weights += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("low", 0), ("high", 6))]
    nodes, last = [], "x"
    for number in range(blocks):
        w, b, c, r, d, s = (f"{letter}{number}" for letter in "wbcrds")
        weights += [tensor(w, 4, 4, 3, 3), tensor(b, 4)]
        nodes += [
            helper.make_node("Conv", [last, w, b], [c], c, pads=[1] * 4),
            helper.make_node("Relu", [c], [r], r),
            helper.make_node("Conv", [r, "shared"], [d], d, pads=[1] * 4),
            helper.make_node("Add", [d, last], [s], s),
        ]
        last = s
    nodes += [
        helper.make_node("Pad", [last, "pads"], ["padded"], "pad"),
        helper.make_node("MaxPool", ["padded"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["pooled"], ["mean"], "average", kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Concat", ["mean", "mean"], ["both"], "both", axis=1),
        helper.make_node("Relu", ["both"], ["seen"], "seen"),
        helper.make_node("Flatten", ["seen"], ["flat"], "flat"),
        helper.make_node("Clip", ["flat", "low", "high"], ["clipped"], "clip"),
        helper.make_node("Gemm", ["clipped", "dense", "offset"], ["y"], "gemm", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 4, 4])]
    outputs = [
        helper.make_tensor_value_info("seen", TensorProto.FLOAT, ["n", 8, 2, 2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(model: onnx.ModelProto, file_format: Format, **options: Any) -> bytes:
    data = {"x": np.random.default_rng(0).normal(size=(12, 4, 4, 4)).astype(np.float32)}
    result = onnxsep.quantize(model, data=data, samples=8, format=file_format, bias_correction=False, **options)
    assert any(node.status == "quantized" for node in result.report.nodes)
    return result.model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("file_format", ["qdq", "qoperator"])
@pytest.mark.parametrize("options", [{}, {"per_channel": False, "activations": "uint8", "exclude": "d1"}])
def test_tables_change_no_byte(file_format: Format, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = quantized(network(3), file_format, **options)
    monkeypatch.setattr(toolkit, "_with_lookups", lambda quantizer: quantizer)
    monkeypatch.setattr(toolkit, "quick_find_by_name", contextlib.nullcontext)
    assert found == quantized(network(3), file_format, **options)


def test_nodes_are_not_searched_for_each_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    original = Lookups.replace_node_input

    def counting(self: Lookups, *arguments: Any) -> None:
        nonlocal looked_at
        looked_at += 1
        original(self, *arguments)

    monkeypatch.setattr(Lookups, "replace_node_input", counting)
    counts = []
    for blocks in (4, 8):
        looked_at = 0
        quantized(network(blocks), "qdq", equalize=False)
        counts.append(looked_at)
    assert 0 < counts[1] < 2.2 * counts[0]


def test_the_runtimes_modules_are_as_they_were() -> None:
    from onnxruntime.quantization import base_quantizer, quant_utils

    before = base_quantizer.find_by_name
    quantized(network(1), "qdq")
    assert base_quantizer.find_by_name is before is quant_utils.find_by_name
    with pytest.raises(onnxsep.OnnxsepError):
        toolkit.apply(onnx.ModelProto(), {"x": (0.0, 1.0)}, None, frozenset(), ())  # type: ignore[arg-type]
    assert base_quantizer.find_by_name is before


def read_later(
    reads: Sequence[set[str]], makers: dict[str, int], goals: Sequence[int], known: set[str]
) -> tuple[set[int], set[str]]:
    """By walking back from all goals: nodes that must run, and the known tensors that these read."""
    found, read, waiting = set(goals), set(), list(goals)
    while waiting:
        for name in reads[waiting.pop()]:
            if name in known:
                read.add(name)
            elif makers[name] not in found:
                found.add(makers[name])
                waiting.append(makers[name])
    return found, read


@pytest.mark.parametrize("seed", range(40))
def test_pending_tensors_are_those_of_a_walk_from_all_goals(seed: int) -> None:
    draw = random.Random(seed)
    makers: dict[str, int] = {}
    reads: list[set[str]] = []
    for place in range(25):
        reads.append(set(draw.sample(["x", "z", *makers], min(2 + len(makers), draw.randint(1, 3)))))
        makers.update((f"t{place}_{number}", place) for number in range(draw.randint(1, 2)))
    goals = sorted(draw.choices(range(25), k=6))
    live = {"x", "z"}
    pending = Pending(reads, makers, goals, live)
    for done, goal in enumerate(goals, start=1):
        needed, _ = read_later(reads, makers, [goal], live)
        final = {place for place in needed if draw.random() < 0.7}
        made = {name for name, place in makers.items() if place in final}
        pending.done(goal, made)
        _, expected = read_later(reads, makers, goals[done:], live | made)
        assert {name for name in live | made if name in pending} == expected
        live = expected
