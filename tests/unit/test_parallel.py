"""The parallel execution mode: lanes overlap, values are those of a sequential run, failures and ends leave nothing."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.partitioner.rates import DEFAULTS
from gpurt.plan import parallel as parallel_module
from gpurt.plan import schedule as schedule_module
from gpurt.plan.lanes import Lanes, space_of
from gpurt.plan.steps import HostStep
from gpurt.provider import Capability, Rates

n = helper.make_node
F16, F32, BOOL, I64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
SLOW = Rates(1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e-2)  # a device on which nothing takes less than 10 ms
SLOW_HOST = Rates(1e3, 1e3, 1e3, 1e3, 1e3, 1e6, 1e-6)  # a host on which Softmax takes long
X = np.arange(6, dtype=np.float16).reshape(2, 3)
WANT = (np.maximum(X, 0) - X).T  # what two_devices computes of X
PATIENCE = 20  # seconds until a test gives up on what must happen


def options(**given):
    return gpurt.SessionOptions(
        **{"partitioning": "greedy", "graph_optimization_level": "disable_all", "execution_mode": "parallel", **given}
    )


@pytest.fixture(scope="module")
def devices():
    """A simulated device apart from the host and two that share its memory; they claim nodes by their letter."""
    SimProvider = plugin().SimProvider

    class Part(SimProvider):
        at = None  # called with the node's name before a kernel of a device does its work

        def __init__(self, index, limit):
            super().__init__(index, limit)
            self.device = self.memory_space = f"{self.name}:{index}"

        @classmethod
        def open(cls, index, options):
            return cls(index or 0, options.get("memory_limit"))

        def rates(self):
            return SLOW

        def get_capability(self, graph):
            answer = super().get_capability(graph)
            mine = [c for c in answer.claims if c[0].endswith(self.letter)]
            rest = {name: "another letter" for c in answer.claims for name in c if not name.endswith(self.letter)}
            return Capability(mine, {**answer.refused, **rest})

        def compile(self, partition):
            units = super().compile(partition)
            for unit in units:
                unit.plan = self.announced(unit.plan, unit.nodes[0].name)
            return units

        def announced(self, plan, name):
            def planned(inputs):
                made = plan(inputs)
                bind = made.bind

                def announcing(refs):
                    bound = bind(refs)

                    def announce(stream):
                        if Part.at is not None:
                            stream.append(lambda: Part.at(name))

                    bound.steps = [announce, *bound.steps]
                    return bound

                made.bind = announcing
                return made

            return planned

    parts = [
        type(name, (Part,), {"name": name, "letter": name[0], "shares_host": shares})
        for name, shares in (("left", False), ("right", True), ("shared", True))
    ]
    for part in parts:
        registry.register(part)
    yield Part
    for part in parts:
        registry.unregister(part.name)


NAMES = ["left", "right", "shared"]


@pytest.fixture
def at(devices, monkeypatch):
    """Sets what the simulated devices call before each kernel; the host is quick."""
    quick = Rates(1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e-6)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: provider.rates() or quick)

    def set_at(function):
        devices.at = staticmethod(function)

    yield set_at
    devices.at = None


@pytest.fixture
def scattered(monkeypatch):
    """Lanes by chance in place of estimates, with pauses before steps; yields the generator that decides."""
    rng = random.Random(0)

    def schedule(steps, _):
        count = rng.randint(2, 4)
        for step in steps:
            if isinstance(step, HostStep):
                step.lane = rng.randrange(count)
        spaces = sorted({space_of(s) for s in steps} - {0})
        return Lanes(count, {space: rng.randrange(count) for space in spaces})

    plain = parallel_module.plain

    def hesitant(steps, memories):
        def pause(run, registers):
            time.sleep(rng.choice((0, 0, 0, 1e-4, 1e-3)))

        return [op for step in plain(steps, memories) for op in (pause, step)]

    monkeypatch.setattr(schedule_module, "schedule", schedule)
    monkeypatch.setattr(parallel_module, "plain", hesitant)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: DEFAULTS["cpu"])
    return rng


def two_devices(**given):
    """A node on each of two devices whose values the host waits for, then a sum."""
    nodes = [n("Neg", ["x"], ["a"], "n_l"), n("Transpose", ["a"], ["c"], "t_h"), n("Relu", ["x"], ["b"], "r_r"),
             n("Transpose", ["b"], ["d"], "u_h"), n("Add", ["c", "d"], ["y"], "sum_h")]  # fmt: skip
    return gpurt.InferenceSession(
        make_model(nodes, {"x": (F16, ["n", 3])}, ["y"]), options(**given), providers=[*NAMES, "cpu"]
    )


def lanes_of(session):
    return [p._draft.lanes for p in session._runner.plans()]


def lane_threads():
    return [t for t in threading.enumerate() if t.name.startswith("gpurt lane")]


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
    before = len(lane_threads())
    quick = Rates(1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e-6)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: quick)
    small = gpurt.InferenceSession(branches(3), options(inter_op_num_threads=3), providers=["cpu"])
    small.run(None, {"x": np.zeros((4, 8), np.float32)})
    assert lanes_of(small) == [None]
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: SLOW_HOST)
    one = gpurt.InferenceSession(branches(3), options(inter_op_num_threads=1), providers=["cpu"])
    one.run(None, {"x": np.zeros((4, 8), np.float32)})
    assert lanes_of(one) == [None]
    assert len(lane_threads()) == before


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


@st.composite
def graphs(draw):
    """Nodes on three devices and the host, host nodes whose outputs are views of their inputs among them."""
    values, nodes = ["x0", "x1"], []
    for k in range(draw(st.integers(2, 16))):
        kind = draw(st.sampled_from(["Neg", "Add", "Mul", "Transpose", "Identity", "Relu"]))
        place = draw(st.sampled_from("lrssh"))
        ins = [draw(st.sampled_from(values)) for _ in range(2 if kind in ("Add", "Mul") else 1)]
        nodes.append(n(kind, ins, [f"v{k}"], f"n{k}{place}"))
        values.append(f"v{k}")
    outputs = sorted(set(draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=4))))
    return nodes, outputs


def model_of(nodes, outputs):
    info = {name: helper.make_tensor_value_info(name, F16, [3, 3]) for name in ("x0", "x1", *outputs)}
    return helper.make_model(
        helper.make_graph(nodes, "g", [info["x0"], info["x1"]], [info[o] for o in outputs]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs(), st.integers(0, 2**31))
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


# --- threads


def test_threads_do_not_grow_over_runs_and_end_with_the_session(at):
    before = set(lane_threads())
    session = two_devices()
    session.run(None, {"x": X})
    threads = set(lane_threads()) - before
    for size in range(1, 30):
        session.run(None, {"x": np.zeros((size, 3), np.float16)})
    assert set(lane_threads()) - before == threads
    assert len(threads) == 2
    del session
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while threads & set(lane_threads()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads & set(lane_threads())


def test_many_threads_share_one_session(devices, scattered):
    nodes = [n("Neg", ["x"], ["a"], "n_l"), n("Relu", ["x"], ["b"], "r_s"), n("Transpose", ["b"], ["c"], "t_h"),
             n("Transpose", ["a"], ["d"], "u_h"), n("Add", ["c", "d"], ["y"], "sum_r")]  # fmt: skip
    model = make_model(nodes, {"x": (F16, ["n", 3])}, ["y"])
    session = gpurt.InferenceSession(model, options(inter_op_num_threads=3), providers=[*NAMES, "cpu"])
    before, wrong, most = set(lane_threads()), [], []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(25):
            x = rng.integers(-4, 4, (int(rng.integers(1, 6)), 3)).astype(np.float16)
            if not np.array_equal(session.run(None, {"x": x})[0], (np.maximum(x, 0) - x).T):
                wrong.append(seed)
            most.append(len(set(lane_threads()) - before))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(3 * PATIENCE)
    assert not any(t.is_alive() for t in threads)
    assert not wrong
    assert 1 <= max(most) <= 2


def test_a_run_that_finds_no_idle_thread_does_everything_itself(at):
    session = two_devices()
    session.run(None, {"x": X})
    threads = session._site.parallel.threads
    taken = []
    while (more := threads.take(1)) is not None:
        taken += more
    ids = set()
    at(lambda name: ids.add(threading.get_ident()))
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], WANT)
    assert ids == {threading.get_ident()}
    for worker in taken:
        threads.give_back(worker)
    session.run(None, {"x": X})
    assert len(ids) == 3


# --- failures and ends


@pytest.mark.parametrize("failing", ["n_l", "r_r"])
def test_an_error_in_a_lane_is_the_run_s_and_the_session_goes_on(at, failing):
    session = two_devices()
    session.run(None, {"x": X})
    met = threading.Barrier(2, timeout=PATIENCE)

    def fail(name):
        met.wait()
        if name == failing:
            raise gpurt.RuntimeException("its cable was pulled", node=name, op="Neg")

    for _ in range(3):
        at(fail)
        with pytest.raises(gpurt.RuntimeException, match="cable") as e:
            session.run(None, {"x": X})
        assert e.value.node == failing
        del e
        at(lambda name: None)
        np.testing.assert_array_equal(session.run(None, {"x": X})[0], WANT)


def test_the_other_lanes_stop_at_their_next_step(devices, scattered):
    done, failed = [], threading.Event()

    def count(name):
        done.append(name)
        if len(done) == 10 and not failed.is_set():
            failed.wait(PATIENCE)
            time.sleep(0.1)

    devices.at = staticmethod(count)
    nodes = [n("Gather", ["x", "i"], ["g"], "pick_h")]
    value = "x"
    for k in range(50):
        nodes += [n("Neg", [value], [f"d{k}"], f"d{k}_l"), n("Transpose", [f"d{k}"], [f"h{k}"], f"h{k}_h")]
        value = f"h{k}"
    model = make_model(nodes, {"x": (F16, [3, 3]), "i": (I64, ["k"])}, ["g", value])
    session = gpurt.InferenceSession(model, options(inter_op_num_threads=4), providers=["left", "cpu"])
    unit = next(i.unit for i in session._compiled.items if i.unit.nodes[0].name == "pick_h")
    call = unit.call

    def fail(inputs):
        try:
            return call(inputs)
        finally:
            failed.set()

    unit.call = fail
    x = np.ones((3, 3), np.float16)
    try:
        with pytest.raises(gpurt.GpurtError, match="pick"):
            session.run(None, {"x": x, "i": np.array([7])})
        assert len(done) <= 11
        np.testing.assert_array_equal(session.run(None, {"x": x, "i": np.array([1])})[0], x[[1]])
        assert len(done) >= 50
    finally:
        devices.at = None


def test_terminate_ends_all_lanes(at):
    session = two_devices()
    session.run(None, {"x": X})
    run_options = gpurt.RunOptions()
    at(lambda name: setattr(run_options, "terminate", True))
    with pytest.raises(gpurt.Terminated):
        session.run(None, {"x": X}, run_options)
    at(lambda name: None)
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], WANT)
    assert len(session._site.parallel.threads._idle) == len(session._site.parallel.threads._all)


def test_an_interrupt_ends_all_lanes(at):
    session = two_devices()
    session.run(None, {"x": X})

    def interrupt(name):
        if name == "n_l":
            signal.raise_signal(signal.SIGINT)  # its handler runs on the main thread, which waits for this one
        time.sleep(0.05)

    at(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run(None, {"x": X})
    at(lambda name: None)
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], WANT)
    assert len(session._site.parallel.threads._idle) == len(session._site.parallel.threads._all)


def test_outputs_in_memory_of_inputs_keep_the_order_of_the_plan(devices, scattered):
    nodes = [n("Neg", ["x"], ["a"], "n_l"), n("Transpose", ["x"], ["b"], "t_h"), n("Add", ["a", "b"], ["y"], "s_l")]
    model = make_model(nodes, {"x": (F16, [3, 3])}, ["y"])
    session = gpurt.InferenceSession(model, options(inter_op_num_threads=3), providers=["left", "cpu"])
    x = np.arange(9, dtype=np.float16).reshape(3, 3)
    for device in ("cpu", "left:0"):
        (memory,) = session.run_with_ort_values(None, {"x": x}, device=device)
        before = memory.numpy().copy()
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", memory)
        binding.bind_ortvalue_output("y", memory)
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(memory.numpy(), before.T - before)
        assert lanes_of(session)[-1] is None
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.T - x)
    assert lanes_of(session)[-1] is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_threads_of_its_own():
    code = """
import os, sys, threading, numpy as np
from onnx import TensorProto, helper
import gpurt
import gpurt.session.lanes as lanes
from gpurt.provider import Rates
lanes.rates = lambda provider, folder: Rates(1e3, 1e3, 1e3, 1e3, 1e3, 1e6, 1e-6)
n = helper.make_node
nodes = [n("Softmax", ["x"], ["a"]), n("Softmax", ["x"], ["b"], axis=0), n("Concat", ["a", "b"], ["y"], axis=0)]
kind = (TensorProto.FLOAT, [4, 8])
graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", *kind)],
                          [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = gpurt.InferenceSession(model, gpurt.SessionOptions(execution_mode="parallel", inter_op_num_threads=2,
                                                             intra_op_num_threads=1), providers=["cpu"])
x = {"x": np.ones((4, 8), np.float32)}
want = session.run(None, x)[0]
assert threading.active_count() == 2
pid = os.fork()
same = np.array_equal(session.run(None, x)[0], want)
if pid:
    os.waitpid(pid, 0)
print(f"{'parent' if pid else 'child'} {same} {threading.active_count()}", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert sorted(done.stdout.split("\n")) == ["", "child True 2", "parent True 2"], done.stderr


# --- profiles, options


def test_each_lane_has_its_thread_in_a_profile(at, tmp_path):
    session = two_devices(enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    session.run(None, {"x": X})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = {e["name"]: e["tid"] for e in events if e.get("cat") == "Node"}
    assert nodes["n_l_kernel_time"] != nodes["r_r_kernel_time"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {names[tid] for tid in nodes.values()} <= {"host thread 0", "host thread 1", "host thread 2"}
    copied = {e["args"]["value"] for e in events if e.get("name") in ("MemcpyToHost", "MemcpyFromHost")}
    assert copied == {"x", "a"}
    assert any(e["name"] == "ParallelExecutor::Execute" for e in events)


def test_options():
    o = gpurt.SessionOptions()
    assert o.execution_mode == gpurt.ExecutionMode.ORT_SEQUENTIAL == 0
    assert o.inter_op_num_threads == 0
    for value in ("parallel", "PARALLEL", 1, gpurt.ExecutionMode.ORT_PARALLEL):
        o.execution_mode = value
        assert o.execution_mode is gpurt.ExecutionMode.ORT_PARALLEL
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'parallel'"):
        o.execution_mode = "paralell"
    for value in (2, None, [], 0.5):
        with pytest.raises(gpurt.InvalidArgument, match="execution_mode"):
            o.execution_mode = value
    for value in (-1, True, "2", 1.0):
        with pytest.raises(gpurt.InvalidArgument, match="inter_op_num_threads"):
            o.inter_op_num_threads = value
