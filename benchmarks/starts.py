"""Accuracy of networks that are rewritten without data: plain factorisations, and starts in a metric.

    python benchmarks/starts.py [--networks resnet20 resnet56 resnet8] [--images 1000] [--modes ...] [--ranks ...]

The first column of each pair is what an SVD (or the mode's own factorisation) of the weights gives, the second what
``rewrite`` does without data: errors are weighed as ``onnxsep.algebra.weight_metric`` explains. Shown are the accuracy
on CIFAR-10's test images, and the mean Kullback-Leibler divergence of the class probabilities from the original's,
which tells poor results apart better. Modes whose starts are plain (the depthwise ones) are not shown.
"""

import argparse

import cifar
import numpy as np

import onnxsep
from onnxsep.modes.base import Factors, Mode, Task, get_mode
from onnxsep.running.runtime import Runner, RuntimeOptions

_BATCH = 100


def plain(name: str) -> Mode:
    """The mode, with plain factorisations as its starts."""
    kind = type(get_mode(name))

    def from_weights(self: Mode, task: Task, rank: tuple[int, ...]) -> Factors:
        return self.factorize(task, rank)

    made: Mode = type(kind.__name__, (kind,), {"from_weights": from_weights})()
    return made


def log_probabilities(model: onnxsep.Model, images: cifar.Floats) -> cifar.Floats:
    """Of each class, [images, classes]."""
    run = Runner(model, RuntimeOptions(threads=1))
    stored = {tensor.name for tensor in model.proto.graph.initializer}
    source = next(value.name for value in model.proto.graph.input if value.name not in stored)
    scores = [next(iter(run({source: images[k : k + _BATCH]}).values())) for k in range(0, len(images), _BATCH)]
    logits = np.concatenate(scores).astype(np.float64).reshape(len(images), -1)
    if logits.min() >= 0 and np.allclose(logits.sum(axis=1), 1, atol=1e-3):  # the network ends in a Softmax
        logits = np.log(np.maximum(logits, 1e-12))
    logits -= logits.max(axis=1, keepdims=True)
    found: cifar.Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def main() -> None:
    """Print a line for each network, mode and rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(cifar.NETWORKS), choices=cifar.NETWORKS)
    parser.add_argument("--images", type=int, default=1_000)
    modes = ["spatial", "channel", "tucker", "linear-bottleneck", "cp"]
    parser.add_argument("--modes", nargs="+", default=modes)
    parser.add_argument("--ranks", nargs="+", default=["0.33", "0.5", "0.66", "0.8"])
    options = parser.parse_args()
    data = cifar.load()
    labels = data.labels[: options.images]
    for name in options.networks:
        network = cifar.NETWORKS[name]
        images = network.images(data.test[: options.images])
        source = onnxsep.load(network.path)
        wanted = log_probabilities(source, images)
        print(f"{name}: {(wanted.argmax(axis=1) == labels).mean():.1%}")
        for mode in options.modes:
            for rank in options.ranks:
                cells = []
                for kind in (plain(mode), get_mode(mode)):
                    made = onnxsep.rewrite(source, mode=kind, rank=rank, verify="none").model
                    found = log_probabilities(made, images)
                    divergence = (np.exp(wanted) * (wanted - found)).sum(axis=1).mean()
                    cells.append(f"{(found.argmax(axis=1) == labels).mean():6.1%} KL {divergence:6.3f}")
                print(f"{name:9} {mode:18} {rank:5}  {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
