"""Plans with blocks of several nodes among their candidates, beside plans of single layers, at equal budgets.

    python benchmarks/block_plans.py --network resnet20 --targets params=.26 params=.15 latency=.5 --cache FOLDER
    python benchmarks/block_plans.py --network vgg.onnx ...          # of benchmarks/vgg.py

For each budget two plans, from the same 500 training images without labels (seed 0): of the usual forms of layers, and
of these and the block modes that keep what comes in and goes out. Then what each is on the 1,000 test images, with no
training, and which blocks were chosen. All that is measured is kept in FOLDER, and the rows that are done: the same
command goes on after an interruption. One thread.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from cifar import NETWORKS, Network, correct, load

import onnxsep
from onnxsep.errors import TargetError
from onnxsep.planner.forms import USUAL
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.scores import paired

BLOCKS = (
    *("ghost", "fire", "dice", "grouped-pointwise"),
    *("inverted-bottleneck", "ghost-bottleneck", "fire-bottleneck", "dice-bottleneck"),
)
ONE_THREAD = RuntimeOptions(threads=1)


def main() -> None:
    """Print two rows for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", default="resnet20", help="a name, or a file that takes images as that network does"
    )
    parser.add_argument("--targets", nargs="+", default=["params=.26", "latency=.5"])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--modes", nargs="+", default=list(USUAL), help="forms of single layers")
    parser.add_argument("--blocks", nargs="+", default=list(BLOCKS), help="forms of blocks")
    asked = parser.parse_args()
    network = NETWORKS.get(asked.network, Network(asked.network))
    source = network.path if asked.network in NETWORKS else Path(asked.network)
    images = load()
    pixels = network.images(images.test)
    chosen = np.random.default_rng(0).permutation(len(images.train))[: asked.samples]
    data = network.images(images.train[chosen])
    before = correct(onnxsep.load(source), pixels, images.labels)
    asked.cache.mkdir(parents=True, exist_ok=True)
    rows = asked.cache.parent / f"{asked.cache.name}.rows.json"
    known = json.loads(rows.read_text()) if rows.is_file() else {}
    print(f"{source.name}: {100 * before.mean():.1f} % of {len(before)} test images\n")
    print(
        "| budget | forms | parameters | time | KL | right | blocks that were chosen |\n|---|---|---|---|---|---|---|"
    )
    for target in asked.targets:
        for name, modes in (("layers", asked.modes), ("layers and blocks", [*asked.modes, *asked.blocks])):
            key = f"{source.name} {target} {name} {asked.rounds} {asked.samples}"
            if key not in known:
                known[key] = _row(source, target, modes, data, asked, before, pixels, images.labels)
                rows.write_text(json.dumps(known, indent=1))
            print(f"| {target} | {name} | {known[key]} |", flush=True)


def _row(  # type: ignore[no-untyped-def]
    source: Path, target: str, modes: list[str], data, asked: argparse.Namespace, before, pixels, labels
) -> str:
    try:
        found = onnxsep.plan(
            source,
            target=target,
            data=data,
            modes=modes,
            samples=asked.samples,
            rounds=asked.rounds,
            cache=asked.cache,
            runtime=ONE_THREAD,
        )
    except TargetError as error:
        return f"cannot be had: {error}"
    done = onnxsep.rewrite(source, plan=found.plan, data=data, samples=asked.samples, verify="none", runtime=ONE_THREAD)
    right = correct(done.model, pixels, labels)
    lost = paired(right, before)
    blocks = Counter(layer.mode for layer in found.report.layers if layer.mode in BLOCKS)
    time = found.report.latency
    assert found.report.measured is not None
    totals = done.report.totals
    return " | ".join(
        (
            f"{totals.parameters_after / totals.parameters_before:.3f}",
            "" if time is None or time.measured is None else f"{time.measured:.3f}",
            f"{found.report.measured.value:.4f}",
            f"{100 * right.mean():.1f} (lost {-100 * lost.difference:.1f} +- {100 * lost.standard_error:.1f})",
            ", ".join(f"{count} {name}" for name, count in blocks.items()) or "none",
        )
    )


if __name__ == "__main__":
    main()
