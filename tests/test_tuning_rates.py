"""The learning rate of tuning is one of three, the one that does best in a part of the steps."""

import numpy as np
import onnx
from finetuning_models import needs_torch
from onnx import TensorProto, numpy_helper
from test_finetuning_forms import DATA, any_batch, disturbed, scores_and

from onnxsep.data import open_data
from onnxsep.model.io import Model
from onnxsep.training.tuning import tune

pytestmark = needs_torch


def teacher() -> Model:
    net, _ = scores_and()
    return any_batch(net.model(y=TensorProto.FLOAT))


def hardly_disturbed(model: Model) -> Model:
    """So near to what it is to learn that large steps lead away."""
    student = onnx.ModelProto()
    student.CopyFrom(model.proto)
    (kernel,) = (tensor for tensor in student.graph.initializer if tensor.name == "kernel")
    values = numpy_helper.to_array(kernel) * np.float32(1.003)
    kernel.CopyFrom(numpy_helper.from_array(values, "kernel"))
    return Model(student)


def test_the_rate_that_does_best_in_a_sixth_of_the_steps_is_taken() -> None:
    model = teacher()
    student, data = hardly_disturbed(model), open_data({"x": DATA["x"][:24]}, model)
    trials = {
        rate: tune(student, model, data, steps=20, learning_rate=rate, batch_size=8, augment=False).held_out_after
        for rate in (0.02, 0.005, 0.00125)
    }
    best = min(trials, key=trials.__getitem__)
    assert best < 0.02
    assert tune(student, model, data, steps=120, batch_size=8, augment=False).rate == best


def test_few_steps_take_the_largest() -> None:
    model = teacher()
    student, data = disturbed(model), open_data(DATA, model)
    assert tune(student, model, data, steps=10, augment=False).rate == 0.02
