"""Weights over the limit of a device's memory: copied at each run, on a queue of their own, ahead of their reader."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.plan.steps import AwaitStep, DeviceStep, WeightStep
from gpurt.provider import DeviceMemory

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides
SIZE = 96  # of square weights, which are too large to stay because they are small
NBYTES = SIZE * SIZE * 2

n = helper.make_node


@pytest.fixture(scope="module")
def streaming():
    """Devices that stream weights: copies as late as may be, as early as may be, and without a way to follow."""
    sim = plugin()

    class Copies(sim.Queue):
        pass

    class Late(sim.SimProvider):
        name = "late"
        streams_weights = True

        def __init__(self, index, limit):
            super().__init__(index, limit)
            self.device = self.memory_space = f"{self.name}:{index}"

        @classmethod
        def open(cls, index, options):
            return cls(index or 0, options.get("memory_limit"))

        def copy_stream(self):
            return Copies()

        def follow(self, stream, leader):
            done = []
            leader.append(lambda: done.append(True))

            def wait():
                while not done:
                    leader.pop(0)()

            stream.append(wait)

    class Early(Late):
        name = "early"

        def write(self, dst, src, stream):
            super().write(dst, src, stream)
            if isinstance(stream, Copies):
                self.synchronize(stream)

    class Waiting(Late):
        name = "waiting"
        follow = DeviceMemory.follow

    for provider in (Late, Early, Waiting):
        registry.register(provider)
    yield ["late", "early", "waiting"]
    for provider in (Late, Early, Waiting):
        registry.unregister(provider.name)


def layers(count, *, shared=False):
    """A chain of layers, each with a weight of its own, and a skip over all of them."""
    weights = {f"w{i}": np.full((SIZE, SIZE), i + 1, np.float16) for i in range(count)}
    nodes = [n("Relu", ["x"], ["h0"])]
    nodes += [n("Add", [f"h{i}", f"w{0 if shared else i}"], [f"h{i + 1}"]) for i in range(count)]
    nodes.append(n("Mul", [f"h{count}", "h0"], ["y"]))
    return make_model(nodes, {"x": (TensorProto.FLOAT16, [SIZE, SIZE])}, ["y"], weights)


X = {"x": np.arange(SIZE * SIZE, dtype=np.float16).reshape(SIZE, SIZE) % 7}


def session(model, device, limit):
    return gpurt.InferenceSession(model, GREEDY, providers=[(device, {"memory_limit": limit}), "cpu"])


@pytest.mark.parametrize("device", ["late", "early", "waiting"])
@pytest.mark.parametrize("room", [6, 8, 12])
def test_a_model_runs_under_less_than_its_weights(streaming, device, room):
    model = layers(16)
    s = session(model, device, room * NBYTES)
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, X)
    for _ in range(3):
        np.testing.assert_array_equal(s.run(None, X)[0], want)
        assert s.memory()[f"{device}:0"]["held"] <= room * NBYTES
    assert s.memory()[f"{device}:0"]["allocations_last_run"] == 0
    assert {x["provider"] for x in s.explain().to_dict()["nodes"]} == {device}


def test_what_fits_stays(streaming):
    s = session(layers(4), "late", 64 * NBYTES)
    s.run(None, X)
    (plan,) = s._runner.plans()
    assert not plan.streamed


def test_no_more_is_copied_than_is_over_the_limit(streaming):
    s = session(layers(16), "late", 10 * NBYTES)
    s.run(None, X)
    (plan,) = s._runner.plans()
    (found,) = plan.streamed.values()
    assert found.copied + found.resident == 16 * NBYTES
    # The chain needs three values at once and two weights on their way; what is left holds weights for good.
    assert found.resident == 5 * NBYTES


def test_copies_are_enqueued_before_the_step_in_front_of_their_reader(streaming):
    s = session(layers(16), "late", 6 * NBYTES)
    s.run(None, X)
    (plan,) = s._runner.plans()
    steps = plan._draft.steps
    loads = [(i, step) for i, step in enumerate(steps) if isinstance(step, WeightStep)]
    assert loads
    for at, load in loads:
        reader = next(i for i, step in enumerate(steps) if isinstance(step, DeviceStep) and load.slot in step.slots)
        between = steps[at + 1 : reader]
        assert sum(isinstance(step, DeviceStep) for step in between) == (1 if at > 0 else 0)
        assert any(isinstance(step, AwaitStep) for step in between)


def test_less_than_a_layer_needs_is_an_error_and_the_session_stays_usable(streaming):
    model = layers(4)
    s = gpurt.InferenceSession(
        model, gpurt.SessionOptions(partitioning="greedy"), providers=[("late", {"memory_limit": NBYTES}), "cpu"]
    )
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, X)
    np.testing.assert_array_equal(s.run(None, X)[0], want)  # on the next provider
    assert {x["provider"] for x in s.explain().to_dict()["nodes"]} == {"cpu"}


def test_a_weight_that_all_layers_share_is_not_copied_twice_where_it_can_stay(streaming):
    s = session(layers(8, shared=True), "late", 6 * NBYTES)
    s.run(None, X)
    (plan,) = s._runner.plans()
    assert not plan.streamed


@st.composite
def graphs(draw):
    """Elementwise nodes over values and weights, in any order, with any number of readers."""
    count = draw(st.integers(2, 12))
    weights = {f"w{i}": np.full((SIZE, SIZE), i + 1, np.float16) for i in range(draw(st.integers(1, 6)))}
    values, nodes = ["x"], []
    for i in range(count):
        left = draw(st.sampled_from(values[-3:]))
        right = draw(st.sampled_from([*weights, *values[-3:]]))
        nodes.append(n(draw(st.sampled_from(["Add", "Sub"])), [left, right], [f"v{i}"]))
        values.append(f"v{i}")
    return make_model(nodes, {"x": (TensorProto.FLOAT16, [SIZE, SIZE])}, [values[-1], values[count // 2]], weights)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=graphs(), room=st.integers(5, 12), device=st.sampled_from(["late", "early"]))
def test_any_graph_under_any_limit_gives_the_same_values(streaming, model, room, device):
    options = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="disable_all")
    s = gpurt.InferenceSession(model, options, providers=[(device, {"memory_limit": room * NBYTES}), "cpu"])
    want = gpurt.InferenceSession(model, providers=["cpu"]).run(None, X)
    for _ in range(2):
        for got, expected in zip(s.run(None, X), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_results_that_nobody_reads_need_room_too(streaming):
    weights = {"w": np.ones((SIZE, SIZE), np.float16)}
    reads = [("x", "w"), ("x", "w"), ("x", "w"), ("v0", "w"), ("v1", "w"), ("v2", "w"), ("v3", "w"), ("v4", "v6"),
             ("v5", "w"), ("v6", "w"), ("v7", "w")]  # fmt: skip
    nodes = [n("Add", [*ins], [f"v{i}"]) for i, ins in enumerate(reads)]
    model = make_model(nodes, {"x": (TensorProto.FLOAT16, [SIZE, SIZE])}, ["v10", "v4"], weights)
    options = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="disable_all")
    s = gpurt.InferenceSession(model, options, providers=[("late", {"memory_limit": 5 * NBYTES}), "cpu"])
    want = gpurt.InferenceSession(model, providers=["cpu"]).run(None, X)
    for got, expected in zip(s.run(None, X), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_what_is_copied_is_told(streaming):
    s = session(layers(16), "late", 8 * NBYTES)
    s.run(None, X)
    copies = [c for c in s.explain().to_dict()["copies"] if c["cause"] == "over memory_limit"]
    assert copies
    assert {c["to"] for c in copies} == {"late:0"}
    assert sum(c["bytes"] for c in copies) == s.memory()["late:0"]["streamed"]


def test_a_dry_run_predicts_what_is_copied(streaming):
    dry = gpurt.InferenceSession(
        layers(16), GREEDY, providers=[("late", {"memory_limit": 8 * NBYTES}), "cpu"], dry_run=True
    )
    predicted = dry.explain().to_dict()["predicted"]["devices"]["late:0"]
    assert predicted["weights"] == 16 * NBYTES
    assert 8 * NBYTES < predicted["streamed"] <= 16 * NBYTES


def test_the_plug_in_streams_by_option(sim):
    s = gpurt.InferenceSession(
        layers(16), GREEDY, providers=[(sim, {"memory_limit": 8 * NBYTES, "over_budget": "stream"}), "cpu"]
    )
    (want,) = gpurt.InferenceSession(layers(16), providers=["cpu"]).run(None, X)
    np.testing.assert_array_equal(s.run(None, X)[0], want)
    assert s.memory()["sim:0"]["streamed"] > 0
    assert s.memory()["sim:0"]["held"] <= 8 * NBYTES


def test_a_weight_that_the_host_reads_too_is_not_read_back(streaming):
    nodes = [n("Add", ["x", "w"], ["a"]), n("Min", ["a", "w"], ["b"]), n("Add", ["b", "w"], ["y"])]
    weights = {"w": np.full((SIZE, SIZE), 3, np.float16)}
    model = make_model(nodes, {"x": (TensorProto.FLOAT16, [SIZE, SIZE])}, ["y"], weights)
    s = session(model, "late", 4 * NBYTES)
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, X)
    np.testing.assert_array_equal(s.run(None, X)[0], want)
    reads = [c for c in s.explain().to_dict()["copies"] if c["to"] == "cpu"]
    assert {c["value"] for c in reads} == {"a", "y"}
