"""Many threads and many shapes on one session: right values, nobody waits without need, memory stays bounded."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.memory.arena import RegionArena
from gpurt.plan.builder import Builder

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F16 = TensorProto.FLOAT16
THREADS, RUNS = 8, 200


def model():
    """Steps on the simulated device and on the host in turns."""
    rng = np.random.default_rng(0)
    return make_model(
        [
            n("MatMul", ["x", "w"], ["h"], "product"),
            n("Softmax", ["h"], ["s"], "softmax"),
            n("Add", ["s", "x"], ["a"], "add"),
            n("Mul", ["a", "a"], ["y"], "square"),
        ],
        {"x": (F16, ["n", 8])},
        ["y"],
        {"w": rng.standard_normal((8, 8)).astype(np.float16)},
    )


def feed(size):
    return np.random.default_rng(size).standard_normal((size, 8)).astype(np.float16)


@pytest.mark.parametrize("most", [4, 32])  # fewer plans than shapes, so that plans go while others use them; and more
def test_eight_threads_of_200_runs_with_changing_shapes(sim, most):
    s = gpurt.InferenceSession(
        model(), gpurt.SessionOptions(partitioning="greedy", plan_cache_size=most), providers=[sim, "cpu"]
    )
    plain = gpurt.InferenceSession(model(), providers=["cpu"])
    feeds = [feed(size) for size in range(1, 11)]
    want = [plain.run(None, {"x": x})[0] for x in feeds]
    wrong = []

    def work(seed, runs):
        rng = np.random.default_rng(seed)
        for _ in range(runs):
            k = int(rng.integers(len(feeds)))
            got = s.run(None, {"x": feeds[k]})[0]
            if not np.allclose(got, want[k], rtol=1e-2, atol=1e-2):
                wrong.append((seed, k))

    def all_threads(runs):
        threads = [threading.Thread(target=work, args=(seed, runs)) for seed in range(THREADS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    all_threads(RUNS)
    arena = s._providers[0].arena
    tracemalloc.start()  # it makes runs slow, so that the passes that are measured are shorter
    try:
        # At most every thread has a state of every plan, and an input or two of its own.
        most_bytes = THREADS * sum(p.nbytes for p in s._runner.plans()) + THREADS * 4 * 256
        first = all_threads(RUNS // 5)
        assert arena.stats()["in_use"] <= most_bytes
        held = arena.stats()["held"]
        assert all_threads(RUNS // 5) - first < 200_000
        assert arena.stats()["held"] == held
    finally:
        tracemalloc.stop()
    assert not wrong


def test_a_thousand_shapes_keep_within_the_limits(sim):
    options = gpurt.SessionOptions(partitioning="greedy", plan_cache_size=16, plan_cache_bytes=200_000)
    s = gpurt.InferenceSession(model(), options, providers=[sim, "cpu"])
    arena, plans = s._providers[0].arena, s._site.plans
    tracemalloc.start()
    try:
        for size in range(1, 1001):
            s.run(None, {"x": feed(size)})
            assert plans.held() <= max(200_000, s._runner.plans()[-1].nbytes)
            assert len(plans._points[0].by_signature) <= 16
            if size == 300:
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
        gc.collect()
        # The arena of the simulated device is host memory too: what it holds beyond then is accounted for.
        assert tracemalloc.get_traced_memory()[0] - before < 300_000 + arena.stats()["held"]
    finally:
        tracemalloc.stop()
    assert arena.stats()["held"] <= 1 << 20


def test_plans_go_by_bytes_and_the_newest_stays(sim):
    options = gpurt.SessionOptions(partitioning="greedy", plan_cache_bytes=10_000)
    s = gpurt.InferenceSession(model(), options, providers=[sim, "cpu"])
    small, large = feed(50), feed(2000)
    s.run(None, {"x": small})
    s.run(None, {"x": feed(51)})
    assert len(s._runner.plans()) == 2
    for _ in range(2):
        s.run(None, {"x": large})
        (plan,) = s._runner.plans()
        assert plan.nbytes > 10_000
        assert s._site.plans.held() == plan.nbytes
    assert s.memory()["sim:0"]["allocations_last_run"] <= 1  # the plan kept its memory from run to run
    s.run(None, {"x": small})
    assert [p.nbytes < 10_000 for p in s._runner.plans()] == [True]


def test_states_that_only_threads_needed_go_when_the_limit_says_so(sim):
    s = gpurt.InferenceSession(
        model(), gpurt.SessionOptions(partitioning="greedy", plan_cache_bytes=40_000), providers=[sim, "cpu"]
    )
    x, gate = feed(400), threading.Barrier(4)
    s.run(None, {"x": x})
    (plan,) = s._runner.plans()
    execute = s._runner.run

    def together(run, env):
        gate.wait(10)
        result = execute(run, env)
        gate.wait(10)
        return result

    s._runner.run = together
    threads = [threading.Thread(target=s.run, args=(None, {"x": x})) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert plan.nbytes < 40_000 < 4 * plan.nbytes
    assert s._site.plans.held() == plan.nbytes * len(plan._pool) <= 40_000
    assert not s._site.plans.crowded


@pytest.mark.parametrize("turns", [3, 200])
def test_the_turns_of_a_loop_share_memory(sim, turns):
    body = helper.make_graph(
        [n("Identity", ["c"], ["c2"]), n("Add", ["v", "one"], ["a"]), n("Erf", ["a"], ["e"]),
         n("Mul", ["e", "a"], ["v2"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("v", F16, [64])],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", F16, [64])],
    )  # fmt: skip
    loop = make_model(
        [n("Loop", ["m", "", "x"], ["y"], "loop", body=body)],
        {"m": (TensorProto.INT64, []), "x": (F16, [64])}, ["y"], {"one": np.ones(64, np.float16)},
    )  # fmt: skip
    s = gpurt.InferenceSession(loop, GREEDY, providers=[sim, "cpu"])
    x = np.linspace(-1, 1, 64).astype(np.float16)
    want = gpurt.InferenceSession(loop, providers=["cpu"]).run(None, {"m": np.array(turns), "x": x})[0]
    for _ in range(2):
        np.testing.assert_allclose(s.run(None, {"m": np.array(turns), "x": x})[0], want, rtol=2e-2, atol=1e-3)
    used = s.memory()["sim:0"]
    assert used["allocations_last_run"] == 0
    assert used["planned_peak"] <= 2 * max(used["lower_bound"], 1024)


def test_runs_do_not_wait_for_a_plan_that_another_thread_makes(sim, monkeypatch):
    s = gpurt.InferenceSession(model(), GREEDY, providers=[sim, "cpu"])
    s.run(None, {"x": feed(2)})
    build, entered, go_on = Builder.build, threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        entered.set()
        assert go_on.wait(20)
        return build(*args, **kwargs)

    monkeypatch.setattr(Builder, "build", slow)
    builder = threading.Thread(target=s.run, args=(None, {"x": feed(3)}))
    builder.start()
    assert entered.wait(10)
    done = threading.Event()
    threading.Thread(target=lambda: (s.run(None, {"x": feed(2)}), done.set()), daemon=True).start()
    assert done.wait(10)
    assert builder.is_alive()
    go_on.set()
    builder.join()


def test_a_plan_that_several_threads_need_is_made_once(sim, monkeypatch):
    s = gpurt.InferenceSession(model(), GREEDY, providers=[sim, "cpu"])
    build, made = Builder.build, []
    monkeypatch.setattr(Builder, "build", lambda self, *a, **k: made.append(1) or build(self, *a, **k))
    threads = [threading.Thread(target=s.run, args=(None, {"x": feed(5)})) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1


def test_a_loop_whose_shapes_grow_gives_the_memory_of_its_turns_back_where_it_is_short(sim):
    body = helper.make_graph(
        [n("Identity", ["c"], ["c2"]), n("Add", ["v", "v"], ["a"]), n("Concat", ["a", "x"], ["v2"], axis=0)],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("v", F16, ["k"])],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", F16, ["k2"])],
    )  # fmt: skip
    loop = make_model(
        [n("Loop", ["m", "", "x"], ["y"], "loop", body=body)], {"m": (TensorProto.INT64, []), "x": (F16, [512])}, ["y"]
    )
    x, m = np.full(512, 1 / 64, np.float16), np.array(20)
    s = gpurt.InferenceSession(loop, GREEDY, providers=[(sim, {"memory_limit": 128 << 10}), "cpu"])
    want = gpurt.InferenceSession(loop, providers=["cpu"]).run(None, {"m": m, "x": x})[0]
    for _ in range(2):  # all turns together take 420 KiB and more
        np.testing.assert_array_equal(s.run(None, {"m": m, "x": x})[0], want)


def test_memory_may_be_given_back_from_within_a_call_of_the_arena():
    # As the garbage collector does: it may run at any allocation, in the thread that holds the arena's lock.
    arena = RegionArena(bytearray, lambda _: None, alignment=128)
    first, second = arena.alloc(1000), arena.alloc(1000)
    arena.reserve(500)
    with arena._lock:
        arena.free(first)
        arena.reserve(-500)
    stats = arena.stats()
    assert (stats["in_use"], stats["reserved"]) == (second.nbytes, 0)
    with arena._lock:
        arena.free(second)
    assert arena.shrink() == 1 << 20
