"""RunOptions: their names, ending runs, giving memory back, run_async and warmup."""

import threading
import time

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F16, F32, I64, BOOL = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = np.ones((2, 3), np.float32)


def relu(**options):
    model = make_model([n("Relu", ["x"], ["y"], "r")], {"x": (F32, ["n", 3])}, ["y"])
    return gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=["cpu"])


def endless(providers, kind):
    """A loop of as many steps as are asked for, with a step on the device and one on the host."""
    body = helper.make_graph(
        [n("Identity", ["c"], ["c2"]), n("Add", ["v", "one"], ["a"]), n("Neg", ["a"], ["b"]), n("Erf", ["b"], ["v2"])],
        "body",
        [helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("c", BOOL, []),
         helper.make_tensor_value_info("v", kind, [4])],
        [helper.make_tensor_value_info("c2", BOOL, []), helper.make_tensor_value_info("v2", kind, [4])],
    )  # fmt: skip
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    model = make_model(
        [n("Loop", ["m", "", "x"], ["y"], "loop", body=body)],
        {"m": (I64, []), "x": (kind, [4])}, ["y"], {"one": np.ones(4, dtype)},
    )  # fmt: skip
    return gpurt.InferenceSession(model, GREEDY, providers=providers), dtype


def test_misspelt_options_are_refused_with_a_suggestion():
    options = gpurt.RunOptions(logid="a")
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'terminate'"):
        options.terminat = True
    with pytest.raises(gpurt.InvalidArgument, match=r"did you mean 'memory\.enable_memory_arena_shrinkage'"):
        options.add_run_config_entry("memory.enable_arena_shrinkage", "cpu:0")
    for name, value in (("terminate", 1), ("log_severity_level", -2), ("log_verbosity_level", True), ("logid", 3)):
        with pytest.raises(gpurt.InvalidArgument, match=name):
            setattr(options, name, value)
    for name in ("only_execute_path_to_fetches", "profile_file"):
        with pytest.raises(gpurt.GpurtError):
            setattr(options, name, True)
    with pytest.raises(gpurt.NotImplemented, match="gpu_graph_id"):
        options.add_run_config_entry("gpu_graph_id", "1")
    with pytest.raises(gpurt.InvalidArgument, match="was added"):
        options.get_run_config_entry("memory.enable_memory_arena_shrinkage")
    assert "logid='a'" in repr(options)
    with pytest.raises(gpurt.InvalidArgument, match="run_options"):
        relu().run(None, {"x": X}, {"terminate": True})


def test_terminate_before_the_run_and_the_session_goes_on():
    s, options = relu(), gpurt.RunOptions(terminate=True)
    with pytest.raises(gpurt.Terminated, match="terminate"):
        s.run(None, {"x": X}, options)
    assert issubclass(gpurt.Terminated, gpurt.Fail)  # ONNX Runtime's class for it
    options.terminate = False
    np.testing.assert_array_equal(s.run(None, {"x": X}, options)[0], X)


@pytest.mark.parametrize("profiled", [False, True])
def test_terminate_from_another_thread_gives_all_memory_back(sim, profiled, tmp_path):
    s, dtype = endless([sim, "cpu"], F16)
    x = np.zeros(4, dtype)
    s.run(None, {"m": np.array(2), "x": x})
    arena = s._providers[0].arena
    before = arena.stats()["in_use"]
    options = gpurt.RunOptions(enable_profiling=profiled, profile_file_prefix=str(tmp_path / "p"))
    threading.Timer(0.2, setattr, (options, "terminate", True)).start()
    start = time.perf_counter()
    with pytest.raises(gpurt.Terminated) as error:
        s.run(None, {"m": np.array(1 << 40), "x": x}, options)
    assert time.perf_counter() - start < 5
    if profiled:
        assert options.profile_file.startswith(str(tmp_path))
    # All of it can be had again, although the error still knows the frames where it was raised.
    s.trim()
    assert arena.stats()["in_use"] <= before
    assert error.value.remedy
    options.terminate = False
    want = s.run(None, {"m": np.array(2), "x": x})[0]
    np.testing.assert_array_equal(s.run(None, {"m": np.array(2), "x": x}, options)[0], want)


def test_a_failed_run_gives_all_memory_back(sim):
    model = make_model(
        [n("Add", ["x", "x"], ["a"], "a"), n("Gather", ["a", "i"], ["y"], "pick")],
        {"x": (F16, ["n"]), "i": (I64, ["k"])}, ["y"],
    )  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    arena = s._providers[0].arena
    errors = []
    for _ in range(3):
        with pytest.raises(gpurt.GpurtError) as e:
            s.run(None, {"x": np.ones(1000, np.float16), "i": np.array([5000])})
        errors.append(e)  # each keeps its traceback
    assert arena.stats()["in_use"] <= 2 * 2048


def test_shrinkage_gives_the_memory_of_the_named_arenas_back(sim):
    model = make_model([n("Add", ["x", "x"], ["y"], "a")], {"x": (F16, ["n"])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    arena, x = s._providers[0].arena, np.ones(1 << 20, np.float16)
    for name in ("sim:0", "gpu:0", "cpu:0; sim:0"):
        s.run(None, {"x": x})
        assert arena.stats()["held"] > 0
        options = gpurt.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", name)
        np.testing.assert_array_equal(s.run(None, {"x": x}, options)[0], x + x)
        assert arena.stats()["held"] == 0
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "sim:1")
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'sim:0'"):
        s.run(None, {"x": x}, options)


def test_run_async_calls_back_on_a_worker_thread():
    s, done, seen = relu(), threading.Semaphore(0), []

    def callback(results, user_data, error):
        seen.append((results, user_data, error, threading.current_thread()))
        done.release()

    s.run_async(["y"], {"x": X}, callback, "mine", gpurt.RunOptions())
    assert done.acquire(timeout=10)
    (results, data, error, thread) = seen[0]
    np.testing.assert_array_equal(results[0], X)
    assert (data, error) == ("mine", "")
    assert thread is not threading.current_thread()
    s.run_async(["z"], {"x": X}, callback)
    assert done.acquire(timeout=10)
    assert seen[1][0] == []
    assert "no output 'z'" in seen[1][2]
    with pytest.raises(gpurt.InvalidArgument, match="callback"):
        s.run_async(None, {"x": X}, None)


def test_a_failing_callback_is_told_in_the_log(caplog):
    s, started = relu(), threading.Event()

    def callback(*_):
        started.set()
        raise ValueError("oh")

    s.run_async(None, {"x": X}, callback)
    assert started.wait(10)
    s._workers.shutdown()
    assert "the callback of run_async failed: ValueError: oh" in caplog.text


def test_warmup_makes_the_plans_that_runs_then_find():
    s = relu()
    times = s.warmup([{"x": (2, 3)}, {"x": (5, 3)}])
    assert len(times) == 2
    assert min(times) > 0
    plans = s._runner.plans()
    assert len(plans) == 2
    s.run(None, {"x": X})
    assert s._runner.plans() == [plans[1], plans[0]]
    assert len(s.warmup({"x": [7, 3]})) == 1


def test_warmup_takes_arrays_where_content_decides_shapes_and_fills_in_fixed_ones():
    model = make_model([n("Reshape", ["x", "s"], ["y"])], {"x": (F32, [6]), "s": (I64, [2])}, ["y"])
    s = gpurt.InferenceSession(model, providers=["cpu"])
    s.warmup({"s": np.array([2, 3])})
    assert s.run(None, {"x": X.reshape(-1), "s": np.array([2, 3])})[0].shape == (2, 3)
    assert len(s._runner.plans()) == 1


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"xx": (2, 3)}, "did you mean 'x'"),
        ({}, r"\[n, 3\]"),
        ({"x": (2, 4)}, "4 at dimension 1"),
        ({"x": ("a", 3)}, "tuple of sizes"),
        ([(2, 3)], "list of such"),
    ],
)
def test_warmup_refuses_what_does_not_fit(shapes, words):
    with pytest.raises(gpurt.InvalidArgument, match=words):
        relu().warmup(shapes)


def test_options_hold_for_bound_runs_too(sim, tmp_path):
    model = make_model([n("Add", ["x", "x"], ["y"], "a")], {"x": (F16, ["n"])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    binding = s.io_binding()
    binding.bind_cpu_input("x", np.ones(8, np.float16))
    binding.bind_output("y")
    with pytest.raises(gpurt.Terminated):
        s.run_with_iobinding(binding, gpurt.RunOptions(terminate=True))
    options = gpurt.RunOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    s.run_with_iobinding(binding, options)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], 2)
    assert "a_kernel_time" in (tmp_path / options.profile_file).read_text()
    with pytest.raises(gpurt.InvalidArgument, match="run_options"):
        s.run_with_iobinding(binding, {"terminate": True})
