"""Threads, failures and ends of runs under the parallel execution mode, and its options."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import side_by_side
from conftest import make_model
from side_by_side import (
    F16,
    I64,
    NAMES,
    PATIENCE,
    WANT,
    X,
    lane_threads,
    lanes_of,
    n,
    options,
    two_devices,
)

import gpurt

at, devices, scattered = side_by_side.at, side_by_side.devices, side_by_side.scattered  # fixtures


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


@pytest.fixture
def interruptible():
    """Python's own handling of SIGINT, also where whoever started the tests has it ignored, as for a shell's job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
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
