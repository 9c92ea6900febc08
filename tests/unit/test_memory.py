"""Memory of devices: what a session reports, limits, running out and going on, sharing, giving back."""

import gc

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.memory.offsets import rounded
from gpurt.provider import DeviceMemory
from gpurt.testing.null import NullProvider

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F16, F32, BOOL, I64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


@pytest.fixture
def null():
    registry.register(NullProvider)
    yield "null"
    registry.unregister("null")


def chain(kind=F16):
    nodes = [n("MatMul", ["x", "x"], ["a"]), n("MatMul", ["a", "x"], ["b"]), n("MatMul", ["b", "b"], ["y"])]
    return make_model(nodes, {"x": (kind, ["n", "n"])}, ["y"])


def square(size, dtype=np.float16):
    return {"x": np.roll(np.eye(size, dtype=dtype), 1, axis=0)}


def brute_force_bound(plan, space, alignment):
    """The largest sum alive at one step, step by step."""
    draft = plan._draft
    roots = {s.root()[0] for s in draft.slots if s.space == space}
    alive = [
        sum(rounded(r.nbytes, alignment) for r in roots if r.first <= step <= r.last)
        for step in range(len(draft.steps) + 1)
    ]
    return max(alive)


def test_a_chain_needs_what_is_alive_at_its_fullest_step(null):
    session = gpurt.InferenceSession(chain(F32), GREEDY, providers=[null, "cpu"])
    session.run(None, square(64, np.float32))
    # x is read by the second MatMul, so x, a and b live at once; the last needs b and y only.
    memory = session.memory()["null:0"]
    assert memory["planned_peak"] == memory["lower_bound"] == 3 * 64 * 64 * 4


def test_the_bound_is_that_of_a_count_step_by_step(null):
    nodes = [n("Conv", ["x", "w"], ["a"]), n("Softmax", ["a"], ["b"]), n("Concat", ["a", "b"], ["c"], axis=1)]
    nodes += [n("ReduceMean", ["c"], ["d"]), n("MatMul", ["c", "c"], ["e"]), n("Add", ["e", "d"], ["y"])]
    weights = {"w": np.ones((4, 3, 1, 1), np.float32)}
    model = make_model(nodes, {"x": (F32, [1, 3, 20, 20])}, ["y"], weights)
    session = gpurt.InferenceSession(model, GREEDY, providers=[null, "cpu"])
    session.run(None, {"x": np.zeros((1, 3, 20, 20), np.float32)})
    (plan,) = session._runner.plans()
    alignment = session._site.memories[1].arena.alignment
    assert session.memory()["null:0"]["lower_bound"] == brute_force_bound(plan, 1, alignment)


def test_bodies_of_control_flow_count_beside_what_is_alive_around_them(sim):
    body = helper.make_graph(
        [n("Add", ["c", "big"], ["c2"]), n("Identity", ["t"], ["t2"])],
        "body",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("t", BOOL, []),
            helper.make_tensor_value_info("c", F16, [64]),
        ],
        [helper.make_tensor_value_info("t2", BOOL, []), helper.make_tensor_value_info("c2", F16, [64])],
    )
    nodes = [n("Add", ["x", "x"], ["big"]), n("Loop", ["k", "", "x"], ["y"], body=body)]
    model = make_model(nodes, {"x": (F16, [64]), "k": (I64, [])}, ["y"])
    session = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    x = np.ones(64, np.float16)
    np.testing.assert_array_equal(session.run(None, {"x": x, "k": np.array(5)})[0], 11 * x)
    memory = session.memory()["sim:0"]
    assert memory["lower_bound"] >= 3 * 128  # big, the carried value and its next one
    assert memory["planned_peak"] <= 2 * memory["lower_bound"]


def test_the_third_run_of_a_shape_allocates_nothing(null):
    session = gpurt.InferenceSession(chain(F32), GREEDY, providers=[null, "cpu"])
    counts = []
    for _ in range(3):
        session.run(None, square(16, np.float32))
        counts.append(session.memory()["null:0"]["allocations_last_run"])
    assert counts[0] > 0
    assert counts[2] == 0


def test_trim_gives_back_and_the_session_goes_on(sim):
    session = gpurt.InferenceSession(chain(), GREEDY, providers=[sim, "cpu"])
    want = session.run(None, square(8))[0]
    held = session.memory()["sim:0"]["held"]
    assert held > 0
    assert session.trim() == held
    assert session.memory()["sim:0"]["held"] == 0
    np.testing.assert_array_equal(session.run(None, square(8))[0], want)


def test_a_plan_that_does_not_fit_beside_idle_ones_takes_their_place(sim):
    limit = 3 * 2 * 64 * 64 + 3 * 2 * 40 * 40  # two shapes' plans together would not fit
    session = gpurt.InferenceSession(chain(), GREEDY, providers=[(sim, {"memory_limit": limit}), "cpu"])
    alone = gpurt.InferenceSession(chain(), providers=["cpu"])
    for size in (64, 60, 40, 64):
        np.testing.assert_array_equal(session.run(None, square(size))[0], alone.run(None, square(size))[0])
        assert session.memory()["sim:0"]["held"] <= limit


def test_out_of_memory_says_what_was_asked_and_held_and_loses_nothing(sim):
    session = gpurt.InferenceSession(chain(), GREEDY, providers=[(sim, {"memory_limit": 30_000}), "cpu"])
    want = session.run(None, square(16))[0]
    with pytest.raises(gpurt.OutOfMemory, match=r"sim:0.*bytes asked for.*held.*limit 30000") as caught:
        session.run(None, square(128))
    assert "[128, 128]" in str(caught.value)
    assert caught.value.remedy
    assert isinstance(caught.value, MemoryError)
    np.testing.assert_array_equal(session.run(None, square(16))[0], want)


def test_weights_count_against_the_limit(null):
    weights = {"w": np.ones((256, 256), np.float32)}
    model = make_model([n("Add", ["x", "w"], ["y"])], {"x": (F32, [256, 256])}, ["y"], weights)
    options = gpurt.SessionOptions(pins={"op:Add": "null"})  # else it would be moved to the host
    session = gpurt.InferenceSession(model, options, providers=[(null, {"memory_limit": 500_000}), "cpu"])
    with pytest.raises(gpurt.OutOfMemory, match="limit 500000"):
        session.run(None, {"x": np.zeros((256, 256), np.float32)})
    enough = gpurt.InferenceSession(model, GREEDY, providers=[(null, {"memory_limit": 1_000_000}), "cpu"])
    enough.run(None, {"x": np.zeros((256, 256), np.float32)})
    assert enough.memory()["null:0"]["weights"] == 256 * 256 * 4


def test_arena_sharing_is_asked_for_and_ends_with_the_last_session(null):
    from gpurt.device.provider import DeviceProvider

    driver = NullProvider.open(None, {}).driver

    class Together(NullProvider):
        name = "together"

        @classmethod
        def open(cls, index, options):
            return cls(driver, "together:0", options)

    registry.register(Together)
    try:
        made = [
            gpurt.InferenceSession(chain(F32), GREEDY, providers=[("together", {"share_arena": share}), "cpu"])
            for share in (True, True, False)
        ]
        arenas = [s._providers[0].arena for s in made]
        assert arenas[0] is arenas[1]
        assert arenas[2] is not arenas[0]
        made[0].run(None, square(16, np.float32))
        assert made[1].memory()["together:0"]["held"] == made[0].memory()["together:0"]["held"] > 0
        assert issubclass(Together, DeviceProvider)
    finally:
        registry.unregister("together")


def test_weights_are_stored_once_and_freed_with_the_last_session():
    driver = NullProvider.open(None, {}).driver
    weights = {"w": np.arange(70_000, dtype=np.float32)}
    model = make_model([n("Add", ["x", "w"], ["y"])], {"x": (F32, [70_000])}, ["y"], weights)

    class Same(NullProvider):
        name = "same"

        @classmethod
        def open(cls, index, options):
            return cls(driver, "same:0", {**options, "arena_extend_strategy": "same_as_requested"})

    registry.register(Same)
    try:
        feeds = {"x": np.zeros(70_000, np.float32)}
        first = gpurt.InferenceSession(model, GREEDY, providers=["same", "cpu"])
        first.run(None, feeds)
        alone = driver.held
        second = gpurt.InferenceSession(model, GREEDY, providers=["same", "cpu"])
        second.run(None, feeds)
        arena = second.memory()["same:0"]["held"]
        assert driver.held == alone + arena  # the weights are there already
        del first
        gc.collect()
        assert driver.held == alone
        second.run(None, feeds)
        del second
        gc.collect()
        assert driver.held <= arena
    finally:
        registry.unregister("same")


@pytest.mark.parametrize("option", ["memory_limit", "initial_chunk_size_bytes", "share_arena"])
def test_memory_options_are_checked(null, option):
    with pytest.raises(gpurt.InvalidArgument, match=option):
        gpurt.InferenceSession(chain(F32), GREEDY, providers=[(null, {option: "much"}), "cpu"])


def test_every_device_of_the_session_is_reported(sim, null):
    session = gpurt.InferenceSession(chain(), GREEDY, providers=[sim, null, "cpu"])
    session.run(None, square(8))
    assert set(session.memory()) == {"sim:0", "null:0"}
    assert all(isinstance(m, DeviceMemory) for m in session._site.memories[1:])


def reading_loop():
    """A loop whose body reads, on the device, a value that only the host has."""
    body = helper.make_graph(
        [n("Identity", ["go"], ["on"]), n("Add", ["v", "outer"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("v", F16, ["n", "n"]),
        ],
        [helper.make_tensor_value_info("on", BOOL, []), helper.make_tensor_value_info("w", F16, ["n", "n"])],
    )
    nodes = [n("Min", ["x", "x"], ["outer"]), n("Loop", ["count", "", "x"], ["y"], body=body)]
    return make_model(nodes, {"x": (F16, ["n", "n"])}, ["y"], {"count": np.array(3, np.int64)})


def test_values_that_a_body_reads_take_the_same_memory_at_each_run(sim):
    session = gpurt.InferenceSession(reading_loop(), GREEDY, providers=[sim, "cpu"])
    for _ in range(3):
        np.testing.assert_array_equal(session.run(None, square(16))[0], 4 * square(16)["x"])
    assert session.memory()["sim:0"]["allocations_last_run"] == 0
    held = session.memory()["sim:0"]["held"]
    assert session.trim() == held
    np.testing.assert_array_equal(session.run(None, square(16))[0], 4 * square(16)["x"])


def test_memory_of_sizes_that_do_not_come_back_is_given_up(sim):
    session = gpurt.InferenceSession(reading_loop(), GREEDY, providers=[sim, "cpu"])
    for size in range(4, 44):
        session.run(None, square(size))
    assert len(session._site._reserve._blocks) <= 5
