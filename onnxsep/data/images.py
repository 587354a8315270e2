"""Images as values for a model's input.

What a training pipeline does with a file is done here too: the orientation in its EXIF data is applied, palettes become
colours, the alpha channel is dropped (torchvision, timm and Keras drop it), 16 bits become 8.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageOps

from onnxsep.data.preprocessing import Color, Layout, Preprocessing
from onnxsep.errors import DataError, spelled
from onnxsep.model.files import open_regular
from onnxsep.running.inputs import Dim, Input, dims_with_channels

_LARGEST_FRAME = 32  # times the area of the result
_FEWEST_STEPS = 16  # an integer input that tells fewer shades apart was given a scale for floats


@dataclass(frozen=True)
class Picture:
    """An image that lies in no file of its own.

    Attributes:
        name: What messages call it.
        load: Opens it.
        made_up: It shows nothing that a model was trained on.
    """

    name: str
    load: Callable[[], Image.Image]
    made_up: bool = False


@dataclass(frozen=True)
class ImageReader:
    """Reads image files as values for one input.

    Attributes:
        entry: The input.
        preprocessing: What the user said; what was left open there is decided in the other attributes.
        layout: Where the channels are.
        size: Height and width of the result in pixels.
        color: Order of the channels.
        mean: Subtracted after scaling, one value or one for each channel.
    """

    entry: Input
    preprocessing: Preprocessing
    layout: Layout
    size: tuple[int, int]
    color: Color
    mean: tuple[float, ...]

    @classmethod
    def for_input(cls, proto: onnx.ModelProto, entry: Input, preprocessing: Preprocessing) -> "ImageReader":
        """Decide what the preprocessing leaves open.

        Raises:
            DataError: the input cannot take images, the preprocessing does not fit it, or a decision needs the user.
        """
        dims = dims_with_channels(proto, entry)
        if dims is None or len(dims) != 4 or entry.dtype.kind == "b" or entry.dtype == np.object_:
            raise DataError(
                f"input {entry} takes no images, which need a numeric input of four dimensions: give arrays (.npz)"
            )
        layout = preprocessing.layout or _find_layout(entry, dims)
        channels, height, width = (dims[axis] for axis in ((1, 2, 3) if layout == "NCHW" else (3, 1, 2)))
        color = preprocessing.color or ("GRAY" if channels == 1 else "RGB")
        count = 1 if color == "GRAY" else 3
        if isinstance(channels, int) and channels != count:
            raise DataError(
                f"input {entry} has {channels} channels as {layout}, but images in {color} have {count}: check color"
                " and layout, or give arrays (.npz)"
            )
        mean = preprocessing.mean
        if len(mean) > count or len(preprocessing.std) > count:
            raise DataError(f"mean and std must be one value each: input {entry} takes one channel")
        if entry.dtype == np.int8 and preprocessing.scale is None and mean == (0.0,):
            mean = (128.0,)
        reader = cls(entry, preprocessing, layout, _find_size(entry, (height, width), preprocessing), color, mean)
        reader._check_values()
        return reader

    def __str__(self) -> str:
        height, width = self.size
        return f"images as {self.color}, {height} x {width} pixels, {self.layout}, {self.formula()}"

    def read(self, path: Path | Picture) -> np.ndarray:
        """The values of one image, in the input's type, without a batch axis: [C, H, W] or [H, W, C].

        Raises:
            DataError: the file cannot be decoded, or its pixels have no known range.
        """
        return self.values(self.pixels(path))

    def pixels(self, path: Path | Picture) -> np.ndarray:
        """The pixels of one image in the size of the input, uint8 [H, W, C], as RGB or grey, before all else.

        Raises:
            DataError: as :meth:`read`.
        """
        image = self._fit(_decode(path, "L" if self.color == "GRAY" else "RGB"))
        return np.asarray(image).reshape(*self.size, -1)

    def why_not(self, path: Path | Picture) -> str:
        """Why an image cannot be read; empty where it can."""
        try:
            self.pixels(path)
        except DataError as error:
            return str(error)
        return ""

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """What :meth:`read` gives for an image with these :meth:`pixels`."""
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        values = self._values(pixels)
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size == (width, height):
            return image
        if self.preprocessing.resize == "stretch":
            return image.resize((width, height), Image.Resampling.BILINEAR)
        # The smallest image of the same aspect that covers the frame, of which the middle is cut out.
        frame_height, frame_width = (math.floor(side / self.preprocessing.crop + 1e-6) for side in self.size)
        if frame_height * image.width >= frame_width * image.height:
            frame_width = frame_height * image.width // image.height
        else:
            frame_height = frame_width * image.height // image.width
        top, left = round((frame_height - height) / 2), round((frame_width - width) / 2)
        if frame_height * frame_width > _LARGEST_FRAME * height * width:  # a very long image: make only the middle
            down, right = image.height / frame_height, image.width / frame_width
            box = (left * right, top * down, (left + width) * right, (top + height) * down)
            return image.resize((width, height), Image.Resampling.BILINEAR, box)
        resized = image.resize((frame_width, frame_height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + width, top + height))

    def _values(self, pixels: np.ndarray) -> np.ndarray:
        """Values of uint8 pixels [..., channels]."""
        dtype = self.entry.dtype
        # Integers are made in double precision and rounded; floats as training pipelines make them, in single.
        kind: Any = np.float32 if self.entry.is_float and dtype.itemsize <= 4 else np.float64
        scale = self.preprocessing.scale
        values = pixels.astype(kind)
        if scale is not None:
            values *= kind(scale)
        elif self.entry.is_float:
            values /= kind(255)
        values = (values - np.array(self.mean, kind)) / np.array(self.preprocessing.std, kind)
        return np.asarray(values if self.entry.is_float else np.rint(values), dtype)

    def formula(self) -> str:
        """What becomes of a pixel, in words."""
        scale = self.preprocessing.scale
        text = "pixel" if scale is None else f"pixel * {scale:g}"
        if scale is None and self.entry.is_float:
            text = "pixel / 255"
        mean, std = (_show(values) for values in (self.mean, self.preprocessing.std))
        text = text if mean == "0" else f"({text} - {mean})"
        return text if std == "1" else f"{text} / {std}"

    def _check_values(self) -> None:
        """Refuse a mean in other units than the scale's, and values that an integer input cannot hold."""
        scale = self.preprocessing.scale
        if self.entry.is_float:
            if scale is None and max(map(abs, (*self.mean, *self.preprocessing.std))) > 1:
                raise DataError(
                    f"mean {_show(self.mean)} and std {_show(self.preprocessing.std)} do not suit pixels from 0 to 1,"
                    f" which the default scale of 1/255 gives for input {self.entry}. If they are for pixels from"
                    " 0 to 255, set scale to 1"
                )
            return
        ends = np.array([[0.0], [255.0]]) * (1.0 if scale is None else scale)
        low, high = np.rint((ends - np.array(self.mean)) / np.array(self.preprocessing.std))
        limits = np.iinfo(self.entry.dtype)
        if low.min() < limits.min or high.max() > limits.max or (high - low).min() < _FEWEST_STEPS:
            raise DataError(
                f"{self.formula()} gives {low.min():g} to {high.max():g}, but input {self.entry} holds integers from"
                f" {limits.min} to {limits.max}: set scale, mean and std for its range, or leave them out"
            )


def _show(values: tuple[float, ...]) -> str:
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"


def _find_layout(entry: Input, dims: tuple[Dim, ...]) -> Layout:
    first, last = dims[1] in (1, 3), dims[3] in (1, 3)
    if first == last:
        raise DataError(
            f"it is not clear where the channels of input {entry} are: set layout to NCHW or NHWC; if it does not take"
            " images, give arrays (.npz)"
        )
    return "NCHW" if first else "NHWC"


def _find_size(entry: Input, dims: tuple[Dim, Dim], preprocessing: Preprocessing) -> tuple[int, int]:
    height, width = preprocessing.size or dims
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(
            f"input {entry} leaves the size of images open: set size to a height and a width"
            f" ({spelled('size', hint='H,W')})"
        )
    if any(isinstance(dim, int) and dim != side for dim, side in zip(dims, (height, width), strict=True)):
        raise DataError(f"the size {height} x {width} does not fit input {entry}: leave it out")
    return height, width


def _decode(path: Path | Picture, mode: str) -> Image.Image:
    """The first frame of an image, upright, in mode RGB or L."""
    name = path.name if isinstance(path, Picture) else f"the image {str(path)!r}"
    try:
        if isinstance(path, Picture):
            return _in_mode(path.load(), name, mode)
        with open_regular(path) as file, Image.open(file) as opened:
            return _in_mode(opened, name, mode)
    except DataError:
        raise
    except Exception as error:  # for damaged files, Pillow's decoders raise whatever they stumble over
        raise DataError(f"cannot read {name}: {error or type(error).__name__}") from error


def _in_mode(opened: Image.Image, name: str, mode: str) -> Image.Image:
    sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(opened)
    if sixteen:
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{name} has pixels of 32 bits, for which no range is known: convert it to 8 bits")
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    return image.convert(mode)
