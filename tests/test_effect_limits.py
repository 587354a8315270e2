"""Two modes in one run, and layers without a kernel that are left alone for what they alone change at the output."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import MODEL, ONE_THREAD, X, network, outputs, row
from command_line import run
from scipy.special import softmax
from scipy.stats import entropy

import onnxsep
from onnxsep.compression import compress
from onnxsep.errors import OptionError
from onnxsep.rewriting.report import ConvReport, RewriteReport

BOTH: dict[str, Any] = {"mode": "depthwise", "pointwise_mode": "pointwise", "runtime": ONE_THREAD}
LOW = np.random.default_rng(3)


def rewrite(model: Any, **options: Any) -> onnxsep.Result:
    return onnxsep.rewrite(model, **{**BOTH, **options})


def forms(result: onnxsep.Result) -> dict[str, str | None]:
    return {entry.name: entry.mode for entry in result.report.convs}


def redundant() -> onnx.ModelProto:
    """A classifier whose 1 x 1 Convs have rank 2 and (nearly) full rank; a Gemm with nothing to spare."""
    thin = (LOW.standard_normal((8, 2)) @ LOW.standard_normal((2, 8)) / 4).astype(np.float32)
    full = np.linalg.qr(LOW.standard_normal((8, 8)))[0].astype(np.float32) * 6
    return network(
        """g (float[N, 3, 8, 8] x) => (float[N, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, w2)
            d = Relu(c)
            e = Conv(d, thin)
            f = Conv(d, full)
            s = Add(e, f)
            m = GlobalAveragePool(s)
            n = Flatten(m)
            y = Gemm<transB = 1>(n, w5)
        }""",
        w1=(8, 3, 3, 3),
        w2=(8, 8, 3, 3),
        thin=thin[:, :, None, None],
        full=full[:, :, None, None],
        w5=(8, 8),
    )


REDUNDANT = redundant()
BRANCH = np.linalg.qr(np.random.default_rng(7).standard_normal((8, 8)))[0].astype(np.float32)[:, :, None, None] / 3


def test_each_layer_gets_the_form_for_its_kind() -> None:
    assert forms(rewrite(MODEL, force=True, rank="0.5")) == {
        "conv_a": None,  # the first one
        "conv_c": "depthwise",
        "conv_e": "depthwise",
        "conv_h": "pointwise",
        "gemm_y": "pointwise",
    }


def test_the_rank_of_the_second_mode() -> None:
    """A share is for both; an integer counts terms in one mode and channels in the other, so it is not."""
    pointwise = {
        str(options): row(rewrite(MODEL, force=True, **options), "conv_h").rank
        for options in (
            {"rank": "0.9"},
            {"rank": 1},
            {"rank": 1, "pointwise_rank": 2},
            {"rank": "0.9", "pointwise_rank": "full"},
        )
    }
    # 8 x 6: r (8 + 6) at most 43.2, or half of 48; 6 is full.
    assert list(pointwise.values()) == [(3,), (1,), (2,), (6,)]
    report = rewrite(MODEL, force=True, rank=1, pointwise_rank=2).report
    assert (report.mode, report.rank) == ("depthwise + pointwise", "1 + 2")


def test_without_data_nothing_is_measured_and_that_is_said() -> None:
    report = rewrite(MODEL).report
    assert report.convs[3].mode == "pointwise"
    assert report.convs[3].effect is None
    assert [note for note in report.notes if "change at the output was not measured" in note]
    assert not [note for note in rewrite(MODEL, pointwise_mode=None).report.notes if "not measured" in note]


def test_a_large_effect_leaves_the_layer_alone_with_the_figure() -> None:
    result = rewrite(REDUNDANT, data=X)
    thin, full, dense = (row(result, name) for name in ("conv_e", "conv_f", "gemm_y"))
    assert thin.mode == "pointwise"
    assert [entry.status for entry in (full, dense)] == ["left", "left"]
    for entry in (full, dense):
        assert entry.effect is not None
        assert entry.effect.value is not None
        assert entry.effect.value > 0.05
        assert f"KL {entry.effect.value:.3g}" in entry.reason
        assert "max_effect=0.05" in entry.reason
        assert "held-out samples" in entry.reason
    assert thin.effect is not None
    assert thin.effect.value is not None
    assert thin.effect.value < 1e-4
    assert row(result, "conv_c").mode == "depthwise"
    assert row(result, "conv_c").effect is None  # a kernel: its effect is not what decides


def effect_of(entry: ConvReport) -> float:
    assert entry.effect is not None
    assert entry.effect.value is not None
    return entry.effect.value


def test_the_figure_is_that_of_a_model_with_this_layer_alone_replaced() -> None:
    """With factors from the weights alone both are the same; the samples are those that the fit does not see."""
    left = rewrite(REDUNDANT, data=X, init="svd", max_effect=0)
    entry = row(left, "conv_f")
    alone = rewrite(REDUNDANT, mode="pointwise", pointwise_mode=None, only="conv_f", force=True, verify="none")
    before, after = (outputs(one, {"x": X})["y"].astype(np.float64) for one in (REDUNDANT, alone.proto))
    each = entropy(softmax(before, 1), softmax(after, 1), axis=1)
    assert entry.effect is not None
    assert 0 < entry.effect.samples < len(X)
    assert each.min() < effect_of(entry) < each.max()
    few = rewrite(REDUNDANT, data=X[:10], init="svd", max_effect=0)  # too few to leave any out
    assert effect_of(row(few, "conv_f")) == pytest.approx(each[:10].mean(), rel=1e-4)
    assert "that the fit has seen too" in row(few, "conv_f").reason


def test_force_and_a_higher_limit_replace_it_all_the_same() -> None:
    forced = rewrite(REDUNDANT, data=X, force=True)
    assert row(forced, "conv_f").mode == "pointwise"
    assert row(forced, "conv_f").effect is None
    measured = effect_of(row(rewrite(REDUNDANT, data=X), "conv_f"))
    allowed = rewrite(REDUNDANT, data=X, max_effect=measured * 1.01)
    assert row(allowed, "conv_f").mode == "pointwise"
    assert effect_of(row(allowed, "conv_f")) == pytest.approx(measured)
    assert row(rewrite(REDUNDANT, data=X, max_effect=measured * 0.99), "conv_f").status == "left"
    exact = rewrite(REDUNDANT, data=X, max_effect=0, pointwise_rank="full")
    assert "does not pay" in row(exact, "conv_f").reason  # nothing is lost at full rank


def test_many_small_effects_that_are_large_together() -> None:
    """So many of the smallest are replaced that the whole keeps within the limit."""
    count = 6
    weights: dict[str, Any] = {}
    lines = []
    for number in range(count):  # the same branch again and again, so that what is lost adds up
        lines += [f"e{number} = Conv(d, w{number})", f"s{number + 1} = Add(s{number}, e{number})"]
        weights[f"w{number}"] = BRANCH
    model = network(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 8] y) {{
            a = Conv<pads = [1, 1, 1, 1]>(x, w)
            d = Relu(a)
            s0 = Identity(d)
            {chr(10).join(lines)}
            m = GlobalAveragePool(s{count})
            y = Flatten(m)
        }}""",
        w=(8, 3, 3, 3),
        **weights,
    )
    options: dict[str, Any] = {"mode": "pointwise", "pointwise_mode": None, "data": X, "rank": 3, "init": "svd"}
    without = rewrite(model, **options, max_effect=0)
    alone = {name: effect_of(row(without, name)) for name in (f"conv_e{number}" for number in range(count))}
    names = sorted(alone, key=alone.__getitem__)
    limit = alone[names[-1]] * 1.5  # each is small enough
    result = rewrite(model, **options, max_effect=limit)
    forms = [row(result, name).mode for name in names]
    kept = forms.count("pointwise")
    assert 1 <= kept < count
    assert forms[:kept] == ["pointwise"] * kept  # the smallest effects
    assert f"of which the {kept} with the smallest are replaced" in row(result, names[-1]).reason
    before = outputs(model, {"x": X})["y"]

    def together(names: list[str]) -> float:
        forced = rewrite(model, **{**options, "data": None}, only=names, force=True, verify="none")
        return float(entropy(softmax(before, 1), softmax(outputs(forced.proto, {"x": X})["y"], 1), axis=1).mean())

    assert together(names[:kept]) < 1.3 * limit  # on all samples, not on those that were held out
    assert together(names) > 2 * limit


def test_the_mode_alone_and_networks_that_give_images() -> None:
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            y = Conv(b, w2)
        }""",
        w1=(12, 3, 3, 3),
        w2=(6, 12, 1, 1),
    )
    options: dict[str, Any] = {"mode": "pointwise", "data": X, "rank": 1, "runtime": ONE_THREAD}
    entry = row(onnxsep.rewrite(model, **options), "conv_y")
    assert entry.status == "left"
    assert entry.effect is not None
    assert entry.effect.kind == "relative"
    done = onnxsep.rewrite(model, **options, force=True)
    before, after = (outputs(one, {"x": X})["y"].astype(np.float64) for one in (model, done.proto))
    whole = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert effect_of(entry) == pytest.approx(whole, rel=0.2)  # other samples, fitted to fewer


def test_a_weight_that_two_convs_share() -> None:
    """Where one of them is left alone its weight stays, so that the other one does not pay any more."""
    full = np.linalg.qr(LOW.standard_normal((12, 12)))[0].astype(np.float32)[:, :, None, None]
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 12] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Conv(a, full)
            c = Mul(b, tiny)
            d = Conv(c, full)
            e = Add(a, d)
            f = Add(e, b)
            m = GlobalAveragePool(f)
            y = Flatten(m)
        }""",
        w1=(12, 3, 3, 3),
        full=full,
        tiny=np.full(1, 1e-4, np.float32),
    )
    result = rewrite(model, data=X, rank="0.9", max_effect=0.001)
    first, second = row(result, "conv_b"), row(result, "conv_d")
    assert effect_of(first) > 0.001 > effect_of(second)
    assert "changes the output too much" in first.reason
    assert "its weight stays" in second.reason


def test_a_layer_in_a_nested_graph_is_measured_too() -> None:
    text = """g (float[N, 8, 6, 6] x) => (float[N, 8] y) {
        yes = Constant<value = bool {1}>()
        a = If(yes) <then_branch = t () => (float[N, 8, 6, 6] u) { u = Conv(x, full) },
                     else_branch = f () => (float[N, 8, 6, 6] v) { v = Identity(x) }>
        m = GlobalAveragePool(a)
        y = Flatten(m)
    }"""
    full = np.linalg.qr(LOW.standard_normal((8, 8)))[0].astype(np.float32)[:, :, None, None] * 3
    model = network(text, full=full)
    model.graph.node[1].attribute[0].g.node[0].name = "inner"
    options: dict[str, Any] = {"data": X[:, :1].repeat(8, 1)[:, :, :6, :6] * LOW.standard_normal((8, 1, 1)).astype("f")}
    left = rewrite(model, include_first=True, **options)
    assert row(left, "inner").status == "left"
    assert effect_of(row(left, "inner")) > 0.05
    assert row(rewrite(model, include_first=True, force=True, **options), "inner").mode == "pointwise"


def test_api_command_recipe_and_plan_say_the_same(tmp_path: Path) -> None:
    onnx.save(REDUNDANT, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "r.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nmode = "depthwise"\npointwise-mode = "pointwise"\nmax-effect = 0.04\n'
    )
    shown = "--mode", "depthwise", "--pointwise-mode", "pointwise", "--max-effect", "0.04", "--threads", "1"
    done = run("rewrite", "m.onnx", "a.onnx", *shown, "--data", "x.npy", "--plan-out", "p.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "changes the output too much: KL" in done.stdout
    assert "--max-effect 0.04" in done.stdout
    made = (tmp_path / "a.onnx").read_bytes()
    assert rewrite(tmp_path / "m.onnx", data=X, max_effect=0.04).proto.SerializeToString() == made
    again = run("rewrite", "m.onnx", "b.onnx", "--plan", "p.toml", "--data", "x.npy", "--threads", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b.onnx").read_bytes() == made
    assert "changes the output too much: KL" in (tmp_path / "p.toml").read_text()
    result = compress(tmp_path / "m.onnx", tmp_path / "r.toml", data=X, runtime=ONE_THREAD)
    step = result.report.steps[0].report
    assert isinstance(step, RewriteReport)
    assert {entry.name: entry.mode for entry in step.convs} == forms(rewrite(REDUNDANT, data=X, max_effect=0.04))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pointwise_mode": "depthwise"}, "pointwise_mode depthwise: it takes no layers without a kernel"),
        ({"pointwise_mode": "fold"}, "it takes blocks of several nodes"),
        ({"mode": "fold"}, "mode fold takes blocks of several nodes; leave pointwise_mode out"),
        ({"pointwise_mode": None, "pointwise_rank": 2}, "pointwise_rank goes with pointwise_mode"),
        ({"max_effect": 0.1}, "max_effect is measured on samples; add data"),
        ({"max_effect": 0.1, "data": X, "force": True}, "force=True replaces layers whatever their effect"),
        ({"max_effect": 0.1, "data": X, "pointwise_mode": None}, "mode depthwise takes none"),
        ({"max_effect": -1.0, "data": X}, "max_effect must be 0 or more"),
        ({"pointwise_rank": "half"}, "cannot read the rank 'half'"),
        ({"mode": None, "plan": "p.toml"}, "pointwise_mode cannot be given with it"),
        ({"mode": None, "pointwise_mode": None, "max_effect": 0.1, "plan": "p.toml"}, "so max_effect cannot be given"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words.replace("(", r"\(")):
        rewrite(MODEL, **options)
