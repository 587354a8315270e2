"""Equalisation and bias correction are kept where they help on other samples; where they do not, the report says so."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsep.data import Dataset, open_data
from onnxsep.model.io import Model
from onnxsep.quantization import quantize
from onnxsep.quantization.building import Builder
from onnxsep.quantization.calibrating import calibrate
from onnxsep.quantization.choosing import Judge, choose
from onnxsep.quantization.correcting import Corrections, find_corrections
from onnxsep.quantization.measuring import split
from onnxsep.quantization.nodes import to_calibrate
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.toolkit import quantizable_types
from onnxsep.running.runtime import RuntimeOptions

ONE = RuntimeOptions(threads=1)
IMAGES = np.random.default_rng(1).standard_normal((60, 3, 8, 8)).astype(np.float32)


def network(first_row: float = 1.0, offset: float = 0.0) -> onnx.ModelProto:
    """Conv -> Relu -> Conv; the first of the four channels between can be given small weights and a large bias."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, 3, 3, 3)) / 5,
        "b": np.array([offset, 0, 0, 0]),
        "v": random.standard_normal((4, 4, 3, 3)),
        "c": np.zeros(4),
    }
    weights["w"][0] *= first_row
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["t"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["t"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["y"], "second", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def biases(proto: onnx.ModelProto) -> list[list[int]]:
    """Integer biases of a quantised model."""
    return [
        numpy_helper.to_array(tensor).tolist()
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.INT32
    ]


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_biases_that_do_harm_on_other_samples_are_not_kept(shift: float) -> None:
    """Correct means help; the same with half a unit more, as few samples could give them, do not."""
    source = Model(network())
    settings = Settings()
    data: Dataset = open_data(IMAGES, source)
    parts = split(data, 40, 0)

    def start(settings: Settings) -> Builder:
        prepared = prepare(source, settings)
        op_types = quantizable_types(settings)
        tensors = to_calibrate(prepared.proto, op_types, {})
        ranges = calibrate(prepared.proto, tensors, data, parts.fitted, settings, ONE)

        def correct(proto: onnx.ModelProto, simulated: onnx.ModelProto, names: Collection[str]) -> Corrections:
            found = find_corrections(proto, simulated, names, data, parts.fitted, ONE)
            return replace(found, biases={name: value + shift for name, value in found.biases.items()})

        return Builder(source, prepared, ranges, settings, op_types, {}, correct)

    judge = Judge(source, data, parts, ONE)
    assert not set(judge.samples) & set(parts.fitted)
    chosen = choose(start, settings, judge)
    said = [note for note in chosen.notes if "biases are not corrected" in note]
    assert bool(said) == bool(shift)
    assert (chosen.builder.correct is None) == bool(shift)
    plain = chosen.builder.build(quick=True).model.proto
    assert (biases(chosen.built.model.proto) == biases(plain)) == bool(shift)


def test_equalising_that_does_harm_is_left_out() -> None:
    """Small weights beside a large bias: made alike, the bias fills the range, and nothing is left for the others."""
    source = network(first_row=1e-3, offset=3.0)
    options: dict[str, Any] = {"data": IMAGES, "bias_correction": False, "runtime": ONE}
    chosen = quantize(source, **options).report
    plain = quantize(source, equalize=False, **options).report
    assert chosen.relative == pytest.approx(plain.relative, rel=1e-6)
    assert any("not equalised" in note for note in chosen.notes)


def test_equalising_that_helps_is_kept() -> None:
    source = network()
    tensors = {tensor.name: tensor for tensor in source.graph.initializer}
    unlike = np.array([300, 1, 0.03, 1], np.float32)
    for name, factor in (("w", unlike.reshape(-1, 1, 1, 1)), ("b", unlike), ("v", 1 / unlike.reshape(1, -1, 1, 1))):
        tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * factor, name))
    report = quantize(source, data=IMAGES, runtime=ONE).report
    assert any("pairs of layers equalised" in note for note in report.notes)
    assert report.relative < 0.03


def test_samples_that_measure_do_not_judge_where_there_are_more() -> None:
    source = Model(network())
    data = open_data(IMAGES, source)
    parts = split(data, 20, 0)
    samples = set(Judge(source, data, parts, ONE).samples)
    assert len(samples) >= len(parts.verified)
    assert not samples & {*parts.verified, *parts.fitted}


def test_one_sample_corrects_nothing() -> None:
    report = quantize(network(), data=IMAGES[:1], runtime=ONE).report
    assert report.bias_correction is None
    assert any("biases are not corrected" in note for note in report.notes)
