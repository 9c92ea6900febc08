"""The parallel execution mode: lanes overlap, and values are those of a sequential run."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import side_by_side
from conftest import make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from side_by_side import (
    BOOL,
    F16,
    F32,
    I64,
    NAMES,
    PATIENCE,
    SLOW,
    SLOW_HOST,
    WANT,
    X,
    graphs,
    lane_threads,
    lanes_of,
    model_of,
    n,
    options,
    two_devices,
)

import gpurt
from gpurt.plan import schedule as schedule_module
from gpurt.plan.lanes import Lanes, space_of
from gpurt.plan.steps import HostStep
from gpurt.provider import Rates

at, devices, scattered = side_by_side.at, side_by_side.devices, side_by_side.scattered  # fixtures


# --- overlap


def test_two_devices_work_at_once(at):
    barrier = threading.Barrier(2, timeout=PATIENCE)
    at(lambda name: barrier.wait())
    session = two_devices()
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], WANT)
    assert lanes_of(session)[0].count >= 2


def test_a_sequential_run_would_not_pass_the_test_above(at):
    barrier = threading.Barrier(2, timeout=0.2)
    at(lambda name: barrier.wait())
    with pytest.raises(threading.BrokenBarrierError):
        two_devices(execution_mode="sequential").run(None, {"x": X})


def test_the_host_works_beside_a_device(at, monkeypatch):
    barrier = threading.Barrier(2, timeout=PATIENCE)
    at(lambda name: barrier.wait())
    slow = {"left": SLOW, "cpu": SLOW_HOST}
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: slow[provider.name])
    nodes = [n("Neg", ["x"], ["a"], "n_l"), n("Identity", ["a"], ["b"], "i_h"), n("Softmax", ["x"], ["s"], "s_h"),
             n("Add", ["b", "s"], ["y"], "sum_h")]  # fmt: skip
    session = gpurt.InferenceSession(
        make_model(nodes, {"x": (F16, [2, 3])}, ["y"]), options(inter_op_num_threads=2), providers=["left", "cpu"]
    )
    unit = next(i.unit for i in session._compiled.items if i.unit.nodes[0].name == "s_h")
    call = unit.call

    def met(inputs):
        barrier.wait()
        return call(inputs)

    unit.call = met
    got = session.run(None, {"x": X})[0]
    e = np.exp(X.astype(np.float32) - X.max(1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True) - X, rtol=1e-2)


def branches(count, length=3):
    """Branches on the host that begin and end together."""
    nodes = []
    for k in range(count):
        value = "x"
        for i in range(length):
            nodes.append(n("Softmax", [value], [f"v{k}_{i}"], f"s{k}_{i}", axis=k % 2))
            value = f"v{k}_{i}"
    nodes.append(n("Concat", [f"v{k}_{length - 1}" for k in range(count)], ["y"], "join", axis=0))
    return make_model(nodes, {"x": (F32, [4, 8])}, ["y"])


@pytest.mark.parametrize(("asked", "expected"), [(0, 3), (2, 2), (3, 3), (8, 3)])
def test_branches_of_the_host_work_at_once(monkeypatch, asked, expected):
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: SLOW_HOST)
    monkeypatch.setattr("gpurt.session.lanes.cores", lambda: 3)
    session = gpurt.InferenceSession(branches(3), options(inter_op_num_threads=asked), providers=["cpu"])
    barrier = threading.Barrier(expected, timeout=PATIENCE)
    seen = set()
    for item in session._compiled.items:
        if item.unit.nodes[0].name in ("s0_0", "s1_0", "s2_0")[:expected]:

            def met(inputs, call=item.unit.call):
                barrier.wait()
                seen.add(threading.get_ident())
                return call(inputs)

            item.unit.call = met
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    want = gpurt.InferenceSession(branches(3), providers=["cpu"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-6)
    assert lanes_of(session)[0].count == len(seen) == expected


def test_small_plans_and_one_thread_stay_sequential(monkeypatch):
    before = set(lane_threads())  # those of other tests' sessions may end meanwhile
    quick = Rates(1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e-6)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: quick)
    small = gpurt.InferenceSession(branches(3), options(inter_op_num_threads=3), providers=["cpu"])
    small.run(None, {"x": np.zeros((4, 8), np.float32)})
    assert lanes_of(small) == [None]
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: SLOW_HOST)
    one = gpurt.InferenceSession(branches(3), options(inter_op_num_threads=1), providers=["cpu"])
    one.run(None, {"x": np.zeros((4, 8), np.float32)})
    assert lanes_of(one) == [None]
    assert set(lane_threads()) <= before


@pytest.mark.parametrize(("threads", "expected"), [(1, 2), (2, 1)])
def test_products_of_branches_share_a_blas_with_threads_of_its_own(monkeypatch, threads, expected):
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: SLOW_HOST)
    monkeypatch.setattr("gpurt.session.lanes.cores", lambda: 2)
    monkeypatch.setattr("gpurt.session.lanes._blas_threads", lambda: threads)
    weights = {name: np.eye(8, dtype=np.float32) for name in ("v", "w")}
    nodes = [
        n("MatMul", ["x", "v"], ["a"]),
        n("MatMul", ["x", "w"], ["b"], "other"),
        n("Concat", ["a", "b"], ["y"], axis=0),
    ]
    model = make_model(nodes, {"x": (F32, [8, 8])}, ["y"], weights)
    session = gpurt.InferenceSession(model, options(), providers=["cpu"])
    x = np.ones((8, 8), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.concatenate([x, x]))
    (found,) = lanes_of(session)
    assert (1 if found is None else found.count) == expected


# --- values


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs("lrssh"), st.integers(0, 2**31))
def test_any_lanes_give_the_values_of_a_sequential_run(devices, scattered, graph, seed):
    scattered.seed(seed)
    model, rng = model_of(*graph), np.random.default_rng(seed)
    together = gpurt.InferenceSession(model, options(inter_op_num_threads=4), providers=[*NAMES, "cpu"])
    alone = gpurt.InferenceSession(model, options(execution_mode="sequential"), providers=[*NAMES, "cpu"])
    kept = []
    for turn in range(3):
        feeds = {name: (rng.integers(-2, 3, (3, 3)) / 2).astype(np.float16) for name in ("x0", "x1")}
        watched = gpurt.RunOptions() if turn == 2 else None
        kept.append((together.run(None, feeds, watched), alone.run(None, feeds)))
    for got, want in kept:
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    for device, memory in together.memory().items():
        assert memory["planned_peak"] >= memory["lower_bound"] >= alone.memory()[device]["lower_bound"]


def test_memory_that_the_host_sees_is_not_used_again_while_it_looks(devices, monkeypatch):
    """A device's lane runs on while a step of the host still reads, for another device, what the first one made."""
    nodes = [n("Neg", ["x"], ["a"], "a_s"), n("Transpose", ["a"], ["t"], "t_h"), n("Relu", ["t"], ["r"], "r_r")]
    value = "x"
    for k in range(6):  # values that come and go on the first device meanwhile
        nodes.append(n("Relu" if k % 2 else "Neg", [value], [f"d{k}"], f"d{k}_s"))
        value = f"d{k}"
    nodes.append(n("Add", ["r", value], ["y"], "sum_h"))
    model = make_model(nodes, {"x": (F16, [8, 8])}, ["y"])
    done = threading.Event()

    def schedule(steps, _):
        for step in steps:
            if isinstance(step, HostStep):
                step.lane = 2
        first, second = dict.fromkeys(space_of(s) for s in steps if space_of(s))
        return Lanes(3, {first: 0, second: 1})

    monkeypatch.setattr(schedule_module, "schedule", schedule)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: SLOW)
    devices.at = staticmethod(lambda name: done.set() if name == "d5_s" else None)
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)

    def run(session):
        done.clear()
        for item in session._compiled.items:
            if item.unit.nodes[0].name == "t_h":
                item.unit.call = lambda inputs: [[done.wait(PATIENCE), time.sleep(0.05), inputs[0].T.copy()][-1]]
        return session.run(None, {"x": x})[0]

    try:
        session = gpurt.InferenceSession(model, options(inter_op_num_threads=3), providers=["shared", "right", "cpu"])
        want = gpurt.InferenceSession(model, providers=["cpu"]).run(None, {"x": x})[0]
        np.testing.assert_array_equal(run(session), want)
        monkeypatch.setattr(schedule_module, "extend_lifetimes", lambda draft, lanes: None)
        spoilt = gpurt.InferenceSession(model, options(inter_op_num_threads=3), providers=["shared", "right", "cpu"])
        assert not np.array_equal(run(spoilt), want)  # so the test can fail
    finally:
        devices.at = None


def test_control_flow_and_changing_shapes(devices, scattered):
    body = helper.make_graph(
        [n("Add", ["c", "x"], ["d"], "d_s"), n("Neg", ["c"], ["e"], "e_l"), n("Sub", ["d", "e"], ["f"], "f_r"),
         n("Identity", ["f"], ["c2"], "c_h"), n("Identity", ["t"], ["t2"], "t_h")],
        "body",
        [helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("t", BOOL, []),
         helper.make_tensor_value_info("c", F16, ["n", 2])],
        [helper.make_tensor_value_info("t2", BOOL, []), helper.make_tensor_value_info("c2", F16, ["n", 2])],
    )  # fmt: skip
    nodes = [n("Neg", ["x"], ["x2"], "b_l"), n("Loop", ["k", "", "x"], ["z"], "loop", body=body),
             n("Add", ["z", "x2"], ["y"], "s_r")]  # fmt: skip
    model = make_model(nodes, {"x": (F16, ["n", 2]), "k": (I64, [])}, ["y"])
    session = gpurt.InferenceSession(model, options(inter_op_num_threads=4), providers=[*NAMES, "cpu"])
    alone = gpurt.InferenceSession(model, providers=["cpu"])
    for rows, trips in ((2, 0), (3, 1), (5, 3), (7, 2), (2, 4)):
        feeds = {"x": np.full((rows, 2), 0.25, np.float16), "k": np.array(trips)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], alone.run(None, feeds)[0])


def test_templates_have_lanes(scattered):
    model = make_model(
        [n("MatMul", ["x", "w"], ["a"]), n("Softmax", ["a"], ["b"]), n("MatMul", ["x", "w"], ["c"], "other"),
         n("Transpose", ["c"], ["d"], perm=[0, 1]), n("Softmax", ["d"], ["e"], axis=0), n("Add", ["b", "e"], ["y"])],
        {"x": (F32, ["n", 4])}, ["y"], {"w": np.eye(4, dtype=np.float32)[::-1].copy()},
    )  # fmt: skip
    session = gpurt.InferenceSession(model, options(inter_op_num_threads=3), providers=["cpu"])
    alone = gpurt.InferenceSession(model, options(execution_mode="sequential"), providers=["cpu"])
    for rows in (2, 3, 5, 9, 3, 20):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], alone.run(None, {"x": x})[0])
    plans = session._runner.plans()
    assert any(p._sizing is not None and p._draft.lanes is not None for p in plans)
