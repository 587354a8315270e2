"""What the runtime says of a model that it cannot run, as one line for the user."""

import re

_ORIGIN = re.compile(r"(?:[A-Za-z]:)?[\w./\\+-]+\.(?:cc|cpp|cu|cuh|h|hpp|inl):\d+\s+")
_QUALIFIERS = re.compile(r"(?:\s*(?:const\b|noexcept\b|\[with [^\]]*\]))*")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message:\s*")
_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ :\s*"),
    re.compile(r"^Load model from .*? failed:\s*"),
    re.compile(r"Failed to load model with error:\s*"),
    re.compile(r"^(?:Fatal error|Exception during initialization):\s*"),
)


def readable_reason(text: str) -> str:
    """The runtime's message in one line, without the places in its C++ source; names of nodes and operators stay."""
    for pattern in _NOISE:
        text = pattern.sub("", text, count=1)
    text = _NODE.sub(lambda found: f"{found[1]} node {found[2]!r}: " if found[2] else f"{found[1]} node: ", text)
    while found := _ORIGIN.search(text):
        text = text[: found.start()] + _after_signature(text[found.end() :])
    return " ".join(text.split()) or "the runtime gave no reason"


def _after_signature(text: str) -> str:
    """What follows the C++ function that the runtime puts between a source line and its message."""
    head, opening, _ = text.partition("(")
    if not opening or "::" not in head or head.endswith(" "):
        # Some compilers give only a name.
        word, _, rest = text.partition(" ")
        return rest if "::" in word else text
    depth = 0
    for position, character in enumerate(text[len(head) :], start=len(head)):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            after = text[position + 1 :]
            qualifier = _QUALIFIERS.match(after)
            return after[qualifier.end() :] if qualifier else after
    return text
