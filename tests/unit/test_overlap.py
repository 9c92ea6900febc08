"""Copies of feeds and of what the host makes: beside the launches, right however late or early they are done."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.plan.steps import AwaitStep, DeviceStep, HoldStep, WriteStep

F16 = TensorProto.FLOAT16
GREEDY = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="disable_all")
KIND = (F16, [8, 8])
n = helper.make_node


@pytest.fixture(scope="module")
def devices():
    """Devices whose queues do nothing until they are waited for, and one whose copies are done as early as may be."""
    sim = plugin()

    class Copies(sim.Queue):
        pass

    class Idle(sim.SimProvider):
        name = "idle"

        def copy_stream(self):
            return Copies()

        def follow(self, stream, leader):
            done = []
            leader.append(lambda: done.append(True))

            def wait():
                while not done:
                    leader.pop(0)()

            stream.append(wait)

    class Eager(Idle):
        name = "eager"

        def write(self, dst, src, stream):
            super().write(dst, src, stream)
            if isinstance(stream, Copies):
                self.synchronize(stream)

    for provider in (Idle, Eager):
        registry.register(provider)
    yield ["idle", "eager"]
    for provider in (Idle, Eager):
        registry.unregister(provider.name)


def steps_of(session):
    (plan,) = session._runner.plans()
    return plan._draft.steps


def test_a_feed_for_a_late_layer_is_copied_beside_the_first_ones(devices):
    nodes = [n("Relu", ["x"], ["a"]), n("Neg", ["a"], ["b"]), n("MatMul", ["b", "late"], ["y"])]
    s = gpurt.InferenceSession(make_model(nodes, {"x": KIND, "late": KIND}, ["y"]), GREEDY, providers=["idle", "cpu"])
    s.run(None, {k: np.eye(8, dtype=np.float16) for k in ("x", "late")})
    steps = steps_of(s)
    (beside,) = [i for i, step in enumerate(steps) if isinstance(step, WriteStep) and step.beside]
    assert steps[beside].value == "late"
    launches = [i for i, step in enumerate(steps) if isinstance(step, DeviceStep)]
    waits = [i for i, step in enumerate(steps) if isinstance(step, AwaitStep)]
    assert launches[1] < beside < waits[0] < launches[2]
    assert len(waits) == 1


def test_a_copy_waits_for_the_launches_that_use_its_memory(devices):
    nodes = [n("Relu", ["x"], ["a"]), n("Add", ["a", "a"], ["b"]), n("MatMul", ["b", "b"], ["c"])]
    nodes += [n("MatMul", ["c", "late"], ["y"])]
    s = gpurt.InferenceSession(make_model(nodes, {"x": KIND, "late": KIND}, ["y"]), GREEDY, providers=["idle", "cpu"])
    s.run(None, {k: np.eye(8, dtype=np.float16) for k in ("x", "late")})
    steps = steps_of(s)
    holds = [i for i, step in enumerate(steps) if isinstance(step, HoldStep)]
    (beside,) = [i for i, step in enumerate(steps) if isinstance(step, WriteStep) and step.beside]
    assert len(holds) == 1  # it lies where x or a were
    assert isinstance(steps[holds[0] - 1], DeviceStep)
    assert holds[0] < beside


def test_a_copy_with_nothing_beside_it_stays_among_the_launches(devices):
    model = make_model([n("Relu", ["x"], ["y"])], {"x": KIND}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=["idle", "cpu"])
    s.run(None, {"x": np.eye(8, dtype=np.float16)})
    assert not any(isinstance(step, AwaitStep | HoldStep) for step in steps_of(s))


@st.composite
def graphs(draw):
    """Nodes that the device has (Add, Sub) and one that the host has (Min), over several feeds."""
    feeds = [f"x{i}" for i in range(draw(st.integers(1, 4)))]
    values, nodes = list(feeds), []
    for i in range(draw(st.integers(2, 12))):
        op = draw(st.sampled_from(["Add", "Sub", "Add", "Min"]))
        nodes.append(n(op, [draw(st.sampled_from(values)), draw(st.sampled_from(values[-3:]))], [f"v{i}"]))
        values.append(f"v{i}")
    made = values[len(feeds) :]
    return make_model(nodes, dict.fromkeys(feeds, KIND), [made[-1], made[len(made) // 2]], {})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=graphs(), device=st.sampled_from(["idle", "eager"]))
def test_any_graph_gives_the_same_values(devices, model, device):
    rng = np.random.default_rng(len(model.graph.node))
    s = gpurt.InferenceSession(model, GREEDY, providers=[device, "cpu"])
    alone = gpurt.InferenceSession(model, GREEDY, providers=["cpu"])
    for _ in range(3):
        feed = {i.name: rng.integers(-9, 9, (8, 8)).astype(np.float16) for i in model.graph.input}
        for got, want in zip(s.run(None, feed), alone.run(None, feed), strict=True):
            np.testing.assert_array_equal(got, want)


def test_turns_of_a_loop_use_a_plans_memory_again(devices):
    body = helper.make_graph(
        [
            n("Identity", ["go"], ["on"]),
            n("Min", ["v", "x"], ["host"]),
            n("Add", ["v", "x"], ["a"]),
            n("Add", ["a", "v"], ["b"]),
            n("Add", ["b", "host"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", *KIND),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("w", *KIND)],
    )
    model = make_model(
        [n("Loop", ["count", "", "x"], ["y"], body=body)], {"x": KIND}, ["y"], {"count": np.array(5, np.int64)}
    )
    x = np.random.default_rng(0).integers(-2, 2, (8, 8)).astype(np.float16)
    (want,) = gpurt.InferenceSession(model, GREEDY, providers=["cpu"]).run(None, {"x": x})
    for device in devices:
        s = gpurt.InferenceSession(model, GREEDY, providers=[device, "cpu"])
        for _ in range(2):
            np.testing.assert_array_equal(s.run(None, {"x": x})[0], want)
