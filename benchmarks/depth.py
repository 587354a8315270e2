"""Cost of calibration by depth: ResNet-20 and ResNet-56, which have the same layers, 18 and 54 of them replaced.

    python benchmarks/depth.py [--images 200]

First, walking: the time to move a frontier along every Conv of the network, over that of running the whole network
once on the same images. Then fitting: seconds for each Conv, by the width of the stage, of a whole rewrite with the
mode depthwise. Both networks in one run; where cost grows linearly with depth, the columns agree.
"""

import argparse
import time
from collections import defaultdict

import cifar
import numpy as np

import onnxsep
from onnxsep.calibration.schedule import make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.running.runtime import Runner, RuntimeOptions

NETWORKS = ("resnet20", "resnet56")
RUNTIME = RuntimeOptions(threads=1)


def walking(model: onnxsep.Model, images: cifar.Floats) -> tuple[float, float, int]:
    """Seconds to run the whole network, seconds to walk it, and the number of stops."""
    name = model.proto.graph.input[0].name
    batches = [{name: images[start : start + 50]} for start in range(0, len(images), 50)]
    runner = Runner(model, RUNTIME)
    start = time.perf_counter()
    for batch in batches:
        runner(batch)
    whole = time.perf_counter() - start
    sites = find_sites(model)
    wanted = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    walk = Walk(model, batches, CalibrationOptions(), RUNTIME)
    steps = make_schedule(model, sites.scopes, wanted)
    start = time.perf_counter()
    for step in steps:
        walk.advance(step)
    return whole, time.perf_counter() - start, len(steps)


def fitting(model: onnxsep.Model, images: cifar.Floats) -> dict[int, list[float]]:
    """Seconds that each replaced Conv took, by its number of outputs."""
    times: list[float] = [time.perf_counter()]
    name = model.proto.graph.input[0].name
    result = onnxsep.rewrite(
        model,
        mode="depthwise",
        data={name: images},
        verify="none",
        runtime=RUNTIME,
        progress=lambda *_: times.append(time.perf_counter()),
    )
    widths = [(conv.weight_shape or (0,))[0] for conv in result.report.convs if conv.status == "replaced"]
    spent: dict[int, list[float]] = defaultdict(list)
    for width, seconds in zip(widths, np.diff(times), strict=True):
        spent[width].append(float(seconds))
    for width in spent:
        spent[width] = spent[width][1:]  # the first of a stage also loads the data, or changes the shapes
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    count = parser.parse_args().images
    data = cifar.load()
    spent: dict[str, dict[int, list[float]]] = {}
    for name in NETWORKS:
        network = cifar.NETWORKS[name]
        model, images = onnxsep.load(network.path), network.images(data.train[:count])
        whole, walked, steps = walking(model, images)
        print(
            f"{name}: one run {whole:.2f} s, walking {walked:.2f} s in {steps} steps, ratio {walked / whole:.2f}",
            flush=True,
        )
        spent[name] = fitting(model, images)
    print(f"{'outputs':>8}" + "".join(f" {name + ', s/Conv':>18}" for name in NETWORKS) + f" {'ratio':>7}")
    for width in sorted(spent[NETWORKS[0]]):
        small, large = (float(np.mean(spent[name][width])) for name in NETWORKS)
        print(f"{width:>8} {small:>18.3f} {large:>18.3f} {large / small:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
