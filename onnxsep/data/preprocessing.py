"""How images become the values that a model was trained on: what the user says about it, checked.

A pixel p (0 to 255) becomes ``(p * scale - mean) / std``, as in torchvision and timm: ``mean`` and ``std`` are in the
units that the scale gives. Arrays are never preprocessed.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onnxsep.data.options import AUTO
from onnxsep.errors import OptionError
from onnxsep.options.tomlfile import check_keys, nearest, read_toml

Layout = Literal["NCHW", "NHWC"]
Color = Literal["RGB", "BGR", "GRAY"]
Resize = Literal["crop", "stretch"]
_WORDS: dict[str, tuple[str, ...]] = {"layout": get_args(Layout), "color": get_args(Color), "resize": get_args(Resize)}


@dataclass(frozen=True)
class Preprocessing:
    """How images are read for a model. Images only: arrays are taken as they are.

    Attributes:
        scale: Factor for the pixels, which are 0 to 255. None: 1/255 for float inputs (values from 0 to 1) and 1 for
            integer inputs. A float model that takes 0 to 255, as many from Keras do, needs ``scale = 1``.
        mean: Subtracted after scaling, one value or one for each channel, in the order of ``color``. With no scale
            and no mean given, an int8 input gets the pixels minus 128, as in TensorFlow Lite.
        std: Divided by after that, one value or one for each channel.
        layout: None: the axis of 1 or 3 channels in the model's input.
        size: Height and width of the input in pixels. None: those of the model's input.
        color: Order of the channels. None: RGB for three channels, GRAY for one.
        resize: What happens to images of another size (one that has the size already is not touched). ``crop``:
            resized with their aspect kept, then cut at the centre: the usual way for classifiers (torchvision, timm).
            ``stretch``: resized to the size in each direction: usual for detectors. Both bilinear, antialiased.
        crop: With ``crop``, the share of the resized image's shorter side that is kept: 0.875 is 224 out of 256, the
            default of torchvision and timm; 1 keeps all of it.

    Raises:
        OptionError: a value is out of range.
    """

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    size: tuple[int, int] | None = None
    color: Color | None = None
    resize: Resize = "crop"
    crop: float = 0.875

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise OptionError(f"scale must be a positive number, not {self.scale}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3):
                raise OptionError(f"{name} must be one value, or three (one for each channel), not {len(values)}")
            if not all(map(math.isfinite, values)):
                raise OptionError(f"{name} must be finite, not {values}")
        if min(self.std) <= 0:
            raise OptionError(f"std must be positive, not {self.std}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise OptionError(f"size must be a height and a width of at least 1 pixel, not {self.size}")
        if not 0 < self.crop <= 1:
            raise OptionError(f"crop must be above 0 and at most 1, not {self.crop}")
        for name, words in _WORDS.items():
            word = getattr(self, name)
            if word not in words and not (word is None and name != "resize"):
                raise OptionError(f"{name} must be one of {', '.join(words)}, not {word!r}{nearest(str(word), words)}")

    @property
    def leaves_values_open(self) -> bool:
        """Whether nothing is said of what becomes of a pixel: no scale, mean, std or order of the channels."""
        return (self.scale, self.mean, self.std, self.color) == (None, (0.0,), (1.0,), None)

    def keys(self) -> dict[str, Any]:
        """What differs from the defaults, as keys of a TOML file."""
        default = Preprocessing()
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in given.items()
            if value != getattr(default, key)
        }

    @classmethod
    def of(cls, given: "AnyPreprocessing | None") -> "Preprocessing | None":
        """What a user gives in Python: this itself, the path of a TOML file, its keys and values, or "auto" for None.

        Raises:
            OptionError: as :meth:`load` and :meth:`from_values`.
        """
        if given is None or isinstance(given, Preprocessing):
            return given
        if given == AUTO:  # a file of this name is "./auto"
            return None
        if isinstance(given, str | os.PathLike):
            return cls.load(Path(given))
        if isinstance(given, Mapping):
            return cls.from_values(given)
        raise OptionError(
            f"preprocessing must be a Preprocessing, the path of a TOML file or a dict, not {type(given).__name__}"
        )

    @classmethod
    def load(cls, path: Path) -> "Preprocessing":
        """Read a TOML file that has the attributes as its keys, such as ``mean = [0.485, 0.456, 0.406]``.

        Raises:
            OptionError: the file cannot be read or parsed, a key is unknown, or a value cannot be used.
        """
        return cls.from_values(read_toml(Path(path)), where=str(path))

    @classmethod
    def from_values(cls, values: Mapping[str, object], where: str = "preprocessing") -> "Preprocessing":
        """Make it from what a user wrote: values of a TOML file, or texts from the command line.

        Args:
            values: By attribute. Numbers may be texts, also fractions such as "1/255"; lists may be texts such as
                "0.485,0.456,0.406" or "224x224"; words may be in any case; a size of one number is square.
            where: Begins the messages.

        Raises:
            OptionError: a key is unknown or a value cannot be used.
        """
        check_keys(values, [field.name for field in dataclasses.fields(cls)], where)
        try:
            return cls(**{key: _parse(key, value) for key, value in values.items()})
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from None


class Decided(Preprocessing):
    """What a run has decided on: it is not looked for again, nor judged."""

    @classmethod
    def on(cls, found: Preprocessing) -> "Decided":
        """The same, decided on."""
        return cls(**dataclasses.asdict(found))


AnyPreprocessing = Preprocessing | str | os.PathLike[str] | Mapping[str, object]


def _parse(key: str, value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if key in _WORDS:
        word = str(value)
        return next((known for known in _WORDS[key] if known.lower() == word.lower()), word)
    if key in ("scale", "crop"):
        return _number(key, value)
    if isinstance(value, str):
        value = value.replace("x", ",").split(",") if key == "size" else value.split(",")
    items = value if isinstance(value, Sequence) else [value]
    numbers = tuple(_number(key, item) for item in items)
    if key != "size":
        return numbers
    if not all(number.is_integer() for number in numbers):
        raise OptionError(f"size must be whole numbers of pixels, not {value!r}")
    return tuple(map(int, numbers * 2 if len(numbers) == 1 else numbers))


def _number(key: str, value: object) -> float:
    try:
        if isinstance(value, str):
            above, _, below = value.partition("/")
            return float(above) / float(below or 1)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise OptionError(f"{key}: {value!r} is not a number")
