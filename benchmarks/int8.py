"""int8 of rewritten CIFAR-10 networks beside their fp32: right answers, agreement, and the paired difference.

    python benchmarks/int8.py [--networks resnet20,resnet8] [--seed 0]

All 3 x 3 Convs but the first are replaced, factors fitted to 500 training images (joint), not fine-tuned; ranges and
biases come from the same images. Counts are of the 1,000 test images, which nothing is chosen by. The difference is
int8 minus fp32 in points, with its 95 % interval: 1.96 standard errors of the paired difference.
"""

import argparse

import cifar
import numpy as np
import numpy.typing as npt

import onnxsep
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.running.scores import paired

LINES = (("original", ""), ("spatial", "paper"), ("depthwise", "3"), ("channel", "0.5"))
IMAGES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet8")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = cifar.load()
    for name in options.networks.split(","):
        network = cifar.NETWORKS[name]
        source = onnxsep.load(network.path)
        picked = np.random.default_rng(options.seed).permutation(len(data.train))[:IMAGES]
        feed = {source.proto.graph.input[0].name: network.images(data.train[picked])}
        test = network.images(data.test)
        print(f"{name}: {network.file}, {len(test)} test images")
        print(
            f"  {'':<10} {'rank':>5} {'bias corr.':>10} {'fp32':>5} {'int8':>5} {'agree':>6} {'difference':>10}"
            f" {'95 % interval':>16} {'won':>4} {'lost':>4} {'bytes':>8} {'ratio':>6}"
        )
        for mode, rank in LINES:
            model = source
            if mode != "original":
                model = onnxsep.rewrite(source, mode=mode, rank=rank, data=feed, force=True, verify="none").model
            before = classes(model, test)
            for correct in (False, True):
                small = onnxsep.quantize(model, data=feed, samples=None, bias_correction=correct).model
                print(
                    f"  {mode:<10} {rank:>5} {'yes' if correct else 'no':>10} " + row(model, small, before, test, data)
                )


def row(model: Model, small: Model, before: npt.NDArray[np.int64], test: cifar.Floats, data: cifar.Cifar) -> str:
    """Right answers of both, and how they differ."""
    after = classes(small, test)
    found = paired(after == data.labels, before == data.labels)
    middle, half = 100 * found.difference, 196 * found.standard_error
    size = small.proto.ByteSize()
    return (
        f"{np.count_nonzero(before == data.labels):>5} {np.count_nonzero(after == data.labels):>5}"
        f" {np.mean(before == after):>6.3f} {middle:>+10.2f} {f'{middle - half:+.2f} to {middle + half:+.2f}':>16}"
        f" {found.won:>4} {found.lost:>4} {size:>8,} {size / model.proto.ByteSize():>6.3f}"
    )


def classes(model: Model, images: cifar.Floats) -> npt.NDArray[np.int64]:
    """The class that a model gives to each image."""
    runner, name = Runner(model, RuntimeOptions()), model.proto.graph.input[0].name
    scores = [next(iter(runner({name: images[i : i + 100]}).values())) for i in range(0, len(images), 100)]
    return np.asarray(np.concatenate(scores).argmax(axis=1))


if __name__ == "__main__":
    main()
