"""Table III of paper 004: the weights that survive iterative pruning, 20 % of the remaining ones in each of ten steps.

    python benchmarks/iterative_pruning.py
    python benchmarks/iterative_pruning.py --course FOLDER [--images 5000] [--plot FILE.png]

With ``--course`` also the course of accuracy at small scale, iterative beside one-shot (``pruning_course.py``); the
folder is a cache, as that of ``warm_starts.py``: what is there is not made again.

Counted as ``onnxsep prune --step 0.2`` counts, with the same function: r <- r - round(0.2 r), over all Conv weights
together, from those of configurations R1 (ResNet-101), R11 and R13.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from onnxsep.model.io import Model
from onnxsep.pruning import surviving_weights

STEP, STEPS = 0.2, 10
GOALS = 4, 8  # steps, to 59 and to 83 %
CONFIGURATIONS = {"R1": 42_387_136, "R11": 388_587, "R13": 139_511}
"""Weights of all Convs, without linear layers, BatchNormalization and biases."""


def main() -> None:
    """Print the table: a line for each step, the sparsity that it reaches, the weights that are left."""
    left = {name: surviving_weights(weights, STEP, STEPS) for name, weights in CONFIGURATIONS.items()}
    print(f"{'step':>4} {'sparsity':>9} " + " ".join(f"{name:>12}" for name in CONFIGURATIONS))
    print(f"{0:>4} {0:>9.4f} " + " ".join(f"{weights:>12,}" for weights in CONFIGURATIONS.values()))
    for step in range(STEPS):
        sparsity = 1 - left["R1"][step] / CONFIGURATIONS["R1"]
        print(f"{step + 1:>4} {sparsity:>9.4f} " + " ".join(f"{counts[step]:>12,}" for counts in left.values()))
    options = _options()
    if options.cache is not None:
        _course(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--course", dest="cache", type=Path, metavar="FOLDER", help="the course of accuracy too")
    parser.add_argument("--networks", nargs="+", default=["original", "depthwise"], choices=["original", "depthwise"])
    parser.add_argument("--images", type=int, default=5_000, help="that an epoch goes over")
    parser.add_argument("--base-images", type=int, default=10_000, help="that the rewritten network was trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the courses (needs matplotlib)")
    return parser.parse_args()


def _course(options: argparse.Namespace) -> None:
    """Train what is missing, print the table, draw."""
    import cifar
    from pruning_course import Course, draw, table
    from warm_starts import Bench

    import onnxsep

    options.cache.mkdir(parents=True, exist_ok=True)
    data = cifar.load()
    given = argparse.Namespace(**vars(options), epochs=1)
    before = argparse.Namespace(**vars(options) | {"images": options.base_images}, epochs=2)
    bench, base = (Bench("resnet20", data, chosen) for chosen in (given, before))
    starts: dict[str, Callable[[], Model]] = {
        "original": lambda: onnxsep.load(bench.network.path),
        "depthwise": lambda: base.trained("depthwise", "warm"),
    }
    courses = {name: list(Course(bench, starts[name], name, STEP, GOALS).points()) for name in options.networks}
    print()
    table(courses, len(data.labels))
    if options.plot is not None:
        draw(courses, len(data.labels), options.plot)


if __name__ == "__main__":
    main()
