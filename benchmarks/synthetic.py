"""Accuracy after a rewrite that is fitted to images that are made up, beside none, noise, and real ones.

    python benchmarks/synthetic.py [--networks resnet20 resnet8 resnet56] [--images 1000] [--forms spatial,0.33 ...]

CIFAR-10 networks of ../shared with their own preprocessing, joint fits, no training. The columns: the weights alone;
200 images of noise whose amplitudes fall as 1 / frequency^1.6, the best of five exponents on ResNet-20 in spatial at
0.33; 200 synthetic images (``--data synthetic:200``); 200 training images. The last line of a network is its int8 with
ranges from each of these. Test images, at most 1,000, decide; one standard error is at most 1.6 points.
"""

import argparse

import cifar
import numpy as np
import numpy.typing as npt

import onnxsep
from onnxsep.data.synthetic import dead_leaves

_COUNT, _SIDE, _EXPONENT = 200, 32, 1.6
_MODES = {"spatial": "0.33 0.5", "depthwise": "1 2", "cp": "0.33", "linear-bottleneck": "0.33", "tucker": "0.5"}
_FORMS = [f"{mode},{rank}" for mode, ranks in _MODES.items() for rank in ranks.split()]


def noise() -> npt.NDArray[np.uint8]:
    """Coloured noise with the moments of photographs, uint8 [images, side, side, 3]."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE))
    frequency[0, 0] = 1 / _SIDE
    shared, own = random.standard_normal((_COUNT, 1, _SIDE, _SIDE)), random.standard_normal((_COUNT, 3, _SIDE, _SIDE))
    found = np.fft.ifft2(np.fft.fft2(shared + own / 2) / frequency**_EXPONENT).real
    found = 0.46 + 0.25 * (found - found.mean()) / found.std()
    return np.asarray(np.clip(255 * found, 0, 255).transpose(0, 2, 3, 1), np.uint8)


def synthetic() -> npt.NDArray[np.uint8]:
    """What ``--data synthetic:200`` gives, uint8 [images, side, side, 3]."""
    return np.stack([np.asarray(dead_leaves(number, (_SIDE, _SIDE))) for number in range(1, _COUNT + 1)])


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet8", "resnet56"], choices=cifar.NETWORKS)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--forms", nargs="*", default=_FORMS, help="mode,rank")
    options = parser.parse_args()
    images = cifar.load()
    labels = images.labels[: options.images]
    for name in options.networks:
        network = cifar.NETWORKS[name]
        source, test = onnxsep.load(network.path), network.images(images.test[: options.images])
        data = [None, *map(network.images, (noise(), synthetic(), images.train[:_COUNT]))]

        def right(model: onnxsep.Model, test: cifar.Floats = test) -> str:
            return f"{cifar.correct(model, test, labels).mean():.1%}"

        print(
            f"| {name}, {right(source)} | weights alone | noise | synthetic | real |\n|---|---|---|---|---|", flush=True
        )
        for mode, rank in (form.split(",") for form in options.forms):
            made = [onnxsep.rewrite(source, mode=mode, rank=rank, data=one, verify="none").model for one in data]
            print(f"| {mode}, {rank} | {' | '.join(map(right, made))} |", flush=True)
        made = [onnxsep.quantize(source, data=one, verify="none").model for one in data if one is not None]
        print(f"| int8 | | {' | '.join(map(right, made))} |\n", flush=True)


if __name__ == "__main__":
    main()
