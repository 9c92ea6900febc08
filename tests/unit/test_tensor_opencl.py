"""Tensors, bindings and other libraries' arrays on the embedded OpenCL device."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from bindings import run
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.provider import Unavailable
from gpurt.tensor import Tensor

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(3)
X = RNG.standard_normal((8, 64), dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def device():
    try:
        from gpurt_opencl import OpenCLProvider

        OpenCLProvider.probe()
    except (ImportError, Unavailable) as e:
        pytest.skip(f"no OpenCL device: {e}")


@pytest.fixture(params=[True, False], ids=["shared", "copied"])
def options(request):
    return {"zero_copy": request.param}


def softmax():
    return make_model([n("Softmax", ["x"], ["s"]), n("Mul", ["s", "x"], ["y"])], {"x": (F32, ["b", 64])}, ["y", "s"])


def expected(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    s = e / e.sum(-1, keepdims=True)
    return s * x, s


def aligned(shape, dtype=np.float32, shift=0):
    raw = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 192, np.uint8)
    start = -raw.ctypes.data % 64 + shift
    return raw[start : start + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def round_trips(session):
    return [c for c in session.explain().to_dict()["copies"] if c["cause"].startswith("fed from")]


def test_content_there_and_back(options):
    for array in (X, np.float16(3), np.zeros((0, 4), np.int64), X[:, ::3], X.astype(">f4"), np.array([True, False])):
        tensor = Tensor.from_numpy(array, "opencl:0")
        assert tensor.device == "opencl:0"
        np.testing.assert_array_equal(tensor.numpy(), array)
        np.testing.assert_array_equal(tensor.to("cpu").numpy(), array)
        assert tensor.to("opencl") is tensor
    tensor = Tensor.from_numpy(X, "opencl")
    tensor.update_inplace(X + 1)
    np.testing.assert_array_equal(np.asarray(tensor), X + 1)


def test_runs_on_tensors_of_every_session(options):
    """Tensors made without a session, or by a session with other options, are used in place."""
    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", options), "cpu"])
    other = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", {"kernel_class": "gpu"}), "cpu"])
    x = Tensor.from_numpy(X, "opencl:0")
    y, p = run(s, {"x": x}, {"y": "opencl", "s": "opencl"})
    for got, wanted in zip((y, p), expected(X), strict=True):
        assert got.device == "opencl:0"
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-6)
    (again,) = run(other, {"x": y}, {"y": "opencl"})
    np.testing.assert_allclose(again.numpy(), expected(y.numpy())[0], rtol=1e-5, atol=1e-6)
    assert round_trips(s) == round_trips(other) == []
    del s, other, x
    gc.collect()
    np.testing.assert_allclose(again.numpy(), expected(y.numpy())[0], rtol=1e-5, atol=1e-6)


def test_outputs_are_written_into_the_callers_memory(options):
    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", options), "cpu"])
    on_device = Tensor.empty((8, 64), "float", "opencl:0")
    for array in (on_device, aligned((8, 64)), aligned((8, 64), shift=4)):
        for shift in (0, 1):
            found = run(s, {"x": X + shift}, {"y": array, "s": "opencl"})
            np.testing.assert_allclose(np.asarray(array), expected(X + shift)[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[1].numpy(), expected(X + shift)[1], rtol=1e-5, atol=1e-6)


def test_memory_that_is_fed_too(options):
    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", options), "cpu"])
    for x in (Tensor.from_numpy(X, "opencl:0"), aligned(X.shape), aligned(X.shape, shift=8)):
        if isinstance(x, np.ndarray):
            x[...] = X
        run(s, {"x": x}, {"s": x})
        np.testing.assert_allclose(np.asarray(x), expected(X)[1], rtol=1e-5, atol=1e-6)


def test_a_cache_is_appended_to_in_place(options):
    """TensorScatter-24 with past and present in one buffer: nothing but the new rows is written."""
    nodes = [n("TensorScatter", ["past", "new", "at"], ["present"], axis=1), n("ReduceSum", ["present"], ["sum"])]
    model = make_model(
        nodes, {"past": (F32, [2, 16, 8]), "new": (F32, [2, "t", 8]), "at": (I64, [2])}, ["present", "sum"], opset=24
    )
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    cache = Tensor.from_numpy(np.zeros((2, 16, 8), np.float32), "opencl:0")
    wanted = np.zeros((2, 16, 8), np.float32)
    for start, rows in ((0, 3), (3, 1), (4, 1), (5, 1)):
        new = RNG.standard_normal((2, rows, 8), dtype=np.float32)
        wanted[:, start : start + rows] = new
        total = run(s, {"past": cache, "new": new, "at": np.full(2, start)}, {"present": cache, "sum": "cpu"})[1]
        np.testing.assert_array_equal(cache.numpy(), wanted)
        np.testing.assert_allclose(total.numpy().ravel(), wanted.sum(), rtol=1e-4)
    in_place = [st for p in s._runner.plans() for st in p._draft.steps if getattr(st, "skip", None)]
    assert len(in_place) == len(s._runner.plans()) == 2
    # Another cache for the output: the past stays as it is.
    (moved,) = run(s, {"past": cache, "new": new, "at": np.full(2, 6)}, {"present": "opencl"})
    np.testing.assert_array_equal(cache.numpy(), wanted)
    np.testing.assert_array_equal(moved.numpy()[:, :6], wanted[:, :6])


def test_a_past_that_is_read_later_is_not_spoilt(options):
    nodes = [n("TensorScatter", ["past", "new"], ["present"], axis=1), n("Neg", ["past"], ["old"])]
    model = make_model(nodes, {"past": (F32, [1, 4, 8]), "new": (F32, [1, 1, 8])}, ["present", "old"], opset=24)
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    before = RNG.standard_normal((1, 4, 8), dtype=np.float32)
    cache, new = Tensor.from_numpy(before, "opencl:0"), np.ones((1, 1, 8), np.float32)
    old = run(s, {"past": cache, "new": new}, {"present": cache, "old": "cpu"})[1]
    np.testing.assert_array_equal(old.numpy(), -before)
    np.testing.assert_array_equal(cache.numpy(), np.concatenate([new, before[:, 1:]], axis=1))


@pytest.mark.parametrize("where", ["cpu", "opencl"])
def test_a_past_that_is_handed_on_is_not_spoilt(options, where):
    nodes = [n("Reshape", ["past", "flat"], ["old"]), n("TensorScatter", ["past", "new"], ["present"], axis=1)]
    shapes = {"past": (F32, [1, 4, 8]), "new": (F32, [1, 1, 8])}
    model = make_model(nodes, shapes, ["present", "old"], {"flat": np.array([32])}, opset=24)
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    before = RNG.standard_normal((1, 4, 8), dtype=np.float32)
    cache, new = Tensor.from_numpy(before, "opencl:0"), np.ones((1, 1, 8), np.float32)
    old = run(s, {"past": cache, "new": new}, {"present": cache, "old": where})[1]
    np.testing.assert_array_equal(old.numpy(), before.ravel())
    np.testing.assert_array_equal(cache.numpy(), np.concatenate([new, before[:, 1:]], axis=1))


def test_updates_that_are_the_data_itself(options):
    """The copy of the data may not be left out where the same memory is read as updates, in another order."""
    model = make_model(
        [n("Mul", ["x", "two"], ["d"]), n("ScatterND", ["d", "i", "d"], ["y"])],
        {"x": (F32, [64]), "i": (I64, [64, 1])}, ["y"], {"two": np.float32(2)},
    )  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    x, order = RNG.standard_normal(64, dtype=np.float32), RNG.permutation(64)
    wanted = np.zeros(64, np.float32)
    wanted[order] = 2 * x
    np.testing.assert_array_equal(s.run(None, {"x": x, "i": order[:, None]})[0], wanted)


def test_scatters_in_place_between_kernels(options):
    """Data that nobody else reads is changed where it lies."""
    model = make_model(
        [n("Mul", ["x", "two"], ["d"]), n("ScatterND", ["d", "i", "u"], ["w"]), n("Exp", ["w"], ["y"])],
        {"x": (F32, [64]), "i": (I64, [5, 1]), "u": (F32, [5])}, ["y"], {"two": np.float32(2)},
    )  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    x, u, at = RNG.standard_normal(64, dtype=np.float32), np.arange(5, dtype=np.float32), np.array([3, 9, 1, 60, 8])
    for _ in range(2):
        wanted = 2 * x
        wanted[at] = u
        np.testing.assert_allclose(s.run(None, {"x": x, "i": at[:, None], "u": u})[0], np.exp(wanted), rtol=1e-5)
    assert any(getattr(st, "skip", None) for p in s._runner.plans() for st in p._draft.steps)


def test_pyopencl_arrays_in_the_sessions_context(options):
    cl = pytest.importorskip("pyopencl")
    arrays = pytest.importorskip("pyopencl.array")
    from gpurt_opencl import discovery

    context = cl.Context([discovery.devices()[0][1]])
    queue, elsewhere = cl.CommandQueue(context), cl.CommandQueue(context)
    mine = {**options, "context": context, "queue": queue}
    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl", mine), "cpu"])
    moved = []
    memory = s._providers[0]
    memory.write = lambda dst, src, stream: moved.append(src.nbytes)
    for used in (queue, elsewhere):
        x = arrays.to_device(used, X)
        x += 1  # not waited for
        y = arrays.zeros(used, (8, 64), np.float32)
        run(s, {"x": x}, {"y": y})
        np.testing.assert_allclose(y.get(), expected(X + 1)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(s.run(["y"], {"x": x})[0], expected(X + 1)[0], rtol=1e-5, atol=1e-6)
    assert not moved
    assert round_trips(s) == []
    binding = s.io_binding()
    binding.bind_input("x", "opencl", 0, np.float32, (8, 64), x.base_data.int_ptr)
    binding.bind_output("y", "opencl")
    s.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], expected(X + 1)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(gpurt.InvalidArgument, match="has 2048 bytes, 4096 are needed"):
        binding.bind_input("x", "opencl", 0, np.float32, (16, 64), x.base_data.int_ptr)

    del memory.write
    plain = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl", options), "cpu"])
    for array in (x, x[:, :]):
        np.testing.assert_allclose(plain.run(["y"], {"x": array})[0], expected(X + 1)[0], rtol=1e-5, atol=1e-6)
    (copy,) = round_trips(plain)
    assert (copy["value"], copy["from"], copy["to"], copy["bytes"]) == ("x", "opencl", "cpu", X.nbytes)
    with pytest.raises(gpurt.InvalidArgument, match="no provider of the session reaches it"):
        run(plain, {"x": x}, {"y": arrays.zeros(queue, (8, 64), np.float32)})
    with pytest.raises(gpurt.InvalidArgument, match="float64, the model wants float32"):
        s.run(None, {"x": arrays.to_device(queue, X.astype(np.float64))})


def test_parts_of_pyopencl_arrays(options):
    """Rows of an array are dense, but begin where kernels must not; columns are not dense."""
    cl = pytest.importorskip("pyopencl")
    arrays = pytest.importorskip("pyopencl.array")
    from gpurt_opencl import discovery

    context = cl.Context([discovery.devices()[0][1]])
    queue = cl.CommandQueue(context)
    model = make_model([n("Exp", ["x"], ["y"])], {"x": (F32, [2, 3])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl", {**options, "queue": queue}), "cpu"])
    whole = RNG.standard_normal((5, 3), dtype=np.float32)
    x = arrays.to_device(queue, whole)
    np.testing.assert_allclose(s.run(None, {"x": x[1:3]})[0], np.exp(whole[1:3]), rtol=1e-5)
    with pytest.raises(gpurt.InvalidArgument, match=r"must be contiguous.*that is dense"):
        s.run(None, {"x": x[::2][:2]})
    with pytest.raises(gpurt.InvalidArgument, match="not dense or not aligned"):
        run(s, {"x": whole[:2]}, {"y": x[1:3]})


def test_contexts_and_queues_that_do_not_fit():
    cl = pytest.importorskip("pyopencl")
    from gpurt_opencl import discovery

    device = discovery.devices()[0][1]
    context = cl.Context([device])
    refused = [
        ({"context": "mine"}, "context is 'mine'"),
        ({"queue": context}, "queue is"),
        ({"context": cl.Context([device]), "queue": cl.CommandQueue(context)}, "another context"),
    ]
    if device.queue_properties & cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE:
        unordered = cl.CommandQueue(context, properties=cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE)
        refused.append(({"queue": unordered}, "out of order"))
    for given, words in refused:
        with pytest.raises(gpurt.InvalidArgument, match=words):
            gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl", given), "cpu"])
    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", {"context": context}), "cpu"])
    np.testing.assert_allclose(s.run(["y"], {"x": X})[0], expected(X)[0], rtol=1e-5, atol=1e-6)


def test_dlpack_from_a_device():
    """A device in the host's memory exports it in place; the array keeps the tensor's block."""
    tensor = Tensor.from_numpy(X, "opencl:0")
    if tensor.__dlpack_device__() != (1, 0):
        pytest.skip(f"{tensor.device} has memory of its own")
    seen = np.from_dlpack(tensor)
    tensor.update_inplace(X + 1)
    np.testing.assert_array_equal(seen, X + 1)
    in_use = tensor.storage.memory.arena.stats()["in_use"]
    arena = tensor.storage.memory.arena
    del tensor
    np.testing.assert_array_equal(seen, X + 1)
    assert arena.stats()["in_use"] == in_use
    del seen
    assert arena.stats()["in_use"] < in_use


def test_threads_with_bindings_of_their_own(options):
    from concurrent.futures import ThreadPoolExecutor

    s = gpurt.InferenceSession(softmax(), GREEDY, providers=[("opencl:0", options), "cpu"])

    def work(seed):
        rng = np.random.default_rng(seed)
        for rows in (1, 5, 8):
            x = rng.standard_normal((rows, 64), dtype=np.float32)
            mine = Tensor.empty((rows, 64), "float", "opencl:0")
            for _ in range(5):
                run(s, {"x": Tensor.from_numpy(x, "opencl:0")}, {"y": mine})
                np.testing.assert_allclose(mine.numpy(), expected(x)[0], rtol=1e-5, atol=1e-6)
                x = x + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_outputs_that_change_places_with_inputs(options):
    """Each output goes to the memory of what another one is made of; aliases launch nothing: copies are in order."""
    nodes = [n("Identity", ["a"], ["p"]), n("Identity", ["b"], ["q"]), n("Neg", ["c"], ["r"]),
             n("Reshape", ["c", "flat"], ["t"]), n("Add", ["a", "b"], ["u"])]  # fmt: skip
    model = make_model(nodes, {k: (F32, [8, 64]) for k in "abc"}, ["p", "q", "r", "t", "u"], {"flat": np.array([512])})
    s = gpurt.InferenceSession(model, GREEDY, providers=[("opencl:0", options), "cpu"])
    a, b, c = X, X + 10, X + 20
    x, y, z = (Tensor.from_numpy(v, "opencl:0") for v in (a, b, c))
    found = run(s, {"a": x, "b": y, "c": z}, {"r": z, "p": y, "q": x, "t": "cpu", "u": "cpu"})
    for got, wanted in zip((z, y, x, *found[3:]), (-c, a, b, c.ravel(), a + b), strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_a_profile_shows_what_was_launched(tmp_path):
    """A cache that is appended to in place: one kernel, and no copy but that of the new rows."""
    model = make_model([n("TensorScatter", ["past", "new"], ["present"], axis=1)],
                       {"past": (F32, [1, 4, 8]), "new": (F32, [1, 1, 8])}, ["present"], opset=24)  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=["opencl:0", "cpu"])
    cache = Tensor.from_numpy(np.zeros((1, 4, 8), np.float32), "opencl:0")
    binding = s.io_binding()
    binding.bind_ortvalue_input("past", cache)
    binding.bind_cpu_input("new", np.ones((1, 1, 8), np.float32))
    binding.bind_ortvalue_output("present", cache)
    options = gpurt.RunOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace_")
    s.run_with_iobinding(binding, options)
    np.testing.assert_array_equal(cache.numpy()[0, :, 0], [1, 0, 0, 0])
    events = json.loads(Path(options.profile_file).read_text())
    kernels = [e["name"] for e in events if e.get("cat") == "Kernel" and not e["name"].startswith("Memcpy")]
    assert kernels == ["tensor_scatter"]
    assert not [e for e in events if e.get("name") in ("Memcpy", "MemcpyToHost")]
    s.run_with_iobinding(binding)  # and the plain replay of the same plan
