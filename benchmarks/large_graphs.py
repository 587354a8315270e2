"""Time of inspect and rewrite by the size of the graph: a chain of Convs, many nodes, functions that call one another.

    python benchmarks/large_graphs.py [--convs 500] [--nodes 20000] [--functions 2000] [--full]

For n, 2 n and 4 n of each, in one run: processor seconds, and the ratio to the line before. With --full: 5,000 Convs, a
million nodes and 10,000 functions, once each. Where time is linear in the
size, the ratio is about 2. Of functions that call the one before twice, the graph doubles with each of them; it is
never expanded.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxsep

_STANDARD, _OWN = helper.make_opsetid("", 17), helper.make_opsetid("own", 1)


def model_of(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    """A model from x to what the last node computes."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", nodes[-1].output[0])
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[_STANDARD, _OWN], ir_version=9)


def convs(count: int) -> onnx.ModelProto:
    """A chain of Convs and Relus, whose values stay between 0 and 2."""
    random = np.random.default_rng(0)
    weight = random.random((4, 4, 3, 3), np.float32)
    weight /= 2 * weight.sum(axis=(1, 2, 3), keepdims=True)
    nodes, weights = [], []
    for number in range(count):
        source = f"r{number - 1}" if number else "x"
        nodes.append(helper.make_node("Conv", [source, f"w{number}", f"b{number}"], [f"c{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        weights.append(numpy_helper.from_array(np.ones(4, np.float32), f"b{number}"))
    return model_of(nodes, weights)


def many_nodes(count: int) -> onnx.ModelProto:
    """A chain of Relus."""
    return model_of(
        [helper.make_node("Relu", [f"r{n - 1}" if n else "x"], [f"r{n}"], name=f"n{n}") for n in range(count)]
    )


def functions(count: int, calls: int) -> onnx.ModelProto:
    """Functions of which each calls the one before, ``calls`` times."""
    model = model_of([helper.make_node(f"f{count - 1}", ["x"], ["y"], domain="own")])
    made = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [_STANDARD])]
    for number in range(1, count):
        names = ["a", *(f"t{call}" for call in range(1, calls)), "b"]
        nodes = [
            helper.make_node(f"f{number - 1}", [before], [after], domain="own")
            for before, after in itertools.pairwise(names)
        ]
        made.append(helper.make_function("own", f"f{number}", ["a"], ["b"], nodes, [_STANDARD, _OWN]))
    model.functions.extend(made)
    return model


def inspected(path: str) -> None:
    onnxsep.inspect(path)


def rewritten(path: str) -> None:
    onnxsep.rewrite(path, mode="spatial", verify="none").save(f"{path}.out")


def show(what: str, make: Callable[[int], onnx.ModelProto], sizes: Sequence[int]) -> None:
    """Print the seconds of inspect and rewrite for these sizes, and the ratio of each to the one before."""
    before: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        path = f"{folder}/m.onnx"
        for size in sizes:
            onnx.save(make(size), path)
            cells = []
            for name, command in (("inspect", inspected), ("rewrite", rewritten)):
                start = time.process_time()
                command(path)
                seconds = time.process_time() - start
                ratio = f"{seconds / before[name]:.2f} times" if name in before else ""
                cells.append(f"{name} {seconds:8.2f} s  {ratio:12}")
                before[name] = seconds
            print(f"{what:35} {size:>9,}  {'  '.join(cells)}".rstrip(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convs", type=int, default=500)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--functions", type=int, default=2_000)
    parser.add_argument("--full", action="store_true", help="the largest sizes, once each")
    options = parser.parse_args()
    small = convs(1)
    onnxsep.inspect(small)  # what is imported when it is first needed is no part of the times
    onnxsep.rewrite(small, mode="spatial", verify="none")

    def sizes(count: int, full: int) -> Sequence[int]:
        return (full,) if options.full else (count, 2 * count, 4 * count)

    show("Convs in a chain", convs, sizes(options.convs, 5_000))
    show("nodes without Convs", many_nodes, sizes(options.nodes, 1_000_000))
    show("functions, each calls one", lambda count: functions(count, 1), sizes(options.functions, 10_000))
    show("functions, each calls one twice", lambda count: functions(count, 2), sizes(options.functions, 10_000))
