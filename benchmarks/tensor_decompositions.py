"""Tucker-2 and CP beside TensorLy's, on Convs of a trained ResNet-20 at equal ranks, and so at equal parameters.

    python benchmarks/tensor_decompositions.py [--share 0.33]

Errors are ||Y - Y'|| / ||Y - mean|| of the Conv's outputs on real activations of 100 images that nothing was fitted to;
TensorLy sees the weight alone, as onnxsep's svd does; joint also sees the activations of 400 other images. Seconds are
those of one factorisation, one after the other in the same process. Needs TensorLy: pip install tensorly
"""

import argparse
import sys
import time
from collections.abc import Callable

import cifar
import numpy as np
import numpy.typing as npt

import onnxsep
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import Statistics
from onnxsep.calibration.schedule import make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank, RankPolicy
from onnxsep.modes.base import Factors, Mode, Task, get_mode
from onnxsep.modes.ranks import choose_rank
from onnxsep.running.runtime import RuntimeOptions

LAYERS = ("/layer1/layer1.1/conv1/Conv", "/layer2/layer2.1/conv1/Conv", "/layer3/layer3.1/conv1/Conv")


def tensorly_weight(mode: str, weight: Array, rank: Rank) -> Array:
    import tensorly
    from tensorly.decomposition import parafac, partial_tucker

    if mode == "cp":
        return np.asarray(tensorly.cp_to_tensor(parafac(weight, rank[0], n_iter_max=200, init="svd", random_state=0)))
    (core, factors), _ = partial_tucker(weight, rank=[rank[1], rank[0]], modes=[0, 1], n_iter_max=200)
    return np.asarray(tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))


def timed(work: Callable[[], Array]) -> tuple[Array, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.33, help="of each Conv's parameters")
    share = parser.parse_args().share
    try:
        import tensorly  # noqa: F401
    except ImportError:
        sys.exit("skipped: TensorLy is not installed (pip install tensorly)")
    data = cifar.load()
    network = cifar.NETWORKS["resnet20"]
    model = onnxsep.load(network.path)
    images = network.images(data.train[np.random.default_rng(0).permutation(len(data.train))[:500]])
    name = model.proto.graph.input[0].name
    sites = find_sites(model)
    chosen = [site for site in sites.found if isinstance(site, ConvSite) and site.name in LAYERS]
    walk = Walk(model, [{name: images[i : i + 50]} for i in range(0, 500, 50)], CalibrationOptions(), RuntimeOptions())
    print(f"{'Conv':<30} {'form':<7} {'rank':>7} {'TensorLy':>18} {'svd':>18} {'joint':>18}   (error, seconds)")
    for step in make_schedule(model, sites.scopes, chosen):
        walk.advance(step)
        rows = list(walk.rows(step.site))
        patches = np.concatenate([row.patches for row in rows]).astype(np.float64)
        held_out = np.arange(len(patches)) >= 0.8 * len(patches)
        weight = read_weight(model, sites, step.site)
        for mode in (get_mode("tucker"), get_mode("cp")):
            print(f"{step.site.name:<30} {compare(mode, step.site.conv, weight, patches, held_out, share)}", flush=True)


def compare(
    mode: Mode, conv: Conv, weight: Array, patches: Array, held_out: npt.NDArray[np.bool_], share: float
) -> str:
    rank, _ = choose_rank(conv, mode, RankPolicy("fraction", share), 0, lambda: weight)
    mean = patches[~held_out].mean(axis=0)
    fit = patches[~held_out] - mean
    gram = fit.T @ fit / len(fit)
    matrix = weight.reshape(conv.out_channels, -1)
    given = Statistics(gram[None], (matrix @ gram)[None]).with_prior(weight, 1e-3)
    plain: list[Factors] = []

    def svd() -> Array:
        plain.append(mode.factorize(Task(conv, weight), rank))
        return mode.reconstruct(conv, plain[0])

    def joint() -> Array:
        return mode.reconstruct(conv, mode.fit(Task(conv, weight, given, start=plain[0]), rank, "joint"))

    fresh = patches[held_out] - mean
    wanted = fresh @ matrix.T
    cells = []
    for work in (lambda: tensorly_weight(mode.name, weight, rank), svd, joint):
        found, seconds = timed(work)
        error = np.linalg.norm(wanted - fresh @ found.reshape(conv.out_channels, -1).T) / np.linalg.norm(wanted)
        cells.append(f"{error:.4f} {seconds:7.3f} s")
    return f"{mode.name:<7} {'x'.join(map(str, rank)):>7} " + " ".join(f"{cell:>18}" for cell in cells)


if __name__ == "__main__":
    main()
