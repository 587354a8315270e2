"""How right is ResNet-20 as a small int8 file: pruned, with fewer channels, in one form, and after a little training?

    python benchmarks/small_files.py [--train] [--plan PLAN.toml]

Prints, for each way of making it smaller, the share of the 1,000 test images of CIFAR-10 that are right, bytes of the
int8 file with short names, and of the same zipped; with ``--train`` that after two epochs on 8,000 training images, the
original as teacher, for those of about 7 % of the file (about 45 seconds each). Needs ../shared; --train needs torch.
"""

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cifar import NETWORKS, correct, load

import onnxsep
from onnxsep.running.runtime import RuntimeOptions

ONE = RuntimeOptions(threads=1)
FITTED, TRAINED = 200, 8000  # images
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as it is", {}),
    *((f"zeros {share}", {"sparsity": share}) for share in (0.5, 0.8)),
    *((f"channels {share}", {"sparsity": share, "channels": True}) for share in (0.2, 0.35, 0.5)),
    *((f"spatial {rank}", {"mode": "spatial", "rank": rank}) for rank in (0.5, 0.33)),
)
SMALL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("channels 0.75", {"sparsity": 0.75, "channels": True}),
    ("spatial 0.22", {"mode": "spatial", "rank": 0.22}),
    ("depthwise 1", {"mode": "depthwise", "rank": 1}),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--plan", type=Path)
    asked = parser.parse_args()
    network, data = NETWORKS["resnet20"], load()
    original, test = onnxsep.load(network.path), network.images(data.test)
    chosen = np.random.default_rng(0).choice(len(data.train), TRAINED, replace=False)
    images, labels = network.images(data.train[chosen]), data.train_labels[chosen].astype(np.int64)

    def made(options: dict[str, Any]) -> onnxsep.Model:
        if not options:
            return original
        if "sparsity" in options:
            return onnxsep.prune(original, **options, verify="none").model
        return onnxsep.rewrite(original, **options, data=images[:FITTED], verify="none", runtime=ONE).model

    def row(name: str, model: onnxsep.Model) -> None:
        small = onnxsep.quantize(
            model, data=images[:FITTED], activations="uint8", names="short", samples=100, verify="none", runtime=ONE
        ).model
        right = [100 * correct(one, test, data.labels).mean() for one in (model, small)]
        text = small.proto.SerializeToString()
        print(f"{name:34} {right[0]:5.1f} % {right[1]:5.1f} % {len(text):9,} {len(zlib.compress(text)):9,}", flush=True)

    def small_ones() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from SMALL
        if asked.plan is not None:
            yield "plan", {"plan": asked.plan, "refine": 2}

    print(f"{'':34} {'right':>7} {'int8':>7} {'bytes':>9} {'zipped':>9}")
    for name, options in () if asked.train else WAYS:
        row(name, made(options))
    for name, options in small_ones():
        row(name, model := made(options))
        if asked.train:
            trained = onnxsep.finetune(
                model,
                data=images,
                labels=labels,
                teacher=original,
                epochs=2,
                optimizer="adam",
                rate=0.003,
                batch=128,
                batch_norm="insert",
                validation=0.02,
                precision="bfloat16",
                runtime=ONE,
            ).model
            row("    two epochs of training", trained)


if __name__ == "__main__":
    main()
