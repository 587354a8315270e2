"""Which preprocessing is found for the image models of ../shared and of this project, and which wrong ones are noticed.

    python benchmarks/preprocessing.py [--only resnet20] [--parts 2]

Each model gets images in a folder, with and without labels, and nothing is said of the preprocessing. *Right*: accuracy
within one point of that with the true preprocessing; for models that do not classify, outputs within one hundredth of
their range. *Unsure*: a warning says so, and names the best two. *Silently wrong*: neither. Then each model gets its
true preprocessing, on several parts of the images (a warning is a *false alarm*), and some get a wrong one (no warning
is *silently wrong* where it costs more than a point). CIFAR-10: the first 1,000 test images; photographs: 300 of as
many classes; digits: 450 of scikit-learn's, of which MNIST's network gets enlarged ones.
"""

import argparse
import csv
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cifar
import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxsep.data import Dataset, Decided, ImageJudge, Preprocessing, open_data
from onnxsep.data.sidecars import shown
from onnxsep.data.usual import IMAGENET, name_of
from onnxsep.model.io import Model, load
from onnxsep.running.integer_io import RealRunner
from onnxsep.running.runtime import RuntimeOptions

OWN = Path(__file__).resolve().parents[1] / "models"
ONE = RuntimeOptions(threads=1)
NEAR = 0.01

PLAIN, BYTES = Preprocessing(scale=1 / 255), Preprocessing(scale=1.0)
NORMAL = Preprocessing(mean=IMAGENET[0], std=IMAGENET[1])
SIGNED = Preprocessing(scale=1 / 127.5, mean=(1.0,))
CAFFE = Preprocessing(scale=1.0, mean=(104.0, 117.0, 123.0), color="BGR")
FACES = Preprocessing(scale=1 / 128, mean=(127 / 128,))


@dataclass(frozen=True)
class Case:
    """A model, the images for it, and its true preprocessing."""

    name: str
    path: Path
    images: str
    true: Preprocessing | None  # None: the type of the input says it
    labelled: bool = True
    most: int = 1000


def cases() -> Iterator[Case]:
    shared = cifar.SHARED / "models"
    for name in ("resnet20_ts", "resnet20_dynamo", "resnet32_dynamo_ext", "resnet32_ts_bn_op10", "resnet56_ts"):
        yield Case(name, shared / f"cifar10_{name}.onnx", "cifar", NORMAL)
    yield Case("resnet8_tf2onnx", shared / "cifar10_resnet8_tf2onnx.onnx", "cifar", BYTES)
    yield Case("resnet8_qdq_tf2onnx", shared / "cifar10_resnet8_qdq_tf2onnx.onnx", "cifar", None)
    for name in ("cifar10_resnet20", "cifar10_resnet20_spatial_int8", "cifar10_resnet20_depthwise_int8"):
        yield Case(f"own {name.removeprefix('cifar10_')}", OWN / "cifar" / f"{name}.onnx", "cifar", NORMAL)
    yield Case("own digits_cnn", OWN / "digits" / "digits_cnn.onnx", "digits", PLAIN)
    yield Case("mnist_cntk", shared / "mnist_cntk.onnx", "large digits", BYTES)
    yield Case("squeezenet_fp16_caffe2", shared / "squeezenet_fp16_caffe2.onnx", "photos", CAFFE, most=300)
    yield Case("subpixel_sr_pt12", shared / "subpixel_sr_pt12.onnx", "photos", PLAIN, labelled=False, most=8)
    yield Case("ultraface_rfb640_pt13", shared / "ultraface_rfb640_pt13.onnx", "photos", FACES, labelled=False, most=8)
    yield Case("ppocr_v2_det_paddle", shared / "ppocr_v2_det_paddle.onnx", "photos", NORMAL, labelled=False, most=4)


WRONG = (
    ("resnet20_ts", PLAIN),
    ("resnet20_ts", BYTES),
    ("resnet20_ts", SIGNED),
    ("resnet20_ts", CAFFE),
    ("resnet56_ts", PLAIN),
    ("resnet8_tf2onnx", PLAIN),
    ("resnet8_tf2onnx", NORMAL),
    ("own resnet20_spatial_int8", BYTES),
    ("own digits_cnn", BYTES),
    ("squeezenet_fp16_caffe2", NORMAL),
)


def write(folder: Path, pixels: Sequence[npt.NDArray[np.uint8]], labels: Sequence[int]) -> None:
    """Images in folder/flat, and their classes in folder/labels.csv."""
    (folder / "flat").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "flat" / f"{number:04}.png")
    rows = [("name", "class"), *((f"{number:04}.png", str(label)) for number, label in enumerate(labels))]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_all(folder: Path, parts: int) -> dict[str, list[Path]]:
    """Folders of images by their kind: all of them, and then parts."""
    from sklearn.datasets import load_digits

    data = cifar.load()
    digits = load_digits()
    small = [np.rint(image * 255 / 16).astype(np.uint8) for image in digits.images[-450:]]
    large = [np.pad(np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BICUBIC)), 4) for one in small]
    with np.load(cifar.SHARED / "data" / "photos.npz") as packed:
        offsets, jpeg, classes = packed["test_offsets"], packed["test_jpeg"], packed["test_label"]
        files = [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in range(len(classes))]
    photos = []
    for number, file in enumerate(files):
        path = folder / "photo.jpg"
        path.write_bytes(file)
        photos.append(np.asarray(Image.open(path).convert("RGB")))
        assert number < len(classes)
    found: dict[str, list[Path]] = {}
    kinds = (
        ("cifar", list(data.test), data.labels),
        ("digits", small, digits.target[-450:]),
        ("large digits", large, digits.target[-450:]),
        ("photos", photos, classes),
    )
    for kind, pixels, labels in kinds:
        found[kind] = [folder / kind]
        write(folder / kind, pixels, labels.tolist())
        for part in range(parts):
            place = folder / f"{kind} {part}"
            write(place, pixels[part::parts], labels[part::parts].tolist())
            found[kind].append(place)
    return found


def outputs(model: Model, data: Dataset, most: int) -> list[npt.NDArray[np.float64]]:
    """Every output on the first samples."""
    runner, feeds = RealRunner(model, ONE), data.feeds(range(min(most, len(data))))
    rows = [[np.asarray(value, np.float64) for value in runner(feed).values()] for feed in feeds]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def is_near(case: Case, model: Model, folder: Path, found: Preprocessing) -> tuple[bool, str]:
    """Whether a preprocessing is as good as the true one, and the figures."""
    if case.true is None:
        return True, ""
    results = []
    for one in (case.true, found):
        decided = open_decided(model, folder, one)
        results.append(outputs(model, decided, case.most))
    if case.labelled:
        with (folder / "labels.csv").open() as file:
            labels = np.array([int(row[1]) for row in list(csv.reader(file))[1:]])
        true, other = ((r[0].reshape(len(r[0]), -1).argmax(1) == labels[: len(r[0])]).mean() for r in results)
        return bool(other > true - NEAR), f"{other:.1%} (true {true:.1%})"
    apart = max(np.abs(a - b).mean() / max(np.ptp(a), 1e-12) for a, b in zip(*results, strict=True))
    scaled = max(np.abs(unit(a) - unit(b)).mean() for a, b in zip(*results, strict=True))
    return bool(min(apart, scaled) < NEAR), f"{apart:.3f} of the range"


def unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values from 0 to 1: images in another range are the same images."""
    return np.asarray((values - values.min()) / max(np.ptp(values), 1e-12))


def open_decided(model: Model, folder: Path, one: Preprocessing) -> Dataset:
    """The images in a preprocessing that is not judged."""
    return open_data(folder / "flat", model, preprocessing=Decided.on(one))


def opened(case: Case, model: Model, folder: Path, given: Preprocessing | None, *, labels: bool) -> Dataset:
    """The images with a preprocessing, or with one that is looked for."""
    table = folder / "labels.csv" if labels else None
    return open_data(folder / "flat", model, preprocessing=given, labels=table, judge=ImageJudge(model, ONE))


def found_words(case: Case, model: Model, folder: Path, *, labels: bool) -> tuple[str, str, float]:
    """What is found for a model, what that is worth, and seconds of the processor."""
    started = time.process_time()
    data = opened(case, model, folder, None, labels=labels)
    seconds = time.process_time() - started
    report = data.preprocessing
    if report is None:
        return "by the type of the input", "right", seconds
    used = Preprocessing.from_values(report.preprocessing)
    near, figures = is_near(case, model, folder, used)
    verdict = "right" if near and report.sure else "unsure" if report.warnings else "SILENTLY WRONG"
    if near and not report.sure:
        verdict = "unsure (right)"
    channels = 1 if case.images.endswith("digits") or case.name.startswith("subpixel") else 3
    return f"{name_of(used, channels) or report.preprocessing}: {figures}", verdict, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only models whose name holds this text")
    parser.add_argument("--parts", type=int, default=3, help="parts of the images for runs with the true preprocessing")
    options = parser.parse_args()
    if importlib.util.find_spec("sklearn") is None:
        sys.exit("skipped: scikit-learn, which has the digits, is not installed")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        places = write_all(Path(folder), options.parts)
        chosen = [case for case in cases() if options.only in case.name]
        print(f"{'model':32} {'':8} {'verdict':16} {'s':>5}  found")
        for case in chosen:
            model = load(case.path)
            for labels in (True, False) if case.labelled else (False,):
                words, verdict, seconds = found_words(case, model, places[case.images][0], labels=labels)
                kind = "labels" if labels else "none"
                counts[f"{kind}: {verdict}"] += 1
                print(f"{case.name:32} {kind:8} {verdict:16} {seconds:5.1f}  {words}", flush=True)
        alarms, runs = 0, 0
        for case in chosen:
            model = load(case.path)
            for place in places[case.images] if case.labelled else places[case.images][:1]:
                for labels in (True, False) if case.labelled else (False,):
                    report = opened(case, model, place, case.true, labels=labels).preprocessing
                    runs += 1
                    if report is not None and report.warnings:
                        alarms += 1
                        print(f"FALSE ALARM {case.name} {place.name} labels={labels}: {report.warnings[0]}", flush=True)
        print(f"true preprocessing given: {alarms} false alarms in {runs} runs")
        by_name = {case.name: case for case in chosen}
        for name, given in WRONG:
            if name not in by_name:
                continue
            case = by_name[name]
            model, place = load(case.path), places[case.images][0]
            near, figures = is_near(case, model, place, given)
            for labels in (True, False):
                report = opened(case, model, place, given, labels=labels).preprocessing
                verdict = (
                    "noticed" if report is not None and report.warnings else "harmless" if near else "SILENTLY WRONG"
                )
                counts[f"wrong: {verdict}"] += 1
                kind = "labels" if labels else "none"
                words = name_of(given, 3) or shown(given)
                print(f"{name:32} {kind:8} {verdict:16} given {words}: {figures}", flush=True)
    print(dict(sorted(counts.items())))


if __name__ == "__main__":
    main()
