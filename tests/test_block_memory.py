"""Fits of blocks within a limit of memory: fewer samples at a time, activations in files, the same weights."""

import numpy as np
import pytest
from block_networks import Net
from onnx import numpy_helper

import onnxsep
from onnxsep.calibration import frontier


def test_fits_of_blocks_keep_to_the_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose activations do not fit keeps them in files, a few samples at a time."""
    net = Net(1)
    y = net.residual(net.activation("Relu", net.conv("x", (3, 8))), 8, 4, 8, bottleneck=True)
    model = net.model(3, y, size=32)
    x = np.random.default_rng(0).normal(size=(30, 3, 32, 32)).astype(np.float32)
    sizes: list[int] = []
    made = frontier.Store.__init__

    def seen(store: frontier.Store, memory: int) -> None:
        sizes.append(memory)
        made(store, memory)

    monkeypatch.setattr(frontier.Store, "__init__", seen)
    found = [
        onnxsep.rewrite(
            model, mode="ghost-bottleneck", data=x, samples=24, force=True, verify="none", memory_limit=limit
        )
        for limit in (None, 4_000_000)
    ]
    assert sizes == [2**30, 1_000_000]
    wide, bounded = ([numpy_helper.to_array(one) for one in each.model.proto.graph.initializer] for each in found)
    for one, other in zip(wide, bounded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    errors = [one.report.convs[1].held_out_error for one in found]
    assert errors[0] is not None
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_a_model_of_one_image_a_time_is_fitted_as_one_of_many() -> None:
    """Then all of some batches are held out."""
    net = Net(1)
    y = net.residual(net.activation("Relu", net.conv("x", (3, 8))), 8, 4, 8, bottleneck=True)
    model = net.model(3, y)
    x = np.random.default_rng(0).normal(size=(30, 3, 8, 8)).astype(np.float32)
    errors = []
    for batch in ("n", 1):
        size = model.graph.input[0].type.tensor_type.shape.dim[0]
        size.Clear()
        setattr(size, "dim_param" if batch == "n" else "dim_value", batch)
        done = onnxsep.rewrite(model, mode="ghost-bottleneck", data=x, samples=24, force=True, verify="none")
        errors.append(done.report.convs[1].held_out_error)
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
