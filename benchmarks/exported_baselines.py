"""Matching is real, not by name: each block mode and width mode on the baselines of paper 004 from several exporters.

    python models/sobolewski_exported.py exports/resnet101_torchscript.onnx --network resnet101 --exporter torchscript
    ...                                         # resnet101 and vgg19, torchscript and dynamo; vgg19 by tf2onnx
    python benchmarks/exported_baselines.py exports

Exports need an environment of their own (torch and onnxscript; TensorFlow and tf2onnx), this script only onnxsep. It
names every node and tensor by a random string first. For each mode: how many blocks it would replace in the baseline
that ``models/sobolewski.py`` builds, and in each export "same" where these are the same Convs and linear layers,
counted along the graph. Then the largest difference of the outputs of baseline and export, on 4 images, over the
largest output: they have the same weights.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.modes import BlockMode, WidthMode, available_modes
from onnxsep.running.runtime import Runner, RuntimeOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from sobolewski import CLASSES, build
from sobolewski_exported import with_random_names


def blocks(model: onnxsep.Model, mode: str) -> list[Any]:
    """The numbers of the layers by which a mode would replace something, and for a width mode how many stay."""
    try:
        report = onnxsep.rewrite(model, mode=mode, force=True, include_first=True, dry_run=True, verify="none").report
    except OptionError:  # the network has no such stages
        return []
    layers = [row for row in report.convs if row.op_type in ("Conv", "Gemm", "MatMul")]
    return [(number, row.mode) for number, row in enumerate(layers) if row.mode]


def outputs(model: onnxsep.Model) -> Any:
    """Of 4 images of noise, in the layout that the model takes."""
    value = model.proto.graph.input[0]
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    if value.type.tensor_type.shape.dim[3].dim_value == 3:
        images = images.transpose(0, 2, 3, 1)
    return next(iter(Runner(model, RuntimeOptions(threads=1))({value.name: images}).values()))


def lines(network: str, folder: Path, width: float) -> Iterator[str]:
    """The table of a network."""
    paths = sorted(folder.glob(f"{network}_*.onnx"))
    baseline = onnxsep.load(build(network, width=width))
    exports = [onnxsep.load(with_random_names(onnx.load(path))) for path in paths]
    yield f"\n{network}\n\n| mode | baseline | {' | '.join(path.stem.split('_')[1] for path in paths)} |"
    yield "|---" * (len(paths) + 2) + "|"
    for name, mode in available_modes().items():
        if not isinstance(mode, BlockMode | WidthMode):
            continue
        wanted = blocks(baseline, name)
        found = [blocks(export, name) for export in exports]
        cells = ["same" if one == wanted else f"**{len(one)}**" for one in found]
        yield f"| {name} | {len(wanted)} | {' | '.join(cells)} |"
    wanted = outputs(baseline)
    apart = [np.abs(outputs(export) - wanted).max() / np.abs(wanted).max() for export in exports]
    yield f"| outputs differ by | | {' | '.join(f'{one:.1e}' for one in apart)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Block modes on the baselines of paper 004 from several exporters.")
    parser.add_argument("folder", type=Path, help="with NETWORK_EXPORTER.onnx, such as vgg19_tf2onnx.onnx")
    parser.add_argument("--width", type=float, default=1.0, help="with which they were made, default 1")
    parser.add_argument("--networks", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    args = parser.parse_args()
    for network in args.networks:
        for line in lines(network, args.folder, args.width):
            print(line, flush=True)


if __name__ == "__main__":
    main()
