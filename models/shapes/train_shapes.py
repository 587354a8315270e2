"""Train the U-Net for images of shapes and write it as ONNX. Needs torch.

    python models/shapes/train_shapes.py models/shapes/shapes_unet.onnx

takes about ten minutes on one core and no download: the images are drawn from a seed. The number of epochs is fixed
beforehand, and the weights of the last one are kept: no choice looks at the test images.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from shapes_data import CLASSES, Floats, Shapes, draw
from shapes_graph import FEATURES, HEAD, LAYERS, build
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # of every BatchNorm
IMAGES = 6_000
TEST_IMAGES = 500
EPOCHS = 15
BATCH_SIZE = 32
MAX_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05


def make_layers() -> nn.ModuleDict:
    """Make the layers of shapes_graph.LAYERS, each with a BatchNorm of its own, and the last one."""
    layers = nn.ModuleDict()
    for layer in LAYERS:
        channels = layer.in_channels, layer.out_channels
        if layer.transposed:
            layers[layer.name] = nn.ConvTranspose2d(*channels, 4, 2, padding=1, bias=False)
        else:
            layers[layer.name] = nn.Conv2d(*channels, 3, layer.stride, padding=1, bias=False)
        layers[f"{layer.name}_bn"] = nn.BatchNorm2d(layer.out_channels, eps=EPSILON)
    layers[HEAD] = nn.Conv2d(FEATURES, len(CLASSES), 1)
    return layers


def forward(layers: nn.ModuleDict, images: torch.Tensor) -> torch.Tensor:
    """Compute the scores [n, 4, 32, 32] of images [n, 3, 32, 32], in the order that shapes_graph.build writes."""
    x = images
    outputs: dict[str, torch.Tensor] = {}
    for layer in LAYERS:
        if layer.beside:
            x = torch.cat([x, outputs[layer.beside]], dim=1)
        x = outputs[layer.name] = functional.relu(layers[f"{layer.name}_bn"](layers[layer.name](x)))
    scores: torch.Tensor = layers[HEAD](x)
    return scores


def train(data: Shapes, seed: int) -> nn.ModuleDict:
    """Train from a seed; images and classes are mirrored at random.

    Args:
        data: The training images.
        seed: Seed of the first weights, of the order of the images and of what is mirrored.

    Returns:
        The trained layers, in evaluation mode.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    layers = make_layers()
    optimizer = torch.optim.AdamW(layers.parameters(), lr=MAX_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(labels) // BATCH_SIZE  # the incomplete last batch of an epoch is left out
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        started, total = time.monotonic(), 0.0
        order = torch.randperm(len(labels), generator=generator)
        for step in range(steps):
            batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            axes = [axis for axis in (-1, -2) if torch.rand((), generator=generator) < 0.5]
            scores = forward(layers, images[batch].flip(axes))
            loss = functional.cross_entropy(scores, labels[batch].flip(axes))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} of {EPOCHS}: training loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
    return layers.eval()


def fold(layers: nn.ModuleDict) -> dict[str, npt.NDArray[np.float32]]:
    """Fold each BatchNorm into its layer, in double precision, and name the weights as shapes_graph.build wants."""
    state = {name: tensor.detach().double() for name, tensor in layers.state_dict().items()}
    weights = {name: state[name].float().numpy() for name in (f"{HEAD}.weight", f"{HEAD}.bias")}
    for layer in LAYERS:
        norm = f"{layer.name}_bn"
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        channel_last = scale[:, None, None] if layer.transposed else scale[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        weights[f"{layer.name}.weight"] = (state[f"{layer.name}.weight"] * channel_last).float().numpy()
        weights[f"{layer.name}.bias"] = bias.float().numpy()
    return weights


def scores_of(model: onnx.ModelProto, images: Floats) -> Floats:
    """The scores [n, 4, 32, 32] that ONNX Runtime computes of images [n, 3, 32, 32]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0], np.float32)


def intersection_over_union(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """The mean over the classes of their pixels in common, as a share of those that either has."""
    found = scores.argmax(axis=1)
    return float(
        np.mean([((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum() for k in range(4)])
    )


def describe(seed: int, right: float, overlap: float) -> dict[str, str]:
    """Say, for the metadata of the model, what it does and where it comes from."""
    return {
        "task": f"the class of each pixel: {', '.join(CLASSES)}",
        "data_set": f"{IMAGES} training and {TEST_IMAGES} test images, drawn by models/shapes/shapes_data.py",
        "licence": "Apache-2.0",
        "input_scaling": "RGB, about 0 to 1",
        "test_pixel_accuracy": f"{right:.4f}",
        "test_intersection_over_union": f"{overlap:.4f}",
        "seed": str(seed),
        "trained_by": f"models/shapes/train_shapes.py, {EPOCHS} epochs, torch {torch.__version__}",
    }


def main() -> None:
    """Train, write the model, and print how well it does."""
    parser = argparse.ArgumentParser(description="Train a U-Net on images of shapes and write it as ONNX.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training, default 0")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.exit(1, f"cannot write {args.out}: the folder {args.out.parent} does not exist\n")

    torch.set_num_threads(1)  # sums in one order, so that a seed gives the same weights again on the same machine
    layers = train(draw("train", IMAGES), args.seed)
    test = draw("test", TEST_IMAGES)
    weights = fold(layers)
    scores = scores_of(build(weights, metadata={}), test.images)
    with torch.no_grad():
        expected = forward(layers, torch.from_numpy(test.images)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    right = float((scores.argmax(axis=1) == test.labels).mean())
    overlap = intersection_over_union(scores, test.labels)
    doc = "A small U-Net for images of shapes; BatchNorm is folded into the layers. See models/README.md."
    model = build(weights, metadata=describe(args.seed, right, overlap), doc_string=doc)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, args.out)
    size = args.out.stat().st_size
    print(f"{args.out}: {right:.2%} of the test images' pixels right, mean overlap {overlap:.1%}, {size:,} bytes")


if __name__ == "__main__":
    main()
