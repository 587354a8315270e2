"""The two baselines of paper 004: its counts to the last digit, and graphs that run."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from scripts import load_script

from onnxsep.graph.counting import count_flops_paper004
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions

# Parameters and FLOPs of R1 and V1.
PAPER = {"resnet101": (42_697_380, 2_520_408_064), "vgg19": (38_958_922, 417_652_736)}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(Path(__file__).resolve().parents[1] / "models" / "sobolewski.py")


@pytest.mark.parametrize("network", list(PAPER))
def test_counts_are_those_of_the_paper(script: ModuleType, network: str) -> None:
    light = infer_shapes(skeleton(script.build(network, batch=1)))
    flops = count_flops_paper004(light)
    assert (count_parameters(light, "paper004"), flops.total) == PAPER[network]
    assert not flops.unknown


@pytest.mark.parametrize("network", list(PAPER))
def test_narrow_twin_is_valid_and_tells_images_apart(script: ModuleType, network: str) -> None:
    model = script.build(network, 3, width=0.125)
    onnx.checker.check_model(model, full_check=True)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    logits = Runner(Model(model), RuntimeOptions(threads=1))({"image": images})["logits"]
    assert logits.shape == (2, script.CLASSES[network])
    assert 0.05 < np.abs(logits[0] - logits[1]).mean() < 100
    assert model == script.build(network, 3, width=0.125)
    assert model != script.build(network, 4, width=0.125)


def test_what_cannot_be_built_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'resnet18' is none of resnet101, vgg19"):
        script.build("resnet18")
    with pytest.raises(ValueError, match="width is 0"):
        script.build("vgg19", width=0)
