"""Latency of int8 by format and type of the activations, beside the fp32 model, one thread; needs ../shared.

    python benchmarks/quantized_latency.py [--networks resnet20,resnet8]

Weights are int8 throughout. On x86 processors with VNNI, uint8 activations meet an instruction for just that pair; on
older ones (AVX2) that pair can saturate, for which `--reduce-range` is there. All models of a network run in turn in
one run; the figures are medians, and shares of the fp32 model's.
"""

import argparse
from typing import get_args

import cifar

import onnxsep
from onnxsep.quantization.settings import Activations, Format
from onnxsep.running.runtime import RuntimeOptions

CALIBRATION = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet8")
    options = parser.parse_args()
    data = cifar.load()
    for name in options.networks.split(","):
        network = cifar.NETWORKS[name]
        source = onnxsep.load(network.path)
        image = source.proto.graph.input[0].name
        few = {image: network.images(data.train[:CALIBRATION])}
        depthwise = onnxsep.rewrite(source, mode="depthwise", rank=1, data=few, force=True, verify="none").model
        models = {}
        for form, model in (("original", source), ("depthwise", depthwise)):
            models[f"{form}, fp32"] = model
            for format_ in get_args(Format):
                for kind in get_args(Activations):
                    result = onnxsep.quantize(model, data=few, format=format_, activations=kind)
                    models[f"{form}, {format_}, {kind}"] = result.model
        report = onnxsep.evaluate(
            [model.proto for model in models.values()],
            data={image: network.images(data.test[:64])},
            memory=False,
            runs=100,
            runtime=RuntimeOptions(threads=1),
        )
        print(f"{name}: {network.file}, milliseconds for one image, one thread")
        times = [model.latency.median_ms for model in report.models if model.latency is not None]
        for label, row, time in zip(models, report.models, times, strict=True):
            print(f"  {label:<30} {time:7.3f} ({time / times[0]:.2f}) {row.file_bytes:>10,} bytes")


if __name__ == "__main__":
    main()
