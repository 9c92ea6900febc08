"""The parallel execution mode on a real device: lanes beside the host, and branches on several of its queues."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider
from gpurt.plan import schedule as schedule_module
from gpurt.plan.branches import branching
from gpurt.plan.lanes import Lanes, space_of
from gpurt.plan.steps import DeviceStep, HostStep, WriteStep

n = helper.make_node


def model() -> onnx.ModelProto:
    """Three branches of unlike kernels, whose values come and go, and a sum."""
    rng = np.random.default_rng(0)
    constants = {f"w{branch}": rng.standard_normal((32, 32)).astype(np.float32) / 6 for branch in "abc"}
    constants["axes"] = np.array([1])
    nodes = []
    for branch in "abc":
        value = "x"
        for k in range(3):
            name = f"{branch}{k}"
            nodes += [
                n("MatMul", [value, f"w{branch}"], [f"{name}p"], f"{name}_product"),
                n("Softmax", [f"{name}p"], [f"{name}s"], f"{name}_softmax", axis=k % 2),
                n("ReduceMean", [f"{name}s", "axes"], [f"{name}m"], f"{name}_mean"),
                n("Sub", [f"{name}s", f"{name}m"], [f"{name}d"], f"{name}_rest"),
                n("Mul", [f"{name}d", f"{name}p"], [name], f"{name}_times"),
            ]
            value = name
    nodes.append(n("Sum", ["a2", "b2", "c2"], ["y"], "sum"))
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def session(pins=(), zero_copy=False, mode="parallel", **options) -> gpurt.InferenceSession:
    if "opencl" not in gpurt.get_available_providers():
        pytest.skip("no OpenCL device")
    given = gpurt.SessionOptions(
        execution_mode=mode, inter_op_num_threads=3, pins=dict(pins), graph_optimization_level="basic",
        **{"partitioning": "greedy", **options},
    )  # fmt: skip
    return gpurt.InferenceSession(model(), given, providers=[("opencl", {"zero_copy": zero_copy}), "cpu"])


def check(made: gpurt.InferenceSession) -> None:
    alone = session(mode="sequential")
    for rows in (32, 8, 8, 17, 32):
        x = np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)
        got = made.run(None, {"x": x})[0]
        np.testing.assert_allclose(got, alone.run(None, {"x": x})[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(got, made.run(None, {"x": x})[0])


def test_branches_on_several_queues(monkeypatch, tmp_path):
    rng = random.Random(1)

    def divide(steps, space, _):
        for step in steps:
            if isinstance(step, DeviceStep):
                step.queue = rng.randrange(3)
            elif isinstance(step, WriteStep):
                step.queue = 3

    monkeypatch.setattr(schedule_module, "divide", divide)
    monkeypatch.setattr(DeviceProvider, "branches", 3)
    made = session(enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    check(made)
    assert all(branching(plan._draft.steps) for plan in made._runner.plans())
    events = json.loads(Path(made.end_profiling()).read_text())
    lanes = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {f"opencl:0 {lane} 0" for lane in ("queue", "branch 1", "branch 2", "copy queue", "copies")} <= lanes
    check(session())


@pytest.mark.parametrize("zero_copy", [True, False])
def test_lanes_beside_the_host(monkeypatch, zero_copy):
    rng = random.Random(2)

    def schedule(steps, _):
        for step in steps:
            if isinstance(step, HostStep):
                step.lane = rng.randrange(3)
        return Lanes(3, dict.fromkeys({space_of(s) for s in steps} - {0}, 1))

    monkeypatch.setattr(schedule_module, "schedule", schedule)
    made = session({"b?_softmax": "cpu", "c1_*": "cpu", "a2_times": "cpu"}, zero_copy, partitioning="cost")
    check(made)
    assert all(plan._draft.lanes.count == 3 for plan in made._runner.plans())
    assert len(made._site.parallel.threads._all) == 2
