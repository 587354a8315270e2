"""Words of the text form: names, values and types."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from onnxsep.model.tensors import type_name

PLAIN = r"[A-Za-z0-9_./:;-]*[A-Za-z0-9_./;-]"  # never ends in a colon, so that "%name: type" can be told apart
_LONG_TEXT = 200
_LONG_LIST = 64


def word(text: str) -> str:
    """``text`` where it is a plain word, else quoted."""
    return text if re.fullmatch(PLAIN, text) else quoted(text)


def quoted(text: str) -> str:
    """A JSON string on one line; characters that cannot be seen, text direction marks included, are escaped."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in plain)


def _digest(kind: str, content: bytes, count: str) -> str:
    return f"{kind}({count}, sha256 {hashlib.sha256(content).hexdigest()[:16]})"


def string_text(value: bytes) -> str:
    """A quoted string; bytes that are no UTF-8 as escapes."""
    if len(value) > _LONG_TEXT:
        return _digest("text", value, f"{len(value)} bytes")
    try:
        return quoted(value.decode("utf-8"))
    except UnicodeDecodeError:
        return 'b"' + "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in value) + '"'


def _float(value: float) -> str:
    return str(np.float32(value))


def list_text(kind: str, values: Iterable[Any], show: Callable[[Any], str]) -> str:
    """A list, a digest of it where it is long, or its kind where it is empty."""
    shown = [show(value) for value in values]
    text = ", ".join(shown)
    if len(shown) > _LONG_LIST:
        return _digest(kind, text.encode("utf-8"), f"{len(shown)} values")
    return f"[{text}]" if shown else f"{kind}[]"


def tensor_word(name: str) -> str:
    """A tensor's name, marked; ``_`` for one that is left out."""
    return f"%{word(name)}" if name else "_"


def node_word(name: str) -> str:
    """What names a node at the end of its line; nothing where it has no name."""
    return f" @{word(name)}" if name else ""


def operator_word(domain: str, name: str, overload: str = "") -> str:
    """Domain, operator and overload."""
    prefix = "" if domain in ("", "ai.onnx") else f"{word(domain)}."
    plain = name if re.fullmatch(r"[A-Za-z0-9_:-]+", name) else quoted(name)  # no dot: it ends the domain
    return prefix + plain + (f"<{word(overload)}>" if overload else "")


def _element_type(number: int) -> str:
    if number == TensorProto.UNDEFINED:
        return "?"
    name = type_name(number)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _dimension(dim: onnx.TensorShapeProto.Dimension, known: frozenset[str] | None) -> str:
    text = "?"
    if dim.HasField("dim_value"):
        text = str(dim.dim_value)
    elif dim.dim_param and (known is None or dim.dim_param in known):  # inference invents names such as unk__7
        text = f"${word(dim.dim_param)}"
    return text + (f" denotes {quoted(dim.denotation)}" if dim.denotation else "")


def type_text(proto: onnx.TypeProto, known: frozenset[str] | None = None) -> str:
    """A type; of its symbolic dimensions only those ``known``, all where that is None."""
    kind = proto.WhichOneof("value")
    text = "?"
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(proto, kind)
        dims = ", ".join(_dimension(dim, known) for dim in tensor.shape.dim) if tensor.HasField("shape") else "..."
        text = ("sparse " if kind == "sparse_tensor_type" else "") + f"{_element_type(tensor.elem_type)}[{dims}]"
    elif kind == "sequence_type":
        text = f"sequence({type_text(proto.sequence_type.elem_type, known)})"
    elif kind == "optional_type":
        text = f"optional({type_text(proto.optional_type.elem_type, known)})"
    elif kind == "map_type":
        text = f"map({_element_type(proto.map_type.key_type)}, {type_text(proto.map_type.value_type, known)})"
    elif kind == "opaque_type":
        text = f"opaque({operator_word(proto.opaque_type.domain, proto.opaque_type.name)})"
    return text + (f" denotes {quoted(proto.denotation)}" if proto.denotation else "")


def tensor_type_text(tensor: TensorProto | onnx.SparseTensorProto) -> str:
    """The type of a tensor with data."""
    element = tensor.values.data_type if isinstance(tensor, onnx.SparseTensorProto) else tensor.data_type
    return f"{_element_type(element)}[{', '.join(map(str, tensor.dims))}]"


def symbols(message: Message) -> Iterator[str]:
    """Names of symbolic dimensions that the model itself uses, wherever they stand."""
    if isinstance(message, onnx.TensorShapeProto):
        yield from (dim.dim_param for dim in message.dim if dim.dim_param)
    elif not isinstance(message, TensorProto):
        for field, value in message.ListFields():
            if field.message_type is not None:
                for item in value if hasattr(value, "add") else (value,):
                    yield from symbols(item)


SHOW: dict[str, Callable[[Any], str]] = {
    "f": _float,
    "i": str,
    "s": string_text,
    "tp": lambda proto: f"type {type_text(proto)}",
}
SHOW_EACH = {"floats": SHOW["f"], "ints": SHOW["i"], "strings": SHOW["s"], "type_protos": SHOW["tp"]}
