"""IOBinding and runs over tensors, on the host and the simulated device: where outputs end up, and in whose memory."""

import numpy as np
import pytest
from bindings import run
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.tensor import Tensor
from gpurt.tensor.storage import Storage

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F32, F16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
X = np.arange(6, dtype=np.float16).reshape(2, 3) - 2


def chain(kind=F16):
    """Two outputs: one of a device's kernel, one of the host's."""
    nodes = [n("Add", ["x", "x"], ["a"]), n("Relu", ["a"], ["y"]), n("Abs", ["a"], ["z"])]
    return make_model(nodes, {"x": (kind, ["b", 3])}, ["y", "z"])


@pytest.fixture
def session(sim):
    return gpurt.InferenceSession(chain(), GREEDY, providers=[sim, "cpu"])


def spied(session, name):
    """Sizes of what a device memory's method moves, from now on."""
    memory, sizes = session._providers[0], []
    method = getattr(memory, name)

    def spy(*args):
        sizes.append(args[0].nbytes)
        return method(*args)

    setattr(memory, name, spy)
    return sizes


def test_outputs_stay_on_a_device_and_are_fed_from_there(sim):
    nodes = [n("Add", ["x", "x"], ["a"]), n("Relu", ["a"], ["y"]), n("Neg", ["a"], ["z"])]
    session = gpurt.InferenceSession(make_model(nodes, {"x": (F16, [2, 3])}, ["y", "z"]), providers=[sim, "cpu"])
    (y,) = run(session, {"x": X}, {"y": "sim"})
    assert (y.device, y.dtype, y.shape) == ("sim:0", np.float16, (2, 3))
    written, read = spied(session, "write"), spied(session, "read")
    (again,) = run(session, {"x": y}, {"y": "sim:0"})
    assert not written
    assert not read
    np.testing.assert_array_equal(y.numpy(), np.maximum(X + X, 0))
    np.testing.assert_array_equal(again.numpy(), 2 * y.numpy())
    np.testing.assert_array_equal(session.run(["z"], {"x": y})[0], -2 * y.numpy())


def test_a_tensor_outlives_its_session_and_gives_its_memory_back(sim):
    s = gpurt.InferenceSession(chain(), GREEDY, providers=[sim, "cpu"])
    (y,) = run(s, {"x": X}, {"y": "sim"})
    arena = s._providers[0].arena
    del s
    np.testing.assert_array_equal(y.numpy(), np.maximum(X + X, 0))
    before = arena.stats()["in_use"]
    del y
    assert arena.stats()["in_use"] < before


def test_the_last_kernel_writes_into_the_callers_tensor(session):
    mine = Tensor.empty((2, 3), "float16", "sim")
    mine = run(session, {"x": X}, {"y": "sim"})[0]
    copied = spied(session, "copy")
    for shift in (1, 2):
        found = run(session, {"x": X + shift}, {"y": mine})
        assert found[0] is mine
        np.testing.assert_array_equal(mine.numpy(), np.maximum(2 * (X + shift), 0))
    assert not copied
    other = Tensor(mine.dtype, mine.shape, storage=type(mine.storage).new(mine.storage.memory, 12))
    run(session, {"x": X}, {"y": other})
    np.testing.assert_array_equal(other.numpy(), np.maximum(2 * X, 0))
    np.testing.assert_array_equal(mine.numpy(), np.maximum(2 * (X + 2), 0))


def test_an_output_of_the_host_is_written_to_the_callers_array_or_tensor(session):
    for device in ("cpu", "sim"):
        mine = run(session, {"x": X}, {"z": device})[0]
        assert mine.device.startswith(device)
        found = run(session, {"x": X + 1}, {"z": mine})
        assert found[0] is mine
        np.testing.assert_array_equal(mine.numpy(), np.abs(2 * (X + 1)))


def test_a_read_goes_straight_to_the_callers_array(session):
    array = np.zeros((2, 3), np.float16)
    read = []
    memory = session._providers[0]
    method = memory.read
    memory.read = lambda dst, src, stream: (read.append(dst), method(dst, src, stream))[1]
    run(session, {"x": X}, {"y": array})
    assert sum(np.shares_memory(r, array) for r in read) == 1
    np.testing.assert_array_equal(array, np.maximum(2 * X, 0))


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_memory_that_an_input_lies_in_too(session, device):
    """As ONNX Runtime's shared buffers of past and present: every kernel still reads what was fed."""
    for name, wanted in (("y", lambda v: np.maximum(2 * v, 0)), ("z", lambda v: np.abs(2 * v))):
        x = np.array(X)
        if device == "sim":
            (x,) = run(session, {"x": X}, {"y": "sim"})
        before = np.array(x)
        run(session, {"x": x}, {name: x})
        np.testing.assert_array_equal(np.asarray(x), wanted(before))


def test_a_model_that_hands_its_input_on(sim):
    model = make_model([n("Identity", ["x"], ["y"])], {"x": (F16, [3])}, ["y"])
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    x = np.array([1, 2, 3], np.float16)
    (y,) = run(s, {"x": x}, {"y": "sim"})
    (z,) = run(s, {"x": y}, {"y": "sim"})
    assert not z.storage.overlaps(y.storage)
    np.testing.assert_array_equal(z.numpy(), x)
    (w,) = run(s, {"x": x}, {"y": "cpu"})
    assert not np.shares_memory(w.numpy(), x)


def test_outputs_that_are_one_value(sim):
    """Two names, an alias among them: each gets memory of its own."""
    nodes = [n("Add", ["x", "x"], ["a"]), n("Identity", ["a"], ["y"]), n("Relu", ["a"], ["z"])]
    s = gpurt.InferenceSession(make_model(nodes, {"x": (F16, [3])}, ["a", "y", "z"]), providers=[sim, "cpu"])
    x = np.array([1, -2, 3], np.float16)
    a, y, z = run(s, {"x": x}, {"a": "sim", "y": "sim", "z": "sim"})
    assert not a.storage.overlaps(y.storage)
    for got, wanted in ((a, 2 * x), (y, 2 * x), (z, np.maximum(2 * x, 0))):
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_constant_outputs_and_outputs_behind_a_cut(sim):
    nodes = [n("NonZero", ["x"], ["i"]), n("Transpose", ["i"], ["t"]), n("GatherND", ["x", "t"], ["g"]),
             n("Relu", ["g"], ["y"]), n("Add", ["x", "x"], ["a"])]  # fmt: skip
    model = make_model(nodes, {"x": (F16, ["n"])}, ["y", "c", "a", "i"], {"c": np.array([5, 6], np.float16)})
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    x = np.array([0, -1, 2, 0, 3], np.float16)
    y, c, a, i = run(s, {"x": x}, {"y": "sim", "c": "sim", "a": "sim", "i": "sim"})
    for got, wanted in ((y, [0, 2, 3]), (c, [5, 6]), (a, 2 * x), (i, [[1, 2, 4]])):
        assert got.device == "sim:0"
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_control_flow_yields_to_where_it_is_wanted(sim):
    body = helper.make_graph(
        [n("Add", ["v", "w"], ["v2"]), n("Identity", ["c"], ["c2"])],
        "body",
        [helper.make_tensor_value_info(k, t, s) for k, t, s in
         (("i", I64, []), ("c", TensorProto.BOOL, []), ("v", F16, [2]))],
        [helper.make_tensor_value_info(k, t, s) for k, t, s in (("c2", TensorProto.BOOL, []), ("v2", F16, [2]))],
    )  # fmt: skip
    model = make_model([n("Loop", ["m", "", "x"], ["last"], body=body)],
                       {"m": (I64, []), "x": (F16, [2]), "w": (F16, [2])}, ["last"])  # fmt: skip
    s = gpurt.InferenceSession(model, GREEDY, providers=[sim, "cpu"])
    x, w = np.array([1, 2], np.float16), np.array([3, 5], np.float16)
    for trips in (0, 3):
        mine = run(s, {"m": np.array(trips), "x": x, "w": w}, {"last": "sim"})[0]
        np.testing.assert_array_equal(mine.numpy(), x + trips * w)
        run(s, {"m": np.array(trips), "x": mine, "w": w}, {"last": mine})
        np.testing.assert_array_equal(mine.numpy(), x + 2 * trips * w)


def test_by_address(session):
    x, y = np.array(X), np.zeros((2, 3), np.float16)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float16, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, "tensor(float16)", y.shape, y.ctypes.data)
    binding.bind_output("z")
    binding.synchronize_inputs()
    for shift in (0, 1):
        x += shift
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        np.testing.assert_array_equal(y, np.maximum(2 * x, 0))
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[1], np.abs(2 * x))
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []
    binding.clear_binding_inputs()
    with pytest.raises(gpurt.InvalidArgument, match="missing"):
        session.run_with_iobinding(binding)


def test_run_with_ort_values(session):
    y, z = session.run_with_ort_values(["y", "z"], {"x": Tensor.from_numpy(X)})
    assert (y.device, z.device) == ("cpu", "cpu")
    np.testing.assert_array_equal(z.numpy(), np.abs(2 * X))
    (z,) = session.run_with_ort_values(["z"], {"x": X}, device="sim:0")
    assert z.device == "sim:0"


def test_a_sequence_is_yielded_as_a_list():
    model = make_model([n("SequenceConstruct", ["x", "x"], ["y"])], {"x": (F32, [2])}, ["y"])
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(F32, [2])))
    s = gpurt.InferenceSession(model, providers=["cpu"])
    binding = s.io_binding()
    binding.bind_cpu_input("x", np.ones(2, np.float32))
    binding.bind_output("y")
    s.run_with_iobinding(binding)
    (found,) = binding.copy_outputs_to_cpu()
    assert [list(a) for a in found] == [[1, 1], [1, 1]]
    with pytest.raises(gpurt.InvalidArgument, match="seq"):
        binding.bind_ortvalue_output("y", np.zeros(2, np.float32))


def test_what_does_not_fit_is_refused_before_anything_runs(session):
    binding = session.io_binding()
    refused = [
        (lambda: binding.bind_output("q"), "no output 'q'"),
        (lambda: binding.bind_cpu_input("q", X), "no input 'q'"),
        (lambda: binding.bind_output("y", "cuda"), "does not use the device 'cuda:0'"),
        (lambda: binding.bind_cpu_input("x", X.astype(np.float32)), "float32, the model wants float16"),
        (lambda: binding.bind_ortvalue_input("x", Tensor.from_numpy(X[:, :2])), "2 at dimension 1"),
        (lambda: binding.bind_ortvalue_output("y", np.zeros((2, 3), np.float32)), "float32, the model wants float16"),
        (lambda: binding.bind_ortvalue_output("y", np.zeros((3, 2), np.float16).T), "not contiguous"),
        (lambda: binding.bind_ortvalue_output("y", "here"), "bound to a str"),
        (lambda: binding.bind_output("y", buffer_ptr=64), "without type and shape"),
        (lambda: binding.bind_output("y", "cpu", 0, np.float16, (2, 3), 0), "memory at 0x0"),
        (lambda: binding.bind_output("y", "sim", 0, np.float16, (2, 3), 64), "takes no memory by its address"),
        (lambda: session.run_with_iobinding(gpurt.InferenceSession(chain(), providers=["cpu"]).io_binding()), "not of"),
    ]
    for call, words in refused:
        with pytest.raises(gpurt.InvalidArgument, match=words):
            call()
    readonly = np.zeros((2, 3), np.float16)
    readonly.flags.writeable = False
    with pytest.raises(gpurt.InvalidArgument, match="read-only"):
        binding.bind_ortvalue_output("y", readonly)

    (small,) = run(session, {"x": X[:1]}, {"y": "sim"})
    written = np.array(small)
    for device_memory in (small, np.zeros((1, 3), np.float16)):
        with pytest.raises(gpurt.InvalidArgument, match=r"output 'y' is float16\[1, 3\], the value is float16\[2, 3\]"):
            run(session, {"x": X}, {"y": device_memory})
        with pytest.raises(gpurt.InvalidArgument, match=r"output 'z' is float16\[1, 3\]"):
            run(session, {"x": X}, {"z": device_memory})
    np.testing.assert_array_equal(small.numpy(), written)
    with pytest.raises(gpurt.InvalidArgument, match="same memory"):
        run(session, {"x": X[:1]}, {"y": small, "z": small})
    np.testing.assert_array_equal(session.run(["y"], {"x": X})[0], np.maximum(2 * X, 0))


def test_a_tensor_of_another_device_comes_through_the_host_and_that_is_said(sim):
    s = gpurt.InferenceSession(chain(), providers=["cpu"])
    x = Tensor.from_numpy(X, "sim")
    np.testing.assert_array_equal(s.run(["y"], {"x": x})[0], np.maximum(2 * X, 0))
    (copy,) = [c for c in s.explain().to_dict()["copies"] if c["from"] == "sim:0"]
    assert (copy["value"], copy["to"], copy["bytes"]) == ("x", "cpu", X.nbytes)


def test_plans_are_kept_by_destination(session):
    for _ in range(2):
        mine = run(session, {"x": X}, {"y": "sim"})[0]
        run(session, {"x": X}, {"y": mine})
        session.run(None, {"x": X})
        run(session, {"x": mine}, {"y": mine})
    assert len(session._runner.plans()) == 3


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_outputs_that_change_places_with_inputs(sim, device):
    """Each output goes to the memory of what the other one is made of."""
    nodes = [n("Identity", ["a"], ["p"]), n("Identity", ["b"], ["q"]), n("Neg", ["c"], ["r"]),
             n("Reshape", ["c", "flat"], ["t"]), n("Add", ["a", "b"], ["u"])]  # fmt: skip
    model = make_model(
        nodes, {k: (F16, [2, 3]) for k in "abc"}, ["p", "q", "r", "t", "u"], {"flat": np.array([6])}
    )  # fmt: skip
    for providers in (["cpu"], [sim, "cpu"], [(sim, {"shares_host": True}), "cpu"]):
        if device == "sim" and providers == ["cpu"]:
            continue
        s = gpurt.InferenceSession(model, GREEDY, providers=providers)
        a, b, c = X, X + 10, X + 20
        tensors = [Tensor.from_numpy(v.copy()) for v in (a, b, c)]
        if device == "sim":
            memory = s._providers[0]
            storage = [Storage.new(memory, v.nbytes) for v in (a, b, c)]
            for block, value in zip(storage, (a, b, c), strict=True):
                block.write(np.ascontiguousarray(value))
            tensors = [Tensor(a.dtype, a.shape, storage=block) for block in storage]
        x, y, z = tensors
        found = run(s, {"a": x, "b": y, "c": z}, {"r": z, "p": y, "q": x, "t": "cpu", "u": "cpu"})
        for got, wanted in zip((z, y, x, *found[3:]), (-c, a, b, c.ravel(), a + b), strict=True):
            np.testing.assert_array_equal(got.numpy(), wanted)


# --- caches on the host


def gqa():
    """One query head of 4 with a cache of 8 rows."""
    node = n("GroupQueryAttention", ["q", "k", "v", "pk", "pv", "len", "total"], ["y", "key", "value"],
             domain="com.microsoft", num_heads=1, kv_num_heads=1)  # fmt: skip
    info = helper.make_tensor_value_info
    inputs = [info(name, F32, [1, "t", 4]) for name in "qkv"] + [info(name, F32, [1, 1, 8, 4]) for name in ("pk", "pv")]
    inputs += [info("len", TensorProto.INT32, [1]), info("total", TensorProto.INT32, [])]
    outputs = [info(name, F32, shape) for name, shape in
               (("y", [1, "t", 4]), ("key", [1, 1, 8, 4]), ("value", [1, 1, 8, 4]))]  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=imports, ir_version=10)


def test_attention_appends_to_the_callers_cache():
    """As ONNX Runtime's GroupQueryAttention with past and present in one buffer: only the new rows are written."""
    s = gpurt.InferenceSession(gqa(), providers=["cpu"])
    rng = np.random.default_rng(7)
    keys, values = np.zeros((1, 1, 8, 4), np.float32), np.zeros((1, 1, 8, 4), np.float32)
    past_keys, past_values = keys.copy(), values.copy()
    at = 0
    for rows in (3, 1, 1):
        q, k, v = (rng.standard_normal((1, rows, 4), dtype=np.float32) for _ in range(3))
        at += rows
        feed = {"q": q, "k": k, "v": v, "len": np.array([at - 1], np.int32), "total": np.array(at, np.int32)}
        wanted = s.run(None, {**feed, "pk": past_keys, "pv": past_values})
        keys[..., at:, :] = values[..., at:, :] = 77  # rows behind the end: they are not touched
        (y,) = run(s, {**feed, "pk": keys, "pv": values}, {"y": "cpu", "key": keys, "value": values})[:1]
        np.testing.assert_allclose(y.numpy(), wanted[0], rtol=1e-6)
        past_keys, past_values = wanted[1:]
        for mine, theirs in ((keys, past_keys), (values, past_values)):
            np.testing.assert_array_equal(mine[..., :at, :], theirs[..., :at, :])
            assert np.all(mine[..., at:, :] == 77)
    # Other memory for the present: the past stays, the rest is zero.
    before, fresh = keys.copy(), np.full_like(keys, 5)
    run(s, {**feed, "pk": keys, "pv": values}, {"key": fresh})
    np.testing.assert_array_equal(keys, before)
    assert np.all(fresh[..., at:, :] == 0)


@pytest.mark.parametrize("late", [True, False])
def test_a_past_that_others_read_is_not_written_too_early(late):
    nodes = [n("TensorScatter", ["past", "new"], ["present"], axis=1), n("Neg", ["past"], ["old"]),
             n("Identity", ["past"], ["same"])]  # fmt: skip
    nodes = nodes if late else nodes[::-1]
    shapes = {"past": (F32, [1, 4, 2]), "new": (F32, [1, 1, 2])}
    s = gpurt.InferenceSession(make_model(nodes, shapes, ["present", "old", "same"], opset=24), providers=["cpu"])
    before, new = np.arange(8, dtype=np.float32).reshape(1, 4, 2), np.full((1, 1, 2), -1, np.float32)
    cache = before.copy()
    old, same = run(s, {"past": cache, "new": new}, {"old": "cpu", "same": "cpu", "present": cache})[:2]
    np.testing.assert_array_equal(old.numpy(), -before)
    np.testing.assert_array_equal(cache, np.concatenate([new, before[:, 1:]], axis=1))
    np.testing.assert_array_equal(same.numpy(), before)


def test_a_cache_of_one_reader_is_appended_to_on_the_host():
    nodes = [n("TensorScatter", ["past", "new"], ["present"], axis=1), n("Reshape", ["present", "flat"], ["all"])]
    shapes = {"past": (F32, [1, 4, 2]), "new": (F32, [1, 1, 2])}
    model = make_model(nodes, shapes, ["present", "all"], {"flat": np.array([8])}, opset=24)
    s = gpurt.InferenceSession(model, providers=["cpu"])
    cache, new = np.zeros((1, 4, 2), np.float32), np.ones((1, 1, 2), np.float32)
    whole = run(s, {"past": cache, "new": new}, {"all": "cpu", "present": cache})[0]
    np.testing.assert_array_equal(cache[0, :, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(whole.numpy(), [1, 1, 0, 0, 0, 0, 0, 0])
    assert not np.shares_memory(whole.numpy(), cache)
    assert any(getattr(step, "into", None) for p in s._runner.plans() for step in p._draft.steps)
    starts = make_model([n("TensorScatter", ["past", "new", "at"], ["present"], axis=1)],
                        {"past": (F32, [2, 4, 2]), "new": (F32, [2, 1, 2]), "at": (I64, [2])}, ["present"],
                        opset=24)  # fmt: skip
    s = gpurt.InferenceSession(starts, providers=["cpu"])
    pair, rows = np.zeros((2, 4, 2), np.float32), np.ones((2, 1, 2), np.float32)
    with pytest.raises(gpurt.GpurtError, match="Use mode 'circular'"):
        run(s, {"past": pair, "new": rows, "at": np.array([0, 9])}, {"present": pair})
    assert not pair.any()
