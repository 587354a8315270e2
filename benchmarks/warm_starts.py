"""What trained weights are worth where blocks are replaced: fine-tuned from them, and from random new blocks.

    python benchmarks/warm_starts.py --cache FOLDER [--only resnet20/ghost cifar/fire ...] [--images 10000]
    python benchmarks/warm_starts.py --cache FOLDER --latency

Each mode replaces what it can in a trained network. *Warm*: fitted block by block to 500 training images without
labels, with ``tune_blocks`` where the table says so. *Random*: the same structure, new blocks at random, all other
weights as trained: what dice and inverted-bottleneck give without data; for the other modes normal weights with the
variance 2 / inputs, scaled to the old outputs (gates of squeeze-excitation are not scaled). Then both learn the
original's outputs for two epochs, without labels: the same images, batches, crops and rates. Accuracy is that on the
1,000 lossless test images, which nothing is chosen by; the difference is paired, image by image.

Every file and row is kept in the cache: the same command goes on where it was ended.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cifar
import numpy as np
from random_start import redrawn

import onnxsep
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 500
SPREAD_SAMPLES = 100
TRAINING: dict[str, Any] = {"optimizer": "adam", "rate": 0.003, "batch": 128, "precision": "bfloat16", "validation": 0}


@dataclass(frozen=True)
class Case:
    """A mode, its settings, and what its random start is."""

    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 0  # of tune_blocks
    own_start: bool = False  # the mode's own start without data is random
    scaled: bool = True
    base: str = ""  # another case, whose trained result it rewrites


CASES = {
    "spatial": Case({"rank": "in"}),
    "depthwise": Case({"rank": 1}),
    "ghost": Case(steps=100),
    "fire": Case({"settings": {"squeeze": 0.5}}, steps=100),
    "squeeze-excitation": Case(scaled=False),
    "inverted-bottleneck": Case(own_start=True),
    "dice": Case(own_start=True),
    "grouped-pointwise": Case(base="depthwise"),
}
NETWORKS = {
    "resnet20": cifar.NETWORKS["resnet20"],
    "cifar": cifar.Network(str(ROOT / "models" / "cifar" / "cifar10_resnet20.onnx")),
}


@dataclass(frozen=True)
class Bench:
    """A network, the data, and where results are kept."""

    name: str
    data: cifar.Cifar
    options: argparse.Namespace

    @property
    def network(self) -> cifar.Network:
        """The network."""
        return NETWORKS[self.name]

    @property
    def rows(self) -> str:
        """What files of trained models are called by."""
        return f"{self.options.images}x{self.options.epochs}-seed{self.options.seed}"

    def kept(self, file: str, make: Callable[[], Model]) -> Model:
        """The model of a file of the cache, made where it is not there."""
        path: Path = self.options.cache / f"{self.name}-{file}.onnx"
        if not path.exists():
            began = time.perf_counter()
            model = make()
            onnxsep.save(model, path)
            print(f"  {path.name}: {time.perf_counter() - began:.0f} s", flush=True)
        return onnxsep.load(path)

    def source(self, mode: str) -> Model:
        """What a mode rewrites."""
        case = CASES[mode]
        return self.trained(case.base, "warm") if case.base else onnxsep.load(self.network.path)

    def start(self, mode: str, kind: str) -> Model:
        """A rewritten network before its training."""
        case, images = CASES[mode], self.network.images(self.data.train[:SAMPLES])
        source = self.source(mode)
        given: dict[str, Any] = {"mode": mode, "force": True, "verify": "none", **case.options}
        if kind == "warm":
            fit = {"data": images, "seed": self.options.seed} | ({"tune_blocks": case.steps} if case.steps else {})
            return self.kept(f"{mode}-warm", lambda: onnxsep.rewrite(source, **given, **fit).model)
        if case.own_start:
            return self.kept(f"{mode}-random", lambda: onnxsep.rewrite(source, **given).model)
        few = images[:SPREAD_SAMPLES] if case.scaled else None
        warm = self.start(mode, "warm")
        return self.kept(f"{mode}-random", lambda: redrawn(source, warm, few, self.options.seed))

    def trained(self, mode: str, kind: str) -> Model:
        """The same after the epochs."""
        start = self.start(mode, kind)
        file = f"{mode}-{kind}-{self.rows}"

        def make() -> Model:
            checkpoint = self.options.cache / f"{self.name}-{file}.checkpoint"
            result = onnxsep.finetune(
                start,
                data=self.training_images(),
                teacher=onnxsep.load(self.network.path),
                epochs=self.options.epochs,
                seed=self.options.seed,
                checkpoint=checkpoint,
                resume=True,
                **TRAINING,
            )
            checkpoint.unlink(missing_ok=True)
            return result.model

        return self.kept(file, make)

    def training_images(self) -> cifar.Floats:
        """Those of an epoch."""
        order = np.random.default_rng(self.options.seed).permutation(len(self.data.train))
        return self.network.images(self.data.train[order[: self.options.images]])

    def row(self, mode: str) -> dict[str, Any]:
        """What a mode gives, from the cache where it is there."""
        path: Path = self.options.cache / f"{self.name}-{mode}-{self.rows}.json"
        if not path.exists():
            right = {
                f"{when} {kind}": self._right(make(mode, kind))
                for kind in ("warm", "random")
                for when, make in (("before", self.start), ("after", self.trained))
            }
            original = onnxsep.load(self.network.path).proto.ByteSize()
            ahead = right["after warm"] - right["after random"]
            row = {
                **{key: float(values.mean()) for key, values in right.items()},
                "ahead": float(ahead.mean()),
                "ahead_error": float(ahead.std() / len(ahead) ** 0.5),
                "bytes": self.trained(mode, "warm").proto.ByteSize() / original,
            }
            path.write_text(json.dumps(row))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _right(self, model: Model) -> Any:
        return cifar.correct(model, self.network.images(self.data.test), self.data.labels).astype(float)

    def latencies(self) -> dict[str, float]:
        """Latency of each mode that was trained beside the original, one thread; measured where it is not known."""
        path: Path = self.options.cache / f"{self.name}-latency.json"
        modes = [mode for mode in CASES if (self.options.cache / f"{self.name}-{mode}-warm.onnx").exists()]
        known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        if self.options.latency and set(modes) - set(known):
            models = [onnxsep.load(self.network.path), *(self.start(mode, "warm") for mode in modes)]
            report = onnxsep.evaluate(
                [model.proto for model in models],
                data=self.network.images(self.data.test[:100]),
                memory=False,
                runtime=RuntimeOptions(threads=1),
            )
            times = [model.latency.median_ms for model in report.models if model.latency is not None]
            known = {mode: value / times[0] for mode, value in zip(modes, times[1:], strict=True)}
            path.write_text(json.dumps(known))
        return known


def table(bench: Bench, modes: list[str]) -> None:
    """A row for each mode whose training is done."""
    latencies = bench.latencies()
    print(
        f"\n{bench.name}, {bench.options.images:,} images, {bench.options.epochs} epochs, seed {bench.options.seed}\n"
    )
    print("| mode | steps | size | latency | before: warm | random | after: warm | random | ahead |")
    print("|---|---|---|---|---|---|---|---|---|")
    for mode in modes:
        row, case = bench.row(mode), CASES[mode]
        settings = {**case.options, **case.options.get("settings", {})}
        named = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "settings")
        cells = [
            f"{mode} ({named})" if named else mode,
            str(case.steps or ""),
            f"{row['bytes']:.3f}",
            f"{latencies[mode]:.2f}" if mode in latencies else "",
            *(_share(row[f"{when} {kind}"], bench) for when in ("before", "after") for kind in ("warm", "random")),
            f"{100 * row['ahead']:+.1f} +- {100 * row['ahead_error']:.1f}"
            + ("" if row["ahead"] > 2 * row["ahead_error"] else " (no win)"),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _share(share: float, bench: Bench) -> str:
    return f"{100 * share:.1f} +- {100 * (share * (1 - share) / len(bench.data.labels)) ** 0.5:.1f} %"


def main() -> None:
    """Make what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    every = [f"{network}/{mode}" for network in NETWORKS for mode in CASES]
    parser.add_argument("--only", nargs="+", default=every, choices=every, metavar="NETWORK/MODE")
    parser.add_argument("--images", type=int, default=10_000, help="that an epoch goes over")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", action="store_true", help="measure it too; for quiet machines")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    data = cifar.load()
    for name in NETWORKS:
        if modes := [one.split("/")[1] for one in options.only if one.split("/")[0] == name]:
            table(Bench(name, data, options), modes)


if __name__ == "__main__":
    main()
