"""The two tables of paper 004, ours beside the paper's: all 28 configurations, made from the baselines by the recipes.

    python benchmarks/paper004.py                      # both tables, counted and run in ONNX Runtime
    python benchmarks/paper004.py --only r09 v08       # some of them
    python benchmarks/paper004.py --width 0.25         # narrow twins: nothing to compare with, but seconds

Parameters and FLOPs are counted as the paper does (``count_parameters(..., "paper004")``, ``count_flops_paper004``);
of R15, V5, V8 and V12 those that are live, for a graph holds nothing that nobody reads. Each result is checked by
onnx.checker, run in ONNX Runtime with one thread on 16 images of noise, and timed. Accuracies are the paper's own, for
reference: the weights here are random.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

import onnxsep
from onnxsep.graph.counting import count_flops_paper004
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.running.runtime import Runner, RuntimeOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from sobolewski import build

NETWORKS = {"r": "resnet101", "v": "vgg19"}


class Row(NamedTuple):
    """What the paper says of a configuration, and what of it is live where that is less."""

    parameters: int
    flops: int
    accuracy: float
    live: int | None = None


PAPER = {
    "r01": Row(42_697_380, 2_520_408_064, 67.51),
    "r02": Row(59_245_412, 3_480_199_168, 70.81),
    "r03": Row(35_581_503, 2_141_768_704, 71.19),
    "r04": Row(21_424_767, 1_279_716_352, 62.80),
    "r05": Row(7_720_575, 420_932_608, 67.32),
    "r06": Row(2_439_355, 79_392_704, 67.86),
    "r07": Row(1_233_183, 63_136_384, 67.18),
    "r08": Row(919_327, 58_114_688, 66.52),
    "r09": Row(915_061, 53_746_304, 66.41),
    "r10": Row(458_010, 32_835_080, 65.65),
    "r11": Row(408_035, 29_890_656, 65.49),
    "r12": Row(1_432_035, 31_610_976, 66.35),
    "r13": Row(158_815, 12_926_528, 59.92),
    "r14": Row(1_182_815, 14_646_848, 61.45),
    "r15": Row(3_007_035, 160_403_112, 63.58, 2_998_587),
    "v01": Row(38_958_922, 417_652_736, 92.83),
    "v02": Row(20_040_522, 398_744_576, 92.69),
    "v03": Row(13_103_461, 256_034_816, 92.72),
    "v04": Row(2_285_413, 46_757_888, 89.13),
    "v05": Row(1_801_906, 40_221_696, 90.81, 1_800_530),
    "v06": Row(473_778, 10_990_592, 87.91),
    "v07": Row(473_798, 11_004_024, 87.74),
    "v08": Row(151_254, 4_802_680, 81.71, 145_750),
    "v09": Row(397_038, 9_431_592, 87.09),
    "v10": Row(341_742, 8_546_856, 86.66),
    "v11": Row(1_541_870, 10_050_088, 87.22),
    "v12": Row(1_351_382, 6_305_912, 83.65, 1_345_878),
    "v13": Row(260_710, 7_334_936, 66.93),
}


def carried_out(name: str, source: onnxsep.Model) -> onnxsep.Model:
    """What the steps of a recipe before training make of a baseline."""
    for step in onnxsep.read_recipe(f"sobolewski-{name}").steps:
        if step.name == "rewrite":
            source = onnxsep.rewrite(source, **step.options, verify="none").model
    return source


def milliseconds(model: onnxsep.Model) -> float:
    """The median of five runs for one image, once it has run on 16."""
    runner = Runner(model, RuntimeOptions(threads=1))
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32), dtype=np.float32)
    logits = next(iter(runner({"image": images}).values()))
    assert len(logits) == len(images)
    assert np.isfinite(logits).all()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        runner({"image": images[:1]})
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1000


def lines(names: list[str], width: float) -> Iterator[str]:
    """A line for each configuration."""
    sources = {letter: onnxsep.load(build(NETWORKS[letter], width=width)) for letter in {name[0] for name in names}}
    for name in names:
        began, paper = time.perf_counter(), PAPER[name]
        model = carried_out(name, sources[name[0]])
        seconds = time.perf_counter() - began
        onnx.checker.check_model(model.proto, full_check=True)
        light = infer_shapes(skeleton(model), {"image": (1, 3, 32, 32)})
        parameters, flops = count_parameters(light, "paper004"), count_flops_paper004(light).total
        wanted = paper.live or paper.parameters
        equal = "" if width != 1 else "equal" if (parameters, flops) == (wanted, paper.flops) else "DIFFERENT"
        live = "" if paper.live is None else f" ({paper.live:,} live)"
        yield (
            f"| {name.upper()} | {parameters:,} | {paper.parameters:,}{live} | {flops:,} | {paper.flops:,} | {equal} |"
            f" {paper.accuracy:.2f} | {milliseconds(model):.1f} | {seconds:.1f} |"
        )


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description="The two tables of paper 004, ours beside the paper's.")
    parser.add_argument("--only", nargs="+", choices=list(PAPER), metavar="NAME", help="such as r09 v08")
    parser.add_argument("--width", type=float, default=1.0, help="share of the channels, default 1")
    args = parser.parse_args()
    wanted = args.only or list(PAPER)
    for letter, network in NETWORKS.items():
        names = [name for name in wanted if name[0] == letter]
        if names:
            print(f"\n{network}\n\n| | parameters | paper | FLOPs | paper | | paper's accuracy | ms | made in s |")
            print("|---|---|---|---|---|---|---|---|---|")
        for line in lines(names, args.width):
            print(line, flush=True)


if __name__ == "__main__":
    main()
