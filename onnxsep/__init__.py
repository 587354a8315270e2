"""onnxsep: a compiler for trained CNNs in ONNX."""

from onnxsep._version import __version__

__all__ = ["__version__"]
