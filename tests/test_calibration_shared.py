"""Calibration of trained networks from many exporters, on real images."""

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, load_script, outputs
from numpy.typing import NDArray
from PIL import Image
from random_examples import some

import onnxsep
from onnxsep.calibration import layerwise
from onnxsep.calibration.schedule import Step, make_schedule
from onnxsep.model.io import load

Array = NDArray[Any]
DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture(scope="session")
def cifar(shared: Path) -> Array:
    """A thousand training images of CIFAR-10, as the ResNets of the shared folder take them."""
    packed = shared / "data" / "cifar10_webp.npz"
    if not packed.is_file():
        pytest.skip("the shared folder has no CIFAR-10 images")
    with np.load(packed) as arrays:
        sprite = np.asarray(Image.open(io.BytesIO(arrays["train_00"].tobytes())).convert("RGB"))
    pixels = sprite.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    prepared: Array = ((pixels / 255 - mean) / std).astype(np.float32)
    return prepared


def agreement(one: onnx.ModelProto, other: onnx.ModelProto, x: Array) -> tuple[float, float]:
    """On how many images both name the same class, and the relative difference of the outputs."""
    name = one.graph.input[0].name
    first, second = (next(iter(outputs(model, {name: x}).values())) for model in (one, other))
    error = np.linalg.norm(first - second) / np.linalg.norm(first - first.mean(axis=0))
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean()), float(error)


def calibrated(model: Path, x: Array, **options: Any) -> onnxsep.Result:
    chosen: dict[str, Any] = {"mode": "depthwise", "verify": "none", "runtime": ONE_THREAD, "positions": 12}
    return onnxsep.rewrite(model, data=x, **{**chosen, **options})


def narrow(model: onnx.ModelProto) -> list[str]:
    """The 3 x 3 Convs of a ResNet's first stages: those with at most 32 channels, whose fits take little time."""
    convs = onnxsep.inspect(model, modes=["depthwise"]).convs
    names = [row.name for row in convs if (row.weight_shape or ())[1:] in ((16, 3, 3), (32, 3, 3))]
    return names[:9]


def test_losses_of_the_skip_are_worth_making_up_for(
    shared: Path, cifar: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fits that end before the residual Add."""
    path = shared / "models" / "cifar10_resnet20_ts.onnx"
    source = load(path).proto
    x, fresh = cifar[:100], cifar[900:]
    result = calibrated(path, x, only=narrow(source))

    def short(*arguments: Any, **options: Any) -> list[Step]:
        steps = make_schedule(*arguments, **options)
        assert sum(step.tail.skip is not None for step in steps) == 4
        return [Step(step.site, step.tail.before_skip or step.tail, step.nodes, step.keep) for step in steps]

    monkeypatch.setattr(layerwise, "make_schedule", short)
    without = calibrated(path, x, only=narrow(source))
    plain = onnxsep.rewrite(path, mode="depthwise", only=narrow(source), verify="none")
    errors = [agreement(source, done.proto, fresh)[1] for done in (result, without, plain)]
    assert errors[0] < errors[1] < errors[2]


def test_order_of_the_initialisations(shared: Path, cifar: Array) -> None:
    """On a trained network: joint before compensated before the weights alone, with few images."""
    path = shared / "models" / "cifar10_resnet20_dynamo.onnx"
    source = load(path).proto
    errors = {
        init: agreement(
            source, calibrated(path, cifar[:100], init=init, rank=3, only=narrow(source)).proto, cifar[900:]
        )[1]
        for init in ("svd", "compensated", "joint")
    }
    assert errors["joint"] < errors["compensated"] < errors["svd"]
    assert errors["joint"] < 0.3


EXPORTED: dict[str, tuple[int, ...] | None] = {
    "cifar10_resnet8_tf2onnx": (32, 32, 3),
    "ultraface_rfb640_pt13": None,
    "mnist_cntk": (1, 28, 28),
    "squeezenet_fp16_caffe2": None,
}


@pytest.mark.parametrize(
    ("name", "mode"), some(product(EXPORTED, ["depthwise", "spatial", "channel", "pointwise", "lean"]), 7)
)
def test_models_of_many_exporters(shared: Path, name: str, mode: str) -> None:
    """The fit is no worse than the weights alone at any Conv, and the result is valid and runs."""
    path = shared / "models" / f"{name}.onnx"
    source = load(path).proto
    entry = next(value for value in source.graph.input if value.name not in {t.name for t in source.graph.initializer})
    shape = EXPORTED[name] or tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim)[1:]
    kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    x = np.random.default_rng(0).random((4, *shape)).astype(kind)
    result = calibrated(path, x, mode=mode, rank=0.5 if mode not in ("lean", "depthwise") else "paper", verify="full")
    onnx.checker.check_model(result.proto, full_check=True)
    assert result.report.verification.ran, result.report.verification.reason
    replaced = [row for row in result.report.convs if row.status == "replaced"]
    for row in replaced:
        assert row.held_out_error is not None
        assert row.svd_error is not None
        assert row.held_out_error <= row.svd_error
    assert replaced


def test_a_trained_network_survives_one_term() -> None:
    """Trained on scikit-learn's digits: the weights alone lose nearly everything, and the fit next to nothing."""
    pytest.importorskip("sklearn")
    train, test = load_script(DIGITS.with_name("data.py")).load_split()
    model = onnx.load(DIGITS)
    done = calibrated(DIGITS, train.images, samples=120)
    assert agreement(model, done.proto, test.images)[0] > 0.97
    assert agreement(model, onnxsep.rewrite(DIGITS, mode="depthwise").proto, test.images)[0] < 0.5
