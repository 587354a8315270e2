"""Options about data, which several commands have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxsep.errors import OptionError, spell, spelled
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import Options, Texts, option, record

if TYPE_CHECKING:
    from onnxsep.data.labels import AnyLabels
    from onnxsep.data.preprocessing import AnyPreprocessing, Preprocessing
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {"onnxsep.data.labels": ("AnyLabels",), "onnxsep.data.preprocessing": ("AnyPreprocessing", "Preprocessing")},
    )

DATA_GROUP, IMAGES = "Data", "Images"
AUTO = "auto"  # in the place of a preprocessing: it is found
_KEYS = ("scale", "mean", "std", "layout", "size", "color")


@record
class PreprocessingTexts(Texts):
    """What the command line asks for a :class:`Preprocessing`; single options win over the file's keys."""

    preprocess: Path | None = option(
        default=None,
        group=IMAGES,
        reads="the preprocessing",
        help="TOML file with the keys scale, mean, std, layout, size, color, ...; auto, the default: found, and said.",
    )
    scale: str | None = option(default=None, group=IMAGES, help="Images: factor of each pixel, such as 1/255 (or 1).")
    mean: str | None = option(default=None, group=IMAGES, help="Images: subtracted after {scale}, for each channel.")
    std: str | None = option(default=None, group=IMAGES, help="Images: what is then divided by, for each channel.")
    layout: str | None = option(
        default=None,
        group=IMAGES,
        metavar="NCHW|NHWC",
        proposed=("NCHW", "NHWC"),
        help="Images: NCHW or NHWC; else as the model's input says.",
    )
    size: str | None = option(default=None, group=IMAGES, help="Images: HEIGHTxWIDTH; else as the model's input says.")
    color: str | None = option(
        default=None,
        group=IMAGES,
        metavar="RGB|BGR|GRAY",
        proposed=("RGB", "BGR", "GRAY"),
        help="Images: RGB, BGR or GRAY.",
    )

    def build(self) -> Preprocessing | None:
        """How images are read."""
        from onnxsep.data.preprocessing import Preprocessing

        given = {key: getattr(self, key) for key in _KEYS if getattr(self, key) is not None}
        if self.preprocess == Path(AUTO):
            said = [key for key in given if key not in ("layout", "size")]
            if said:
                raise OptionError(
                    f"{spelled('preprocessing', AUTO)} finds the values: leave out {', '.join(map(spelled, said))}, or"
                    f" {spelled('preprocessing', AUTO)}"
                )
            return Preprocessing.from_values(given, "the command line") if given else None
        if self.preprocess is None and not given:
            return None
        options = Preprocessing.from_values(given, "the command line")
        if self.preprocess is None:
            return options
        return replace(Preprocessing.load(self.preprocess), **{key: getattr(options, key) for key in given})

    @classmethod
    def revived(cls, value: Any) -> AnyPreprocessing | None:
        """The preprocessing from what a report says of it."""
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else value

    @classmethod
    def texts(cls, value: Any) -> Mapping[str, Any] | None:
        """What to type for what a report says of the preprocessing; None where only a file can say it."""
        from onnxsep.data.preprocessing import Preprocessing

        if isinstance(value, str):
            return {"preprocess": value}
        plain = Preprocessing()
        given = dict(value) if isinstance(value, Mapping) else {}
        found: dict[str, object] = {}
        for one in fields(Preprocessing):
            own = given.get(one.name)
            if own is None or (tuple(own) if isinstance(own, list) else own) == getattr(plain, one.name):
                continue
            if one.name not in _KEYS:
                return None
            text = (
                ("x" if one.name == "size" else ",").join(map(_number, own)) if isinstance(own, list) else _number(own)
            )
            found[one.name] = text
        return found


def _number(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


@record
class Preprocessed(Options):
    """How images become values."""

    preprocessing: AnyPreprocessing | None = option(
        default=None,
        expands=PreprocessingTexts,
        reads="the preprocessing",
        per_run=True,
        help="",
        doc='of images: a Preprocessing, the path of a TOML file, or a dict with its keys; "auto" or None: found from'
        " files beside the model, its metadata, its first layers or a trial, and said.",
    )
    skip_bad: bool = option(
        default=False,
        group=DATA_GROUP,
        per_run=True,
        help="Leave out images that cannot be read; they are counted and named.",
    )


@record
class Labelled(Options):
    """Classes of samples, and where a model says its own."""

    labels: AnyLabels | None = option(
        default=None,
        group=DATA_GROUP,
        reads="the labels",
        typed=Path,
        per_run=True,
        help="CSV file of names and classes, instead of the data's own labels.",
        doc="a CSV file of names and classes, or the classes, instead of those of the data.",
    )
    output: str | None = option(
        default=None,
        group=DATA_GROUP,
        per_run=True,
        help="The output with the class scores, where there are several.",
    )


spell("preprocessing", "--preprocess")  # the file; single keys have options of their own
