"""What is compared and measured in training is float32, on GPUs too, where torch rounds to TF32 by default."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxsep.model.io import load
from onnxsep.training import to_torch

torch = pytest.importorskip("torch", reason="torch is not installed (pip install onnxsep[finetune])")

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
FEEDS = {"image": np.zeros((1, 1, 8, 8), np.float32)}


@pytest.fixture
def seen() -> Any:
    """A model in torch, and whether cuDNN could round to TF32 when it ran."""
    graph, found = to_torch(load(DIGITS)), []
    graph.module.register_forward_pre_hook(lambda *_: found.append(torch.backends.cudnn.allow_tf32))
    return graph, found


def test_copy_is_compared_in_float32(seen: Any) -> None:
    from onnxsep.training.conversion_checks import arrays_of

    arrays_of(seen[0], FEEDS)
    assert seen[1] == [False]
    assert torch.backends.cudnn.allow_tf32


def test_learner_measures_in_float32_and_trains_as_torch_does(seen: Any) -> None:
    from onnxsep.training.learner import Learner

    learner = Learner(seen[0])
    learner.outputs(FEEDS)
    with learner.training():
        learner.outputs(FEEDS)
    assert seen[1] == [False, True]


def test_switch_is_put_back_behind_an_error() -> None:
    from onnxsep.training.full_precision import full_precision

    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
