"""The CIFAR-10 images and trained networks of ../shared, for the benchmarks that need real ones."""

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import onnxsep
from onnxsep.running.runtime import Runner, RuntimeOptions

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A trained network and the form of its input."""

    file: str
    nhwc: bool = False  # 0..255, channels last

    @property
    def path(self) -> Path:
        """Where its file is."""
        return SHARED / "models" / self.file

    def images(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Pixels [n, 32, 32, 3] as the network takes them."""
        if self.nhwc:
            return pixels.astype(np.float32)
        scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


NETWORKS = {
    "resnet8": Network("cifar10_resnet8_tf2onnx.onnx", nhwc=True),
    "resnet20": Network("cifar10_resnet20_ts.onnx"),
    "resnet56": Network("cifar10_resnet56_ts.onnx"),
}


@dataclass(frozen=True)
class Cifar:
    """Training images, of which some calibrate, and the 1,000 test images with their classes."""

    train: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def load() -> Cifar:
    """Unpack the images; ends the program with a reason where ../shared is missing."""
    script = SHARED / "data" / "unpack.py"
    if not script.is_file():
        sys.exit("skipped: the folder ../shared with trained networks and CIFAR-10 is not there")
    spec = importlib.util.spec_from_file_location("unpack", script)
    assert spec is not None
    assert spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cifar.npz")
        unpack.main(str(file))
        with np.load(file) as arrays:
            return Cifar(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])


def correct(model: onnxsep.Model, images: Floats, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which test images a model classifies correctly."""
    runner = Runner(model, RuntimeOptions())
    name = model.proto.graph.input[0].name
    scores = [next(iter(runner({name: images[i : i + 100]}).values())) for i in range(0, len(images), 100)]
    return np.asarray(np.concatenate(scores).argmax(axis=1) == labels)
