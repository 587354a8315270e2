"""Print the accuracy of a digits model on the test images, in ONNX Runtime; torch is not needed.

python models/digits/evaluate.py models/digits/digits_cnn.onnx
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from data import Digits, load_split


def count_correct(model: Path | onnx.ModelProto, test: Digits) -> int:
    """Count the images of which the largest logit is the right one.

    Args:
        model: A model file, or a model in memory, with one input [batch, 1, 8, 8] and the logits as its first output.
        test: The images and their labels.

    Returns:
        How many of the images the model names correctly.
    """
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # small enough; and the sums are always made in the same order
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: test.images})[0]
    return int(np.count_nonzero(logits.argmax(axis=1) == test.labels))


def main() -> None:
    """Evaluate the model that the command line names."""
    parser = argparse.ArgumentParser(description="Accuracy of a digits model on the test images.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model to evaluate")
    path = parser.parse_args().model
    if not path.is_file():
        parser.exit(1, f"{path} is not a file; give a model such as models/digits/digits_cnn.onnx\n")
    _, test = load_split()
    try:
        correct = count_correct(path, test)
    except Exception as error:  # the runtime's errors share no other base class
        parser.exit(1, f"{path} cannot be evaluated: {str(error).strip()}\n")
    total = len(test.labels)
    print(f"{path}: {correct} of {total} test images correct, accuracy {correct / total:.2%}")


if __name__ == "__main__":
    main()
