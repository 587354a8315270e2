"""The networks of ``uniform.py``: CIFAR-10 and ImageNet classifiers of ../shared, and the project's own U-Net."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cifar
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from real_networks.samples import PHOTOS, photographs

import onnxsep

MODELS = Path(__file__).resolve().parents[1] / "models"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """A network with its samples.

    Attributes:
        model: The network.
        calibration: Choices are made on these, and fits.
        test: What is said of them was measured on these.
        params: Budgets, as shares of the whole.
        latency: Likewise.
    """

    model: onnxsep.Model
    calibration: Floats
    test: Floats
    params: tuple[float, ...] = (0.2, 0.35, 0.5, 0.7)
    latency: tuple[float, ...] = (0.5, 0.6, 0.7, 0.85)


def of_cifar(name: str, samples: int, images: int) -> Subject:
    """A ResNet: training images calibrate, the lossless test images measure."""
    network, data = cifar.NETWORKS[name], cifar.load()
    chosen = np.random.default_rng(0).permutation(len(data.train))[:samples]
    test = network.images(data.test[:images])
    return Subject(onnxsep.load(network.path), network.images(data.train[chosen]), test)


def unet(samples: int, images: int) -> Subject:
    """The segmentation network of models/shapes."""
    sys.path.insert(0, str(MODELS / "shapes"))
    from shapes_data import draw

    model = onnxsep.load(MODELS / "shapes" / "shapes_unet.onnx")
    return Subject(model, draw("train", samples, seed=1).images, draw("test", images).images)


def squeezenet(samples: int, images: int) -> Subject:
    """SqueezeNet in float32, for any number of photographs at a time; its 3 x 3 Convs hold 45 % of the parameters."""
    model = onnxsep.Model(in_float32(onnx.load(cifar.SHARED / "models" / "squeezenet_fp16_caffe2.onnx")))
    fit, test = pixels("fit", samples), pixels("test", min(images, 150))
    return Subject(model, fit, test, (0.45, 0.6, 0.75, 0.9), (0.6, 0.7, 0.8, 0.9))


def pixels(part: str, count: int) -> Floats:
    """Photographs as Caffe's networks take them: [n, 3, 224, 224], BGR less the means."""
    means = np.array([104.00699, 116.66877, 122.67892], np.float32)[:, None, None]
    cut = [np.asarray(image.crop((16, 16, 240, 240)), np.float32) for image in photographs(part, count)]
    return np.stack([one.transpose(2, 0, 1)[::-1] - means for one in cut]).astype(np.float32)


def in_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a chain of Convs in float16, with float32 in its place, and any number of samples at a time."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    stored = {tensor.name for tensor in graph.initializer}
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        if value.name not in stored:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    return made


SUBJECTS: dict[str, Callable[[int, int], Subject]] = {
    "resnet8": lambda samples, images: of_cifar("resnet8", samples, images),
    "unet": unet,
    "resnet20": lambda samples, images: of_cifar("resnet20", samples, images),
    "squeezenet": squeezenet,
    "resnet56": lambda samples, images: of_cifar("resnet56", samples, images),
}


def subject(name: str, samples: int, images: int) -> Subject:
    """A network by its name; ends the program with a reason where ../shared is missing and needed."""
    if name == "squeezenet" and not PHOTOS.is_file():
        sys.exit("skipped: the folder ../shared with photographs is not there")
    return SUBJECTS[name](samples, images)
