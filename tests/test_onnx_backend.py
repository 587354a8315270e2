"""onnx's own backend cases that hold a Conv, rewritten at a rank that is exact, still give their reference outputs.

Inputs, references and tolerances are those of onnx's own runner (onnx.backend.test.runner).
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from random_examples import some

import onnxsep

Array = npt.NDArray[Any]
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
CONVERTED = sorted(path.parent for path in DATA.glob("pytorch-converted/test_Conv*/model.onnx"))
LIGHT = sorted(DATA.glob("light/*.onnx"))
MODES = ["depthwise", "spatial"]
# Weights of which all values are equal have rank 1, so that is exact, too; the full rank of these takes a minute.
LARGE = {"light_resnet50", "light_vgg19", "light_zfnet512"}


def tolerances() -> dict[str, tuple[float, float]]:
    """rtol and atol of onnx's runner, by the name of the case."""
    cases = [*load_model_tests(kind="pytorch-converted"), *load_model_tests(kind="real")]
    return {case.name: (case.rtol, case.atol) for case in cases}


TOLERANCES = tolerances()


def weight_shape(model: onnx.ModelProto, name: str) -> list[int]:
    """The shape of a weight: an initialiser's, or what a ConstantOfShape is told to make."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if name in tensors:
        return list(tensors[name].dims)
    (maker,) = (node for node in model.graph.node if name in node.output)
    assert maker.op_type == "ConstantOfShape"
    return [int(size) for size in numpy_helper.to_array(tensors[maker.input[0]])]


def separable(model: onnx.ModelProto, mode: str) -> int:
    """How many Convs the mode must replace: depthwise those without groups, spatial those with two long axes."""
    count = 0
    for node in model.graph.node:
        if node.op_type != "Conv" and not (node.op_type == "ConvTranspose" and mode == "spatial"):
            continue
        groups = [helper.get_attribute_value(entry) for entry in node.attribute if entry.name == "group"]
        long_axes = sum(size > 1 for size in weight_shape(model, node.input[1])[2:])
        count += (long_axes >= 1 and groups in ([], [1])) if mode == "depthwise" else long_axes >= 2
    return count


def rewrite(model: onnx.ModelProto, mode: str, rank: int | str = "full") -> onnxsep.Result:
    """At a rank that is exact, every Conv that the mode can take."""
    result = onnxsep.rewrite(model, mode=mode, rank=rank, force=True, include_first=True, verify="none")
    replaced = [row for row in result.report.convs if row.status == "replaced"]
    assert len(replaced) == result.report.totals.replaced == separable(model, mode)
    # Every replaced Conv has become at least two, and what was not replaced is still there.
    before, after = (
        sum(node.op_type in ("Conv", "ConvTranspose") for node in proto.graph.node) for proto in (model, result.proto)
    )
    assert after >= before + len(replaced)
    assert all(row.reason for row in result.report.convs if row.status == "left")
    return result


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # the light models list weights as inputs, of which the runtime warns
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def assert_close(actual: Array, expected: Array, tolerance: tuple[float, float]) -> None:
    """Close, and of the same type and shape: numpy 1.26 has no ``assert_allclose(..., strict=True)``."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    rtol, atol = tolerance
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def read(path: Path) -> Array:
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def test_the_cases_are_there() -> None:
    """An empty parametrisation would pass unseen."""
    assert len(CONVERTED) >= 28
    assert len(LIGHT) == 9
    total = {mode: sum(separable(onnx.load(folder / "model.onnx"), mode) for folder in CONVERTED) for mode in MODES}
    # Of the 26 Convs, 8 are 1-D (spatial leaves them alone), 8 have groups (depthwise leaves them alone); spatial takes
    # the two ConvTransposes too.
    assert total == {"depthwise": 18, "spatial": 20}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("folder", CONVERTED, ids=lambda folder: folder.name)
def test_converted_from_pytorch(folder: Path, mode: str) -> None:
    model = onnx.load(folder / "model.onnx")
    result = rewrite(model, mode)
    if not result.report.totals.replaced:
        assert result.proto.SerializeToString() == model.SerializeToString()
    sets = sorted(folder.glob("test_data_set_*"))
    assert sets
    for data in sets:
        inputs = [read(data / f"input_{number}.pb") for number in range(len(list(data.glob("input_*.pb"))))]
        feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=False)}
        outputs = run(result.proto, feeds)
        for number, output in enumerate(outputs):
            assert_close(output, read(data / f"output_{number}.pb"), TOLERANCES[folder.name])


@pytest.mark.parametrize(
    ("path", "mode"),
    some(itertools.product(LIGHT, MODES), 11),
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_light_networks(path: Path, mode: str) -> None:
    """Their weights are ConstantOfShape expressions: without folding, no Conv would have a constant weight."""
    reference = path.with_name(f"{path.stem}_output_0.pb")
    if not reference.exists():
        pytest.skip(f"this release of onnx has no reference output {reference.name}")
    model = onnx.load(path)
    result = rewrite(model, mode, 1 if path.stem in LARGE else "full")
    assert result.report.totals.replaced > 0
    stored = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in stored)
    shape = [dim.dim_value or 1 for dim in image.type.tensor_type.shape.dim]
    count = math.prod(shape)
    ramp = (np.arange(count).reshape(shape) / count).astype(np.float32)
    (output,) = run(result.proto, {image.name: ramp})
    assert_close(output, read(reference), TOLERANCES[path.stem.replace("light", "test", 1)])
