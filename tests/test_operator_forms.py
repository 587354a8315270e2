"""Every form of an operator that exporters of CNNs write is computed as ONNX Runtime does, and gradients go through."""

from importlib.util import find_spec

import pytest
from onnx import defs
from operator_forms import FORMS, OLD, Form, fault, network

NEW = defs.onnx_opset_version() >= 24  # what the oldest supported onnx does not know is not tried there
pytestmark = pytest.mark.skipif(
    find_spec("torch") is None, reason="torch is not installed (pip install onnxsep[finetune])"
)


def title(form: Form) -> str:
    return form.title


@pytest.mark.skipif(not NEW, reason="the installed onnx is older than the newest operators")
@pytest.mark.parametrize("form", FORMS, ids=title)
def test_form_trains(form: Form) -> None:
    for opset in form.versions():
        assert fault(network(form, opset)) == "", f"opset {opset}"


@pytest.mark.parametrize("form", OLD, ids=title)
def test_form_of_an_old_opset_trains(form: Form) -> None:
    assert fault(network(form, form.until)) == ""
