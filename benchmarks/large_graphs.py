"""Time of the commands by the size of the graph: a chain of Convs, many nodes, functions that call one another.

    python benchmarks/large_graphs.py [--convs 500] [--nodes 20000] [--functions 2000] [--full] [--quantize]

For n, 2 n and 4 n of each, in one run: processor seconds, and the ratio to the line before; with --full for half and
all of 5,000 Convs, a million nodes and 10,000 functions. Where time is linear in the size, the ratio is about 2. The
time that ONNX Runtime takes to make a session, which is not linear, is shown for itself: verification and ``check``
make two. With --quantize: a fifth as many Convs (500 and 1,000 with --full) through quantize, both formats. Of
functions that call the one before twice, the graph doubles with each of them; it is never expanded.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.quantization.settings import Format
from onnxsep.running.runtime import Runner, RuntimeOptions

Command = Callable[[str], object]

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


def rewritten(path: str) -> None:
    onnxsep.rewrite(path, mode="spatial", verify="none").save(f"{path}.out")


def pruned(path: str) -> None:
    onnxsep.prune(path, sparsity=0.5, verify="none").save(f"{path}.out")


def checked(path: str) -> None:
    onnxsep.check(path, f"{path}.out")


def session(path: str) -> None:
    Runner(onnxsep.load(path), RuntimeOptions(threads=1))


def quantized(file_format: Format) -> Command:
    data = {"x": np.random.default_rng(0).random((8, 4, 8, 8), np.float32)}
    return lambda path: onnxsep.quantize(path, data=data, format=file_format).save(f"{path}.out")


ALL: dict[str, Command] = {
    "inspect": onnxsep.inspect,
    "rewrite": rewritten,
    "prune": pruned,
    "check": checked,
    "(session)": session,
}
UNRUN: dict[str, Command] = {"inspect": onnxsep.inspect, "rewrite": rewritten}
QUANTIZE: dict[str, Command] = {name: quantized(name) for name in get_args(Format)}


def show(
    what: str,
    make: Callable[[int], onnx.ModelProto],
    sizes: Sequence[int],
    commands: Mapping[str, Command],
) -> None:
    """Print the seconds of some commands for these sizes, and the ratio of each to the one before."""
    before: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        path = f"{folder}/m.onnx"
        for size in sizes:
            onnx.save(make(size), path)
            cells = []
            for name, command in commands.items():
                start = time.process_time()
                command(path)
                seconds = time.process_time() - start
                ratio = f"{seconds / before[name]:.2f} times" if name in before else ""
                cells.append(f"{name} {seconds:6.2f} s {ratio:10}")
                before[name] = seconds
            print(f"{what:31} {size:>9,}  {'  '.join(cells)}".rstrip(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convs", type=int, default=500)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--functions", type=int, default=2_000)
    parser.add_argument("--full", action="store_true", help="half of the largest sizes, and these")
    parser.add_argument("--quantize", action="store_true", help="only quantize")
    options = parser.parse_args()
    # What is imported when it is first needed is no part of the times.
    show("first use", convs, (1,), {**ALL, **QUANTIZE})

    def sizes(count: int, full: int) -> Sequence[int]:
        return (full // 2, full) if options.full else (count, 2 * count, 4 * count)

    if options.quantize:
        show("Convs in a chain", convs, sizes(options.convs // 5, 1_000), QUANTIZE)
    else:
        show("Convs in a chain", convs, sizes(options.convs, 5_000), ALL)
        show("nodes without Convs", many_nodes, sizes(options.nodes, 1_000_000), UNRUN)
        for calls, often in ((1, "once"), (2, "twice")):
            make = functools.partial(functions, calls=calls)
            show(f"functions, each calls one {often}", make, sizes(options.functions, 10_000), UNRUN)
