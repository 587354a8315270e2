"""Marks: what the nodes that onnxsep made say about themselves, once in the model and not in each node.

One entry of the model's metadata, ``onnxsep.made``, holds them all, by graph and output name, as JSON: a list of
groups, each with what its nodes say, and the outputs of these by what they were made from; a third item names the graph
where it is not the main one.

    [[{"mode": "depthwise", "rank": "1"}, {"conv1": ["y_depthwise", "y"]}]]

Before, every node said it in its own metadata ("onnxsep.mode" and so on). Such nodes are understood as well.
"""

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import overload

import onnx

from onnxsep.graph.scopes import Scope, scopes

PREFIX = "onnxsep."
KEY = f"{PREFIX}made"
SOURCE = "source"  # the name of the node that a node was made from

Said = Mapping[str, str]
"""A mark: the keys have no prefix."""

_Entries = MutableMapping[tuple[str, str], Said]  # by graph and output


class Marks:
    """The marks of a model.

    Args:
        proto: The model.
        all_scopes: Its scopes, where they are known.

    Attributes:
        unreadable: Whether the model has an entry that is none of these; its nodes then count as not marked.
    """

    def __init__(self, proto: onnx.ModelProto, all_scopes: Sequence[Scope] | None = None) -> None:
        found = _read(proto)
        self.unreadable = found is None
        self._entries: _Entries = found or {}
        self._graphs = graph_keys(all_scopes or scopes(proto)) if self._entries else []

    def of(self, scope: int, node: onnx.NodeProto) -> dict[str, str]:
        """What a node of a scope says; empty where onnxsep did not make it."""
        said = own_mark(node)
        if self._entries:
            said |= self.within(self._graphs[scope], node)
        return said

    def within(self, graph: str | None, node: onnx.NodeProto) -> Said:
        """What the model says of a node in a graph, which ``graph_keys`` names; None is one that no mark names."""
        found = (
            (self._entries.get((graph, name)) for name in node.output) if self._entries and graph is not None else ()
        )
        return next(filter(None, found), {})


class Marking:
    """Changes the marks of a model, whose nodes may move meanwhile.

    Args:
        proto: The model.
        all_scopes: Its scopes before any change.
    """

    def __init__(self, proto: onnx.ModelProto, all_scopes: Sequence[Scope]) -> None:
        self._proto, self._graphs = proto, graph_keys(all_scopes)
        self._entries: _Entries = _read(proto) or {}

    def set(self, scope: int, output: str, said: Said) -> None:
        """The node that makes this output says this."""
        self._entries[self._graphs[scope], output] = said

    def drop(self, scope: int, outputs: Sequence[str]) -> None:
        """The node that made these outputs is gone."""
        for name in outputs:
            self._entries.pop((self._graphs[scope], name), None)

    def write(self) -> None:
        """Put them into the model."""
        _write(self._proto, self._entries)


def graph_keys(all_scopes: Sequence[Scope]) -> list[str]:
    """A name for each scope that is the same in every copy of the model: "" for the main graph."""
    found: list[str] = []
    for scope in all_scopes:
        if isinstance(scope.body, onnx.FunctionProto):
            found.append(function_key(scope.body))
        elif scope.parent is None or scope.holder is None:
            found.append("")
        else:
            index, attribute = scope.holder
            found.append(nested_key(found[scope.parent], all_scopes[scope.parent].body.node[index], attribute))
    return found


def function_key(function: onnx.FunctionProto) -> str:
    """The key of a function's body."""
    overload = getattr(function, "overload", "")
    return ":".join([function.domain, function.name, *([overload] if overload else [])])


@overload
def nested_key(graph: str, holder: onnx.NodeProto, attribute: str) -> str: ...
@overload
def nested_key(graph: str | None, holder: onnx.NodeProto, attribute: str) -> str | None: ...
def nested_key(graph: str | None, holder: onnx.NodeProto, attribute: str) -> str | None:
    """The key of a graph that a node of another one holds; None where the other has none."""
    return None if graph is None else f"{graph}/{next(filter(None, holder.output), '')}.{attribute}"


def own_mark(node: onnx.NodeProto) -> dict[str, str]:
    """What a node says in its own metadata."""
    if not node.metadata_props:
        return {}
    said = ((entry.key, entry.value) for entry in node.metadata_props if entry.key.startswith(PREFIX))
    return {key.removeprefix(PREFIX): value for key, value in said}


def onto_nodes(proto: onnx.ModelProto) -> None:
    """Let every node say it in its own metadata again, in place: where names or graphs are going to change."""
    all_scopes = scopes(proto)
    marks = Marks(proto, all_scopes)
    for scope in all_scopes:
        for node in scope.body.node:
            if said := marks.of(scope.index, node):
                set_own_mark(node, said)
    if not marks.unreadable:
        _write(proto, {})


def set_own_mark(node: onnx.NodeProto, said: Said) -> None:
    """Replace what a node says in its own metadata; other entries stay."""
    kept = [(entry.key, entry.value) for entry in node.metadata_props if not entry.key.startswith(PREFIX)]
    del node.metadata_props[:]
    for key, value in (*kept, *((PREFIX + key, value) for key, value in said.items())):
        node.metadata_props.add(key=key, value=value)


def into_model(proto: onnx.ModelProto) -> None:
    """Take what nodes say in their own metadata into the model's, in place."""
    all_scopes = scopes(proto)
    marking = Marking(proto, all_scopes)
    for scope in all_scopes:
        for node in scope.body.node:
            if said := own_mark(node):
                set_own_mark(node, {})
                marking.set(scope.index, next(filter(None, node.output), ""), said)
    marking.write()


def _read(proto: onnx.ModelProto) -> _Entries | None:
    """The entries of a model; None where what stands there is something else."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if text is None:
        return {}
    try:
        return dict(_entries(json.loads(text)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _entries(groups: list[list[object]]) -> Iterator[tuple[tuple[str, str], Said]]:
    for said, outputs, *rest in groups:
        (graph,) = rest or [""]
        for source, names in outputs.items():  # type: ignore[attr-defined]
            mark = {**said, **({SOURCE: source} if source else {})}  # type: ignore[dict-item]
            if not all(isinstance(word, str) for word in (graph, *mark, *mark.values(), *names)):
                raise ValueError(f"{KEY} holds something else than names")
            yield from (((graph, name), mark) for name in names)  # type: ignore[misc]


def _write(proto: onnx.ModelProto, entries: _Entries) -> None:
    groups: dict[tuple[str, str], tuple[Said, dict[str, list[str]]]] = {}
    for (graph, name), said in entries.items():
        mark = {key: value for key, value in said.items() if key != SOURCE}
        outputs = groups.setdefault((graph, json.dumps(mark)), (mark, {}))[1]
        outputs.setdefault(said.get(SOURCE, ""), []).append(name)
    found = [[*group, *([graph] if graph else [])] for (graph, _), group in groups.items()]
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    for index, entry in enumerate(proto.metadata_props):
        if entry.key == KEY:
            if found:
                entry.value = text
            else:
                del proto.metadata_props[index]
            return
    if found:
        proto.metadata_props.add(key=KEY, value=text)
