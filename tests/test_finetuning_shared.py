"""Trained networks of several exporters take two steps of fine-tuning and stay what they are."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import ONE, needs_torch
from onnx import numpy_helper
from random_examples import some

import onnxsep
from onnxsep.errors import UnsupportedModelError
from onnxsep.model.io import load, read_tensor
from onnxsep.running.inputs import model_inputs
from onnxsep.running.runtime import Runner

pytestmark = needs_torch
CIFAR = (
    "cifar10_resnet20_dynamo",
    "cifar10_resnet20_ts",
    "cifar10_resnet32_dynamo_ext",
    "cifar10_resnet32_ts_bn_op10",
    "cifar10_resnet56_ts",
    "cifar10_resnet8_tf2onnx",
)


def two_steps(model: onnxsep.Model, **options: Any) -> onnxsep.FinetuneResult:
    """On random images, 16 in a step, with the labels that the network itself gives, so that it is learnt further."""
    (entry,) = model_inputs(model.proto)
    shape = [size for size in entry.dims or () if isinstance(size, int)][-3:]
    random = np.random.default_rng(0)
    images = random.standard_normal((36, *shape)).astype(np.float32)
    if shape[-1] == 3:  # channels last: pixels from 0 to 255, or from -128 to 127
        images = np.clip(images * 60, -128, 127)
    data = {"x": images.astype(entry.dtype), "y": random.integers(0, 10, 36)}
    given: dict[str, Any] = {"epochs": 1, "batch": 16, "validation": 0, "schedule": "constant", "rate": 1e-3}
    return onnxsep.finetune(model, data=data, runtime=ONE, **given, **options)


@pytest.mark.parametrize(("name", "batch_norm"), some(product(CIFAR, ["frozen", "insert"]), 3))
def test_two_steps(shared: Path, tmp_path: Path, name: str, batch_norm: Any) -> None:
    model = load(shared / "models" / f"{name}.onnx")
    result = two_steps(model, batch_norm=batch_norm, teacher=model, precision="bfloat16")
    assert result.report.best_epoch == 1
    result.save(tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert saved.graph.node == model.proto.graph.node
    assert (saved.ir_version, saved.opset_import, saved.metadata_props) == (
        model.proto.ir_version,
        model.proto.opset_import,
        model.proto.metadata_props,
    )
    assert saved.graph.input == model.proto.graph.input
    moved = 0
    for before, after in zip(model.proto.graph.initializer, saved.graph.initializer, strict=True):
        values, new = read_tensor(model, before), numpy_helper.to_array(after)
        assert (before.name, before.data_type, list(before.dims)) == (after.name, after.data_type, list(after.dims))
        moved += int(not np.array_equal(values, new))
        if values.dtype.kind == "f":
            assert np.isfinite(new).all()
            scale = max(float(np.abs(values).max()), 1e-3)
            # Two small steps; running averages move by a tenth in each towards those of random images.
            np.testing.assert_allclose(new, values, atol=(0.05 if batch_norm == "frozen" else 0.5) * scale)
    convs = sum(node.op_type == "Conv" for node in saved.graph.node)
    assert moved >= convs
    (entry,) = model_inputs(model.proto)
    sizes = [size for size in entry.dims or () if isinstance(size, int)][-3:]
    feed = {entry.name: np.random.default_rng(1).standard_normal((2, *sizes)).astype(np.float32)}
    found, expected = (
        Runner(load(path), ONE)(feed) for path in (tmp_path / "out.onnx", shared / "models" / f"{name}.onnx")
    )
    for key, values in found.items():
        assert values.shape == expected[key].shape
        assert np.isfinite(values).all()


def test_an_int8_network_says_why_not(shared: Path) -> None:
    """A quantised model holds integers; the message names the operator and what it was made for."""
    model = load(shared / "models" / "cifar10_resnet8_qdq_tf2onnx.onnx")
    with pytest.raises(
        UnsupportedModelError, match=r"DequantizeLinear-13 .*: quantised weights are integers; fine-tune first"
    ):
        two_steps(model)
