"""Topological order of the nodes of a graph; what their nested graphs capture counts, too."""

import heapq
from collections import defaultdict

import onnx

from onnxsep.calibration.frontier import reads


def in_order(graph: onnx.GraphProto) -> None:
    """Sort the nodes of a graph, in place, so that each stands behind those that it reads from.

    Nodes keep their order as far as that allows it.
    """
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    missing = [0] * len(nodes)
    readers: dict[int, list[int]] = defaultdict(list)
    for place, node in enumerate(nodes):
        before = {makers[name] for name in reads(node) if name in makers} - {place}
        missing[place] = len(before)
        for maker in before:
            readers[maker].append(place)
    ready = [place for place, count in enumerate(missing) if not count]
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for reader in readers[place]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    del graph.node[:]
    graph.node.extend(nodes[place] for place in order)
