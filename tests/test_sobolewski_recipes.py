"""All 28 configurations of paper 004: its counts to the last digit, of what the recipes make; no weight is computed."""

from functools import cache
from typing import Any

import onnx
import pytest
from sobolewski_light import baseline, counts, light_step

from onnxsep import read_recipe
from onnxsep.compression.steps import Rewrite
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.model.io import Model

# Parameters (trainable) and FLOPs as the paper counts them; of R15, V5, V8 and V12 those that are live.
PAPER = {
    "r01": (42_697_380, 2_520_408_064),
    "r02": (59_245_412, 3_480_199_168),
    "r03": (35_581_503, 2_141_768_704),
    "r04": (21_424_767, 1_279_716_352),
    "r05": (7_720_575, 420_932_608),
    "r06": (2_439_355, 79_392_704),
    "r07": (1_233_183, 63_136_384),
    "r08": (919_327, 58_114_688),
    "r09": (915_061, 53_746_304),
    "r10": (458_010, 32_835_080),
    "r11": (408_035, 29_890_656),
    "r12": (1_432_035, 31_610_976),
    "r13": (158_815, 12_926_528),
    "r14": (1_182_815, 14_646_848),
    "r15": (2_998_587, 160_403_112),
    "v01": (38_958_922, 417_652_736),
    "v02": (20_040_522, 398_744_576),
    "v03": (13_103_461, 256_034_816),
    "v04": (2_285_413, 46_757_888),
    "v05": (1_800_530, 40_221_696),
    "v06": (473_778, 10_990_592),
    "v07": (473_798, 11_004_024),
    "v08": (145_750, 4_802_680),
    "v09": (397_038, 9_431_592),
    "v10": (341_742, 8_546_856),
    "v11": (1_541_870, 10_050_088),
    "v12": (1_345_878, 6_305_912),
    "v13": (260_710, 7_334_936),
}


@cache
def after(network: str, steps: tuple[Rewrite, ...]) -> onnx.ModelProto:
    """What some steps make of a baseline."""
    return light_step(after(network, steps[:-1]), steps[-1]) if steps else baseline(network)


def made(name: str) -> onnx.ModelProto:
    steps = read_recipe(f"sobolewski-{name}").steps
    assert [step.name for step in steps] == ["rewrite"] * (len(steps) - 1) + ["finetune"]
    return after({"r": "resnet101", "v": "vgg19"}[name[0]], _shared(steps[:-1]))


def _shared(steps: Any) -> tuple[Rewrite, ...]:
    """The same object for the same options, so that configurations share what is made on the way to them."""
    return tuple(_STEPS.setdefault(str(step), step) for step in steps)


_STEPS: dict[str, Any] = {}


# What Table III prunes: weights of all Convs, no linear layers, BatchNormalization or biases.
PRUNED = {"r01": 42_387_136, "r11": 388_587, "r13": 139_511}


@pytest.mark.parametrize("name", list(PRUNED))
def test_the_conv_weights_that_table_iii_prunes(name: str) -> None:
    """``test_pruning`` counts on from them: 20 % of those that remain, ten times."""
    sites = find_sites(Model(made(name))).found
    assert sum(site.conv.weight_size for site in sites if isinstance(site, ConvSite)) == PRUNED[name]


@pytest.mark.parametrize("name", list(PAPER))
def test_the_counts_of_the_paper(name: str) -> None:
    assert counts(made(name)) == PAPER[name]
