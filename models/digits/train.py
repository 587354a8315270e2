"""Train the digits network and write it as ONNX. Needs torch; the other scripts of this folder do not.

    python models/digits/train.py models/digits/digits_cnn.onnx

The training is short (about half a minute on one core) and seeded. The number of epochs is fixed beforehand, and the
weights of the last one are kept: no choice looks at the test images.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from data import SPLIT_SEED, Digits, load_split
from evaluate import count_correct
from graph import CLASSES, FEATURES, LAYERS, build
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # of every BatchNorm
EPOCHS = 60
BATCH_SIZE = 64
MAX_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
MAX_SHIFT = 1  # pixels, in each direction


def make_layers() -> nn.ModuleDict:
    """Make the layers of graph.LAYERS, each Conv with a BatchNorm of its own, and the classifier."""
    layers = nn.ModuleDict()
    for layer in LAYERS:
        layers[layer.name] = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, padding=1, bias=False)
        layers[f"{layer.name}_bn"] = nn.BatchNorm2d(layer.out_channels, eps=EPSILON)
    layers["classifier"] = nn.Linear(FEATURES, CLASSES)
    return layers


def forward(layers: nn.ModuleDict, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits [n, 10] of images [n, 1, 8, 8], in the order that graph.build writes."""
    x = images
    outputs: dict[str, torch.Tensor] = {}
    for layer in LAYERS:
        x = layers[f"{layer.name}_bn"](layers[layer.name](x))
        if layer.skip_from:
            x = x + outputs[layer.skip_from]
        x = outputs[layer.name] = functional.relu(x)
    logits: torch.Tensor = layers["classifier"](x.mean(dim=(2, 3)))
    return logits


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image by up to MAX_SHIFT pixels, at random; what moves in is paper (0)."""
    count, _, height, width = images.shape
    padded = functional.pad(images, [MAX_SHIFT] * 4)
    tops, lefts = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count), generator=generator)
    rows = tops[:, None, None] + torch.arange(height)[None, :, None]
    columns = lefts[:, None, None] + torch.arange(width)[None, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)


def train(data: Digits, seed: int) -> nn.ModuleDict:
    """Train from a seed.

    Args:
        data: The training images.
        seed: Seed of the first weights, of the order of the images and of their shifts.

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
        order = torch.randperm(len(labels), generator=generator)
        total = 0.0
        for step in range(steps):
            batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            logits = forward(layers, shift(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1} of {EPOCHS}: training loss {total / steps:.4f}")
    return layers.eval()


def fold(layers: nn.ModuleDict) -> dict[str, npt.NDArray[np.float32]]:
    """Fold each BatchNorm into its Conv, in double precision, and name the weights as graph.build wants them."""
    state = {name: tensor.detach().double() for name, tensor in layers.state_dict().items()}
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for layer in LAYERS:
        norm = f"{layer.name}_bn"
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        kernel = state[f"{layer.name}.weight"] * scale[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        weights[f"{layer.name}.weight"] = kernel.float().numpy()
        weights[f"{layer.name}.bias"] = bias.float().numpy()
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = state[name].float().numpy()
    return weights


def describe(seed: int, train_count: int, test_count: int, accuracy: float) -> dict[str, str]:
    """Say, for the metadata of the model, what it does and where it comes from."""
    return {
        "task": "classification of handwritten digits: class i is the digit i",
        "data_set": "Optical Recognition of Handwritten Digits, test set (E. Alpaydin, C. Kaynak, 1998; UCI Machine "
        "Learning Repository, doi 10.24432/C50P49), as sklearn.datasets.load_digits has it",
        "data_licence": "CC BY 4.0",
        "licence": "Apache-2.0",
        "input_scaling": "pixel / 16, so 0 (paper) to 1 (ink)",
        "test_split": f"sklearn train_test_split, stratified, random_state={SPLIT_SEED}: {train_count} training and "
        f"{test_count} test images (models/digits/data.py)",
        "test_accuracy": f"{accuracy:.4f}",
        "seed": str(seed),
        "trained_by": f"models/digits/train.py, {EPOCHS} epochs, torch {torch.__version__}",
    }


def check_same(layers: nn.ModuleDict, model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> None:
    """Compare the ONNX model with the trained layers.

    Raises:
        AssertionError: The logits differ by more than rounding.
    """
    with torch.no_grad():
        expected = forward(layers, torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": images})[0], expected, rtol=1e-4, atol=1e-4)


def main() -> None:
    """Train, write the model, and print its accuracy."""
    parser = argparse.ArgumentParser(description="Train the digits network and write it as ONNX.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training, default 0")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.exit(1, f"cannot write {args.out}: the folder {args.out.parent} does not exist\n")

    torch.set_num_threads(1)  # sums in one order, so that a seed gives the same weights again on the same machine
    data, test = load_split()
    layers = train(data, args.seed)
    weights = fold(layers)
    doc = "A small CNN for 8x8 images of handwritten digits; BatchNorm is folded into the Convs. See models/README.md."
    correct = count_correct(build(weights, metadata={}, doc_string=doc), test)
    metadata = describe(args.seed, len(data.labels), len(test.labels), correct / len(test.labels))
    model = build(weights, metadata=metadata, doc_string=doc)
    onnx.checker.check_model(model, full_check=True)
    check_same(layers, model, test.images)
    onnx.save(model, args.out)
    print(f"{args.out}: {correct} of {len(test.labels)} test images correct, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
