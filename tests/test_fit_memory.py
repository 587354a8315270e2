"""Memory of fits to data: what may be taken, what is said of it, and what does not depend on it."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import EXACT, fitted, images, network, replaced, row
from onnx import numpy_helper

import onnxsep
from onnxsep import cli
from onnxsep.calibration.frontier import Frontier, Store
from onnxsep.calibration.memory import Needs, available, needs
from onnxsep.calibration.sampling import Stack
from onnxsep.calibration.schedule import make_schedule
from onnxsep.compression.recipe import read_recipe
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.errors import CalibrationError, OptionError
from onnxsep.model.io import Model
from onnxsep.options.sizes import bytes_of, in_bytes

SIZE, WIDE, NARROW = 16, 24, 8
BODY = f"""g (float[N, 3, {SIZE}, {SIZE}] x) => (float[N, {NARROW}, {SIZE}, {SIZE}] z) {{
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Relu(c)
    e = Conv(d, w3)
    f = Relu(e)
    z = Conv<pads = [1, 1, 1, 1]>(f, w4)
}}"""
SHAPES: dict[str, Any] = {
    "w1": (WIDE, 3, 3, 3),
    "w2": (WIDE, WIDE, 3, 3),
    "w3": (NARROW, WIDE, 1, 1),
    "w4": (NARROW, NARROW, 3, 3),
}
MODEL = network(BODY, **SHAPES)
X = images(8, (3, SIZE, SIZE))
ITEM = 4  # bytes of a value
OTHER_SIZES = ["0", "lots", "-1GB", "8 eggs", "", "nan", "1e3"]


def asked(limit: float = math.inf, samples: int = len(X), body: str = BODY) -> Needs:
    model = Model(network(body, **SHAPES))
    sites = find_sites(model)
    chosen = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    return needs(model, make_schedule(model, sites.scopes, chosen), {"x": X[:1]}, samples, 64, limit)


def stored(result: onnxsep.Result) -> set[bytes]:
    """The values of all weights."""
    return {numpy_helper.to_array(tensor).tobytes() for tensor in result.model.proto.graph.initializer}


@pytest.mark.parametrize(
    ("given", "size"),
    [("8GB", 8 * 10**9), ("500 MB", 5 * 10**8), ("7.5GiB", 15 * 2**29), ("64k", 64_000), ("123", 123), (4096, 4096)],
)
def test_sizes_as_people_write_them(given: str | int, size: int) -> None:
    assert bytes_of("memory_limit", given) == size


@pytest.mark.parametrize("given", OTHER_SIZES)
def test_what_is_no_size_is_refused_before_anything_is_read(given: str) -> None:
    with pytest.raises(OptionError, match="is no size: give bytes, or 500MB"):
        onnxsep.rewrite("missing.onnx", mode="depthwise", memory_limit=given)


def test_sizes_in_words() -> None:
    assert [in_bytes(size) for size in (2_340_000_000, 512 * 10**6, 10)] == ["2.3 GB", "512 MB", "1 MB"]


def test_samples_are_run_by_their_bytes() -> None:
    """The first Conv's output and the second one's are the largest that one node reads and makes."""
    largest = 2 * WIDE * SIZE**2 * ITEM
    assert asked().batch == 50
    assert asked(limit=24 * 10 * largest).batch == 10
    assert asked(limit=24 * largest / 2).batch == 1
    wide = BODY.replace(f"{SIZE}, {SIZE}", "400, 400")
    model = Model(network(wide, **SHAPES))
    sites = find_sites(model)
    feed = {"x": np.zeros((1, 3, 400, 400), np.float32)}
    steps = make_schedule(model, sites.scopes, [site for site in sites.found if isinstance(site, ConvSite)])
    assert needs(model, steps, feed, 8, 64, math.inf).batch == 2**27 // (2 * WIDE * 400**2 * ITEM)


def test_tensors_that_later_convs_make_are_not_yet_there() -> None:
    """Two Convs more of the same width: nothing more stands between two of them."""
    longer = BODY.replace("e = Conv(d, w3)", "d1 = Conv<pads = [1, 1, 1, 1]>(d, w2) d2 = Relu(d1) e = Conv(d2, w3)")
    assert asked(samples=500, body=longer).expected == asked(samples=500).expected


def test_more_samples_need_more_and_what_goes_to_files_no_more() -> None:
    few, many = asked(samples=8), asked(samples=1000)
    assert many.expected > few.expected
    bounded = asked(limit=10**9, samples=1_000_000)
    assert bounded.store == 10**9 / 4
    assert asked(samples=1_000_000).store == 2**30


def test_the_machine_has_some_memory() -> None:
    assert available() > 2**26


def between() -> int:
    """A limit that the wide Conv's fit is above, and the last one's below."""
    high, low = 10**10, 0
    while high - low > 1000:
        middle = (high + low) // 2
        high, low = (middle, low) if len(asked(limit=middle).too_large) == 0 else (high, middle)
    return low


def test_a_conv_that_is_too_large_keeps_the_factors_of_its_weights() -> None:
    result = fitted(MODEL, X, include_first=False, memory_limit=between())
    plain = onnxsep.rewrite(MODEL, mode="depthwise", force=True, verify="none")
    wide, last = row(result, "conv_c"), row(result, "conv_z")
    assert "it cannot be fitted: it would need about" in " ".join(wide.notes)
    assert "memory" in " ".join(wide.notes)
    assert wide.held_out_error is None
    assert last.held_out_error is not None
    depthwise = [values for values in stored(plain) if len(values) == WIDE * 9 * ITEM]
    assert len(depthwise) == 1
    assert set(depthwise) < stored(result)


def test_where_no_conv_can_be_fitted_nothing_is_written() -> None:
    with pytest.raises(CalibrationError, match=r"no Conv can be fitted: it would need about .* there may be 1 MB"):
        fitted(MODEL, X, memory_limit=10**6)


@pytest.mark.parametrize("init", ["joint", "compensated", "response"])
def test_the_result_does_not_depend_on_how_much_there_may_be(init: str) -> None:
    whole = fitted(MODEL, X, init=init, verify="none")
    limit = asked().expected + 10**7  # batches of one sample or a few
    bounded = fitted(MODEL, X, init=init, verify="none", memory_limit=limit)
    assert [one.held_out_error for one in replaced(bounded)] == pytest.approx(
        [one.held_out_error for one in replaced(whole)], rel=1e-3
    )
    assert bounded.report.calibration is not None
    assert bounded.report.calibration.memory is not None
    assert bounded.report.calibration.memory <= limit


def test_a_fixed_batch_is_taken_as_it_is() -> None:
    fixed = network(
        BODY.replace("float[N, 3", "float[4, 3").replace(f"float[N, {NARROW}", f"float[4, {NARROW}"), **SHAPES
    )
    done = fitted(fixed, X, verify="none").report.calibration
    assert done is not None
    assert done.samples in (4, 8)
    assert done.memory is not None


def test_tensors_of_a_batch_go_before_the_next_is_run() -> None:
    """Four batches: while they move on, at most one is there on both sides."""
    model = network("g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Relu(x) }")
    x = images(8, (4, 8, 8))
    store = Store(x.nbytes * 5 // 4)
    frontier = Frontier(Model(model), [{"x": x[first : first + 2]} for first in range(0, 8, 2)], EXACT, store)
    told: list[tuple[int, int]] = []
    frontier.advance(list(model.graph.node), {"y"}, lambda *count: told.append(count))
    assert store.spilled == 0
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert np.array_equal(np.concatenate([frontier.value(batch, "y") for batch in range(4)]), np.maximum(x, 0))


@pytest.mark.parametrize("expected", [1, 5, 14, 100])
def test_rows_that_come_in_parts(expected: int) -> None:
    parts = [np.full((count, 3), count, np.float32) for count in (5, 1, 8, 30)]
    stack = Stack()
    for part in parts:
        stack.add(part, expected)
    assert np.array_equal(stack.rows, np.concatenate(parts))


# The command line, and recipes.


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    onnx.save(MODEL, tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", X)
    command = ["rewrite", tmp_path / "in.onnx", tmp_path / "out.onnx", "--mode", "depthwise", "--rank", "0.5"]
    return [*map(str, command), "--data", str(tmp_path / "x.npy"), "--no-verify"]


def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["onnxsep", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_what_is_needed_is_said_before_it_starts(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = ran(capsys, monkeypatch, *files, "--memory", "8GB")
    assert code == 0
    assert err.startswith("onnxsep: fitting to ")
    assert err.strip().endswith("MB of memory")
    assert err.count("\n") == 1
    for more in ([], ["--quiet", "--memory", "8GB"], ["--json", "--memory", "8GB"]):
        assert ran(capsys, monkeypatch, *files, *more)[::2] == (0, "")


@pytest.mark.parametrize("given", OTHER_SIZES)
def test_no_size_on_the_command_line(
    given: str, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = ran(capsys, monkeypatch, *files, f"--memory={given}")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"--memory {given!r} is no size" in err
    assert not Path(files[2]).exists()


def test_a_recipe_bounds_it_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[steps]]\ncommand = "rewrite"\nmode = "depthwise"\nmemory-limit = "3GB"\n')
    (step,) = read_recipe(recipe).steps
    assert step.options["memory_limit"] == "3GB"
