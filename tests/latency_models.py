"""A small residual network, the forms that its layers may get, and timing that takes next to no time."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.model.io import Model
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.running.timing import Effort

QUICK = Effort(turn=0.0005, rounds=3, slow_rounds=1, shortest=0.001, longest=0.01, enough=0.5, lead_in=0.0)


def residual(channels: int = 16, size: int | str = 12, names: str = "", **attributes: Any) -> onnx.ModelProto:
    """A first Conv; two of equal shapes with BatchNormalization and Relu; one before a residual Add; a Gemm.

    Args:
        channels: of all Convs.
        size: of the image.
        names: what names of nodes begin with.
        attributes: of the last Conv.
    """
    random = np.random.default_rng(0)
    stored = []

    def tensor(name: str, *shape: int) -> str:
        values = np.abs(random.standard_normal(shape)) + 0.1 if name[0] == "n" else random.standard_normal(shape)
        stored.append(numpy_helper.from_array((values / 5).astype(np.float32), name))
        return name

    def conv(x: str, y: str, inputs: int, **more: Any) -> onnx.NodeProto:
        weight = tensor(f"w_{y}", channels, inputs, 3, 3)
        return helper.make_node("Conv", [x, weight], [y], names + y, **{"pads": [1] * 4, **more})

    def norm(x: str, y: str) -> onnx.NodeProto:
        return helper.make_node("BatchNormalization", [x, *(tensor(f"n_{y}{i}", channels) for i in range(4))], [y])

    nodes = [
        conv("x", "stem", 3),
        helper.make_node("Relu", ["stem"], ["a"]),
        *(conv("a", "one", channels), norm("one", "one_n"), helper.make_node("Relu", ["one_n"], ["b"])),
        *(conv("b", "two", channels), norm("two", "two_n"), helper.make_node("Relu", ["two_n"], ["c"])),
        *(conv("c", "three", channels, **attributes), norm("three", "three_n")),
        helper.make_node("Add", ["three_n", "a"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", tensor("w_fc", channels, 4)], ["y"], names + "fc"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows_of(proto: onnx.ModelProto, *modes: str) -> tuple[Model, Sites, list[ConvReplacement]]:
    """A model, its layers and the forms that they may get."""
    model = Model(proto)
    wanted = forms(modes)
    sites = find_sites(model, linear_layers=any(mode.linear_layers for mode in wanted))
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    return model, sites, [row for site in layers for row in candidates(site, wanted, (0.25, 0.5))]
