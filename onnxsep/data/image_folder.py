"""Images on the disk: which files a folder holds, in which order, of which classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxsep.errors import DataError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder in a fixed order: sorted by class, then by name.

    Attributes:
        paths: The files.
        names: The same, relative to the folder, with "/".
        labels: Class of each image, int64 [images], where the folder holds class folders.
        classes: Names of the class folders, sorted; a class's number is its place here.
        notes: What the user should know, such as files that are not used.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: np.ndarray | None
    classes: list[str] | None
    notes: tuple[str, ...]


def find_images(folder: Path) -> ImageFolder:
    """List the images of a folder: flat, or one folder for each class. Links are followed; hidden files are ignored.

    Raises:
        DataError: there are no images, images lie beside folders, or class folders hold folders.
    """
    folders, files, others = _list(folder)
    if folders and files:
        raise DataError(
            f"{str(folder)!r} holds images ({files[0]!r}) and folders ({folders[0]!r}): keep either images alone, or"
            " one folder for each class"
        )
    notes = []
    if not folders:
        names, labels = files, None
    else:
        names, ids = [], []
        for number, name in enumerate(folders):
            nested, inside, skipped = _list(folder / name)
            if nested:
                raise DataError(
                    f"the class folder {str(folder / name)!r} holds a folder ({nested[0]!r}): images must lie in it"
                    f" directly. If {name!r} is a part of the data and no class, name it as the data"
                )
            if not inside:
                notes.append(f"the class folder {name!r} holds no images")
            names += [f"{name}/{file}" for file in inside]
            ids += [number] * len(inside)
            others += [f"{name}/{file}" for file in skipped]
        labels = np.array(ids, np.int64)
        notes += _class_notes(folders)
    if not names:
        found = f"; it holds {others[0]!r}" if others else ""
        raise DataError(f"there are no images in {str(folder)!r}{found}. Images end in {' '.join(sorted(SUFFIXES))}")
    if others:
        notes.append(f"not used, as their names are not those of images: {len(others)} files, such as {others[0]!r}")
    paths = tuple(folder / name for name in names)
    return ImageFolder(paths, tuple(names), labels, folders or None, tuple(notes))


def _list(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of the folders, the images and the other files in a folder."""
    folders: list[str] = []
    files: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
                    continue
                kind = files if Path(entry.name).suffix.lower() in SUFFIXES else others
                (folders if entry.is_dir() else kind).append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {str(folder)!r}: {error.strerror or error}") from error
    return sorted(folders), sorted(files), sorted(others)


def _class_notes(classes: list[str]) -> Iterator[str]:
    if len(classes) == 1:
        yield f"there is one class folder, {classes[0]!r}: every label is 0"
    elif all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        place = next(place for place, name in enumerate(classes) if int(name) != place)
        yield (
            "class folders are numbered in the sorted order of their names as text:"
            f" {classes[place]!r} is class {place}; pad the numbers with zeros, or give labels, for another order"
        )
    else:
        yield f"{len(classes):,} class folders: {classes[0]!r} is class 0, {classes[-1]!r} is class {len(classes) - 1}"
