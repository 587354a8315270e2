"""Reading the text form of a structure: statements and their parts."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from onnxsep.checking.structure import INDENT
from onnxsep.checking.structure_words import PLAIN

QUOTED = r'"(?:[^"\\]|\\.)*"'
NAME = re.compile(rf"(?P<mark>[%@$])(?:{QUOTED}|{PLAIN})|{QUOTED}")
_NODE = re.compile(
    r"(?P<outputs>[^=()]+) = (?P<operator>[^(]+)\((?P<inputs>[^()]*)\)(?: \{(?P<attributes>.*)\})?(?P<name> @.*)?"
)
_DECLARATION = re.compile(
    r"(?P<keyword>(?:sparse )?(?:weight input|weight|constant|input|output)) (?P<tensor>%\S*?)"
    r"(?:: (?P<type>.*?)(?: = (?P<value>.*?))?(?: declared (?P<declared>.*?))?)?(?P<name> @.*)?"
)


@dataclass(frozen=True)
class Statement:
    """One line of the text form, with its parts told apart."""

    number: int  # in the text, from 1
    text: str

    @cached_property
    def depth(self) -> int:
        """How often it is indented."""
        return (len(self.text) - len(self.text.lstrip(" "))) // len(INDENT)

    @cached_property
    def _halves(self) -> tuple[str, str]:
        line = self.text.strip()
        cut = _mask(line).find(" -> ")
        return (line, "") if cut < 0 else (line[:cut], line[cut + 4 :])

    @property
    def body(self) -> str:
        """The line without its inferred types."""
        return self._halves[0]

    @property
    def types(self) -> str:
        """The inferred types, which may be known in one text and not in the other."""
        return self._halves[1]

    @cached_property
    def parts(self) -> dict[str, str]:
        """What the statement says, by what a reader would call it."""
        mask = _mask(self.body)
        if mask.startswith(("%", "_")) and (node := _NODE.fullmatch(mask)):
            parts = {"output": self._cut(node, "outputs"), "operator": self._cut(node, "operator")}
            inputs = split_at_commas(self._cut(node, "inputs"))
            parts |= {f"input {index}": text for index, text in enumerate(inputs, start=1)}
            for text in split_at_commas(self._cut(node, "attributes")):
                name, _, value = text.partition(" = ")
                parts[f"attribute {name}"] = value
            parts["name"] = self._cut(node, "name")
        elif declaration := _DECLARATION.fullmatch(mask):
            parts = {key: self._cut(declaration, key) for key in declaration.groupdict()}
        else:
            parts = {"": self.body}
        return {key: value for key, value in parts.items() if value}

    def _cut(self, match: re.Match[str], group: str) -> str:
        start, end = match.span(group)
        return "" if start < 0 else self.body[start:end].strip()

    @cached_property
    def definitions(self) -> list[str]:
        """Tensors that are new here."""
        if "operator" in self.parts:
            return [name for name in split_at_commas(self.parts["output"]) if name != "_"]
        return [self.parts["tensor"]] if self.parts.get("keyword", "output") != "output" else []

    @cached_property
    def label(self) -> str:
        """What a person would point at."""
        if "operator" in self.parts:
            return f"{self.parts['operator']} {self.parts.get('name') or next(iter(self.definitions), '')}".strip()
        if "keyword" in self.parts:
            return f"{self.parts['keyword']} {self.parts['tensor']}"
        return self.body.split(" = ", 1)[0] if self.body.startswith("attribute ") else self.body.split(": graph", 1)[0]

    def key(self, precision: Literal["exact", "definition", "kind", "class"], nameless: bool) -> Hashable:
        """What two statements share that may be two versions of one; ``nameless`` leaves names out."""
        if precision == "exact":
            return (self.depth, _nameless(self.body) if nameless else self.body)
        subject = self.body.split(" = ")[0].split(": ")[0]
        if precision == "definition" and not nameless:
            return (self.depth, *(self.definitions or [subject]))
        if "operator" in self.parts:
            return (self.depth, "node" if precision == "class" else self.parts["operator"])
        if "keyword" in self.parts:
            # Another weight of the same type is likely a renamed one, of another type a new one.
            kind = "" if precision == "class" else _nameless(self.parts.get("type", ""))
            return (self.depth, self.parts["keyword"], kind)
        if precision in ("kind", "class") and not subject.startswith("#"):
            subject = subject.rpartition(" ")[0]  # "opset ai.onnx 17": the same whatever the version
        return (self.depth, _nameless(subject) if nameless else subject)


def read_statements(lines: Sequence[str]) -> list[Statement]:
    """The statements of a text; empty lines say nothing."""
    return [Statement(number, line.rstrip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _mask(text: str) -> str:
    """The same length, with the content of quoted strings blotted out, so that signs in it mean nothing."""
    return re.sub(QUOTED, lambda match: '"' + "x" * (len(match[0]) - 2) + '"', text)


def split_at_commas(text: str) -> list[str]:
    """Split at commas that no bracket encloses."""
    mask, depth, start, found = _mask(text), 0, 0, []
    for position, character in enumerate(mask):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append(text[start:position].strip())
            start = position + 1
    return [*found, text[start:].strip()] if text.strip() else []


def _nameless(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return match[0] if match["mark"] is None else match["mark"].replace("@", "")

    return NAME.sub(replace, text).rstrip()
