"""Trained models from nine exporters: rewritten in both modes, valid, run by ONNX Runtime, each Conv accounted for."""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from exporters import LONG
from random_examples import DEEP, some

import onnxsep
from onnxsep.modes.base import conv_modes
from onnxsep.running.feeds import make_feeds

MODES = ("depthwise", "spatial")
CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"}


@dataclass(frozen=True)
class Expected:
    """How many Convs each mode replaces by default, worked out from the weights' shapes and strides.

    Of the ``target_convs`` of a model's .json (kernel > 1, one group) the ``first`` ones stay. Of the others,
    depthwise leaves those with one output channel. Spatial, at as many channels in between as there are outputs, saves
    nothing at 3 x 3 where the outputs are twice the inputs or more; it refuses kernels along one axis; and it takes
    grouped Convs too, which are no targets.
    """

    first: int
    depthwise: int
    spatial: int


EXPECTED = {
    # 26 are 1 x 256. 18 of them, two in each of nine octaves, share two weights; the first octave's are first Convs,
    # so both weights stay, and with them all 18. The others, between the octaves, have one output, as have 5 x 5,
    # 7 x 3 and 3 x 3. Depthwise takes 5 x 5 (32 outputs), 3 x 39, 7 x 7; spatial 3 x 39, 5 x 5 (1 output), 7 x 3,
    # 3 x 3.
    "basic_pitch_tf2onnx": Expected(3, 3, 4),
    # The first Conv of the second and third stage doubles the channels.
    "cifar10_resnet20_dynamo": Expected(1, 18, 16),
    "cifar10_resnet20_ts": Expected(1, 18, 16),
    "cifar10_resnet32_dynamo_ext": Expected(1, 30, 28),
    "cifar10_resnet32_ts_bn_op10": Expected(1, 30, 28),
    "cifar10_resnet56_ts": Expected(1, 54, 52),
    "cifar10_resnet8_qdq_tf2onnx": Expected(1, 0, 0),  # every weight is behind DequantizeLinear
    "cifar10_resnet8_tf2onnx": Expected(1, 6, 4),
    "meshnet3d_t1_ts": Expected(1, 8, 8),
    "mnist_cntk": Expected(1, 1, 1),
    "ppocr_v2_det_paddle": Expected(
        1, 5, 21
    ),  # and 15 depthwise Convs; one of the 21 is a ConvTranspose, another has one output
    "silero_vad_spox": Expected(2, 8, 0),  # 1-D: two branches, each with a first Conv
    "squeezenet_fp16_caffe2": Expected(1, 8, 0),  # expand 3 x 3 has four times as many outputs as inputs
    "subpixel_sr_pt12": Expected(1, 3, 3),
    "ultraface_rfb640_pt13": Expected(1, 9, 25),  # two of 9 double the channels; and 18 depthwise Convs
}


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def count_convolutions(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in nodes(proto.graph) if node.op_type in CONVOLUTIONS)


def sidecar(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return facts


Outputs = list[npt.NDArray[Any]]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@functools.cache
def feeds(path: Path) -> dict[str, npt.NDArray[Any]]:
    return make_feeds(onnxsep.load(path)).arrays


@functools.cache
def original_outputs(path: Path) -> Outputs:
    return list(session(path).run(None, feeds(path)))


def relative(expected: Outputs, actual: Outputs) -> float:
    """The worst output's ||a - b|| / ||a||."""
    assert len(expected) == len(actual)
    worst = 0.0
    for left, right in zip(expected, actual, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert np.isfinite(right).all()
        wide = left.astype(np.float64)
        assert np.linalg.norm(wide) > 0
        worst = max(worst, float(np.linalg.norm(wide - right.astype(np.float64)) / np.linalg.norm(wide)))
    return worst


def models(shared: Path) -> Path:
    return shared / "models"


def test_every_model_of_the_folder_is_tested(shared: Path) -> None:
    assert {path.stem for path in models(shared).glob("*.onnx")} == set(EXPECTED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", EXPECTED)
def test_rewritten_by_default(shared: Path, tmp_path: Path, name: str, mode: str) -> None:
    path = models(shared) / f"{name}.onnx"
    facts = sidecar(path)
    result = onnxsep.rewrite(path, mode=mode, verify="none")
    saved = result.save(tmp_path / "out.onnx").path

    # Every convolution has a row in the report, in the order of the graph, and each one that stays has a reason.
    counted = count_convolutions(onnx.load(path, load_external_data=False))
    assert Counter(row.op_type for row in result.report.convs) == counted
    assert counted.total() == sum(facts["convs"].values())
    assert all(row.reason for row in result.report.convs if row.status == "left")
    assert not any(row.reason for row in result.report.convs if row.status == "replaced")

    replaced = [row for row in result.report.convs if row.status == "replaced"]
    assert len(replaced) == result.report.totals.replaced == getattr(EXPECTED[name], mode)
    assert sum("first Conv" in row.reason for row in result.report.convs) <= EXPECTED[name].first
    if mode == "depthwise":
        assert len(replaced) <= facts["target_convs"] - EXPECTED[name].first
    for row in replaced:
        assert row.parameters_before is not None
        assert row.parameters_after is not None
        assert row.parameters_after < row.parameters_before
        assert row.macs_before is None or (row.macs_after is not None and row.macs_after <= row.macs_before)
    if replaced:
        assert result.report.totals.parameters_after < result.report.totals.parameters_before

    onnx.checker.check_model(str(saved), full_check=True)
    outputs = list(session(saved).run(None, feeds(path)))
    difference = relative(original_outputs(path), outputs)
    assert (difference > 0) == bool(replaced)  # a low rank is not exact, and the rewritten nodes are what runs


@pytest.mark.parametrize(
    ("name", "mode"),
    some(
        ((name, mode) for mode in sorted(set(conv_modes()) - set(MODES)) for name in EXPECTED if DEEP or name != LONG),
        3,
    ),
)
def test_every_other_mode_leaves_it_valid_and_running(shared: Path, tmp_path: Path, name: str, mode: str) -> None:
    path = models(shared) / f"{name}.onnx"
    result = onnxsep.rewrite(path, mode=mode, verify="none")
    rows = result.report.convs
    assert {row.status for row in rows} <= {"replaced", "left"}
    assert all(row.reason for row in rows if row.status == "left")
    saved = result.save(tmp_path / "out.onnx").path
    onnx.checker.check_model(str(saved), full_check=True)
    difference = relative(original_outputs(path), list(session(saved).run(None, feeds(path))))
    assert (difference > 0) == (result.report.totals.replaced > 0)
    if result.report.totals.replaced:
        assert result.report.totals.parameters_after < result.report.totals.parameters_before


# By how much the outputs may differ at full rank where it is not 1e-4: factors in float16 are rounded to it.
TOLERANCES = {"squeezenet_fp16_caffe2": 4 * float(np.finfo(np.float16).eps)}
AMPLIFIER = "ppocr_v2_det_paddle"  # its outputs on random input are a few 1e-5, and rounding alone moves them


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", some(EXPECTED, 2))
def test_exact_at_full_rank(shared: Path, tmp_path: Path, name: str, mode: str) -> None:
    path = models(shared) / f"{name}.onnx"
    result = onnxsep.rewrite(path, mode=mode, rank="full", force=True, include_first=True, verify="none")
    if mode == "depthwise" and name != "cifar10_resnet8_qdq_tf2onnx":
        assert result.report.totals.replaced == sidecar(path)["target_convs"]
    saved = result.save(tmp_path / "out.onnx").path
    onnx.checker.check_model(str(saved), full_check=True)
    error = relative(original_outputs(path), list(session(saved).run(None, feeds(path))))
    allowed = TOLERANCES.get(name, 1e-4)
    if name == AMPLIFIER:
        # How far the original's own outputs move when every input moves to the next float32.
        moved = {name: np.nextafter(array, np.float32(np.inf)) for name, array in feeds(path).items()}
        noise = relative(original_outputs(path), list(session(path).run(None, moved)))
        assert noise > allowed
        allowed = 2 * noise
    assert error < allowed


@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_a_model_that_amplifies_rounding_are_exact(shared: Path, mode: str) -> None:
    path = models(shared) / f"{AMPLIFIER}.onnx"
    result = onnxsep.rewrite(path, mode=mode, rank="full", force=True, include_first=True, verify="local")
    errors = [row.output_error for row in result.report.convs if row.status == "replaced"]
    assert len(errors) == {"depthwise": 6, "spatial": 23}[mode]
    assert all(error is not None and error < 1e-5 for error in errors)
    assert result.report.verification.ran


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "operator", "convs", "replaced"),
    [
        ("neg_custom_domain_decodeimage", "com.microsoft.extensions:DecodeImage", 4, 3),
        ("neg_opset1_constant_weights_cntk", "Add(1)", 2, 1),
    ],
)
def test_model_that_the_runtime_cannot_run(
    shared: Path, tmp_path: Path, name: str, operator: str, convs: int, replaced: int, mode: str
) -> None:
    """The result is written all the same; the report says that nothing was verified, and the runtime's reason."""
    path = models(shared) / "negative" / f"{name}.onnx"
    with pytest.raises(Exception, match=r"(?i)not a registered function|could not find an implementation"):
        session(path)
    result = onnxsep.rewrite(path, mode=mode)
    assert (result.report.totals.convs, result.report.totals.replaced) == (convs, replaced)
    assert count_convolutions(onnx.load(path)).total() == convs
    verification = result.report.verification
    assert not verification.ran
    assert operator in verification.reason
    assert "\n" not in verification.reason
    saved = result.save(tmp_path / "out.onnx").path
    onnx.checker.check_model(str(saved))

    # Each piece alone can be run, and is exact at full rank.
    exact = onnxsep.rewrite(path, mode=mode, rank="full", force=True, include_first=True, verify="local")
    assert exact.report.totals.replaced == convs
    assert exact.report.verification.ran
    assert exact.report.verification.relative is not None
    assert exact.report.verification.relative < 1e-4
