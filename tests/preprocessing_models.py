"""Models whose true preprocessing is known, and images for them: digits, in any range; small ones with statistics."""

from pathlib import Path

import digits
import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from onnxsep.model.io import Model, load

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"  # takes pixels from 0 to 1


def write_digits(folder: Path, count: int, *, classes: bool = False) -> Path:
    """Test images as PNG files, each digit in its turn: flat, or in a folder for each class."""
    test = digits.split()[1]
    order = np.argsort(np.argsort(test.labels, kind="stable") % 45, kind="stable")[:count]
    for number in order:
        place = folder / str(test.labels[number]) if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(test.images[number, 0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


def digits_for(scale: float) -> Model:
    """The digits model that takes pixels times ``scale``: the weight of the first Conv undoes the difference."""
    model = load(DIGITS)
    first = next(node for node in model.proto.graph.node if node.op_type == "Conv")
    for tensor in model.proto.graph.initializer:
        if tensor.name == first.input[1]:
            weight = numpy_helper.to_array(tensor) / np.float32(255 * scale)
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))
    return Model(model.proto)


def parse(graph: str, **values: object) -> Model:
    """A model from ONNX's text; ``values`` become initialisers, in float32."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return Model(proto)


def saved(model: Model, path: Path) -> Path:
    """The model in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model.proto, path)
    return path
