"""Train ResNet-20 on CIFAR-10 and write it as ONNX. Needs torch.

    python models/cifar/train_cifar.py cifar.npz models/cifar/cifar10_resnet20.onnx

takes about half an hour on two cores with --bf16, an hour without. It is seeded, the number of epochs is fixed
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
from cifar_data import MEAN, STD, Images, load, normalised
from cifar_graph import BLOCK_LIST, CLASSES, CONVS, FEATURES, STEM, ConvLayer, build
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # of every BatchNorm
EPOCHS = 32
BATCH_SIZE = 128
MAX_LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
LABEL_SMOOTHING = 0.05
MAX_SHIFT = 4  # pixels, in each direction


def make_layers() -> nn.ModuleDict:
    """Make the Convs of cifar_graph.CONVS, each with a BatchNorm of its own, and the classifier."""
    layers = nn.ModuleDict()
    for conv in CONVS:
        padding = conv.kernel // 2
        size = (conv.in_channels, conv.out_channels, conv.kernel, conv.stride, padding)
        layer = nn.Conv2d(*size, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        layers[conv.name] = layer
        layers[f"{conv.name}_bn"] = nn.BatchNorm2d(conv.out_channels, eps=EPSILON)
    layers["classifier"] = nn.Linear(FEATURES, CLASSES)
    return layers


def forward(layers: nn.ModuleDict, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits [n, 10] of images [n, 3, 32, 32], in the order that cifar_graph.build writes."""

    def conv(layer: ConvLayer, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layers[f"{layer.name}_bn"](layers[layer.name](x))
        return y

    x = functional.relu(conv(STEM, images))
    for block in BLOCK_LIST:
        shortcut = conv(block.shortcut, x) if block.shortcut else x
        x = functional.relu(conv(block.second, functional.relu(conv(block.first, x))) + shortcut)
    logits: torch.Tensor = layers["classifier"](x.mean(dim=(2, 3)))
    return logits


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image by up to MAX_SHIFT pixels and mirror half of them; what moves in is the mean colour."""
    count, _, height, width = images.shape
    padded = functional.pad(images, [MAX_SHIFT] * 4)
    tops, lefts = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count), generator=generator)
    rows = tops[:, None] + torch.arange(height)
    columns = torch.arange(width).repeat(count, 1)
    mirrored = torch.randint(0, 2, (count,), generator=generator).bool()
    columns[mirrored] = columns[mirrored].flip(1)
    columns += lefts[:, None]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def train(data: Images, seed: int, *, reduced: bool) -> nn.ModuleDict:
    """Train from a seed.

    Args:
        data: The training images.
        seed: Seed of the first weights, of the order of the images and of what augmentation draws.
        reduced: Compute in bfloat16 where torch thinks that safe; twice as fast on processors that have it.

    Returns:
        The trained layers, in evaluation mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(normalised(data.pixels)), torch.from_numpy(data.labels)
    layers = make_layers()
    for weight in layers.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    decayed = [weight for weight in layers.parameters() if weight.ndim > 1]
    others = [weight for weight in layers.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=MAX_LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    steps = len(labels) // BATCH_SIZE  # the incomplete last batch of an epoch is left out
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, MAX_LEARNING_RATE, total_steps=EPOCHS * steps, pct_start=0.25, cycle_momentum=False
    )
    for epoch in range(EPOCHS):
        started = time.monotonic()
        order = torch.randperm(len(labels), generator=generator)
        total = 0.0
        for step in range(steps):
            batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            inputs = augment(images[batch], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                logits = forward(layers, inputs)
            loss = functional.cross_entropy(logits.float(), labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} of {EPOCHS}: training loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
    return layers.eval()


def fold(layers: nn.ModuleDict) -> dict[str, npt.NDArray[np.float32]]:
    """Fold each BatchNorm into its Conv, in double precision, and name the weights as cifar_graph.build wants them."""
    state = {name: tensor.detach().double() for name, tensor in layers.state_dict().items()}
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for conv in CONVS:
        norm = f"{conv.name}_bn"
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        kernel = state[f"{conv.name}.weight"] * scale[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        weights[f"{conv.name}.weight"] = kernel.float().contiguous().numpy()
        weights[f"{conv.name}.bias"] = bias.float().numpy()
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = state[name].float().numpy()
    return weights


def logits_of(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits [n, 10] that ONNX Runtime computes of images [n, 3, 32, 32]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0], np.float32)


def describe(seed: int, data: Images, correct: int, test: Images, *, reduced: bool) -> dict[str, str]:
    """Say, for the metadata of the model, what it does and where it comes from."""
    return {
        "task": "classification of images: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
        "data_set": "CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
        "licence": "Apache-2.0",
        "input_scaling": f"RGB, pixel / 255, minus the mean {MEAN}, divided by {STD}",
        "training_images": str(len(data.labels)),
        "test_accuracy": f"{correct / len(test.labels):.4f} of {len(test.labels)} images",
        "seed": str(seed),
        "trained_by": f"models/cifar/train_cifar.py, {EPOCHS} epochs, torch {torch.__version__}"
        + (", bfloat16" if reduced else ""),
    }


def main() -> None:
    """Train, write the model, and print its accuracy."""
    parser = argparse.ArgumentParser(description="Train ResNet-20 on CIFAR-10 and write it as ONNX.")
    parser.add_argument("data", type=Path, metavar="CIFAR.npz", help="x_train, y_train, x_test, y_test (cifar_data.py)")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training, default 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the processor has it")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.exit(1, f"cannot write {args.out}: the folder {args.out.parent} does not exist\n")
    try:
        data, test = load(args.data)
    except (OSError, KeyError, ValueError) as error:
        parser.exit(1, f"{args.data} cannot be used: {error}\n")

    layers = train(data, args.seed, reduced=args.bf16)
    weights = fold(layers)
    images = normalised(test.pixels)
    doc = "ResNet-20 for CIFAR-10; BatchNorm is folded into the Convs. See models/README.md."
    computed = logits_of(build(weights, metadata={}), images)
    with torch.no_grad():
        np.testing.assert_allclose(computed, forward(layers, torch.from_numpy(images)).numpy(), rtol=1e-3, atol=1e-3)
    correct = int(np.count_nonzero(computed.argmax(axis=1) == test.labels))
    metadata = describe(args.seed, data, correct, test, reduced=args.bf16)
    model = build(weights, metadata=metadata, doc_string=doc)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, args.out)
    print(f"{args.out}: {correct} of {len(test.labels)} test images correct, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
