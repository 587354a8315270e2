"""The attributes of a node, as what builds its operation reads them, and the operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INSTALL = "install it with: pip install onnxsep[finetune]"

Call = Callable[..., Any]
"""Computes a node: tensors of its inputs in (None for one that is left out), a tensor out, or several in a tuple."""


@dataclass(frozen=True)
class Operation:
    """What computes a node.

    Attributes:
        inputs: Names of the tensors that ``call`` takes; "" for one that is left out.
        call: The function; ``training`` is an argument of those that are marked with ``trains``.
        module: What of it is a torch module, so that it moves to the device with the rest; None where nothing is.
    """

    inputs: tuple[str, ...]
    call: Call
    module: Any = None


class Attributes:
    """The attributes of a node by name; texts are ``str``.

    What is never read while the operation is built is an attribute that nothing here knows, see :meth:`unread`.

    Args:
        values: The attributes.
        opset: The version of ONNX's own operators, which says what the node means.
        outputs: How many outputs the node has.
    """

    def __init__(self, values: Mapping[str, Any], opset: int, outputs: int = 1) -> None:
        self._values = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        self._read: set[str] = set()
        self.opset, self.outputs = opset, outputs

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or what holds where it is missing."""
        self._read.add(name)
        return self._values.get(name, default)

    def need(self, name: str) -> Any:
        """The value of an attribute that must be there.

        Raises:
            NotImplementedError: It is missing.
        """
        if name not in self._values:
            raise NotImplementedError(f"its attribute {name!r} is missing")
        return self.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """The value of an attribute that is 0 or 1."""
        return bool(self.get(name, int(default)))

    def ints(self, name: str) -> list[int] | None:
        """The value of an attribute of several integers; None where it is missing."""
        value = self.get(name)
        return None if value is None else [int(item) for item in value]

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """The value of an attribute that is one of several words; the first one where it is missing.

        Raises:
            NotImplementedError: It is another word.
        """
        value = str(self.get(name) or choices[0])
        if value not in choices:
            raise NotImplementedError(f"{name} {value!r} is not supported")
        return value

    def ignore(self, *names: str) -> None:
        """Say that these attributes change nothing here."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """The names of attributes that nothing has asked for."""
        return sorted(set(self._values) - self._read)


Builder = Callable[[Attributes], Call]
"""Makes what computes a node; NotImplementedError says why it cannot be done."""


def plain(call: Call) -> Builder:
    """A builder for an operator without attributes."""
    return lambda _: call


def one_line(error: BaseException) -> str:
    """What an error says, short and in one line."""
    return " ".join(str(error).split())[:200]
