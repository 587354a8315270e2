"""The baselines of paper 004 without values in their weights, and what modes make of them: for counts alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
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
from onnxsep.modes import BlockMode, Mode, available_modes


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


@dataclass(frozen=True)
class Step:
    """A mode with its settings, on the Convs that are named."""

    mode: str
    only: tuple[str, ...] = ()
    given: Mapping[str, object] = field(default_factory=dict)


def step(mode: str, *only: str, **given: object) -> Step:
    return Step(mode, only, given)


def steps(light: onnx.ModelProto, *wanted: Step) -> onnx.ModelProto:
    """One mode after the other; each must find something to do."""
    for one in wanted:
        mode = available_modes()[one.mode]
        light, plan = rewritten(infer_shapes(light), mode.with_settings(one.given), force=True, only=one.only)
        assert plan.replacements, one
    return light


@dataclass(frozen=True)
class Thin:
    """One bottleneck of a thin ResNet-101: channels inside and behind it, stride, whether its skip is a Conv."""

    inner: int
    outputs: int
    stride: int
    projected: bool


def thin_blocks(outputs: tuple[int, ...], *, dropped: int = 0) -> list[Thin]:
    """Those of R10 to R15: the stride at the first block of a stage, whose inner channels in stages 2 and 3 lag."""
    found = []
    for stage, ((inner, blocks), out) in enumerate(zip(script().STAGES, outputs, strict=True)):
        for block in range(blocks):
            first = script().STAGES[stage - 1][0] if block == 0 and stage in (1, 2) else inner
            found.append(Thin(first, out, 2 if stage and not block else 1, not block))
    return found[: len(found) - dropped]


def thin_resnet(
    stem: int, blocks: Sequence[Thin], *, head: Sequence[int] = (), linear: bool = False
) -> onnx.ModelProto:
    """A ResNet of other widths than the baseline's, whose blocks are bottlenecks still: what modes that change widths
    give. ``head``: 1 x 1 Convs with BatchNormalization and Relu behind the blocks; ``linear``: a classifier without a
    bias, else the last of them is it."""
    kind = script()._Graph
    drawn = kind._weight

    def without_values(graph: Any, name: str, shape: tuple[int, ...], *_: float) -> str:
        graph.weights.append(stub(name, TensorProto.FLOAT, shape))
        return name

    kind._weight = without_values
    try:
        graph = kind(0)

        def layer(name: str, x: str, widths: tuple[int, int], kernel: int, stride: int = 1, act: bool = True) -> str:
            y = graph.conv(f"{name}.conv", x, widths, kernel, stride=stride, bias=False)
            y = graph.batch_norm(f"{name}.bn", y, widths[1])
            return str(graph.relu(f"{name}.relu", y) if act else y)

        x, before = layer("stem", "image", (3, stem), 3), stem
        for number, one in enumerate(blocks):
            name = f"block{number}"
            y = layer(f"{name}.1", x, (before, one.inner), 1)
            y = layer(f"{name}.2", y, (one.inner, one.inner), 3, one.stride)
            y = layer(f"{name}.3", y, (one.inner, one.outputs), 1, act=False)
            if one.projected:
                x = layer(f"{name}.skip", x, (before, one.outputs), 1, one.stride, act=False)
            x, before = graph.relu(f"{name}.relu", graph.node("Add", f"{name}.add", y, x)), one.outputs
        for number, width in enumerate(head):
            x, before = layer(f"head{number}", x, (before, width), 1), width
        x = graph.node("GlobalAveragePool", "pool", x)
        if linear:
            x = graph.node("Flatten", "flatten", x, axis=1)
            x = graph.node("MatMul", "fc", x, graph._weight("fc.weight", (before, 100)))
    finally:
        kind._weight = drawn
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, 3, 32, 32]), (x, None))
    ]
    body = helper.make_graph(graph.nodes, "thin", ends[:1], ends[1:], initializer=graph.weights)
    return skeleton(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
