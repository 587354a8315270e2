"""Damaged models: a file with wrong bytes, and a model of which one or a few fields hold odd values.

Both take a generator, so that a seed gives the same damage again.
"""

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, 2, 3, -1, -2, 4, 7, 64, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 1.0, 0.5, 1e-30, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *("", "x", "y", "Conv", "Loop", "If", "ai.onnx", "com.example", "auto_pad", "value", "axis", "-1", "?", "a" * 5000),
    *(
        "\x1b[31mred\x1b[0m",
        "two\nlines",
        "carriage\rreturn",
        "\u202egnp.exe",
        "[bold]markup[/bold]",
        "\0",
        "::error::",
    ),
    *("../outside", "/etc/passwd", "C:\\windows", "\ud7ff\U0001f600"),
)
BYTES = (b"", b"\0", b"\xff\xfe", b"SAME_UPPER", b"SAME_UPPE", b"x" * 4097, b"\x1b[2J")


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A copy of a file with wrong bytes: bits turned over, bytes replaced, a piece cut out, doubled or moved."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not result:
            break
        start = rng.randrange(len(result))
        length = min(rng.choice((1, 2, 8, 64, len(result))), len(result) - start)
        kind = rng.randrange(7)
        if kind <= 1:
            result[start] ^= 1 << rng.randrange(8)
        elif kind == 2:
            result[start] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 3:
            del result[start : start + length]
        elif kind == 4:
            del result[start:]
        elif kind == 5:
            result[start:start] = result[start : start + min(length, 4096)]
        else:
            result[start : start + length] = bytes(rng.randrange(256) for _ in range(min(length, 64)))
    return bytes(result)


def mutated(rng: random.Random, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which one field, sometimes a few, of random messages holds an odd value."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, rng.choice(list(_messages(copy))))
    return copy


def _messages(top: Message) -> Iterator[Message]:
    """A message and all that it holds, without recursion."""
    pending: list[Message] = [top]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += list(value) if _is_repeated(value) else [value]


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Message)


def _change(rng: random.Random, message: Message) -> None:
    set_fields = [field for field, _ in message.ListFields()]
    field: Any = rng.choice(set_fields if set_fields and rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    value = getattr(message, field.name)
    if _is_repeated(value):
        _change_list(rng, field, value)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        value.SetInParent()
    else:
        setattr(message, field.name, _odd(rng, field, value))


def _change_list(rng: random.Random, field: FieldDescriptor, values: Any) -> None:
    kind = rng.randrange(6)
    index = rng.randrange(len(values)) if values else None
    if index is None or kind == 0:
        if field.message_type is not None:
            values.add()
        else:
            values.append(_odd(rng, field, None))
    elif kind == 1:
        del values[index]
    elif kind == 2:
        del values[:]
    elif kind == 3:
        other = rng.randrange(len(values))
        if field.message_type is not None:
            values.add().CopyFrom(values[other])
        else:
            values.insert(index, values[other])
    elif field.message_type is not None:
        other = rng.randrange(len(values))
        if other != index:
            values[index].CopyFrom(values[other])
    else:
        values[index] = _odd(rng, field, values[index])


def _odd(rng: random.Random, field: FieldDescriptor, value: Any) -> Any:
    """An odd value of the field's type."""
    if field.enum_type is not None:
        return rng.choice([entry.number for entry in field.enum_type.values])
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    number = rng.choice((*INTEGERS, (value or 0) + 1, (value or 0) - 1, 2 * (value or 0), rng.randrange(32)))
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    number &= (1 << bits) - 1
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    return number - (1 << bits) if signed and number >> (bits - 1) else number
