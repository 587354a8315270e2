"""A network that holds all that a plan must be able to name, and the runs that write and carry out plans."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from calibration_models import ONE_THREAD, images
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep import PlanFile, Result

X = images(24, (3, 8, 8))
HOSTILE = 'a "b"\\c\n[layers]\x1b[31m#2'  # a name, as any tool may write it


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    scale = np.sqrt(2 / np.prod(shape[1:], dtype=float)) if len(shape) > 1 else 0.1
    values = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def conv(x: str, w: str, y: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w], [y], name, **{"pads": [1] * 4, **attributes})


def branch(output: str, seed: int) -> onnx.GraphProto:
    """A Conv named "inner", whose weight it holds itself."""
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    weight = tensor("w_inner", 16, 16, 3, 3, seed=seed)
    return helper.make_graph([conv("shared", "w_inner", output, "inner")], output, [], [value], [weight])


def network(ir: int = 8, seed: int = 0, second: str = "other") -> onnx.ModelProto:
    """A first Conv, two more, two that share a weight, two of one name in branches, one in a function, a Gemm.

    The runtime takes no two nodes of one name (``second``) in a graph; onnxsep does.
    """
    nodes = [
        conv("x", "w1", "a", "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "w2", "c", "twice"),
        helper.make_node("Relu", ["c"], ["d"]),
        conv("d", "w3", "e", second, dilations=[2, 2], pads=[2] * 4),
        helper.make_node("Relu", ["e"], ["f"]),
        conv("f", "w4", "g", HOSTILE),
        conv("g", "w4", "h", ""),
        helper.make_node("Relu", ["h"], ["shared"]),
        helper.make_node(
            "If", ["choice"], ["i"], "which", then_branch=branch("t", seed + 1), else_branch=branch("u", seed + 2)
        ),
        *([helper.make_node("Block", ["i"], ["j"], "call", domain="demo")] if ir > 7 else []),
        helper.make_node("GlobalAveragePool", ["j" if ir > 7 else "i"], ["k"]),
        helper.make_node("Flatten", ["k"], ["l"]),
        helper.make_node("Gemm", ["l", "w5"], ["y"], "dense"),
    ]
    choice = numpy_helper.from_array(np.array(True), "choice")
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (16, 16, 3, 3), "w5": (16, 10)}
    weights = [choice, *(tensor(name, *shape, seed=seed) for name, shape in shapes.items())]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    if ir == 3:  # there, every initialiser is an input too
        inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output], weights),
        opset_imports=[helper.make_opsetid("", 16), *([helper.make_opsetid("demo", 1)] if ir > 7 else [])],
        ir_version=ir,
    )
    if ir > 7:
        body = [
            helper.make_node("Constant", [], ["w"], value=tensor("v", 16, 16, 3, 3, seed=seed)),
            conv("p", "w", "q", "inner"),
        ]
        function = helper.make_function("demo", "Block", ["p"], ["q"], body, [helper.make_opsetid("", 16)])
        model.functions.append(function)
    return model


def rewrite(model: Any, **options: Any) -> Result:
    return onnxsep.rewrite(model, **{"runtime": ONE_THREAD, "verify": "none", **options})


def plan_in(folder: Path, model: Any, **options: Any) -> PlanFile:
    """The plan of a dry run, written to a file and read from it."""
    made = rewrite(model, dry_run=True, **options).plan
    made.save(folder / "plan.toml")
    read = onnxsep.read_plan(folder / "plan.toml")
    assert read.text() == "".join(line.split("  # ")[0].rstrip() + "\n" for line in made.text().splitlines())
    return read
