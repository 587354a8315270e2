"""From a trained network to int8, step by step: rewritten, fine-tuned, quantised; accuracy, size and latency.

    python benchmarks/compression.py [--networks resnet20,resnet56] [--modes spatial,depthwise] [--epochs 16]

All 3 x 3 Convs but the first are replaced (depthwise: one term; spatial: a third of the parameters), fitted to 500
training images; then the whole network learns the original's outputs on all training images, the spatial one for a
quarter of the epochs; then it is quantised with 500 training images. Accuracy is that on 1,000 test images, which
nothing is chosen by; the difference from the original is paired, image by image. The last table holds all models of a
network, measured in turn in one run, with one thread and with two.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar
import numpy as np

import onnxsep
from onnxsep.evaluation.report import EvaluatedModel
from onnxsep.model.io import Model
from onnxsep.model.tensors import storage_bytes, tensor_protos
from onnxsep.running.runtime import RuntimeOptions

RANKS: dict[str, dict[str, Any]] = {"depthwise": {"rank": 1, "refine": 2}, "spatial": {"rank": 0.33}}
SHORTER = {"depthwise": 1, "spatial": 4}  # spatial loses little, so it is trained for a quarter of the epochs
TRAINING: dict[str, Any] = {"optimizer": "adam", "rate": 0.003, "batch": 128, "batch_norm": "insert"}
CALIBRATION = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--modes", default="spatial,depthwise")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=None, help="train on so many of the images; all by default")
    parser.add_argument("--precision", default="float32", help="of the training: float32, bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        type=Path,
        default=None,
        metavar="DIR",
        help="keep the models before int8 here, and use those that are there",
    )
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    data = cifar.load()
    for name in options.networks.split(","):
        network = cifar.NETWORKS[name]
        print(f"{name}: {network.file}", flush=True)
        models = {"original": onnxsep.load(network.path)}
        for mode in options.modes.split(","):
            models |= chain(mode, name, models["original"], network, data, options)
        table(models, network, data)


def chain(
    mode: str, name: str, source: Model, network: cifar.Network, data: cifar.Cifar, options: argparse.Namespace
) -> dict[str, Model]:
    """Every stage of one mode by name."""
    image = source.proto.graph.input[0].name
    picked = np.random.default_rng(options.seed).permutation(len(data.train))
    few = {image: network.images(data.train[picked[:CALIBRATION]])}
    whole = picked[: options.images]

    def stage(label: str, make: Callable[[], Any]) -> Model:
        file = None if options.keep is None else options.keep / f"{name}-{mode}-{label}.onnx"
        if file is not None and file.exists():
            print(f"  {mode}, {label}: {file}", flush=True)
            return onnxsep.load(file)
        began = time.perf_counter()
        result = make()
        print(f"  {mode}, {label}: {time.perf_counter() - began:.0f} s", flush=True)
        for epoch in getattr(result.report, "epochs", ()):
            print(f"    epoch {epoch.epoch}: {epoch.training}; held out: {epoch.validation}; {epoch.seconds:.0f} s")
        if file is not None:
            result.save(file)
        model: Model = result.model
        return model

    def quantized(model: Model) -> Model:
        return onnxsep.quantize(model, data=few, samples=None, activations="uint8").model

    rewritten = stage(
        "rewritten",
        lambda: onnxsep.rewrite(
            source, mode=mode, data=few, force=True, verify="none", seed=options.seed, **RANKS[mode]
        ),
    )
    tuned = stage(
        "tuned",
        lambda: onnxsep.finetune(
            rewritten,
            data={image: network.images(data.train[whole])},
            labels=data.train_labels[whole],
            teacher=source,
            epochs=max(1, options.epochs // SHORTER[mode]),
            precision=options.precision,
            seed=options.seed,
            **TRAINING,
        ),
    )
    return {
        f"{mode} rewritten": rewritten,
        f"{mode} rewritten, int8": quantized(rewritten),
        f"{mode} tuned": tuned,
        f"{mode} tuned, int8": quantized(tuned),
    }


def table(models: dict[str, Model], network: cifar.Network, data: cifar.Cifar) -> None:
    """Measure all models side by side and print a row for each."""
    test = {models["original"].proto.graph.input[0].name: network.images(data.test)}
    reports = [
        onnxsep.evaluate(
            [model.proto for model in models.values()],
            data=test,
            labels=data.labels,
            memory=False,
            runs=50,
            runtime=RuntimeOptions(threads=threads),
        )
        for threads in (1, 2)
    ]
    first = reports[0].models[0]
    print(
        f"  {'':<24} {'bytes':>10} {'share':>6} {'weights':>8} {'parameters':>10} {'MACs':>11} {'right':>6}"
        f" {'difference':>18} {'latency, 1 thread':>18} {'2 threads':>16}"
    )
    for label, model, one, two in zip(models, models.values(), reports[0].models, reports[1].models, strict=True):
        weights = sum(storage_bytes(tensor) or 0 for tensor in tensor_protos(model.proto))
        assert one.top1 is not None
        paired = one.top1.against_first
        difference = (
            "" if paired is None else f"{100 * paired.difference:+.1f} +- {100 * paired.standard_error:.1f} points"
        )
        print(
            f"  {label:<24} {one.file_bytes:>10,} {one.file_bytes / first.file_bytes:>6.3f}"
            f" {weights / first.file_bytes:>8.3f} {one.parameters:>10,} {one.macs:>11,}"
            f" {100 * one.top1.share.value:>5.1f}% {difference:>18}"
            f" {_latency(one, first):>18} {_latency(two, reports[1].models[0]):>16}"
        )


def _latency(model: EvaluatedModel, first: EvaluatedModel) -> str:
    assert model.latency is not None
    assert first.latency is not None
    return f"{model.latency.median_ms:.2f} ms ({model.latency.median_ms / first.latency.median_ms:.2f})"


if __name__ == "__main__":
    main()
