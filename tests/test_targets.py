"""Budgets as they are written, and the choice within them, held against all choices there are."""

import itertools
import math
import os
from typing import Any

import numpy as np
import pytest
from calibration_models import MODEL

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import does_not_pay
from onnxsep.engine.sites import find_sites
from onnxsep.errors import OptionError
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import parameters
from onnxsep.model.io import Model
from onnxsep.modes.base import get_mode
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured
from onnxsep.planner.quiet import quiet
from onnxsep.planner.selection import COSTS, least, select
from onnxsep.planner.targets import Target, parse_targets

SITES = [site for site in find_sites(Model(MODEL), linear_layers=True).found if isinstance(site, ConvSite)]


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("params=0.4", "params", 400),
        ("params=.4", "params", 400),
        ("params=1.0", "params", 1000),
        ("params=123", "params", 123),
        (" MACS = 0.25 ", "macs", 250),
        ("macs=7", "macs", 7),
        ("size=0.3", "size", 300),
        ("size=80kB", "size", 80_000),
        ("size=80KB", "size", 80_000),
        ("size=1.5MB", "size", 1_500_000),
        ("size=2MiB", "size", 2 * 1024**2),
        ("size=640", "size", 640),
        ("latency=0.6", "latency", 600),
        ("latency=5ms", "latency", 5_000_000),
        ("latency=1.5MS", "latency", 1_500_000),
        ("latency=20us", "latency", 20_000),
        ("params=0.29", "params", 290),  # 0.29 * 1000 is a little less in binary
    ],
)
def test_what_a_target_says(text: str, kind: str, amount: int) -> None:
    (target,) = parse_targets([text])
    assert isinstance(target, Target)
    assert (target.kind, target.amount(1000)) == (kind, amount)
    assert target.text == text.strip()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["params"], "'params' cannot be read"),
        (["0.4"], "cannot be read; write params=0.4"),
        (["parms=0.4"], "did you mean 'params'"),
        (["params=1.5"], "a share is above 0 and at most 1"),
        (["params=0.0"], "a share is above 0"),
        (["params=0"], "a budget is above 0"),
        (["params=-3"], "is no amount"),
        (["params=nan"], "is no amount"),
        (["params=1e3"], "is no amount"),
        (["params=40%"], "is no amount"),
        (["params=80kB"], "is no amount"),
        (["size=80kg"], "or a number of bytes such as 80kB"),
        (["macs=0.5", "macs=0.4"], "macs is given twice: macs=0.5 and macs=0.4"),
        (["latency=5"], "or a time such as 5ms"),
        (["latency=5kB"], "or a time such as 5ms"),
        (["latency=1.5"], "a share is above 0 and at most 1"),
    ],
)
def test_what_is_no_target(texts: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words.replace("(", r"\(")):
        parse_targets(texts)


def layer(rng: np.random.Generator, number: int, *, negative: bool) -> list[Measured]:
    site = SITES[number % len(SITES)]
    return [
        Measured(
            site,
            None,
            parameters=int(rng.integers(1, 50)),
            macs=int(rng.integers(1, 50)),
            bytes=int(rng.integers(-100, 10)),
            held_out=0.0,
            effect=float(rng.exponential()) - negative,
        )
        for _ in range(rng.integers(1, 5))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [layer(rng, number, negative=seed % 3 == 0) for number in range(5)]
    names: list[Any] = list(COSTS)[: 1 + seed % 3]
    budgets = {
        name: int(rng.uniform(0.9, 1.6) * least(layers, name)) if least(layers, name) > 0 else least(layers, name) + 60
        for name in names
    }
    fitting = [
        sum(one.effect for one in choice)
        for choice in itertools.product(*layers)
        if all(sum(map(COSTS[name], choice)) <= most for name, most in budgets.items())
    ]
    found = select(layers, budgets)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert all(one in several for one, several in zip(found.chosen, layers, strict=True))
    assert all(sum(map(COSTS[name], found.chosen)) <= most for name, most in budgets.items())
    assert found.effect == pytest.approx(min(fitting), abs=1e-3)
    assert 0 <= found.gap <= 1e-2


@pytest.mark.parametrize("changes", [0, 1, 2, 5])
def test_a_choice_near_to_another_one(changes: int) -> None:
    rng = np.random.default_rng(changes)
    rows = [list(candidates(site, [get_mode("spatial"), get_mode("pointwise")], (0.3, 0.5, 0.8))) for site in SITES[1:]]
    layers = [
        [
            Measured.as_it_is(several[0].site),
            *(Measured(row.site, row, row.parameters, row.macs, 0, 0.0, float(rng.normal())) for row in several),
        ]
        for several in rows
    ]
    before = [several[0] for several in layers]
    fitting = [
        sum(one.effect for one in choice)
        for choice in itertools.product(*layers)
        if sum(one.row is not None for one in choice) <= changes
    ]
    found = select(layers, {"params": 10_000}, before, changes)
    assert found is not None
    assert sum(one.row is not None for one in found.chosen) <= changes
    assert found.effect == pytest.approx(min(fitting), abs=1e-3)


def test_forms_that_break_the_output_are_never_chosen() -> None:
    rng = np.random.default_rng(0)
    (kept, *_) = layer(rng, 0, negative=False)
    broken = Measured(kept.site, None, 1, 1, -1000, 0.0, math.inf)
    found = select([[broken, kept]], {"params": kept.parameters})
    assert found is not None
    assert found.chosen == (kept,)
    assert select([[broken]], {"params": 100}) is None


@pytest.mark.parametrize("mode", ["depthwise", "spatial", "cp", "pointwise"])
def test_candidates_are_the_largest_ranks_within_shares(mode: str) -> None:
    for site in SITES:
        found = list(candidates(site, [get_mode(mode)], (0.3, 0.31, 0.6, 1.0)))
        assert len({row.rank for row in found}) == len(found)
        assert not any(map(does_not_pay, found))
        for row in found:
            weights = _weights(row.mode.layers(site.conv, row.rank), site.conv)
            assert weights <= site.conv.weight_size


def _weights(layers: Any, conv: Conv) -> int:
    return parameters(layers) - (conv.out_channels if conv.bias else 0)


def test_what_c_prints_is_lost_and_what_python_prints_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with quiet():
        os.write(1, b"a line for developers\n")
    print("behind")
    assert capfd.readouterr().out == "before\nbehind\n"
