"""Accuracy of CIFAR-10 ResNets after a rewrite with calibration data, no fine-tuning.

    python benchmarks/calibration.py [--networks resnet20,resnet56,resnet8] [--only depthwise] [--tune 750]

All 3 x 3 Convs but the first are replaced; 500 training images calibrate; accuracy is that on 1,000 test images, whose
standard error is about one point. "to reach" is what a plain implementation reaches (ten sweeps, one pass, no account
of the activations). The ratio is that of the parameters of the replaced Convs. Nothing is chosen by the test images.
"""

import argparse
import time
from typing import NamedTuple

import cifar
import numpy as np

import onnxsep


class Line(NamedTuple):
    """One row of the table."""

    mode: str
    rank: str
    init: str
    reach: str = ""
    refine: int = 0


LINES = (
    Line("depthwise", "1", "svd", "about 11"),
    Line("depthwise", "1", "response", "about 10"),
    Line("depthwise", "1", "compensated", "about 14"),
    Line("depthwise", "1", "joint", "64"),
    Line("depthwise", "1", "joint", "64", refine=2),
    Line("depthwise", "2", "joint", "84.5"),
    Line("depthwise", "3", "joint", "89.5"),
    Line("channel", "0.5", "joint", "85"),
    Line("channel", "0.33", "joint", "70"),
    Line("spatial", "0.5", "joint", "90.5"),
    Line("spatial", "0.33", "joint", "84"),
    Line("pointwise-depthwise", "1", "joint"),
    Line("depthwise-spatial", "2", "joint"),
    Line("spatial-depthwise", "paper", "joint"),
    Line("tucker", "0.33", "joint"),
    Line("cp", "0.149", "joint", "80.8"),
    Line("cp", "0.25", "joint", "89.3"),
    Line("cp", "0.33", "joint"),
    Line("linear-bottleneck", "0.133", "joint", "77.5"),
    Line("linear-bottleneck", "0.25", "joint", "89.6"),
    Line("lean", "paper", "joint"),
)

FEWER = ("depthwise", "channel", "spatial", "cp")  # for the other networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet56,resnet8")
    parser.add_argument("--only", default="", help="only lines whose mode and init hold this text, depthwise/joint")
    parser.add_argument("--tune", type=int, default=0, help="steps of tuning after each joint fit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = cifar.load()
    for name in options.networks.split(","):
        network = cifar.NETWORKS[name]
        source = onnxsep.load(network.path)
        test = network.images(data.test)
        whole = cifar.correct(source, test, data.labels)
        print(f"{name}: {network.file}, {100 * whole.mean():.1f} %")
        header = f"{'mode':<20} {'rank':>5} {'init':<14} {'ratio':>6} {'accuracy':>9} {'to reach':>9} {'seconds':>8}"
        print(f"  {header}  held-out error")
        lines = LINES if name == "resnet20" else [line for line in LINES if line.mode in FEWER and line.init == "joint"]
        for line in [line for line in lines if options.only in f"{line.mode}/{line.init}"]:
            print("  " + row(line, source, network, data, test, options.seed, 0, name == "resnet20"), flush=True)
            if options.tune and line.init == "joint":
                print("  " + row(line, source, network, data, test, options.seed, options.tune, False), flush=True)


def row(
    line: Line,
    source: onnxsep.Model,
    network: cifar.Network,
    data: cifar.Cifar,
    test: cifar.Floats,
    seed: int,
    tune: int,
    reach: bool,
) -> str:
    """Rewrite, measure, and say what came of it."""
    images = network.images(data.train[np.random.default_rng(seed).permutation(len(data.train))[:500]])
    start = time.perf_counter()
    result = onnxsep.rewrite(
        source,
        mode=line.mode,
        rank=line.rank,
        init=line.init,
        data={source.proto.graph.input[0].name: images},
        seed=seed,
        refine=line.refine,
        tune=tune,
        force=True,
        verify="none",
    )
    seconds = time.perf_counter() - start
    accuracy = 100 * cifar.correct(result.model, test, data.labels).mean()
    replaced = [conv for conv in result.report.convs if conv.status == "replaced"]
    before = sum(conv.parameters_before or 0 for conv in replaced)
    after = sum(conv.parameters_after or 0 for conv in replaced)
    error = np.mean([conv.held_out_error or 0.0 for conv in replaced])
    goal = line.reach if reach else ""
    init = line.init + ("+refine" if line.refine else "") + ("+tune" if tune else "")
    return (
        f"{line.mode:<20} {line.rank:>5} {init:<14} {after / before:6.3f} {accuracy:7.1f} % {goal:>9} {seconds:8.1f}"
        f"  {error:.3f}"
    )


if __name__ == "__main__":
    main()
