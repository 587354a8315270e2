"""The baselines of paper 004 from real exporters, every name a random string: each mode finds the blocks it should.

``tests/exported`` holds narrow twins without values in their weights, made by ``models/sobolewski_exported.py``:
PyTorch's older exporter with BatchNormalization kept, the newer one that folds it, and tf2onnx (Keras, NHWC).
"""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from random_examples import DEEP
from scripts import load_script
from sobolewski_light import counts, light_step

import onnxsep
from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.matches import Rejected
from onnxsep.engine.narrowing import plan_narrowing
from onnxsep.engine.planning import Options, make_plan
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.errors import OptionError
from onnxsep.graph.shapes import skeleton
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model, load
from onnxsep.modes import BlockMode, WidthMode, available_modes

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 0.125
TWINS = sorted(path.stem for path in (ROOT / "tests" / "exported").glob("*.onnx"))
MODES = [name for name, mode in available_modes().items() if isinstance(mode, BlockMode | WidthMode)]
SETTINGS: dict[str, dict[str, Any]] = {  # what is asked for must be narrower than the twins
    "narrow-stem": {"channels": 4},
    "narrow-inner": {"layers": "7,8,15,16", "widths": "4,5,6,7"},
    "narrow-stages": {"widths": "4,6,8,16"},
    "expand-before-gap": {"channels": 16},
}


@cache
def script(name: str) -> ModuleType:
    return load_script(ROOT / "models" / f"{name}.py")


@cache
def twin(name: str) -> Model:
    """A baseline, an export of it, or a shared model."""
    if name in ("resnet101", "vgg19"):
        return Model(script("sobolewski").build(name, width=WIDTH))
    if name.startswith("cifar10"):
        return load(ROOT.parent / "shared" / "models" / f"{name}.onnx")
    return Model(script("sobolewski_exported").with_weights(onnx.load(ROOT / "tests" / "exported" / f"{name}.onnx")))


@cache
def sites_of(name: str, *, linear: bool) -> Sites:
    return find_sites(twin(name), linear_layers=linear)


@cache
def found(which: str, name: str) -> Any:
    """The numbers of the layers by which the blocks are named that a mode would replace; widths of a width mode."""
    mode = available_modes()[name].with_settings(SETTINGS.get(name))
    if isinstance(mode, WidthMode):
        try:
            plan = plan_narrowing(twin(which), sites_of(which, linear=True), mode, weigh=False)
        except OptionError:
            return "none of these"
        return [(group.channels, len(group.names), kept) for group, kept in plan.narrower]
    assert isinstance(mode, BlockMode)
    sites = sites_of(which, linear=mode.linear_layers)
    options = Options(RankPolicy.parse("paper"), include_first=True, force=True)
    plan_of_blocks = make_plan(
        find_blocks(twin(which), sites, mode), mode, options, lambda site: pytest.fail("reads a weight")
    )
    numbers = {item.place: number for number, item in enumerate(sites.found)}
    assert all(isinstance(row, Replacement) or row.reason for row in plan_of_blocks.rows)
    return [numbers[row.site.anchor.place] for row in plan_of_blocks.replacements]


USUAL = {"conv-head", "inverted-bottleneck", "late-stride", "narrow-stages"}  # of the large network: kinds of patterns
EVERY = [(name, mode) for name in TWINS for mode in MODES if DEEP or name.startswith("vgg") or mode in USUAL]


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_blocks_are_found_whatever_the_exporter_and_the_names(name: str, mode: str) -> None:
    network, exporter = name.split("_")
    wanted = found(network, mode)
    if mode in ("fold", "bias-to-norm") and exporter == "dynamo":
        wanted = []  # BatchNormalization is folded
    assert found(name, mode) == wanted


def test_what_is_found_in_the_baselines() -> None:
    """The twins are compared with these: so the comparison is not one of nothing with nothing."""
    resnet = {mode: found("resnet101", mode) for mode in MODES if DEEP or mode in USUAL}
    vgg = {mode: found("vgg19", mode) for mode in MODES}
    firsts = resnet["inverted-bottleneck"]
    assert len(firsts) == 33
    for mode in ("ghost-bottleneck", "dice-bottleneck", "fire-bottleneck"):
        assert resnet.get(mode, firsts) == firsts
    nothing = {mode for mode, blocks in resnet.items() if blocks in ([], "none of these")}
    assert nothing == {"bias-to-norm", "gap-head"} & resnet.keys()
    assert len(resnet["late-stride"]) == 3
    assert [kept for *_, kept in resnet["narrow-stages"]] == [4, 6, 8, 16]
    assert resnet["conv-head"] == [104]
    every = list(range(16))
    for mode in ("bias-to-norm", "dice", "fire", "fold", "ghost", "squeeze-excitation"):
        assert vgg[mode] == every
    assert vgg["gap-head"] == [16]
    assert vgg["inverted-bottleneck"] == vgg["conv-head"] == []


KEPT = [name for name in TWINS if not name.endswith("dynamo")]  # BatchNormalization, or a Mul and an Add for it
FITTING = {"resnet101": ("r03", "r04", "r05"), "vgg19": ("v04", "v06", "v07", "v09", "v13")}  # for narrow networks too
RECIPES = [(name, recipe) for name in KEPT for recipe in FITTING[name.split("_")[0]] if DEEP or recipe == "v04"]


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_recipes_make_networks_of_equal_counts_of_them(name: str, recipe: str) -> None:
    """Parameters and FLOPs as paper 004 counts them, of what a recipe makes of an export and of the baseline."""
    found = []
    for one in (name, name.split("_")[0]):
        light = skeleton(twin(one))
        light.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        for step in onnxsep.read_recipe(f"sobolewski-{recipe}").steps:
            if step.name == "rewrite":
                light = light_step(light, step)  # type: ignore[arg-type]
        found.append(counts(light))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_of_their_exporters_and_bare_of_names(name: str) -> None:
    graph = twin(name).proto.graph
    operators = [node.op_type for node in graph.node]
    kept = {"torchscript": "BatchNormalization", "dynamo": "", "tf2onnx": "Mul"}[name.split("_")[1]]
    assert operators.count("Conv") == (104 if name.startswith("resnet101") else 16)
    assert ("BatchNormalization" in operators) == (kept == "BatchNormalization")
    assert ("Mul" in operators) == (kept == "Mul")
    names = [value.name for value in (*graph.input, *graph.output)] + [tensor.name for tensor in graph.initializer]
    names += [each for node in graph.node for each in (node.name, *node.input, *node.output) if each]
    assert all(len(each) == 6 and each.isalpha() for each in names)
    assert not twin(name).proto.producer_name


@pytest.mark.parametrize(
    ("name", "mode", "nodes"),
    [
        *[("resnet101_dynamo", "conv-head", {"ReduceMean": -1, "Conv": 1})][:DEEP],
        ("vgg19_tf2onnx", "squeeze-excitation", {"Sigmoid": 16}),
        ("vgg19_tf2onnx", "bias-to-norm", {"Mul": -16, "Add": -16, "BatchNormalization": 16}),
        ("vgg19_tf2onnx", "fold", {"Mul": -16, "Add": -16}),
    ],
)
def test_exact_modes_are_exact_there(name: str, mode: str, nodes: dict[str, int]) -> None:
    """Run in ONNX Runtime beside the twin."""
    before = [node.op_type for node in twin(name).proto.graph.node]
    result = onnxsep.rewrite(twin(name).proto, mode=mode, verify="full")
    after = [node.op_type for node in result.model.proto.graph.node]
    assert {op_type: after.count(op_type) - before.count(op_type) for op_type in nodes} == nodes
    assert result.report.verification.relative is not None
    assert result.report.verification.relative < 1e-4


@pytest.mark.skipif(not DEEP, reason="half of it is in the next test")
def test_stages_are_narrowed_where_a_reshape_names_their_channels() -> None:
    """The newer exporter writes [-1, 256] where others flatten: the 256 goes with the channels."""
    result = onnxsep.rewrite(twin("resnet101_dynamo").proto, mode="narrow-stages", settings=SETTINGS["narrow-stages"])
    assert result.report.verification.ran
    reshape = next(node for node in result.model.proto.graph.node if node.op_type == "Reshape")
    shape = next(one for one in result.model.proto.graph.initializer if one.name == reshape.input[1])
    assert onnx.numpy_helper.to_array(shape).tolist() == [-1, 16]


def test_a_shape_that_two_reshapes_share_stays() -> None:
    """It cannot be another one for one of them."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 2, 4, 4] x) => (float[n, 3] y, float[n, 64] z)
    <float[4, 2, 3, 3] a, float[64, 3] w, int64[2] s> {
      c = Conv<pads = [1, 1, 1, 1]>(x, a)
      r = Relu(c)
      f = Reshape(r, s)
      y = Gemm(f, w)
      b = Concat<axis = 1>(x, x)
      z = Reshape(b, s)
    }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("a", (4, 2, 3, 3)), ("w", (64, 3))):
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 64]), "s"))
    row = onnxsep.rewrite(proto, mode="narrow-stem", settings={"channels": 3}).report.convs[0]
    assert "'s', which is also used in another way" in row.reason
    proto.graph.node.pop()
    proto.graph.node.pop()
    proto.graph.output.pop()
    result = onnxsep.rewrite(proto, mode="narrow-stem", settings={"channels": 3})
    made = next(one for one in result.model.proto.graph.initializer if one.name == "s")
    assert onnx.numpy_helper.to_array(made).tolist() == [-1, 48]
    assert result.report.verification.ran


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("mode", MODES)
def test_exports_of_one_trained_network_have_the_same_blocks(mode: str) -> None:
    """ResNet-20 by both exporters of PyTorch; names and heads differ."""
    assert found("cifar10_resnet20_ts", mode) == found("cifar10_resnet20_dynamo", mode)


REASONS = {  # why modes that are not for basic blocks, or not for these, leave ResNet-20 alone
    "grouped-pointwise": "its kernel is 3 x 3, not 1 x 1",
    "late-stride": "where BatchNormalization or Conv is expected",  # its skips are slices and zeros
}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("mode", list(REASONS))
def test_basic_blocks_are_no_bottlenecks_and_the_reason_is_told(mode: str) -> None:
    name, chosen = "cifar10_resnet20_ts", available_modes()[mode]
    assert isinstance(chosen, BlockMode)
    rows = find_blocks(twin(name), sites_of(name, linear=chosen.linear_layers), chosen)
    assert found(name, mode) == []
    reasons = [row.reason for row in rows if isinstance(row, Rejected)] or list(REASONS.values())
    assert any(REASONS[mode] in reason for reason in reasons)


@pytest.mark.skipif(not DEEP, reason="test_inspect_blocks has the small ones")
@pytest.mark.usefixtures("shared")
def test_basic_blocks_are_blocks_to_the_modes_that_take_any() -> None:
    blocks = onnxsep.inspect(twin("cifar10_resnet20_ts")).blocks
    basic = [block for block in blocks if block.kind == "basic block"]
    assert len(basic) == len(found("cifar10_resnet20_ts", "inverted-bottleneck")) == 9
    assert all("inverted-bottleneck" in block.applies for block in basic)
    assert all("grouped-pointwise" in block.reasons for block in basic)
