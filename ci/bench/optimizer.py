"""Time of the optimizer over the size of the graph, which should be linear. No kernel runs but for folding.

    python3 ci/bench/optimizer.py [--nodes 1000 10000] [--json FILE]

Four kinds of graph: one where rules fire all the time, one of nodes that go away, one of nodes that are there twice,
and one in which nothing can be done.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gpurt import registry
from gpurt.loader import load
from gpurt.optimizer import optimize
from gpurt.options import GraphOptimizationLevel
from gpurt.session.site import Evaluator

Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]
n = helper.make_node


def fusable(count: int) -> Made:
    """Conv, BatchNormalization, Relu, again and again, each with weights of its own."""
    rng = np.random.default_rng(0)
    nodes, constants, last = [], {}, "x"
    for i in range(count // 3):
        constants[f"w{i}"] = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
        for name in "sbmv":
            constants[f"{name}{i}"] = np.abs(rng.standard_normal(4)).astype(np.float32) + 0.5
        nodes += [
            n("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]),
            n("BatchNormalization", [f"c{i}", f"s{i}", f"b{i}", f"m{i}", f"v{i}"], [f"n{i}"], f"bn{i}"),
            n("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        last = f"r{i}"
    return [*nodes, n("Relu", [last], ["y"], "last")], constants


def removable(count: int) -> Made:
    """Transposes in pairs, additions of zero, casts, shape arithmetic."""
    nodes, last = [], "x"
    for i in range(count // 7):
        nodes += [
            n("Transpose", [last], [f"a{i}"], f"there{i}", perm=[0, 2, 3, 1]),
            n("Transpose", [f"a{i}"], [f"b{i}"], f"back{i}", perm=[0, 3, 1, 2]),
            n("Add", [f"b{i}", "zero"], [f"c{i}"], f"add{i}"),
            n("Cast", [f"c{i}"], [f"d{i}"], f"cast{i}", to=TensorProto.FLOAT),
            n("Shape", [f"d{i}"], [f"e{i}"], f"shape{i}"),
            n("Reshape", [f"d{i}", f"e{i}"], [f"f{i}"], f"reshape{i}"),
            n("Sigmoid", [f"f{i}"], [f"g{i}"], f"sigmoid{i}"),
        ]
        last = f"g{i}"
    return [*nodes, n("Relu", [last], ["y"], "last")], {"zero": np.zeros(1, np.float32)}


def repeated(count: int) -> Made:
    """The same branch over and over, and the sum of all."""
    nodes, constants = [], {"c": np.full(1, 2, np.float32)}
    for i in range(count // 3):
        constants[f"k{i}"] = np.full(1, 3, np.float32)
        nodes += [
            n("Mul", ["x", f"k{i}"], [f"a{i}"], f"mul{i}"),
            n("Sigmoid", [f"a{i}"], [f"b{i}"], f"sigmoid{i}"),
            n("Add", [f"b{i}", "c"], [f"d{i}"], f"add{i}"),
        ]
    return [*nodes, n("Sum", [f"d{i}" for i in range(count // 3)], ["y"], "sum")], constants


def settled(count: int) -> Made:
    """Matrix-like work in which there is nothing to do."""
    nodes, last = [], "x"
    for i in range(count // 2):
        nodes += [n("Sin", [last], [f"a{i}"], f"sin{i}"), n("Mul", [f"a{i}", last], [f"b{i}"], f"mul{i}")]
        last = f"b{i}"
    return [*nodes, n("Relu", [last], ["y"], "last")], {}


KINDS: dict[str, Callable[[int], Made]] = {
    "fusable": fusable,
    "removable": removable,
    "repeated": repeated,
    "settled": settled,
}


def model(kind: str, count: int) -> onnx.ModelProto:
    """A model of about so many nodes."""
    nodes, constants = KINDS[kind](count)
    shape = [1, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measure(kind: str, count: int) -> dict[str, object]:
    """Seconds that loading and optimizing take, and the nodes before and after."""
    proto = model(kind, count)
    start = time.perf_counter()
    loaded = load(proto)
    read = time.perf_counter()
    before = len(loaded.model.graph)
    evaluate = Evaluator(registry.open_provider(registry.Request("cpu", None, {})))
    begin = time.perf_counter()
    report = optimize(loaded.model, GraphOptimizationLevel.ORT_ENABLE_ALL, evaluate, loaded.names)
    end = time.perf_counter()
    return {
        "kind": kind,
        "nodes": before,
        "after": len(loaded.model.graph),
        "rounds": report.rounds,
        "load_s": round(read - start, 3),
        "optimize_s": round(end - begin, 3),
        "us_per_node": round(1e6 * (end - begin) / before, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each kind and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    print(f"Python {platform.python_version()} on {platform.machine()}")
    rows = []
    for kind in KINDS:
        for count in args.nodes:
            rows.append(measure(kind, count))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
