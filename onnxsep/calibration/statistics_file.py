"""Statistics of a network's Convs in a file, so that factors can be fitted again without the data.

The file is an .npz. It holds, for every Conv of the main graph, mean and Gram matrix of what it reads in the original
network, on positions for fitting and on held-out ones. They do not depend on mode or rank. What they cannot tell is
what a rewritten network delivers in its place, so a fit to them takes each Conv as if it were the only one replaced.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.errors import CalibrationError
from onnxsep.files import NewFiles, open_regular
from onnxsep.io import Model, read_tensor
from onnxsep.linalg import Array
from onnxsep.paths import Kind
from onnxsep.statistics import Moments, SiteMoments
from onnxsep.types import Place

_FORMAT = "onnxsep statistics 1"


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
            arrays[f"{number}.{part}.covariance"] = moments.centred().astype(np.float32)
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
            if header["format"] != _FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            if header["fingerprint"] != model_fingerprint(model):
                raise CalibrationError(
                    f"the statistics in {path} belong to another model; make them again with --data and --statistics"
                )
            found = {
                (int(place[0]), int(place[1])): SiteMoments(
                    *(
                        _moments(arrays[f"{number}.{part}.mean"], arrays[f"{number}.{part}.covariance"])
                        for part in ("fit", "held_out")
                    )
                )
                for number, place in enumerate(header["places"])
            }
            samples, positions, seed = (int(header[key]) for key in ("samples", "positions", "seed"))
            return Recorded(found, samples, positions, seed, str(header["source"]), str(header["fingerprint"]))
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file; with --data it will be written") from None
    except CalibrationError:
        raise
    except Exception as error:  # NumPy evaluates headers, and zipfile's decompressors raise classes of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CalibrationError(f"{path} cannot be read as a statistics file: {reason}") from error


def _moments(mean: Array, covariance: NDArray[np.float32]) -> Moments:
    mean = mean.astype(np.float64)
    if mean.ndim != 2 or covariance.shape != (*mean.shape, mean.shape[1]):
        raise ValueError(f"a mean of shape {list(mean.shape)} with a covariance of {list(covariance.shape)}")
    return Moments(mean, covariance.astype(np.float64) + mean[:, :, None] * mean[:, None, :])


def is_statistics(path: Path) -> bool:
    """Whether a file is one of these, and may be replaced by another."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            return bool(json.loads(str(arrays["header"]))["format"] == _FORMAT)
    except Exception:  # as above
        return False


STATISTICS = Kind("--statistics", "statistics of onnxsep", is_statistics)
