"""Small networks in ONNX's text form, with random weights, and the steps of a rewrite with data."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxsep
from onnxsep.calibration.schedule import Step, make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import in_main_graph
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.rewriting.report import ConvReport
from onnxsep.running.runtime import Runner, RuntimeOptions

Array = NDArray[Any]
ONE_THREAD = RuntimeOptions(threads=1)
EXACT = RuntimeOptions(threads=1, optimize=False)
# Conv has bfloat16 since opset 22, which the oldest supported runtime does not know.
TYPED_OPSET = 22 if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 21) else 17


def network(body: str, *, seed: int = 0, opset: int = 17, ir: int = 8, **tensors: Any) -> onnx.ModelProto:
    """A model from a graph in text form. What it reads and ``tensors`` gives becomes an initialiser.

    A tuple stands for random weights of that shape, of a size that keeps the values of a chain of Convs in range.
    """
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {body}')
    for name, given in tensors.items():
        array = given
        if isinstance(given, tuple):
            fan_in = int(np.prod(given[1:])) or 1
            array = (rng.standard_normal(given) * np.sqrt(2 / fan_in)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{node.output[0] or number}"
    return model


def images(count: int = 24, shape: Sequence[int] = (3, 8, 8), seed: int = 7) -> Array:
    """Smooth random images: neighbours are alike, as those of photographs are."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, *shape))
    for axis in range(2, values.ndim):
        values = values + np.roll(values, 1, axis) + 0.5 * np.roll(values, 2, axis)
    return values.astype(np.float32)


def outputs(model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str] = ()) -> dict[str, Array]:
    """Run a model, with other tensors as its outputs if they are named."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 4)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in [value for value in copy.graph.input if value.name in weights]:
        copy.graph.input.remove(value)
    if names:
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Runner(Model(copy), EXACT)(feeds)


def load_script(path: Path) -> Any:
    """A Python file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Steps:
    """A walk over a model's Convs, step by step.

    Args:
        model: the model.
        batches: its inputs.
        names: of the Convs to visit; all by default.
        linear: visit Gemm and MatMul nodes too.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Model,
        batches: Sequence[Mapping[str, Array]],
        names: Sequence[str] = (),
        *,
        linear: bool = False,
        runtime: RuntimeOptions = EXACT,
        **options: Any,
    ) -> None:
        self.model = model if isinstance(model, Model) else Model(model)
        self.sites: Sites = find_sites(self.model, linear_layers=linear)
        self.wanted = [
            site
            for site in self.sites.found
            if isinstance(site, ConvSite) and in_main_graph(site) and (not names or site.name in names)
        ]
        self.steps: list[Step] = make_schedule(self.model, self.sites.scopes, self.wanted)
        self.walk = Walk(self.model, batches, CalibrationOptions(**options), runtime)
        self.batches = list(batches)

    def input_of(self, step: Step) -> str:
        return str(self.walk.nodes[step.site.place[1]].input[0])


def fitted(model: onnx.ModelProto | str, data: Any, **options: Any) -> onnxsep.Result:
    """A rewrite with data, of every Conv and at any cost, on one thread."""
    chosen: dict[str, Any] = {"mode": "depthwise", "force": True, "include_first": True, "runtime": ONE_THREAD}
    return onnxsep.rewrite(model, data=data, **{**chosen, **options})


def stored_parameters(model: onnx.ModelProto) -> int:
    """Elements of all float initialisers and float Constant nodes of the main graph."""
    held = [*model.graph.initializer]
    held += [entry.t for node in model.graph.node if node.op_type == "Constant" for entry in node.attribute]
    return sum(int(np.prod(tensor.dims)) for tensor in held if tensor.data_type == onnx.TensorProto.FLOAT)


BLOCK = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Relu(c)
    e = Conv<pads = [1, 1, 1, 1]>(d, w3)
    f = Add(e, b)
    g = Relu(f)
    h = Conv(g, w4)
    m = GlobalAveragePool(h)
    n = Flatten(m)
    y = Gemm<transB = 1>(n, w5, b5)
"""

SHAPES: dict[str, Any] = {
    "w1": (6, 3, 3, 3),
    "b1": (6,),
    "w2": (6, 6, 3, 3),
    "w3": (6, 6, 3, 3),
    "w4": (8, 6, 1, 1),
    "w5": (5, 8),
    "b5": (5,),
}

X = images(24)

CONV6 = Conv(6, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))  # its second and third Conv


def block(**changes: Any) -> onnx.ModelProto:
    """A stem, a residual block, a 1 x 1 Conv and a classifier."""
    return network(f"g (float[N, 3, 8, 8] x) => (float[N, 5] y) {{ {BLOCK} }}", **{**SHAPES, **changes})


MODEL = block()


def replaced(result: onnxsep.Result) -> list[ConvReport]:
    return [row for row in result.report.convs if row.status == "replaced"]


def row(result: onnxsep.Result, name: str) -> ConvReport:
    return next(row for row in result.report.convs if row.name == name)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initialisers, and values of Constant nodes of the main graph."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    held |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    return {name: numpy_helper.to_array(tensor) for name, tensor in held.items()}


def difference(one: onnx.ModelProto, other: onnx.ModelProto, x: Array = X) -> float:
    """||a - b|| / ||a|| of the first output."""
    first, second = (next(iter(outputs(model, {"x": x}).values())).astype(np.float64) for model in (one, other))
    assert np.isfinite(second).all()
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))
