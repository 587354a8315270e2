"""The baselines of paper 004 without values in their weights, and what modes make of them: for counts alone."""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from scripts import load_script

from onnxsep.compression.steps import Rewrite
from onnxsep.engine.blocks import matches
from onnxsep.engine.narrowing import plan_narrowing
from onnxsep.engine.planned_costs import edited
from onnxsep.engine.planning import Options, Plan, make_plan
from onnxsep.engine.sites import find_sites
from onnxsep.engine.slicing import take_out_sizes
from onnxsep.graph.counting import count_flops_paper004
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import infer_shapes, skeleton, stub
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model
from onnxsep.modes import WidthMode, available_modes
from onnxsep.modes.base import AnyMode


@cache
def script() -> ModuleType:
    return load_script(Path(__file__).resolve().parents[1] / "models" / "sobolewski.py")


def baseline(network: str) -> onnx.ModelProto:
    """resnet101 or vgg19, batch 1."""
    made, kind = script(), script()._Graph
    drawn = kind._weight

    def without_values(graph: Any, name: str, shape: tuple[int, ...], *_: float) -> str:
        graph.weights.append(stub(name, TensorProto.FLOAT, shape))
        return name

    kind._weight = without_values
    try:
        return skeleton(made.build(network, batch=1))
    finally:
        kind._weight = drawn


def rewritten(light: onnx.ModelProto, mode: AnyMode, **options: Any) -> tuple[onnx.ModelProto, Plan]:
    """What a mode makes of it, first Convs included, and the plan; no weight is read."""
    asked = {"rank": "paper", **options}
    choice = Options(RankPolicy.parse(asked.pop("rank")), include_first=True, recurse=True, **asked)
    assert not isinstance(mode, WidthMode)
    model = Model(light)
    sites = find_sites(model, linear_layers=mode.linear_layers)
    plan = make_plan(matches(model, sites, mode), mode, choice, lambda site: pytest.fail("it reads a weight"))
    return edited(sites, plan)[0], plan


def counts(light: onnx.ModelProto) -> tuple[int, int]:
    """Parameters and FLOPs as the paper counts them."""
    flops = count_flops_paper004(infer_shapes(light))
    assert not flops.unknown
    return count_parameters(light, "paper004"), flops.total


def light_step(light: onnx.ModelProto, wanted: Rewrite) -> onnx.ModelProto:
    """What a step of a recipe makes of a model without values; it must find something to do."""
    asked = wanted.resolved(0)
    mode = available_modes()[asked["mode"]].with_settings(asked["settings"])
    if isinstance(mode, WidthMode):
        sites = find_sites(Model(light), linear_layers=True)
        narrowing = plan_narrowing(Model(light), sites, mode, weigh=False)
        assert narrowing.narrower, wanted
        return take_out_sizes(light, narrowing.channels, narrowing.gone)
    options = {name: asked[name] for name in ("force", "include_first", "recurse", "only")}
    choice = Options(RankPolicy.parse(asked["rank"]), **options)
    known = infer_shapes(light)
    sites = find_sites(Model(known), linear_layers=mode.linear_layers)
    plan = make_plan(matches(Model(known), sites, mode), mode, choice, lambda site: pytest.fail("it reads a weight"))
    assert plan.replacements, wanted
    return edited(sites, plan)[0]
