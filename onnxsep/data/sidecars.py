"""What files beside a model say about its preprocessing.

Looked for in the model's folder, and in the folder above where that one is called "onnx", as model hubs have it:

- ``MODEL.preprocess.toml`` for MODEL.onnx: this project's own, with the keys of :class:`Preprocessing`. It wins.
- ``preprocessor_config.json`` of Hugging Face's image processors;
- ``config.json`` of timm: mean and std of its ``pretrained_cfg``.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.usual import are_near
from onnxsep.errors import DataError, OptionError, spelled
from onnxsep.model.files import open_regular

_LARGEST = 1 << 24  # bytes of a sidecar
_HUGGING_FACE, _TIMM = "preprocessor_config.json", "config.json"


@dataclass(frozen=True)
class Said:
    """What somebody says about the preprocessing of a model.

    Attributes:
        preprocessing: What is said.
        where: The file, or the metadata, in words.
        notes: What of it cannot be followed.
    """

    preprocessing: Preprocessing
    where: str
    notes: tuple[str, ...] = ()


def own_sidecar(model: Path) -> Path:
    """Where a preprocessing of a model is written for later runs."""
    return model.with_name(f"{model.stem}.preprocess.toml")


def read_sidecars(model: Path) -> Said | None:
    """What files beside a model say; None where there are none about images.

    Raises:
        DataError: one of them is broken, or two contradict each other.
    """
    own = own_sidecar(model)
    if own.is_file():
        try:
            return Said(Preprocessing.load(own), f"{own.name!r} beside the model")
        except OptionError as error:
            raise DataError(f"{error}. The file stands beside the model: correct or remove it") from None
    folder = model.absolute().parent
    folders = [folder, folder.parent] if folder.name == "onnx" else [folder]
    found = []
    for name, parse in _PARSERS.items():
        path = next((one / name for one in folders if (one / name).is_file()), None)
        place = "beside" if path is not None and path.parent == folder else "above"
        if path is not None and (said := _parsed(path, place, parse)) is not None:
            found.append(said)
    if len(found) == 2 and not are_near(found[0].preprocessing, found[1].preprocessing):
        first, second = (f"{one.where} says {shown(one.preprocessing)}" for one in found)
        raise DataError(
            f"two files beside the model contradict each other: {first}, and {second}. Say which is right:"
            f" {spelled('mean')} and {spelled('std')}, or a file {own.name!r}"
        )
    return found[0] if found else None


def shown(preprocessing: Preprocessing) -> str:
    """The values in words."""
    keys = {key: value for key, value in preprocessing.keys().items() if key in ("scale", "mean", "std", "color")}
    return ", ".join(f"{key} {_text(value)}" for key, value in keys.items()) or "0 to 1"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(f"{one:g}" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parsed(path: Path, place: str, parse: Callable[[Mapping[str, Any]], Said | None]) -> Said | None:
    where = f"{path.name!r} {place} the model"
    advice = f"correct or remove it, or say the preprocessing yourself ({spelled('mean')}, {spelled('std')}, ...)"
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(_LARGEST).decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}, {error.strerror or error}: {advice}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{str(path)!r}, which stands {place} the model, is no JSON ({reason}): {advice}") from error
    if not isinstance(content, Mapping):
        return None
    try:
        said = parse(content)
    except (OptionError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{str(path)!r}, which stands {place} the model, cannot be used: {error}; {advice}") from error
    return said if said is None else replace(said, where=where)


def from_hugging_face(content: Mapping[str, Any]) -> Said | None:
    """An image processor's configuration; None for what is not about images.

    Raises:
        OptionError: a value cannot be used.
    """
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    about_images = "Image" in kind or "image_mean" in content or "rescale_factor" in content
    if not about_images or "feature_size" in content:  # the last: of sound
        return None
    factor = _number(content, "rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if content.get("do_normalize", "image_mean" in content):
        mean, std = _numbers(content, "image_mean", 0.5), _numbers(content, "image_std", 0.5)
    if content.get("rescale_offset") or content.get("offset"):  # p * factor - 1, and then the mean
        mean = tuple(one + 1 for one in mean)
    values: dict[str, Any] = {"scale": None if math.isclose(factor, 1 / 255, rel_tol=1e-6) else factor}
    values |= {"mean": mean, "std": std, "color": "BGR" if content.get("do_flip_channel_order") else None}
    resized = _side(content.get("size"))
    cropped = _side(content.get("crop_size")) if content.get("do_center_crop") else None
    if isinstance(content.get("crop_pct"), int | float):
        values["crop"] = float(content["crop_pct"])
    elif cropped and resized:
        values["crop"] = min(1.0, cropped / resized)
    elif content.get("do_resize", True) and resized:
        values["resize"] = "stretch"
    return Said(Preprocessing(**values), "", _interpolated(content.get("resample")))


def from_timm(content: Mapping[str, Any]) -> Said | None:
    """A timm model's configuration; None for another one.

    Raises:
        OptionError: a value cannot be used.
    """
    inner = content.get("pretrained_cfg", content)
    if not isinstance(inner, Mapping) or "mean" not in inner or "std" not in inner:
        return None
    values: dict[str, Any] = {"mean": _numbers(inner, "mean", 0.0), "std": _numbers(inner, "std", 1.0)}
    if isinstance(inner.get("crop_pct"), int | float):
        values["crop"] = float(inner["crop_pct"])
    if inner.get("crop_mode") == "squash":
        values["resize"] = "stretch"
    return Said(Preprocessing(**values), "", _interpolated(inner.get("interpolation")))


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Said | None]] = {_HUGGING_FACE: from_hugging_face, _TIMM: from_timm}


def _interpolated(word: object) -> tuple[str, ...]:
    if word in (None, "bilinear", 2):
        return ()
    name = {0: "nearest", 1: "lanczos", 3: "bicubic"}.get(word, str(word)) if isinstance(word, int) else str(word)
    return (f"it asks for {name} interpolation; images of another size are resized bilinearly",)


def _side(value: object) -> float | None:
    """The shorter side in pixels, of the several forms that a size has."""
    if isinstance(value, Mapping):
        sides = [value.get(key) for key in ("shortest_edge", "height", "width")]
        value = [side for side in sides if isinstance(side, int | float)]
    if isinstance(value, list | tuple):
        value = min((side for side in value if isinstance(side, int | float)), default=None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _number(content: Mapping[str, Any], key: str, default: float) -> float:
    value = content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{key} is {value!r} and no number")
    return float(value)


def _numbers(content: Mapping[str, Any], key: str, default: float) -> tuple[float, ...]:
    value = content.get(key, default)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
        raise OptionError(f"{key} is {value!r} and no list of numbers")
    return tuple(map(float, values))
