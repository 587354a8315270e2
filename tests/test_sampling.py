"""Sampled rows: what a Conv reads at a position, times its weight, is what ONNX Runtime computes there."""

from typing import Any

import numpy as np
import pytest
from calibration_models import Steps, images, network, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_modes import Case, cases, conv_model, run, weights

from onnxsep.calibration.sampling import choose_positions, gather_outputs, gather_patches, input_sizes
from onnxsep.engine.sites import read_weight
from onnxsep.layers.conv import AutoPad, Conv
from onnxsep.model.io import Model

Array = NDArray[Any]


def check_rows(case: Case, count: int) -> None:
    """The patches at the positions times the weight, plus the bias, are the runtime's outputs there."""
    conv = case.conv
    case = Case(conv, case.size, "float32", case.seed)
    x = np.random.default_rng(case.seed).standard_normal((3, conv.in_channels, *case.size)).astype(np.float32)
    expected = run(conv_model(case, batch=3), x)
    weight, bias = (array.astype(np.float64) for array in weights(case))
    positions = choose_positions(conv, input_sizes(conv, x.shape), 3, count, np.random.default_rng(0))
    total = int(np.prod(expected.shape[2:]))
    assert positions.shape == (3, min(count, total))
    assert all(len(set(row)) == len(row) and min(row) >= 0 and max(row) < total for row in positions.tolist())
    patches = gather_patches(conv, x, positions)
    assert patches.dtype == np.float32
    grouped = patches.reshape(len(patches), conv.group, -1)
    matrices = weight.reshape(conv.group, conv.out_channels // conv.group, -1)
    found = np.einsum("rgd,god->rgo", grouped, matrices).reshape(len(patches), -1)
    found = found + (bias if conv.bias else 0)
    rows = gather_outputs(conv, expected, positions)
    assert rows.shape == found.shape
    assert np.allclose(found, rows, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(data=st.data())
def test_rows_are_those_of_the_runtime(dims: int, auto_pad: AutoPad, data: st.DataObject) -> None:
    check_rows(data.draw(cases(dims, auto_pad)), data.draw(st.sampled_from([1, 7, 1000])))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2)])
def test_small_maps_with_automatic_padding(size: tuple[int, int], auto_pad: AutoPad) -> None:
    conv = Conv(2, 3, (4, 5), (3, 2), (0, 0, 0, 0), (1, 1), bias=True, auto_pad=auto_pad)
    check_rows(Case(conv, size, "float32", 3), 100)


@pytest.mark.parametrize(
    ("line", "shape", "transposed"),
    [
        ("y = Gemm<transB = 1>(x, w, b)", (5, 6), False),
        ("y = Gemm(x, w, b)", (5, 6), True),
        ("y = MatMul(x, w)", (5, 6), True),
        ("y = MatMul(x, w)", (5, 3, 6), True),
        ("y = MatMul(x, w)", (5, 2, 3, 6), True),
    ],
)
def test_rows_of_linear_layers(line: str, shape: tuple[int, ...], transposed: bool) -> None:
    free = ", ".join(map(str, shape[1:-1]))
    dims = f"N, {free}, " if free else "N, "
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 4) if transposed else (4, 6)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    model = network(f"g (float[{dims}6] x) => (float[{dims}4] y) {{ {line} }}", w=weight, b=bias)
    x = rng.standard_normal(shape).astype(np.float32)
    steps = Steps(model, [{"x": x}], linear=True, positions=2)
    (step,) = steps.steps
    steps.walk.advance(step)
    (rows,) = steps.walk.rows(step.site)
    expected = gather_outputs(step.site.conv, outputs(model, {"x": x})["y"], rows.positions)
    matrix = read_weight(Model(model), steps.sites, step.site)
    offset = bias if "b)" in line else 0
    assert rows.patches.shape == (5 * min(2, int(np.prod(shape[1:-1]))), 6)
    assert np.allclose(rows.patches @ matrix.T + offset, expected, atol=1e-4)


def test_positions_depend_on_seed_and_conv_alone() -> None:
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Conv<pads = [1, 1, 1, 1]>(a, w2)
            y = Relu(b)
        }""",
        w1=(4, 3, 3, 3),
        w2=(4, 4, 3, 3),
    )
    x = images(20)

    def positions(seed: int, name: str, split: int = 20) -> Array:
        walk = Steps(model, [{"x": x[:split]}, {"x": x[split:]}] if split < 20 else [{"x": x}], seed=seed, positions=5)
        for step in walk.steps:
            walk.walk.advance(step)
            if step.site.name == name:
                return np.concatenate([rows.positions for rows in walk.walk.rows(step.site)])
        raise AssertionError(name)

    assert (positions(3, "conv_b") == positions(3, "conv_b")).all()
    assert (positions(3, "conv_b") == positions(3, "conv_b", split=9)).all()
    assert not (positions(3, "conv_b") == positions(4, "conv_b")).all()
    assert not (positions(3, "conv_b") == positions(3, "conv_a")).all()


def held_out(model: Any, batches: list[dict[str, Array]], **options: Any) -> list[Array]:
    steps = Steps(model, batches, **options)
    (step,) = steps.steps
    steps.walk.advance(step)
    return [rows.held_out.reshape(rows.positions.shape) for rows in steps.walk.rows(step.site)]


PLAIN = network(
    "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }", w=(4, 3, 3, 3)
)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 1), (14, 1), (20, 2), (50, 5)])
def test_a_tenth_of_the_images_is_held_out(count: int, expected: int) -> None:
    x = images(count)
    masks = held_out(PLAIN, [{"x": x[: count // 2]}, {"x": x[count // 2 :]}], positions=7)
    mask = np.concatenate(masks)
    assert mask.shape == (count, 7)
    assert (mask.all(axis=1) == mask.any(axis=1)).all()  # an image as a whole
    assert mask.all(axis=1).sum() == expected


def test_images_keep_their_part_where_a_reshape_changes_the_batch() -> None:
    """Windows of an image are entries of their own: all of them, or none, are held out."""
    model = network(
        """g (float[N, 3, 4, 8, 8] x) => (float[M, 4, 8, 8] y) {
            a = Reshape(x, shape)
            y = Conv<pads = [1, 1, 1, 1]>(a, w)
        }""",
        shape=np.array([-1, 4, 8, 8], np.int64),
        w=(4, 4, 3, 3),
    )
    (mask,) = held_out(model, [{"x": images(10, (3, 4, 8, 8))}], positions=5)
    assert mask.shape == (30, 5)
    by_image = mask.reshape(10, 15)
    assert (by_image.all(axis=1) == by_image.any(axis=1)).all()
    assert by_image.all(axis=1).sum() == 1
