"""Export the two baselines of paper 004 as frameworks do: the networks and weights of ``sobolewski.py``, other graphs.

- ``torchscript``: PyTorch's older exporter, BatchNormalization kept (``dynamo=False``).
- ``dynamo``: PyTorch's exporter since 2.9, which folds BatchNormalization into the Convs and joins equal constants.
- ``tf2onnx``: VGG-19 in Keras, NHWC, by tf2onnx: Transposes at the ends, pads by ``auto_pad``, MatMul and Add.

``--random-names`` replaces every name in the file by a random string (seeded) and takes out doc strings and metadata,
so that nothing can go by them. ``--without-weights`` leaves out the values of weights: what is left is the graph.
``tests/exported/`` holds such files, made with ``--width 0.125 --random-names --without-weights``.

    pip install torch==2.13.0 onnxscript        # torchscript, dynamo
    pip install tensorflow-cpu tf2onnx          # tf2onnx, an environment of its own
    python models/sobolewski_exported.py vgg19.onnx --network vgg19 --exporter dynamo --width 0.125 --random-names
"""

import argparse
import importlib
import os
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sobolewski import CLASSES, IMAGE_SIZE, STAGES, VGG, build

EXPORTERS = ("torchscript", "dynamo", "tf2onnx")
Weights = Mapping[str, np.ndarray[Any, Any]]


def exported(network: str, exporter: str, seed: int = 0, *, width: float = 1.0) -> onnx.ModelProto:
    """A baseline as an exporter writes it.

    Args:
        network: resnet101 or vgg19.
        exporter: One of ``EXPORTERS``; tf2onnx for vgg19 alone.
        seed: Of the weights, as for ``sobolewski.build``.
        width: As there.

    Raises:
        ValueError: There is no such network or exporter, or the network is not written for it.
        ImportError: The framework is not installed.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"the exporter {exporter!r} is none of {', '.join(EXPORTERS)}")
    source = build(network, seed, width=width)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    if exporter != "tf2onnx":
        return _from_torch(network, weights, dynamo=exporter == "dynamo")
    if network != "vgg19":
        raise ValueError(f"{network} is not written in Keras here; vgg19 is")
    return _from_keras(weights)


# ---------------------------------------------------------------- PyTorch


def _from_torch(network: str, weights: Weights, *, dynamo: bool) -> onnx.ModelProto:
    torch: Any = importlib.import_module("torch")
    module = (_torch_resnet if network == "resnet101" else _torch_vgg)(torch, weights)
    state = {name: torch.from_numpy(np.array(values)) for name, values in weights.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    module.eval()
    image = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        if dynamo:
            batch = {0: torch.export.Dim("batch")}
            torch.onnx.export(
                module,
                (image,),
                path,
                dynamo=True,
                dynamic_shapes=(batch,),
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
            kept = torch.onnx.TrainingMode.PRESERVE  # else BatchNormalization is folded
            torch.onnx.export(
                module,
                (image,),
                path,
                dynamo=False,
                opset_version=17,
                training=kept,
                do_constant_folding=False,
                dynamic_axes=axes,
                **names,
            )
        return onnx.load(path)


def _torch_resnet(torch: Any, weights: Weights) -> Any:
    """As torchvision writes it."""
    nn: Any = torch.nn

    def layer(name: str, kernel: int, stride: int = 1) -> tuple[Any, Any]:
        after, before = weights[f"{name}.weight"].shape[:2]
        return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)

    class Bottleneck(nn.Module):  # type: ignore[misc]
        def __init__(self, name: str, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = layer(f"{name}.conv1", 1)
            self.conv2, self.bn2 = layer(f"{name}.conv2", 3, stride)
            self.conv3, self.bn3 = layer(f"{name}.conv3", 1)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if f"{name}.downsample.0.weight" in weights:
                self.downsample = nn.Sequential(*layer(f"{name}.downsample.0", 1, stride))

        def forward(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            y += x if self.downsample is None else self.downsample(x)
            return self.relu(y)

    class ResNet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = layer("conv1", 3)
            self.relu = nn.ReLU(inplace=True)
            for stage, (_, blocks) in enumerate(STAGES, 1):
                strides = [2 if stage > 1 and block == 0 else 1 for block in range(blocks)]
                made = [Bottleneck(f"layer{stage}.{block}", stride) for block, stride in enumerate(strides)]
                setattr(self, f"layer{stage}", nn.Sequential(*made))
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.fc = nn.Linear(*reversed(weights["fc.weight"].shape))

        def forward(self, x: Any) -> Any:
            x = self.relu(self.bn1(self.conv1(x)))
            for stage in range(1, len(STAGES) + 1):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(torch.flatten(self.avgpool(x), 1))

    return ResNet()


def _torch_vgg(torch: Any, weights: Weights) -> Any:
    nn: Any = torch.nn
    features: list[Any] = []
    for _, convs in VGG:
        for _ in range(convs):
            after, before = weights[f"features.{len(features)}.weight"].shape[:2]
            features += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        features.append(nn.MaxPool2d(2, 2))
    first, second, third = (nn.Linear(*reversed(weights[f"classifier.{place}.weight"].shape)) for place in (0, 3, 6))
    classifier = [first, nn.ReLU(inplace=True), nn.Dropout(), second, nn.ReLU(inplace=True), nn.Dropout(), third]

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

        def forward(self, x: Any) -> Any:
            return self.classifier(torch.flatten(self.features(x), 1))

    return Net()


# ---------------------------------------------------------------- Keras


def _from_keras(weights: Weights) -> onnx.ModelProto:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tensorflow: Any = importlib.import_module("tensorflow")
    tf2onnx: Any = importlib.import_module("tf2onnx")
    layers: Any = tensorflow.keras.layers
    image = tensorflow.keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")
    x, place = image, 0
    for _, convs in VGG:
        for _ in range(convs):
            kernel, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
            conv = layers.Conv2D(len(kernel), 3, padding="same")
            x = conv(x)
            conv.set_weights([kernel.transpose(2, 3, 1, 0), bias])
            norm = layers.BatchNormalization(epsilon=1e-5)
            x = norm(x)
            parts = ("weight", "bias", "running_mean", "running_var")
            norm.set_weights([weights[f"features.{place + 1}.{part}"] for part in parts])
            x, place = layers.ReLU()(x), place + 3
        x, place = layers.MaxPooling2D(2)(x), place + 1
    x = layers.Flatten()(x)
    for place in (0, 3, 6):
        matrix = weights[f"classifier.{place}.weight"]
        dense = layers.Dense(len(matrix), activation=None if place == 6 else "relu")
        x = dense(x)
        dense.set_weights([matrix.T, weights[f"classifier.{place}.bias"]])
    model = tensorflow.keras.Model(image, x)
    signature = [tensorflow.TensorSpec((None, IMAGE_SIZE, IMAGE_SIZE, 3), tensorflow.float32, name="image")]
    call = tensorflow.function(lambda image: {"logits": model(image, training=False)}, input_signature=signature)
    found: onnx.ModelProto = tf2onnx.convert.from_function(call, input_signature=signature, opset=17)[0]
    return found


# ---------------------------------------------------------------- names and weights


def with_random_names(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which no name tells anything: those of nodes, tensors, inputs, outputs, dimensions and graphs.

    Doc strings, metadata and the producer go. Operator sets, functions and their domains stay: they are operators.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng, letters, names = np.random.default_rng(seed), np.array(list(string.ascii_letters)), dict[str, str]()

    def renamed(name: str) -> str:
        if name and name not in names:
            names[name] = "".join(rng.choice(letters, 6))
            assert len(set(names.values())) == len(names)
        return names.get(name, "")

    for key in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        copy.ClearField(key)
    copy.graph.name = renamed(f"graph {copy.graph.name}")
    for key in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        copy.graph.ClearField(key)
    for value in (*copy.graph.input, *copy.graph.output):
        value.name = renamed(value.name)
        for key in ("doc_string", "metadata_props"):
            value.ClearField(key)
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = renamed(f"dimension {size.dim_param}")
    for tensor in copy.graph.initializer:
        tensor.name = renamed(tensor.name)
        for key in ("doc_string", "metadata_props"):
            tensor.ClearField(key)
    for node in copy.graph.node:
        node.name = renamed(f"node {node.name}")
        node.input[:], node.output[:] = map(renamed, node.input), map(renamed, node.output)
        for key in ("doc_string", "metadata_props"):
            node.ClearField(key)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            assert not attribute.HasField("g")  # these exports have no nested graphs
    return copy


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights hold no values, for what looks at the graph alone; shapes, axes and the like stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in _weights(copy):
        for key in ("raw_data", "float_data"):
            tensor.ClearField(key)
    return copy


def with_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which weights without values get some from a seed, so that what a layer gives keeps its size."""
    copy, rng = onnx.ModelProto(), np.random.default_rng(seed)
    copy.CopyFrom(model)
    norms = [node for node in copy.graph.node if node.op_type == "BatchNormalization"]
    around_one = {node.input[place] for node in norms for place in (1, 4)}
    for tensor in _weights(copy):
        if not tensor.raw_data and not tensor.float_data:
            values = rng.standard_normal(tuple(tensor.dims), dtype=np.float32)
            values *= np.float32((2 / np.prod(tensor.dims[1:])) ** 0.5 if len(tensor.dims) in (2, 4) else 0.1)
            tensor.raw_data = (values + np.float32(tensor.name in around_one)).tobytes()
    return copy


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in _tensors(model) if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description="Export a baseline of paper 004 as a framework does.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--network", required=True, choices=list(CLASSES))
    parser.add_argument("--exporter", required=True, choices=EXPORTERS)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights, default 0")
    parser.add_argument("--width", type=float, default=1.0, metavar="SHARE", help="share of the channels, default 1")
    parser.add_argument("--random-names", action="store_true", help="replace every name by a random string")
    parser.add_argument("--without-weights", action="store_true", help="leave out the values of large tensors")
    args = parser.parse_args()
    try:
        model = exported(args.network, args.exporter, args.seed, width=args.width)
    except ValueError as error:
        parser.error(str(error))
    except ImportError as error:
        parser.exit(1, f"the exporter {args.exporter} needs what is not installed: {error}\n")
    if args.random_names:
        model = with_random_names(model, args.seed)
    if args.without_weights:
        model = without_weights(model)
    onnx.save(model, args.out)
    print(f"{args.out}: {len(model.graph.node)} nodes, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
