"""Operators that onnxsep has no torch code for are computed by what is registered with onnx2torch."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, helper, numpy_helper
from operator_forms import Network, feeds

import onnxsep
from onnxsep.errors import MissingDependencyError, UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.training import registered, to_torch

pytestmark = needs_torch
has_onnx2torch = find_spec("onnx2torch") is not None
needs_onnx2torch = pytest.mark.skipif(not has_onnx2torch, reason="onnx2torch is not installed")
MICROSOFT = "com.microsoft"  # ONNX Runtime has operators of its own in it, so that models with them are real ones
ONE = RuntimeOptions(threads=1)


@pytest.fixture
def added() -> Iterator[Any]:
    """onnx2torch's ``add_converter``; what is added with it is gone after the test."""
    if not has_onnx2torch:
        pytest.skip("onnx2torch is not installed (pip install onnxsep[finetune])")
    registered._import()  # before its registry, as it may have to do without torchvision
    from onnx2torch.node_converters import registry

    before = dict(registry._CONVERTER_REGISTRY)
    yield registry.add_converter
    registry._CONVERTER_REGISTRY.clear()
    registry._CONVERTER_REGISTRY.update(before)


@pytest.fixture
def without_onnx2torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("onnx2torch", "onnx2torch.node_converters.registry", "onnx2torch.onnx_graph", "onnx2torch.onnx_node"):
        monkeypatch.setitem(sys.modules, name, None)
    registered._import.cache_clear()
    yield
    registered._import.cache_clear()


def network(op: str, *more: Any, domain: str = MICROSOFT, **attributes: Any) -> Model:
    """Conv, the operator, and a linear layer."""
    net = Network(17, (4, 3, 8, 6))
    x = net.conv()
    x = net(op, x, *more, domain=domain, **attributes)
    pooled = net("Flatten", net("GlobalAveragePool", x))
    net.nodes.append(helper.make_node("MatMul", [pooled, net.name_of(net.weight(8, 5))], ["y"]))
    model: Model = net.model(y=TensorProto.FLOAT)
    if domain:
        model.proto.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def add_quick_gelu(add_converter: Any) -> None:
    import torch
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    class QuickGelu(torch.nn.Module):
        def __init__(self, alpha: float) -> None:
            super().__init__()
            self.alpha = alpha

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.alpha * x)

    def converter(node: Any, graph: Any) -> Any:
        return OperationConverterResult(QuickGelu(node.attributes["alpha"]), onnx_mapping_from_node(node))

    add_converter(operation_type="QuickGelu", version=1, domain=MICROSOFT)(converter)


def noisy(model: Model) -> onnx.ModelProto:
    """The model with noise on its Conv's weight."""
    random, student = np.random.default_rng(1), onnx.ModelProto()
    student.CopyFrom(model.proto)
    for tensor in student.graph.initializer:
        if tensor.name == "kernel":
            values = numpy_helper.to_array(tensor)
            change = 0.3 * values.std() * random.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + change).astype(values.dtype), tensor.name))
    return student


def distance(model: Model, other: Any, data: dict[str, np.ndarray]) -> float:
    wanted, found = (Runner(one, ONE)(data)["y"] for one in (model, other))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_operator_of_a_third_party_trains(added: Any) -> None:
    add_quick_gelu(added)
    teacher = network("QuickGelu", alpha=1.5)
    student = Model(noisy(teacher))
    samples = np.random.default_rng(4).standard_normal((48, 3, 8, 6)).astype(np.float32)
    result = onnxsep.finetune(student, data={"x": samples}, teacher=teacher, epochs=15, rate=0.01, batch=4, runtime=ONE)
    data = feeds(teacher)
    assert distance(teacher, result.model, data) < 0.5 * distance(teacher, student, data)
    assert [node.op_type for node in result.model.proto.graph.node] == [n.op_type for n in teacher.proto.graph.node]


def test_converter_sees_constants_and_its_outputs_go_by_name(added: Any) -> None:
    import torch
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult, get_const_value

    class BiasGelu(torch.nn.Module):
        """The bias is a parameter of its own, as in many converters."""

        def __init__(self, bias: torch.Tensor) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(bias)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, torch.nn.functional.gelu(x + self.bias)]

    def converter(node: Any, graph: Any) -> Any:
        bias = get_const_value(node.input_values[1], graph)
        return OperationConverterResult(
            BiasGelu(bias), OnnxMapping(inputs=node.input_values[:1], outputs=("nobody's", *node.output_values))
        )

    added(operation_type="BiasGelu", version=1, domain=MICROSOFT)(converter)

    model = network("BiasGelu", np.linspace(-1, 1, 6).astype(np.float32))
    data, graph = feeds(model), to_torch(model)
    found = graph.module.train()(graph.tensors(data))["y"]
    np.testing.assert_allclose(found.detach().numpy(), Runner(model, ONE)(data)["y"], rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert float(graph.parameters["kernel"].grad.abs().max()) > 0
    assert all(".bias" not in name for name in graph.parameters)
    states = {name: module.training for name, module in graph.module.named_modules() if name.startswith("_registered.")}
    assert states == {"_registered.0": False}


def test_inputs_that_are_left_out_are_given_by_name(added: Any) -> None:
    import torch
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, factor: Any = 3.0, shift: Any = 0.0) -> torch.Tensor:
            scaled: torch.Tensor = x * factor + shift
            return scaled

    def converter(node: Any, graph: Any) -> Any:
        return OperationConverterResult(Scaled(), onnx_mapping_from_node(node))

    added(operation_type="Scaled", version=1, domain="a.stranger")(converter)

    plain, scaled = (network("Scaled", *more, domain="a.stranger") for more in ((), (None, np.array(2, np.float32))))
    outputs = []
    for model in (plain, scaled):
        graph = to_torch(model)
        outputs.append(graph.module(graph.tensors(feeds(model)))["y"].detach().numpy())
    same = network("Identity", domain="")
    expected = 3 * Runner(same, ONE)(feeds(same))["y"]
    head = numpy_helper.to_array(next(t for t in plain.proto.graph.initializer if t.dims == [8, 5]))
    other = numpy_helper.to_array(next(t for t in scaled.proto.graph.initializer if t.dims == [8, 5]))
    np.testing.assert_array_equal(head, other)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs[1], expected + 2 * head.sum(0), rtol=1e-4, atol=1e-5)


def test_converter_that_fails_is_an_error_that_names_the_node(added: Any) -> None:
    def converter(node: Any, graph: Any) -> Any:
        raise KeyError("alpha is not what was expected")

    added(operation_type="QuickGelu", version=1, domain=MICROSOFT)(converter)

    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft\.QuickGelu 'QuickGelu_1'.*not what was expected"):
        to_torch(network("QuickGelu", alpha=1.5))


@needs_onnx2torch
def test_operator_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft\.QuickGelu 'QuickGelu_1'.*no converter"):
        to_torch(network("QuickGelu", alpha=1.5))


def test_own_operators_do_without_onnx2torch(without_onnx2torch: None) -> None:
    model = network("HardSwish", domain="")
    graph = to_torch(model)
    found = graph.module(graph.tensors(feeds(model)))["y"].detach().numpy()
    np.testing.assert_allclose(found, Runner(model, ONE)(feeds(model))["y"], rtol=1e-4, atol=1e-5)


def test_missing_onnx2torch_names_the_extra(without_onnx2torch: None) -> None:
    with pytest.raises(MissingDependencyError, match=r"com\.microsoft\.QuickGelu 'QuickGelu_1'.*onnxsep\[finetune\]"):
        to_torch(network("QuickGelu", alpha=1.5))
