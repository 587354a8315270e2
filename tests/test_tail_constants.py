"""What stands behind a Conv is seen whatever its constants are made of: stored, or computed from what is stored."""

import re

import numpy as np
import onnx
import pytest
from calibration_models import network

from onnxsep.calibration.schedule import Tail, make_schedule
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.model.io import Model

FACTOR = np.array([1.0, -0.5, 2.0, 3.0], np.float32)
FORMS = {
    "stored": "f = Identity(whole)",
    "unsqueezed": "f = Unsqueeze(flat, axes)",
    "cast and reshaped": "c = Cast<to = 1>(flat) f = Reshape(c, shape)",
    "product": "f = Mul(whole, one)",
}


def tail_of(model: onnx.ModelProto) -> Tail:
    source = Model(model)
    sites = find_sites(source)
    (step,) = make_schedule(source, sites.scopes, [site for site in sites.found if isinstance(site, ConvSite)])
    return step.tail


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operands", ["t, f", "f, t"])
def test_a_factor_that_is_an_expression(form: str, operands: str) -> None:
    text = f"{FORMS[form]} t = Conv<pads = [1, 1, 1, 1]>(x, w) m = Mul({operands}) y = Relu(m)"
    tensors = {
        "w": np.ones((4, 4, 3, 3), np.float32),
        "flat": FACTOR,
        "whole": FACTOR.reshape(4, 1, 1),
        "axes": np.array([1, 2]),
        "shape": np.array([4, 1, 1]),
        "one": np.float32(1),
    }
    used = {name: tensors[name] for name in re.findall("[a-z]+", text) if name in tensors}
    tail = tail_of(network(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", **used))
    np.testing.assert_array_equal(tail.scale, FACTOR)
    assert (tail.skip, tail.low, tail.high, tail.end) == (None, 0.0, np.inf, "y")


def test_bounds_that_are_an_expression() -> None:
    text = "high = Add(three, three) t = Conv<pads = [1, 1, 1, 1]>(x, w) y = Clip(t, zero, high)"
    tensors = {"w": np.ones((4, 4, 3, 3), np.float32), "three": np.float32(3), "zero": np.float32(0)}
    tail = tail_of(network(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", **tensors))
    assert (tail.low, tail.high) == (0.0, 6.0)


def test_a_tensor_of_the_network_is_a_skip_and_no_constant() -> None:
    text = "s = Sigmoid(x) t = Conv<pads = [1, 1, 1, 1]>(x, w) a = Add(s, t) y = Relu(a)"
    model = network(
        f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", w=np.ones((4, 4, 3, 3), np.float32)
    )
    tail = tail_of(model)
    assert (tail.skip, tail.end) == ("s", "y")
    np.testing.assert_array_equal(tail.skip_scale, np.ones(4))
