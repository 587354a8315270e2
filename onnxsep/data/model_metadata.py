"""What a model's own metadata say about its preprocessing.

- ``onnxsep.preprocessing``: this project's own, a JSON object with the keys of :class:`Preprocessing`;
- ``Image.NominalPixelRange`` and ``Image.BitmapPixelFormat``: of the ONNX standard (MetadataProps.md);
- ``model_info mean_values`` and ``model_info scale_values``: of OpenVINO's Model API, as OpenVINO Training Extensions
  and Geti write them, for pixels from 0 to 255;
- ``mean`` and ``std`` (also ``image_``, ``input_``, ``norm_``, ``pixel_``): numbers, for pixels from 0 to 1 or to 255,
  whichever they are in the range of;
- ``preprocessor_config``: a JSON object as in Hugging Face's file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.sidecars import Said, from_hugging_face
from onnxsep.errors import DataError, OptionError, spelled

OWN = "onnxsep.preprocessing"
_RANGES: dict[str, dict[str, Any]] = {
    "nominalrange_0_255": {"scale": 1.0},
    "normalized_0_1": {"scale": None},
    "normalized_1_1": {"scale": 1 / 127.5, "mean": (1.0,)},
    "nominalrange_16_235": {"scale": 219 / 255, "mean": (-16.0,)},
}
_FORMATS: dict[str, str | None] = {"rgb8": "RGB", "rgba8": "RGB", "bgr8": "BGR", "bgra8": "BGR", "gray8": "GRAY"}
_PAIRS = (("mean", "std"), *((f"{word}_mean", f"{word}_std") for word in ("image", "input", "norm", "pixel")))
_UNIT = 2.0  # means and stds for pixels from 0 to 1 are below


def read_metadata(proto: onnx.ModelProto) -> Said | None:
    """What the metadata of a model say; None where they say nothing.

    Raises:
        DataError: an entry of a known form cannot be used.
    """
    entries = {entry.key.lower(): entry for entry in proto.metadata_props}
    texts = {key: entry.value for key, entry in entries.items()}
    for read in (_own, _standard, _openvino, _pairs, _hugging_face):
        try:
            said = read(texts)
        except (OptionError, TypeError, ValueError, RecursionError) as error:
            advice = f"say the preprocessing yourself ({spelled('mean')}, {spelled('std')}, ...)"
            raise DataError(
                f"the model's metadata about its preprocessing cannot be used: {error}; {advice}"
            ) from error
        if said is not None:
            return replace(said, where=f"the model's metadata ({said.where})")
    return None


def _own(texts: Mapping[str, str]) -> Said | None:
    if OWN not in texts:
        return None
    content = json.loads(texts[OWN])
    if not isinstance(content, Mapping):
        raise OptionError(f"{OWN} is no JSON object")
    return Said(Preprocessing.from_values(content, OWN), OWN)


def _standard(texts: Mapping[str, str]) -> Said | None:
    given = texts.get("image.nominalpixelrange")
    if given is None:
        return None
    values = _RANGES.get(given.lower())
    if values is None:
        raise OptionError(f"Image.NominalPixelRange is {given!r}, and not one of {', '.join(_RANGES)}")
    order = texts.get("image.bitmappixelformat")
    if order is not None and order.lower() not in _FORMATS:
        raise OptionError(f"Image.BitmapPixelFormat is {order!r}, and not one of {', '.join(_FORMATS)}")
    color: Any = None if order is None else _FORMATS[order.lower()]
    return Said(Preprocessing(**values, color=color), "Image.NominalPixelRange")


def _openvino(texts: Mapping[str, str]) -> Said | None:
    names = ("model_info mean_values", "model_info scale_values")
    if not any(texts.get(name, "").strip() for name in names):
        return None
    mean = _numbers(texts.get(names[0], ""), names[0]) or (0.0,)
    std = _numbers(texts.get(names[1], ""), names[1]) or (1.0,)
    return Said(Preprocessing(scale=1.0, mean=mean, std=std), " and ".join(names))


def _pairs(texts: Mapping[str, str]) -> Said | None:
    for names in _PAIRS:
        if not all(name in texts for name in names):
            continue
        mean, std = (_numbers(texts[name], name) for name in names)
        if len(mean) in (1, 3) and len(std) in (1, 3):
            scale = None if max(map(abs, (*mean, *std))) < _UNIT else 1.0
            return Said(Preprocessing(scale=scale, mean=mean, std=std), " and ".join(names))
    return None


def _hugging_face(texts: Mapping[str, str]) -> Said | None:
    if "preprocessor_config" not in texts:
        return None
    content = json.loads(texts["preprocessor_config"])
    said = from_hugging_face(content) if isinstance(content, Mapping) else None
    return said if said is None else replace(said, where="preprocessor_config")


def _numbers(text: str, key: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in re.split(r"[\s,;]+", text.strip().strip("[]()").strip()) if word)
    except ValueError:
        raise OptionError(f"{key} is {text!r} and no list of numbers") from None
