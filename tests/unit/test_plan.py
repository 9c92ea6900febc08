"""Plans: signatures, cuts, control flow, and values that cross devices, on the host and the simulated device."""

import threading

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F32, F16, I64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(1)


def info(name, kind=F32, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def run(model, feeds, providers=("cpu",)):
    return gpurt.InferenceSession(model, GREEDY, providers=list(providers)).run(None, feeds)


def test_one_plan_a_signature_and_the_least_recently_used_goes_first():
    model = make_model([n("Relu", ["x"], ["y"])], {"x": (F32, ["n"])}, ["y"])
    s = gpurt.InferenceSession(model, gpurt.SessionOptions(plan_cache_size=3), providers=["cpu"])
    for size in (1, 2, 3, 2, 4, 2):
        assert s.run(None, {"x": np.ones(size, np.float32)})[0].shape == (size,)
        assert len(s._runner.plans()) <= 3
    first = s._runner.plans()
    s.run(None, {"x": np.ones(2, np.float32)})
    assert set(first) == set(s._runner.plans())


def test_small_host_inputs_that_decide_shapes_are_part_of_the_signature():
    model = make_model([n("Reshape", ["x", "s"], ["y"])], {"x": (F32, [6]), "s": (I64, [2])}, ["y"])
    s = gpurt.InferenceSession(model, providers=["cpu"])
    x = np.arange(6, dtype=np.float32)
    for shape in ((2, 3), (3, 2), (2, 3), (-1, 6)):
        np.testing.assert_array_equal(s.run(None, {"x": x, "s": np.array(shape)})[0], x.reshape(shape))
    assert len(s._runner.plans()) == 3


def test_a_fed_value_that_decides_no_shape_makes_no_new_plan():
    model = make_model([n("Gather", ["x", "i"], ["y"])], {"x": (F32, [6]), "i": (I64, [2])}, ["y"])
    s = gpurt.InferenceSession(model, providers=["cpu"])
    for index in ([0, 1], [2, 3], [5, 5]):
        s.run(None, {"x": np.arange(6, dtype=np.float32), "i": np.array(index)})
    assert len(s._runner.plans()) == 1


def test_shapes_that_depend_on_data_cut_the_plan_only_where_they_must(sim):
    model = make_model(
        [
            n("Add", ["x", "x"], ["a"], "a"),
            n("NonZero", ["a"], ["nz"], "nz"),
            n("Transpose", ["nz"], ["t"], "t"),
            n("GatherND", ["a", "t"], ["g"], "g"),
            n("Relu", ["g"], ["r"], "r"),
            n("Mul", ["r", "r"], ["y"], "m"),
        ],
        {"x": (F16, ["n"])},
        ["y"],
    )
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    for x in ([1, 0, 2, -1], [0, 0, 0, 3], [0, 0, 0, 0]):
        x = np.array(x, np.float16)
        want = np.maximum((x + x)[x != 0], 0) ** 2
        np.testing.assert_allclose(s.run(None, {"x": x})[0], want, rtol=1e-3)
    assert sorted({p.end for p in s._runner.plans()}) == [4, 6]


def test_if_with_a_fed_condition_is_spliced_into_the_plan():
    then = helper.make_graph([n("Add", ["x", "x"], ["t"])], "t", [], [info("t")])
    other = helper.make_graph([n("Neg", ["x"], ["e"])], "e", [], [info("e")])
    model = make_model(
        [n("If", ["c"], ["y"], then_branch=then, else_branch=other)], {"c": (BOOL, []), "x": (F32, [3])}, ["y"]
    )
    s = gpurt.InferenceSession(model, providers=["cpu"])
    x = np.array([1, -2, 3], np.float32)
    np.testing.assert_array_equal(s.run(None, {"c": np.array(True), "x": x})[0], x + x)
    np.testing.assert_array_equal(s.run(None, {"c": np.array(False), "x": x})[0], -x)
    assert len(s._runner.plans()) == 2


def test_if_whose_condition_depends_on_data():
    then = helper.make_graph([n("NonZero", ["x"], ["t0"]), n("Cast", ["t0"], ["t"], to=F32)], "t", [], [info("t")])
    other = helper.make_graph([n("Neg", ["x"], ["e"])], "e", [], [info("e")])
    model = make_model(
        [
            n("ReduceSum", ["x"], ["sum"], keepdims=0),
            n("Greater", ["sum", "zero"], ["c"]),
            n("If", ["c"], ["r"], then_branch=then, else_branch=other),
            n("Abs", ["r"], ["y"]),
        ],
        {"x": (F32, ["n"])},
        ["y"],
        {"zero": np.float32(0)},
    )
    s = gpurt.InferenceSession(model, providers=["cpu"])
    np.testing.assert_array_equal(s.run(None, {"x": np.array([0, 2, 0, 3], np.float32)})[0], [[1, 3]])
    np.testing.assert_array_equal(s.run(None, {"x": np.array([-1, -2], np.float32)})[0], [1, 2])


def loop_model(kind=F32):
    body = helper.make_graph(
        [
            n("Add", ["v", "w"], ["v2"]),
            n("Mul", ["v2", "v2"], ["sq"]),
            n("Identity", ["c"], ["c2"]),
        ],
        "body",
        [info("i", I64, []), info("c", BOOL, []), info("v", kind, [2])],
        [info("c2", BOOL, []), info("v2", kind, [2]), info("sq", kind, [2])],
    )
    return make_model([n("Loop", ["m", "", "x"], ["last", "all"], body=body)],
                      {"m": (I64, []), "x": (kind, [2]), "w": (kind, [2])}, ["last", "all"])  # fmt: skip


@pytest.mark.parametrize("trips", [0, 1, 5])
@pytest.mark.parametrize("kind", [F32, F16])
def test_loop_with_carried_scanned_and_captured_values(sim, kind, trips):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x, w = np.array([1, 2], dtype), np.array([0.5, -1], dtype)
    last, every = run(loop_model(kind), {"m": np.array(trips), "x": x, "w": w}, (sim, "cpu"))
    steps = [x + w * (k + 1) for k in range(trips)]
    np.testing.assert_allclose(last, x + w * trips, rtol=1e-3)
    assert every.shape == (trips, 2)
    np.testing.assert_allclose(every, np.array([s * s for s in steps]).reshape(trips, 2), rtol=1e-2)


def test_a_value_captured_by_a_loop_is_copied_to_a_device_once(sim):
    model = loop_model(F16)
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    sim_provider = s._providers[0]
    written = []
    write = sim_provider.write
    sim_provider.write = lambda dst, src, stream: (written.append(src.copy()), write(dst, src, stream))
    w = np.array([7, 9], np.float16)
    s.run(None, {"m": np.array(6), "x": np.zeros(2, np.float16), "w": w})
    assert sum(np.array_equal(a, w) for a in written) == 1


def test_scan_backwards_over_the_second_axis():
    body = helper.make_graph(
        [n("Add", ["s", "e"], ["s2"]), n("Identity", ["s2"], ["out"])],
        "body",
        [info("s", F32, [2]), info("e", F32, [2])],
        [info("s2", F32, [2]), info("out", F32, [2])],
    )
    model = make_model(
        [n("Scan", ["s0", "x"], ["sn", "ys"], body=body, num_scan_inputs=1, scan_input_axes=[1],
           scan_input_directions=[1], scan_output_axes=[1])],
        {"s0": (F32, [2]), "x": (F32, [2, 4])}, ["sn", "ys"],
    )  # fmt: skip
    x = RNG.random((2, 4)).astype(np.float32)
    last, ys = run(model, {"s0": np.zeros(2, np.float32), "x": x})
    np.testing.assert_allclose(last, x.sum(1), rtol=1e-6)
    np.testing.assert_allclose(ys, np.cumsum(x[:, ::-1], 1), rtol=1e-6)


def test_threads_share_a_session(sim):
    model = make_model([n("MatMul", ["x", "w"], ["h"]), n("Softmax", ["h"], ["s"]), n("Add", ["s", "s"], ["y"])],
                       {"x": (F16, ["n", 4])}, ["y"], {"w": RNG.random((4, 4)).astype(np.float16)})  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    plain = gpurt.InferenceSession(model, providers=["cpu"])
    feeds = [RNG.random((k % 5 + 1, 4)).astype(np.float16) for k in range(40)]
    want = [plain.run(None, {"x": f})[0] for f in feeds]
    got = {}

    def work(part):
        for k in range(part, 40, 4):
            got[k] = s.run(None, {"x": feeds[k]})[0]

    threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(40):
        np.testing.assert_allclose(got[k], want[k], rtol=5e-3)


def test_a_refusal_for_one_shape_moves_the_node_for_that_shape(sim, monkeypatch):
    import gpurt_sim

    from gpurt.provider import Refused

    plan = gpurt_sim.SimUnit.plan

    def picky(self, inputs):
        if inputs[0].shape[0] > 4:
            raise Refused("more than four rows")
        return plan(self, inputs)

    monkeypatch.setattr(gpurt_sim.SimUnit, "plan", picky)
    model = make_model(
        [n("Add", ["x", "x"], ["a"], "add"), n("Relu", ["a"], ["y"], "relu")], {"x": (F16, ["n"])}, ["y"]
    )
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    for size in (3, 6, 3):
        x = RNG.standard_normal(size).astype(np.float16)
        np.testing.assert_allclose(s.run(None, {"x": x})[0], np.maximum(x + x, 0))
    reasons = [r["refused"] for r in s.explain().to_dict()["nodes"]]
    assert any(r.get("sim:0") == "more than four rows" for r in reasons)


def test_memory_of_a_device_does_not_grow_after_the_first_pass(sim):
    model = make_model([n("Add", ["x", "x"], ["a"]), n("Mul", ["a", "x"], ["y"])], {"x": (F16, ["n"])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    arena = s._providers[0].arena
    sizes = (10, 1000, 10, 5000)
    for size in sizes:
        s.run(None, {"x": np.ones(size, np.float16)})
    before = arena.stats()
    for _ in range(3):
        for size in sizes:
            s.run(None, {"x": np.ones(size, np.float16)})
    assert arena.stats() == before


def test_out_of_memory_is_a_typed_error_and_the_session_goes_on(sim):
    model = make_model([n("Add", ["x", "x"], ["y"])], {"x": (F16, ["n"])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[(sim, {"memory_limit": 1 << 16}), "cpu"])
    with pytest.raises(gpurt.OutOfMemory, match="sim:0"):
        s.run(None, {"x": np.ones(1 << 20, np.float16)})
    np.testing.assert_array_equal(s.run(None, {"x": np.ones(8, np.float16)})[0], 2)


def test_a_view_of_a_carried_device_value_follows_it_from_run_to_run(sim):
    # The body only views what it carries: no launch names the memory, and yet every run must see its own.
    body = helper.make_graph(
        [n("Identity", ["c"], ["c2"]), n("Add", ["v", "v"], ["v2"]), n("Identity", ["v"], ["seen"])],
        "body",
        [info("i", I64, []), info("c", BOOL, []), info("v", F16, [2])],
        [info("c2", BOOL, []), info("v2", F16, [2]), info("seen", F16, [2])],
    )
    model = make_model([n("Neg", ["x"], ["nx"]), n("Loop", ["m", "", "nx"], ["last", "all"], body=body)],
                       {"m": (I64, []), "x": (F16, [2])}, ["last", "all"])  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    for scale in (1, 3, -2):
        x = np.array([1, 2], np.float16) * scale
        last, every = s.run(None, {"m": np.array(4), "x": x})
        np.testing.assert_array_equal(last, -x * 16)
        np.testing.assert_array_equal(every, [-x, -2 * x, -4 * x, -8 * x])
