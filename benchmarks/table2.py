"""Table 2 of paper 002: reconstruction errors of one random Conv on random input, one method beside the other.

    python benchmarks/table2.py [--seeds 10]

A Conv of 64 inputs, 128 outputs and 3 x 3 taps with standard normal weights reads 3,000 columns of standard normal
patches; what is printed is ||Y - Y'|| / ||Y|| with Y centred, mean and standard deviation over the seeds. All methods
but channel decomposition are one depthwise separable pair, at the cost of 13 channels in between.
"""

import argparse

import numpy as np

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import Statistics
from onnxsep.layers.conv import Conv
from onnxsep.modes.base import Factors, Mode, Task, get_mode

OUTPUTS, INPUTS, TAPS, COLUMNS = 128, 64, 9, 3000
CONV = Conv(INPUTS, OUTPUTS, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
PAPER = {"Algorithm 1": 0.914, "Algorithm 2": 0.906, "channel, 14 in between": 0.887}
METHODS = {
    "weights alone": ("depthwise", 1, "svd"),
    "Algorithm 1": ("depthwise", 1, "response"),
    "Algorithm 2": ("depthwise", 1, "compensated"),
    "joint": ("depthwise", 1, "joint"),
    "channel, 13 in between": ("channel", 13, "response"),
    "channel, 14 in between": ("channel", 14, "response"),
    "channel, 15 in between": ("channel", 15, "response"),
}


def draw(rng: np.random.Generator) -> tuple[Array, Array]:
    """Weight [out, in, 3, 3], and centred patches [in * taps, columns]."""
    weight = rng.standard_normal(CONV.weight_shape)
    patches = rng.standard_normal((INPUTS * TAPS, COLUMNS))
    return weight, patches - patches.mean(axis=1, keepdims=True)


def statistics(weight: Array, patches: Array) -> Statistics:
    gram = patches @ patches.T / COLUMNS
    return Statistics(gram[None], (weight.reshape(OUTPUTS, -1) @ gram)[None])


def fitted(mode: Mode, rank: int, init: str, weight: Array, given: Statistics) -> Factors:
    if init == "svd":
        return mode.factorize(Task(CONV, weight), (rank,))
    start = mode.factorize(Task(CONV, weight), (rank,))
    return mode.fit(Task(CONV, weight, given, start=start, sweeps=60), (rank,), init)


def error(mode: Mode, factors: Factors, weight: Array, patches: Array) -> float:
    lost = (weight - mode.reconstruct(CONV, factors)).reshape(OUTPUTS, -1) @ patches
    return float(np.linalg.norm(lost) / np.linalg.norm(weight.reshape(OUTPUTS, -1) @ patches))


def errors(seed: int) -> dict[str, tuple[float, float]]:
    """For each method the error on the columns that it was fitted to, and on fresh ones."""
    rng = np.random.default_rng(seed)
    weight, patches = draw(rng)
    fresh = rng.standard_normal(patches.shape)
    given = statistics(weight, patches)
    found = {}
    for name, (mode_name, rank, init) in METHODS.items():
        mode = get_mode(mode_name)
        factors = fitted(mode, rank, init, weight, given)
        found[name] = (error(mode, factors, weight, patches), error(mode, factors, weight, fresh))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    count = parser.parse_args().seeds
    runs = [errors(seed) for seed in range(count)]
    print(f"{'method':<24} {'error':>16} {'paper':>7} {'fresh columns':>16}   ({count} seeds)")
    for name in METHODS:
        own, fresh = (np.array([run[name][which] for run in runs]) for which in (0, 1))
        paper = f"{PAPER[name]:.3f}" if name in PAPER else ""
        print(f"{name:<24} {own.mean():.4f} +- {own.std():.4f} {paper:>7} {fresh.mean():.4f} +- {fresh.std():.4f}")


if __name__ == "__main__":
    main()
