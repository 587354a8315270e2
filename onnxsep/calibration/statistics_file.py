"""Statistics of a network's Convs in a file, so that factors can be fitted again without the data.

The file is an .npz. It holds, for every Conv of the main graph, mean and covariance of what it reads in the original
network, on positions for fitting and on held-out ones; where there are fewer positions than inputs, the centred rows
take the covariance's place. They do not depend on mode or rank. What they cannot tell is what a rewritten network
delivers in its place, so a fit to them takes each Conv as if it were the only one replaced; nor what stands behind a
Conv: which outputs an activation clips, or a gate closes, is known of single positions only.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.algebra.gram import DenseGram, RowGram
from onnxsep.algebra.statistics import Moments, SiteMoments
from onnxsep.errors import CalibrationError, spelled
from onnxsep.graph.places import Place
from onnxsep.model.files import NewFiles, open_regular
from onnxsep.model.io import Model, read_tensor
from onnxsep.model.paths import Kind

_FORMAT = "onnxsep statistics 2"
_WITHOUT_ROWS = "onnxsep statistics 1"  # the format before, which knows covariances only
_PARTS = ("mean", "covariance", "rows")


@dataclass(frozen=True)
class Recorded:
    """The content of a statistics file."""

    sites: Mapping[Place, SiteMoments]
    samples: int
    positions: int
    seed: int
    source: str
    fingerprint: str  # of the model that they belong to


def model_fingerprint(model: Model) -> str:
    """SHA-256 of the nodes and weights of a model; names of nodes, metadata and doc strings do not count.

    Raises:
        ModelLoadError: external data cannot be read.
    """
    digest = hashlib.sha256()
    nodes = [*model.proto.graph.node, *(node for function in model.proto.functions for node in function.node)]
    for node in nodes:
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        for field in ("name", "doc_string", "metadata_props"):
            plain.ClearField(field)
        digest.update(plain.SerializeToString(deterministic=True))
    for tensor in model.proto.graph.initializer:
        digest.update(repr((tensor.name, tensor.data_type, tuple(tensor.dims))).encode())
        values = read_tensor(model, tensor)
        digest.update(repr(values.tolist()).encode() if values.dtype == object else values.tobytes())
    return digest.hexdigest()


def save_statistics(path: str | os.PathLike[str], recorded: Recorded) -> None:
    """Write a statistics file, atomically.

    Raises:
        ModelSaveError: it cannot be written.
    """
    header = {
        "format": _FORMAT,
        "samples": recorded.samples,
        "positions": recorded.positions,
        "seed": recorded.seed,
        "source": recorded.source,
        "fingerprint": recorded.fingerprint,
        "places": [list(place) for place in recorded.sites],
    }
    arrays = {"header": np.array(json.dumps(header))}
    for number, site in enumerate(recorded.sites.values()):
        for part, moments in (("fit", site.fit), ("held_out", site.held_out)):
            arrays[f"{number}.{part}.mean"] = moments.mean
            for name, array in _stored(moments).items():
                arrays[f"{number}.{part}.{name}"] = array
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # the stub takes the keywords for options
    with NewFiles(Path(path)) as new:
        new.commit(content.getvalue())


def load_statistics(path: str | os.PathLike[str], model: Model) -> Recorded:
    """Read a statistics file.

    Raises:
        CalibrationError: it cannot be read, is no statistics file, or belongs to another model.
    """
    try:
        with open_regular(Path(path)) as file, np.load(file, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["format"] not in (_FORMAT, _WITHOUT_ROWS):
                raise ValueError(f"its format is {header['format']!r}")
            if header["fingerprint"] != model_fingerprint(model):
                raise CalibrationError(
                    f"the statistics in {path} belong to another model; make them again with"
                    f" {spelled('data')} and {spelled('statistics')}"
                )
            found = {
                (int(place[0]), int(place[1])): SiteMoments(
                    *(
                        _moments({name: arrays[key] for name in _PARTS if (key := f"{number}.{part}.{name}") in arrays})
                        for part in ("fit", "held_out")
                    )
                )
                for number, place in enumerate(header["places"])
            }
            samples, positions, seed = (int(header[key]) for key in ("samples", "positions", "seed"))
            return Recorded(found, samples, positions, seed, str(header["source"]), str(header["fingerprint"]))
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file; with {spelled('data')} it will be written") from None
    except CalibrationError:
        raise
    except Exception as error:  # NumPy evaluates headers, and zipfile's decompressors raise classes of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CalibrationError(f"{path} cannot be read as a statistics file: {reason}") from error


def _stored(moments: Moments) -> dict[str, NDArray[np.floating[Any]]]:
    """The arrays of a file: the mean, and the covariances or the rows that they are made of, in single precision."""
    grams = moments.centred
    if all(isinstance(gram, RowGram) for gram in grams):
        rows = np.stack([gram.rows.astype(np.float32) for gram in grams if isinstance(gram, RowGram)])
        return {"mean": moments.mean, "rows": rows}
    return {"mean": moments.mean, "covariance": np.stack([gram.dense().astype(np.float32) for gram in grams])}


def _moments(arrays: Mapping[str, NDArray[np.floating[Any]]]) -> Moments:
    mean = arrays["mean"].astype(np.float64)
    kept = arrays["rows" if "rows" in arrays else "covariance"]
    whole = (*mean.shape, mean.shape[-1])
    if mean.ndim != 2 or kept.ndim != 3 or (kept.shape[0], kept.shape[2]) != mean.shape:
        raise ValueError(f"a mean of shape {list(mean.shape)} with rows or a covariance of {list(kept.shape)}")
    if "rows" not in arrays and kept.shape != whole:
        raise ValueError(f"a mean of shape {list(mean.shape)} with a covariance of {list(kept.shape)}")
    if "rows" in arrays:
        return Moments(mean, tuple(RowGram(rows.astype(np.float64)) for rows in arrays["rows"]))
    return Moments(mean, tuple(DenseGram(matrix.astype(np.float64)) for matrix in arrays["covariance"]))


def is_statistics(path: Path) -> bool:
    """Whether a file is one of these, and may be replaced by another."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            return bool(json.loads(str(arrays["header"]))["format"] in (_FORMAT, _WITHOUT_ROWS))
    except Exception:  # as above
        return False


STATISTICS = Kind("statistics", "statistics of onnxsep", is_statistics, option=True)
