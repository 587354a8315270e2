"""float32 that is float32, on GPUs too.

By default torch lets cuDNN round the inputs of float32 convolutions to TF32, which has ten bits of mantissa: training
loses nothing by it, but a copy of ResNet-20 differs by 1.2e-3 from ONNX Runtime, as much as a wrong operator would.
https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

from collections.abc import Iterator
from contextlib import contextmanager

from onnxsep.training.converters import import_torch


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in the context: for what is compared and measured."""
    backends = import_torch().backends
    switches = (backends.cudnn, backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
