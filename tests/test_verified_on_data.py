"""Results are verified on samples that no fit has seen, in every command, and the report says on what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import MODEL, ONE_THREAD, images, network, outputs
from command_line import run
from onnx import helper
from PIL import Image

import onnxsep
from onnxsep.data import Dataset, open_data, partition, tenth, unfitted, verification_feeds
from onnxsep.errors import OptionError, VerificationError
from onnxsep.model.io import Model, load
from onnxsep.reporting.commands import document_of
from onnxsep.reporting.text import plain_text


def rows(count: int, batch: int | str = "n") -> Dataset:
    """So many samples, of a model that takes a fixed number of them or any."""
    model = network(f"g (float[{batch}, 2] x) => (float[{batch}, 2] y) {{ y = Relu(x) }}")
    return open_data({"x": np.arange(2 * count, dtype=np.float32).reshape(count, 2)}, Model(model))


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(("count", "samples"), [(21, 20), (60, 20), (600, 500), (5, 4)])
def test_where_there_are_more_samples_the_fit_sees_those_that_it_always_saw(count: int, samples: int) -> None:
    data = rows(count)
    for seed in (0, 3):
        parts = partition(data, samples, seed)
        assert parts.fitted == data.sample(samples, seed)
        assert parts.unseen
        assert len(parts.verified) == min(count - samples, 50)
        assert not set(parts.fitted) & set(parts.verified)


@pytest.mark.parametrize(("count", "held"), [(20, 2), (39, 3), (100, 10), (500, 50), (900, 50)])
@pytest.mark.parametrize("samples", [None, 1000])
def test_a_tenth_is_left_out_of_a_fit_that_would_see_all(count: int, held: int, samples: int | None) -> None:
    parts = partition(rows(count), samples, 0)
    assert (len(parts.fitted), len(parts.verified), parts.unseen) == (count - held, held, True)
    assert sorted([*parts.fitted, *parts.verified]) == list(range(count))
    assert parts.verified != partition(rows(count), samples, 1).verified  # drawn with the seed
    assert parts.verified == partition(rows(count), samples, 0).verified == tenth(rows(count), 0)


@pytest.mark.parametrize("count", [1, 2, 19])
def test_of_few_samples_all_are_used_for_both(count: int) -> None:
    parts = partition(rows(count), 500, 0)
    assert parts.fitted == parts.verified == list(range(count))
    assert not parts.unseen


@pytest.mark.parametrize(("count", "fitted", "verified"), [(32, 16, 16), (160, 144, 16), (16, 16, 16), (20, 20, 16)])
def test_a_fixed_batch_is_held_out_whole(count: int, fitted: int, verified: int) -> None:
    parts = partition(rows(count, 16), None, 0)
    assert (len(parts.fitted), len(parts.verified)) == (fitted, verified)
    assert parts.unseen == (fitted + verified == count)
    assert len(list(verification_feeds(rows(count, 16), parts).sets())) == 1


def test_what_a_run_has_reserved_is_never_fitted_to() -> None:
    data = rows(40)
    data.reserved = (3, 7, 39)
    for parts in (partition(data, None, 0), partition(data, 10, 0)):
        assert parts.verified == [3, 7, 39]
        assert not set(parts.fitted) & {3, 7, 39}
    for parts in (partition(data, None, 0, together=5), partition(data, 10, 0, together=5)):  # which may choose by them
        assert not {*parts.fitted, *parts.verified, *parts.others} & {3, 7, 39}
        assert not set(parts.fitted) & set(parts.verified)
    assert unfitted(data, 0).verified == [3, 7, 39]


def test_samples_drawn_together_are_divided() -> None:
    parts = partition(rows(100), 50, 0, together=10)
    assert sorted([*parts.fitted, *parts.verified]) == rows(100).sample(60, 0)
    assert len(parts.fitted) == 50
    assert not set(parts.fitted) & set(parts.verified)
    assert set(parts.others) == set(range(100)) - set(parts.fitted)


# ---------------------------------------------------------------- rewrite and prune


def relative(result: onnx.ModelProto, x: np.ndarray, original: onnx.ModelProto = MODEL) -> float:
    """The error over these samples, in double, without onnxsep's own comparison."""
    one, two = (outputs(model, {"x": x}) for model in (original, result))
    return max(float(np.linalg.norm(one[name] - two[name]) / np.linalg.norm(one[name])) for name in one)


def test_the_error_of_a_rewrite_is_that_of_the_samples_that_were_left_out() -> None:
    x = images(70)
    done = onnxsep.rewrite(MODEL, mode="spatial", rank=2, data=x, samples=30, positions=8, runtime=ONE_THREAD)
    held = partition(open_data(x, Model(MODEL)), 30, 0).verified
    found = done.report.verification
    assert found.measured_on is not None
    assert found.measured_on.model_dump() == {"kind": "unseen", "source": "the data", "samples": 40}
    assert found.relative == pytest.approx(relative(done.proto, x[held]), rel=1e-4)
    assert found.relative != pytest.approx(relative(done.proto, x), rel=1e-4)
    assert "measured on 40 samples of the data that no fit has seen" in plain_text(document_of(done.report))


def test_the_rewrite_itself_is_what_it_was_where_there_are_more_samples() -> None:
    """Samples that are beyond change nothing: the same as with the chosen ones alone, given as few enough for all."""
    x = images(60)
    chosen = open_data(x, Model(MODEL)).sample(19, 0)
    options: dict[str, Any] = {"mode": "spatial", "rank": 2, "positions": 8, "runtime": ONE_THREAD}
    beyond = onnxsep.rewrite(MODEL, data=x, samples=19, **options)
    alone = onnxsep.rewrite(MODEL, data=x[chosen], samples=19, **options)
    assert beyond.proto.SerializeToString() == alone.proto.SerializeToString()
    assert alone.report.verification.measured_on is not None
    assert alone.report.verification.measured_on.kind == "seen"
    assert "too few to leave any out" in plain_text(document_of(alone.report))


def test_skipping_the_verification_changes_no_result() -> None:
    x = images(30)
    options: dict[str, Any] = {"mode": "spatial", "rank": 2, "positions": 8, "data": x, "runtime": ONE_THREAD}
    assert onnxsep.rewrite(MODEL, **options).proto == onnxsep.rewrite(MODEL, verify="none", **options).proto


def narrow() -> tuple[onnx.ModelProto, np.ndarray]:
    """A Conv of full rank, and images of its first channel alone, in which the first term of a spatial rank 1 does."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 6, 3, 3)).astype(np.float32)
    weight[:, 0] = 3 * np.outer(rng.standard_normal(6), np.outer([1, 2, 1], [1, 0, -1]).ravel()).reshape(6, 3, 3)
    model = network(
        "g (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y)"
        " { t = Relu(x) y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(t, w) }",
        w=weight,
    )
    x = images(40, (6, 8, 8))
    x[:, 1:] = -np.abs(x[:, 1:])  # nothing behind the Relu
    return model, x


def test_max_error_judges_on_the_data_and_not_on_noise() -> None:
    model, x = narrow()
    options: dict[str, Any] = {
        "mode": "spatial",
        "rank": 3,
        "force": True,
        "include_first": True,
        "runtime": ONE_THREAD,
    }
    noise = onnxsep.rewrite(model, **options).report.verification
    real = onnxsep.rewrite(model, data=x, init="svd", max_error=0.3, **options).report.verification
    assert noise.relative is not None
    assert real.relative is not None
    assert noise.relative > 0.3 > real.relative
    with pytest.raises(VerificationError):
        onnxsep.rewrite(model, max_error=0.3, **options)


def test_inputs_win_over_data(tmp_path: Path) -> None:
    x = images(30)
    np.savez(tmp_path / "own.npz", x=x[:3])
    done = onnxsep.rewrite(MODEL, mode="spatial", data=x, positions=8, inputs=tmp_path / "own.npz", runtime=ONE_THREAD)
    found = done.report.verification
    assert found.measured_on is not None
    assert (found.measured_on.kind, found.measured_on.samples) == ("inputs", 3)
    assert found.relative == pytest.approx(relative(done.proto, x[:3]), rel=1e-4)


def test_noise_is_called_noise() -> None:
    done = onnxsep.rewrite(MODEL, mode="spatial", runtime=ONE_THREAD)
    assert done.report.verification.measured_on is not None
    assert done.report.verification.measured_on.kind == "random"
    assert "measured on noise" in plain_text(document_of(done.report))


def test_prune_verifies_on_data() -> None:
    x = images(70)
    done = onnxsep.prune(MODEL, sparsity=0.5, data=x, runtime=ONE_THREAD)
    held = unfitted(open_data(x, Model(MODEL)), 0).verified
    found = done.report.verification
    assert found.measured_on is not None
    assert (found.measured_on.kind, found.measured_on.samples, len(held)) == ("data", 50, 50)
    assert found.relative == pytest.approx(relative(done.proto, x[held]), rel=1e-4)
    assert done.proto == onnxsep.prune(MODEL, sparsity=0.5, runtime=ONE_THREAD).proto
    with pytest.raises(OptionError, match="preprocessing is for the images of data, and there is none"):
        onnxsep.prune(MODEL, sparsity=0.5, preprocessing={"scale": 1.0})


def test_prune_and_check_read_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    onnx.save(MODEL, tmp_path / "m.onnx")
    done = run("prune", "m.onnx", "p.onnx", "--sparsity", "0.3", "--data", "images", "--mean", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "measured on 3 samples of 'images'" in done.stdout
    done = run("check", "p.onnx", "m.onnx", "--data", "images", "--mean", "0.5", "--no-weights", cwd=tmp_path)
    assert done.returncode == 3
    assert "measured on 3 samples of 'images'" in done.stdout


def test_check_says_what_it_ran_on(tmp_path: Path) -> None:
    x = images(40)
    same = onnxsep.check(MODEL, MODEL, data=x)
    assert same.parts[-1].measured_on is not None
    assert same.parts[-1].measured_on.model_dump() == {"kind": "data", "source": "the data", "samples": 32}
    np.savez(tmp_path / "in.npz", x=x[:2])
    given = onnxsep.check(MODEL, MODEL, inputs=tmp_path / "in.npz").parts[-1].measured_on
    assert given is not None
    assert (given.kind, given.samples) == ("inputs", 2)
    assert "measured on noise" in plain_text(document_of(onnxsep.check(MODEL, MODEL)))


def test_parts_of_unlike_ranges_are_told_apart_on_data() -> None:
    """Boxes in pixels and scores: the error is that of the scores, which a norm over both would hide."""
    model = network(
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {"
        " b = Conv<kernel_shape = [1, 1]>(x, w1)"
        " s = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w2)"
        " p = Sigmoid(s) q = Mul(b, k) y = Concat<axis = 1>(q, p) }",
        w1=(4, 3, 1, 1),
        w2=(4, 3, 3, 3),
        k=np.float32(500),
    )
    x = images(30)
    done = onnxsep.prune(model, sparsity=0.6, only="conv_s", data=x, runtime=ONE_THREAD)
    (output,) = done.report.verification.outputs
    assert len(output.parts) == 2
    assert output.parts[0].relative == 0
    one, two = (outputs(proto, {"x": x})["y"][:, 4:] for proto in (model, done.proto))
    assert output.relative == pytest.approx(np.linalg.norm(one - two) / np.linalg.norm(one), rel=1e-4)


def test_outputs_whose_size_depends_on_values_are_no_failure() -> None:
    """A detector keeps as many boxes as it finds, and the result may find another number."""
    model = network(
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] c, int64[4, kept] y) {"
        " c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)"
        " big = Greater(c, one) y = NonZero(big) }",
        w=(8, 3, 3, 3),
        one=np.float32(1),
    )
    x = images(40)
    done = onnxsep.rewrite(
        model, mode="spatial", rank=2, include_first=True, data=x, init="svd", runtime=ONE_THREAD, force=True
    )
    found = done.report.verification
    assert found.ran
    assert any("output 'y': in 1 runs the result has more or fewer entries" in note for note in found.notes)
    assert next(one for one in found.outputs if one.name == "c").relative > 0


def test_a_branch_counts_as_run_where_one_sample_runs_it(tmp_path: Path) -> None:
    """The Conv stands in a branch that only positive images take; noise of seed 0 may take the other."""
    branch = "g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { m = ReduceSum<keepdims = 0>(x) p = Greater(m, zero) }"
    model = network(branch, zero=np.float32(0), w=(3, 3, 3, 3))
    conv = helper.make_node("Conv", ["x", "w"], ["inner"], name="inside", kernel_shape=[3, 3], pads=[1] * 4)
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("inner", "other")]
    then = helper.make_graph([conv], "then", [], value[:1])
    otherwise = helper.make_graph([helper.make_node("Identity", ["x"], ["other"])], "else", [], value[1:])
    model.graph.node.append(helper.make_node("If", ["p"], ["y"], then_branch=then, else_branch=otherwise))
    x = -np.abs(images(6))
    never = onnxsep.prune(model, sparsity=0.5, data=x, runtime=ONE_THREAD).report.verification
    assert any("show nothing of 1 of 1 changed weights" in note for note in never.notes)
    x[5] *= -1
    once = onnxsep.prune(model, sparsity=0.5, data=x, runtime=ONE_THREAD).report.verification
    assert not any("show nothing" in note for note in once.notes)
    assert once.relative is not None
    assert once.relative > 0


# ---------------------------------------------------------------- limits that are missed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    onnx.save(MODEL, tmp_path / "m.onnx")
    x = images(40)
    np.savez(tmp_path / "d.npz", x=x)
    (tmp_path / "r.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nmode = "spatial"\nrank = 2\npositions = 8\nmax-error = 1e-6\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("rewrite", "--mode", "spatial", "--rank", "2", "--positions", "8", "--data", "d.npz"),
        ("rewrite", "--mode", "spatial", "--rank", "2"),
        ("prune", "--sparsity", "0.5", "--data", "d.npz"),
        ("quantize", "--data", "d.npz"),
    ],
)
def test_a_missed_limit_is_reported_with_the_nearest_one(words: tuple[str, ...], place: Path) -> None:
    command, *options = words
    again = (command, "m.onnx", "out.onnx", *options, "--report", "r.json", "--threads", "1")
    done = run(*again, "--max-error", "1e-6", cwd=place)
    assert done.returncode == 3
    assert not (place / "out.onnx").exists()
    (missed,) = json.loads((place / "r.json").read_text())["missed"]
    assert (missed["limit"], missed["allowed"]) == ("max_error", 1e-6)
    assert missed["nearest"] >= missed["measured"] >= missed["nearest"] * 0.9
    assert f"the same command with --max-error {missed['nearest']:g}" in done.stdout
    assert f"--max-error {missed['nearest']:g}" in done.stderr
    assert run(*again, "--max-error", f"{missed['nearest']:g}", cwd=place).returncode == 0
    assert (place / "out.onnx").exists()


def test_a_step_that_misses_its_limit_leaves_its_report(place: Path) -> None:
    words = ("compress", "m.onnx", "out.onnx", "--recipe", "r.toml", "--data", "d.npz", "--report", "r.json")
    done = run(*words, "--quiet", cwd=place)
    assert done.returncode == 3
    assert not (place / "out.onnx").exists()
    report = json.loads((place / "r.json").read_text())
    assert report["command"] == "rewrite"
    assert report["missed"][0]["limit"] == "max_error"
    assert load(place / "m.onnx").proto == MODEL


def test_a_step_by_the_weights_alone_is_verified_on_the_data_too(place: Path) -> None:
    (place / "svd.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nmode = "spatial"\ninit = "svd"\nmax-error = 1e-9\n'
    )
    words = ("compress", "m.onnx", "out.onnx", "--recipe", "svd.toml", "--data", "d.npz", "--report", "r.json")
    assert run(*words, "--quiet", cwd=place).returncode == 3
    assert json.loads((place / "r.json").read_text())["verification"]["measured_on"]["kind"] == "unseen"
