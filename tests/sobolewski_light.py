"""The baselines of paper 004 without values in their weights, and what modes make of them: for counts alone."""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from scripts import load_script

from onnxsep.engine.blocks import matches
from onnxsep.engine.planned_costs import edited
from onnxsep.engine.planning import Options, Plan, make_plan
from onnxsep.engine.sites import find_sites
from onnxsep.graph.counting import count_flops_paper004
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import infer_shapes, skeleton, stub
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model
from onnxsep.modes import BlockMode, Mode


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


def rewritten(light: onnx.ModelProto, mode: Mode | BlockMode, **options: Any) -> tuple[onnx.ModelProto, Plan]:
    """What a mode makes of it, first Convs included, and the plan; no weight is read."""
    asked = {"rank": "paper", **options}
    choice = Options(RankPolicy.parse(asked.pop("rank")), include_first=True, recurse=True, **asked)
    model = Model(light)
    sites = find_sites(model, linear_layers=mode.linear_layers)
    plan = make_plan(matches(model, sites, mode), mode, choice, lambda site: pytest.fail("it reads a weight"))
    return edited(sites, plan)[0], plan


def counts(light: onnx.ModelProto) -> tuple[int, int]:
    """Parameters and FLOPs as the paper counts them."""
    flops = count_flops_paper004(infer_shapes(light))
    assert not flops.unknown
    return count_parameters(light, "paper004"), flops.total
