"""Accuracy of trained CIFAR-10 networks whose blocks are replaced, from the weights alone and fitted; no fine-tuning.

    python benchmarks/blocks.py [--networks resnet20 resnet56] [--modes ghost fire=squeeze:0.25 ...] [--steps 100]

Each line: parameters after / before, the mean error of the blocks on samples that no fit has seen (|u - u'| / |u - mean
u|, each on what it reads), and the accuracy on the 1,000 lossless test images. Blocks are fitted one after the other to
500 training images without labels; ``--steps`` then trains each of them by itself (torch), which takes minutes.
"""

import argparse
import time
from typing import Any

import cifar
import numpy as np

import onnxsep

_MODES = ("ghost", "fire=squeeze:0.25", "inverted-bottleneck", "ghost-bottleneck", "fire-bottleneck", "dice-bottleneck")
_SAMPLES = 500


def line(network: cifar.Network, data: cifar.Cifar, mode: str, steps: int | None) -> str:
    """What a mode with its settings gives, fitted unless ``steps`` is None."""
    name, _, settings = mode.partition("=")
    given = dict(one.split(":") for one in settings.split(",") if one)
    started = time.perf_counter()
    fit: dict[str, Any] = {} if steps is None else {"data": network.images(data.train[:_SAMPLES]), "tune_blocks": steps}
    result = onnxsep.rewrite(network.path, mode=name, settings=given, force=True, verify="none", **fit)
    seconds, totals = time.perf_counter() - started, result.report.totals
    right = cifar.correct(result.model, network.images(data.test), data.labels)
    errors = [row.held_out_error for row in result.report.convs if row.held_out_error is not None]
    how = "weights alone" if steps is None else f"fitted, {steps} steps" if steps else "fitted"
    return (
        f"{mode:24} {how:18} parameters {totals.parameters_after / totals.parameters_before:.3f}  "
        f"error {np.mean(errors) if errors else float('nan'):.3f}  accuracy {100 * right.mean():.1f} % "
        f"+- {100 * right.std() / len(right) ** 0.5:.1f}  {seconds:.0f} s"
    )


def main() -> None:
    """Print the lines of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20"], choices=cifar.NETWORKS)
    parser.add_argument("--modes", nargs="+", default=list(_MODES), metavar="MODE[=SETTING:VALUE,...]")
    parser.add_argument("--steps", type=int, default=0, help="of training each block behind its fit")
    options = parser.parse_args()
    data = cifar.load()
    for name in options.networks:
        print(name)
        for mode in options.modes:
            for steps in dict.fromkeys((None, 0, options.steps)):
                print(line(cifar.NETWORKS[name], data, mode, steps), flush=True)


if __name__ == "__main__":
    main()
