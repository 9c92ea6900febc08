"""Weights over the limit of a device's memory: copied at each run, on a queue of their own, ahead of their reader."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, plugin, registered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import gpurt
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

    with registered(Late, Early, Waiting):
        yield ["late", "early", "waiting"]


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


def looped(around, inside, behind=0, trips=3):
    """Layers, a loop over more of them, and again layers, the last of which reads what the first ones made."""
    half = TensorProto.FLOAT16
    weights = {f"w{i}": np.full((SIZE, SIZE), i + 1, np.float16) for i in range(around + behind)}
    inner = {f"b{i}": np.full((SIZE, SIZE), -i - 1, np.float16) for i in range(inside)}
    body = helper.make_graph(
        [*(n("Add", [f"c{i}", f"b{i}"], [f"c{i + 1}"]) for i in range(inside)), n("Identity", ["on"], ["on_out"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("c0", half, [SIZE, SIZE]),
        ],
        [
            helper.make_tensor_value_info("on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"c{inside}", half, [SIZE, SIZE]),
        ],
        [numpy_helper.from_array(a, name) for name, a in inner.items()],
    )
    nodes = [n("Add", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(around)]
    nodes += [n("Loop", ["trips", "", f"h{around}"], ["k0"], "loop", body=body)]
    nodes += [n("Add", [f"k{i}", f"w{around + i}"], [f"k{i + 1}"]) for i in range(behind)]
    nodes += [n("Mul", [f"k{behind}", f"h{around}"], ["y"])]
    weights["trips"] = np.asarray(trips, np.int64)
    return make_model(nodes, {"h0": (half, [SIZE, SIZE])}, ["y"], weights)


@pytest.mark.parametrize("device", ["late", "early"])
@pytest.mark.parametrize("shape", [(8, 8, 0), (3, 9, 3), (8, 2, 8), (2, 8, 0)])
@pytest.mark.parametrize("room", [10, 12, 14])
def test_plans_of_a_run_share_the_limit(streaming, device, shape, room):
    """The graph's plan and that of the loop's body fit alone, but not together."""
    model, feed = looped(*shape), {"h0": X["x"]}
    s = session(model, device, room * NBYTES)
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, feed)
    for _ in range(3):
        np.testing.assert_array_equal(s.run(None, feed)[0], want)
        assert s.memory()[f"{device}:0"]["held"] <= room * NBYTES
    if room > 10:  # else what is done with makes room for what comes
        assert s.memory()[f"{device}:0"]["allocations_last_run"] == 0
    assert {x["provider"] for x in s.explain().to_dict()["nodes"] if x["op_type"] == "Add"} == {device}


def test_a_loop_s_weights_stay_before_those_around_it(streaming):
    model, feed = looped(8, 4, trips=5), {"h0": X["x"]}
    s = session(model, "late", 12 * NBYTES)
    for _ in range(3):
        s.run(None, feed)
    streamed = {
        plan.streamed[1].copied if plan.streamed else 0 for r in s._site._runners.values() for plan in r.plans()
    }
    assert 0 in streamed  # the body's
    assert NBYTES <= s.memory()["late:0"]["streamed"] <= 8 * NBYTES


def test_a_run_that_no_plan_fits_leaves_the_session_as_it_was(streaming):
    half = TensorProto.FLOAT16
    weights = {f"w{i}": np.full((SIZE,), i + 1, np.float16) for i in range(3)}
    nodes = [n("Add", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(3)] + [n("Mul", ["h3", "h0"], ["y"])]
    model = make_model(nodes, {"h0": (half, ["n", SIZE])}, ["y"], weights)
    s = session(model, "late", 8 * NBYTES)
    small, large = ({"h0": np.ones((rows, SIZE), np.float16)} for rows in (SIZE, 40 * SIZE))
    before = s.run(None, small)[0]
    memory = s.memory()
    with pytest.raises(gpurt.OutOfMemory, match="limit"):
        s.run(None, large)
    np.testing.assert_array_equal(s.run(None, small)[0], before)
    assert s.memory() == memory


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
