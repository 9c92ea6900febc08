# ruff: noqa: SLF001 - how many lanes a plan has is inside
"""Both execution modes on models with two branches, in turns.

usage: parallel.py [--rounds 20] [--size 768] [--devices opencl:0,opencl:1]

The branches are chains of products and Softmax: both on cpu; one on cpu, the other, which comes later in the model, on
the first device; one on each of the first two devices, if there are so many, with a node on cpu in the middle. BLAS has
one thread, and OpenCL devices that are CPUs have one core, since two branches have to share what there is. The least
time of all rounds counts for each mode. Columns: lanes of the plan, milliseconds of both modes and their ratio, and the
ratio that was estimated when the plan was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

import gpurt

LENGTH = 4


def branches(size: int) -> onnx.ModelProto:
    """Two chains from one input to one sum; names of nodes begin with the branch's letter."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for branch in "ab":
        value = "x"
        for i in range(LENGTH):
            weight = (rng.standard_normal((size, size)) / size**0.5).astype(np.float32)
            weights.append(numpy_helper.from_array(weight, f"{branch}w{i}"))
            nodes.append(
                helper.make_node("MatMul", [value, f"{branch}w{i}"], [f"{branch}p{i}"], f"{branch}_product{i}")
            )
            nodes.append(helper.make_node("Softmax", [f"{branch}p{i}"], [f"{branch}{i}"], f"{branch}_softmax{i}"))
            value = f"{branch}{i}"
    nodes.append(helper.make_node("Add", [f"a{LENGTH - 1}", f"b{LENGTH - 1}"], ["y"], "sum"))
    kind = (TensorProto.FLOAT, [size, size])
    graph = helper.make_graph(
        nodes, "branches", [helper.make_tensor_value_info("x", *kind)], [helper.make_tensor_value_info("y", *kind)],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measure(model: onnx.ModelProto, pins: Mapping[str, str], size: int, rounds: int) -> tuple[int, float, float, float]:
    """Lanes, seconds of both modes, and the estimated ratio."""
    sessions = {}
    for mode in gpurt.ExecutionMode:
        options = gpurt.SessionOptions(execution_mode=mode, intra_op_num_threads=1, pins=pins)
        devices = [*dict.fromkeys(d for d in pins.values() if d != "cpu"), "cpu"]
        sessions[mode] = gpurt.InferenceSession(model, options, providers=devices)
    feed = {"x": np.random.default_rng(1).standard_normal((size, size)).astype(np.float32)}
    first, second = (session.run(None, feed)[0] for session in sessions.values())
    if not np.array_equal(first, second):
        raise SystemExit("the modes differ")
    least = dict.fromkeys(sessions, float("inf"))
    for _ in range(rounds):
        for mode, session in sessions.items():
            start = perf_counter()
            session.run(None, feed)
            least[mode] = min(least[mode], perf_counter() - start)
    lanes = [p._draft.lanes for p in sessions[gpurt.ExecutionMode.ORT_PARALLEL]._runner.plans()]
    found = [lane for lane in lanes if lane is not None]
    estimate = found[0].seconds[0] / found[0].seconds[1] if found else 1.0
    return max((lane.count for lane in found), default=1), *least.values(), estimate


@click.command(help=__doc__)
@click.option("--rounds", default=20, show_default=True)
@click.option("--size", default=768, show_default=True)
@click.option("--devices", default="", help="for example opencl:0,opencl:1; what is usable of opencl without it")
def main(rounds: int, size: int, devices: str) -> None:
    """See the module."""
    usable = [s for s in gpurt.providers() if s.name == "opencl" and s.usable]
    known = [d for d in devices.split(",") if d] or [d.name for s in usable for d in s.devices][:2]
    cases = {"cpu + cpu": {"*": "cpu"}}
    if known:
        cases[f"cpu + {known[0]}"] = {"b_*": known[0], "*": "cpu"}
    if len(known) > 1:
        middle = {f"{b}_softmax{LENGTH // 2}": "cpu" for b in "ab"}
        cases[f"{known[0]} + {known[1]}"] = {**middle, "a_*": known[0], "b_*": known[1], "*": "cpu"}
    table = Table("branches", "lanes", "sequential ms", "parallel ms", "ratio", "estimated")
    for name, pins in cases.items():
        lanes, one, several, estimate = measure(branches(size), pins, size, rounds)
        table.add_row(
            name, str(lanes), f"{1e3 * one:.2f}", f"{1e3 * several:.2f}", f"{several / one:.2f}", f"{estimate:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
