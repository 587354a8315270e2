"""What replacing one layer changes at the network's output: measured on the walk, and for whole models, alike."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import BLOCK, EXACT, MODEL, SHAPES, X, network, outputs
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy

from onnxsep.calibration.schedule import make_schedule
from onnxsep.engine.factors import Factorized, factorize_one
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Options, in_main_graph, make_plan
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.engine.surgery import replace_matches
from onnxsep.errors import CalibrationError
from onnxsep.graph.places import Place
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model
from onnxsep.modes.base import get_mode
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.output_distance import Original, from_additive

Array = NDArray[Any]
RNG = np.random.default_rng(5)


def logits(samples: int = 7, classes: int = 4, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((samples, classes)) * 3


@pytest.mark.parametrize("form", [lambda x: x, lambda x: softmax(x, axis=1)], ids=["logits", "probabilities"])
def test_a_classifiers_measure_is_the_divergence_of_its_distributions(form: Any) -> None:
    a, b = logits(seed=1), logits(seed=2)
    wanted = entropy(softmax(a, axis=1), softmax(b, axis=1), axis=1).mean()
    parts = slice(0, 3), slice(3, 7)
    original = Original([{"y": form(a)[part]} for part in parts], [3, 4])
    effect = original.effect({"y": form(b)[part]} for part in parts)
    assert (effect.kind, effect.samples) == ("kl", 7)
    assert effect.value == pytest.approx(wanted, rel=1e-9)
    assert original.effect({"y": form(a)[part]} for part in parts).value == pytest.approx(0, abs=1e-12)


def test_what_a_changed_classifier_gives_is_read_as_the_original_is() -> None:
    """Logits that happen to look like probabilities are logits all the same."""
    a = logits()
    b = softmax(logits(seed=3), axis=1)
    wanted = entropy(softmax(a, axis=1), softmax(b, axis=1), axis=1).mean()
    assert Original([{"y": a}], [7]).effect([{"y": b}]).value == pytest.approx(wanted, rel=1e-9)


def test_other_networks_are_measured_by_the_worst_output_and_the_worst_part() -> None:
    boxes, scores = RNG.uniform(0, 600, (2, 50, 4)), RNG.uniform(0, 1, (2, 50, 2))
    joined = np.concatenate([boxes, scores], axis=2)
    changed = np.concatenate([boxes, 1.5 * scores], axis=2)
    small = RNG.standard_normal((2, 3, 5, 5))
    original = Original([{"one": joined, "other": small}], [2])
    assert original.kind == "relative"
    assert np.linalg.norm(changed - joined) / np.linalg.norm(joined) < 0.01
    assert original.effect([{"one": changed, "other": small}]).value == pytest.approx(0.5)
    assert original.effect([{"one": joined, "other": 3 * small}]).value == pytest.approx(2.0)
    assert original.effect([{"one": joined}]).value == 0  # what is left out is as it was


def test_outputs_that_are_broken_or_no_numbers() -> None:
    a = logits()
    for broken in (np.full_like(a, np.nan), a[:, :3]):
        assert Original([{"y": a}], [7]).effect([{"y": broken}]).value == math.inf
    image = RNG.standard_normal((2, 3, 4, 4))
    assert Original([{"y": image}], [2]).effect([{"y": image * np.inf}]).value == math.inf
    assert "inf" in str(Original([{"y": a}], [7]).effect([{"y": a * np.nan}]))
    with pytest.raises(CalibrationError, match="no output holds numbers"):
        Original([{"y": np.array(["a", "b"], object)}], [2])


BRANCHES = network(
    """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] p, float[N, 4, 6] q, float[N, 6, 4, 4] r) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        p = Conv<pads = [1, 1, 1, 1]>(b, w2)
        c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w3, b3)
        shape = Constant<value = int64[3] {-1, 4, 24}>()
        d = Reshape(c, shape)
        e = MatMul(d, w4)
        q = Tanh(e)
        half = Constant<value = float[1] {0.5}>()
        s = Mul(half, half)
        f = Mul(c, s)
        r = Conv<pads = [1, 1, 1, 1]>(f, w2)
    }""",
    w1=(6, 3, 3, 3),
    w2=(6, 6, 3, 3),
    w3=(6, 6, 3, 3),
    b3=(6,),
    w4=(24, 6),
)


def one_by_one(model: onnx.ModelProto, x: Array) -> Mapping[str, tuple[float, float]]:
    """For each layer the effect on the walk, and that of a model with this layer replaced."""
    source = Model(model)
    sites = find_sites(source, linear_layers=True)
    batches = [{"x": x[:8]}, {"x": x[8:]}]
    walk = EffectWalk(source, sites, batches, EXACT)
    rows: dict[Place, ConvReplacement] = {}
    for mode in ("depthwise", "pointwise"):
        options = Options(rank=RankPolicy.parse("0.4"), force=True, include_first=True)
        plan = make_plan(sites.found, get_mode(mode), options, lambda site: read_weight(source, sites, site))
        rows |= {row.site.place: row for row in plan.convs if in_main_graph(row.site)}
    found = {}
    everything = [site for site in sites.found if isinstance(site, ConvSite)]
    for step in make_schedule(source, sites.scopes, everything):
        row = rows[step.site.place]
        factors = factorize_one(source, sites, row)
        assert isinstance(factors, Factorized)
        measure = walk.at(row.site)
        assert measure(read_weight(source, sites, row.site), None).value < 1e-6
        on_the_walk = measure(row.mode.reconstruct(row.site.conv, factors.factors), None).value
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        replace_matches(changed, [row], {row.site.place: factors})
        before, after = ([outputs(one, batch) for batch in batches] for one in (model, changed))
        whole = Original(before, [len(batch["x"]) for batch in batches]).effect(after).value
        assert walk.of(Model(changed)).value == pytest.approx(whole, rel=1e-4, abs=1e-7)
        found[row.site.name] = on_the_walk, whole
    return found


@pytest.mark.parametrize("model", [MODEL, BRANCHES], ids=["residual", "branches"])
def test_the_walk_measures_what_a_model_with_one_layer_replaced_gives(model: onnx.ModelProto) -> None:
    found = one_by_one(model, X)
    assert len(found) == len([node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")])
    for on_the_walk, whole in found.values():
        assert whole > 1e-3  # there is something to be measured
        assert on_the_walk == pytest.approx(whole, rel=1e-4)


def test_a_network_in_doubles_and_a_new_bias() -> None:
    text = f"g (double[N, 3, 8, 8] x) => (double[N, 5] y) {{ {BLOCK} }}"
    values = {
        name: np.random.default_rng([1, *shape]).standard_normal(shape) / math.prod(shape[1:]) ** 0.5
        for name, shape in SHAPES.items()
    }
    model = Model(network(text, **values))
    sites = find_sites(model)
    (site,) = [one for one in sites.found if isinstance(one, ConvSite) and one.name == "conv_h"]
    measure = EffectWalk(model, sites, [{"x": X.astype(np.float64)}], EXACT).at(site)
    weight = values["w4"]
    shift = np.full(8, 0.7)  # behind the average it is still itself, and the dense layer adds its product to the logits
    effect = measure(weight, shift)
    plain: dict[str, Any] = {name: np.asarray(value, np.float32) for name, value in values.items()}
    small = network(text.replace("double", "float"), **plain)
    before = outputs(small, {"x": X})["y"].astype(np.float64)
    wanted = entropy(softmax(before, 1), softmax(before + values["w5"] @ shift, 1), axis=1).mean()
    assert effect.value == pytest.approx(wanted, rel=1e-3)


def test_what_adds_up() -> None:
    """Squares of errors that have nothing to do with one another: of two orthogonal ones, each 3 and 4 of 100, 5."""
    image = np.zeros((1, 2, 4, 5))
    image[0, 0], three, four = 1.0, np.zeros_like(image), np.zeros_like(image)
    norm = np.linalg.norm(image)
    three[0, 0, 0, 0], four[0, 0, 1, 1] = 0.03 * norm, 0.04 * norm
    original = Original([{"y": image}], [1])
    each = [original.effect([{"y": image + change}]) for change in (three, four)]
    both = original.effect([{"y": image + three + four}])
    assert both.additive == pytest.approx(sum(one.additive for one in each), rel=1e-6)
    assert from_additive(both.kind, sum(one.additive for one in each)) == pytest.approx(0.05)
    assert from_additive("relative", -0.04) == pytest.approx(-0.2)
    assert from_additive("kl", 0.3) == 0.3
