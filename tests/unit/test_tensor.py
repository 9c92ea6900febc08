"""gpurt.Tensor on the host and the simulated device: content, protocols of other libraries, and errors."""

import gc
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.tensor import Tensor
from gpurt.tensor.foreign import device_of, to_host

n = helper.make_node
F32, BF16 = TensorProto.FLOAT, TensorProto.BFLOAT16
X = np.arange(12, dtype=np.float32).reshape(3, 4)
DTYPES = ["float", "double", "float16", "bool", "int8", "uint64", "complex64", "bfloat16", "float8e4m3fn", "int4"]


def filled(dtype, shape=(3, 4)):
    return np.arange(int(np.prod(shape))).reshape(shape).astype(gpurt.Tensor.empty((), dtype).dtype)


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_there_and_back(sim, device, dtype):
    array = filled(dtype)
    tensor = Tensor.from_numpy(array, device)
    assert tensor.device == {"cpu": "cpu", "sim": "sim:0"}[device]
    assert (tensor.dtype, tensor.shape, tensor.size, tensor.ndim) == (array.dtype, (3, 4), 12, 2)
    assert tensor.nbytes == array.nbytes
    for found in (tensor.numpy(), np.asarray(tensor), tensor.to("cpu").numpy(), tensor.to("sim").to("cpu").numpy()):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert repr(tensor) == f"gpurt.Tensor({array.dtype}[3, 4] on {tensor.device})"


def test_the_host_shares_and_devices_copy(sim):
    array = X.copy()
    assert np.shares_memory(Tensor.from_numpy(array).numpy(), array)
    assert np.shares_memory(np.asarray(Tensor.from_numpy(array)), array)
    assert not np.shares_memory(np.array(Tensor.from_numpy(array)), array)
    there = Tensor.from_numpy(array, "sim")
    array[...] = 0
    np.testing.assert_array_equal(there.numpy(), X)
    assert there.to("sim") is there.to("sim:0") is there
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(there, copy=False)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(Tensor.from_numpy(X), dtype=np.int8, copy=False)


def test_tensors_of_a_device_share_its_arena_and_give_back_what_they_had(sim):
    a = Tensor.from_numpy(X, "sim")
    arena = a.storage.memory.arena
    b = Tensor.empty((1000,), np.int64, "sim:0")
    assert b.storage.memory.arena is arena
    assert not a.storage.overlaps(b.storage)
    del b
    held = arena.stats()["in_use"]
    c = Tensor.from_numpy(X, "sim")
    assert arena.stats()["in_use"] == 2 * held
    np.testing.assert_array_equal(c.numpy(), a.numpy())
    gone = weakref.ref(a.storage.memory)
    del a, c, arena
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_scalars_empty_tensors_and_odd_arrays(sim, device):
    for array in (np.float32(3), X[:, ::2], X.T, X.astype(">f4"), np.zeros((0, 3), np.int8)):
        tensor = Tensor.from_numpy(array, device)
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype.isnative
        assert tensor.shape == np.shape(array)


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_new_content(sim, device):
    tensor = Tensor.empty((3, 4), "tensor(float)", device)
    tensor.update_inplace(X)
    np.testing.assert_array_equal(tensor.numpy(), X)
    with pytest.raises(gpurt.InvalidArgument, match=r"float64\[3, 4\] does not fit into float32\[3, 4\]"):
        tensor.update_inplace(X.astype(np.float64))
    with pytest.raises(gpurt.InvalidArgument, match="does not fit"):
        tensor.update_inplace(X[:2])


def test_strings_stay_on_the_host(sim):
    tensor = Tensor.from_numpy(np.array(["a", "bc"]))
    assert tensor.dtype == np.dtype(object)
    assert tensor.element_type == TensorProto.STRING
    with pytest.raises(gpurt.InvalidArgument, match="strings live on the host"):
        tensor.to("sim")
    with pytest.raises(BufferError, match="strings"):
        tensor.__dlpack__()


def test_what_is_asked_for_must_exist():
    for kind, words in (("flaot", "no element type"), (99, "no element type"), (np.datetime64, "no element type")):
        with pytest.raises(gpurt.InvalidArgument, match=words):
            Tensor.empty((2,), kind)
    with pytest.raises(gpurt.InvalidArgument, match=r"no provider is called 'opncl'.*did you mean 'opencl'"):
        Tensor.empty((2,), "float", "opncl:0")
    with pytest.raises(gpurt.EPFail, match=r"there is no opencl:77|cannot be used"):
        Tensor.empty((2,), "float", "opencl:77")
    with pytest.raises(gpurt.InvalidArgument, match="Dimensions"):
        Tensor.empty((-1,), "float")
    assert Tensor.empty((2,), 16).dtype == ml_dtypes.bfloat16


# --- DLPack


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_shows_the_memory(dtype):
    tensor = Tensor.from_numpy(filled(dtype))
    seen = np.from_dlpack(tensor)
    assert seen.dtype == {"bfloat16": "uint16", "float8e4m3fn": "uint8", "int4": "uint8"}.get(dtype, tensor.dtype)
    assert np.shares_memory(seen, tensor.numpy())
    back = Tensor.from_dlpack(seen, dtype=dtype)
    assert np.shares_memory(back.numpy(), tensor.numpy())
    np.testing.assert_array_equal(back.numpy(), tensor.numpy())


def test_dlpack_versions_copies_and_devices(sim):
    tensor = Tensor.from_numpy(X.copy())
    assert tensor.__dlpack_device__() == (1, 0)
    assert '"dltensor"' in repr(tensor.__dlpack__())
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 0)))
    assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
    assert not np.shares_memory(np.from_dlpack(tensor, copy=True), tensor.numpy())
    with pytest.raises(BufferError, match=r"cannot be exported to DLPack device \(2, 0\)"):
        tensor.__dlpack__(dl_device=(2, 0))
    read_only = X.copy()
    read_only.flags.writeable = False
    assert not np.from_dlpack(Tensor.from_numpy(read_only)).flags.writeable
    with pytest.raises(BufferError):  # the old protocol cannot say that
        Tensor.from_numpy(read_only).__dlpack__()

    there = Tensor.from_numpy(X, "sim")
    with pytest.raises(BufferError, match="DLPack has no number for sim:0"):
        np.from_dlpack(there)
    np.testing.assert_array_equal(np.from_dlpack(_Numbered(there), device="cpu"), X)
    with pytest.raises(BufferError, match="without a copy"):
        there.__dlpack__(dl_device=(1, 0), copy=False)


class _Numbered:
    """A tensor that says it is OpenCL's, for consumers that ask for the host."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return 4, 0

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)


def test_a_device_in_the_hosts_memory_exports_in_place(sim, monkeypatch):
    tensor = Tensor.from_numpy(X.astype(ml_dtypes.bfloat16), "sim")
    monkeypatch.setattr(tensor.storage.memory, "shares_host", True)
    assert tensor.__dlpack_device__() == (1, 0)
    seen = np.from_dlpack(tensor)
    assert np.shares_memory(seen, tensor.storage.ref.buffer)
    arena = tensor.storage.memory.arena
    del tensor
    gc.collect()
    assert arena.stats()["in_use"] > 0  # the array has the block
    np.testing.assert_array_equal(seen.view(ml_dtypes.bfloat16), X)
    del seen
    gc.collect()
    assert arena.stats()["in_use"] == 0


def test_reinterpreting_wants_elements_of_the_same_size():
    with pytest.raises(gpurt.InvalidArgument, match="float32 cannot be seen as bfloat16"):
        Tensor.from_dlpack(X, dtype="bfloat16")
    with pytest.raises(gpurt.InvalidArgument, match="cannot be seen"):
        Tensor.from_dlpack(np.zeros(3, np.int64), dtype=object)


def test_other_protocols_of_the_host(sim):
    tensor, there = Tensor.from_numpy(X), Tensor.from_numpy(X, "sim")
    assert not hasattr(tensor, "__cuda_array_interface__")
    assert not hasattr(there, "__cuda_array_interface__")
    assert np.shares_memory(np.frombuffer(tensor.__buffer__(0), np.float32), X)
    assert tensor.data_ptr() == X.ctypes.data
    with pytest.raises(BufferError, match="no buffer on the host"):
        there.__buffer__(0)
    if sys.version_info >= (3, 12):
        assert bytes(memoryview(tensor)) == X.tobytes()


# --- feeds


class OnlyArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OnlyDLPack:
    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **kwargs):
        kwargs.pop("dl_device", None)
        return self.array.__dlpack__(**kwargs)


class Far(OnlyDLPack):
    """An array of a GPU library as far as gpurt can see: it can be asked for a copy on the host."""

    def __init__(self, array):
        super().__init__(array, (2, 0))
        self.asked = 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        assert dl_device == (1, 0)
        self.asked += 1
        return self.array.__dlpack__(max_version=max_version)


class Gettable:
    """As PyOpenCL's and old CuPy arrays."""

    def __init__(self, array):
        self.array = array
        self.__cuda_array_interface__ = {"version": 3}

    def get(self):
        return self.array


def exp_session(kind=F32, dims=(3, 4)):
    return gpurt.InferenceSession(make_model([n("Neg", ["x"], ["y"])], {"x": (kind, dims)}, ["y"]), providers=["cpu"])


@pytest.mark.parametrize("wrap", [OnlyArray, OnlyDLPack, memoryview, Tensor.from_numpy, np.ndarray.tolist])
def test_feeds_of_the_host(wrap):
    value = wrap(X)
    if isinstance(value, list):
        value = np.array(value, np.float32)
    np.testing.assert_array_equal(exp_session().run(None, {"x": value})[0], -X)


def test_a_dlpack_feed_is_read_in_place():
    assert np.shares_memory(to_host(OnlyDLPack(X)), X)
    assert np.shares_memory(to_host(OnlyDLPack(X, (3, 0))), X)  # kDLCUDAHost
    assert np.shares_memory(Tensor.from_dlpack(OnlyDLPack(X)).numpy(), X)


def test_feeds_of_devices_that_the_session_lacks_come_through_the_host():
    s = exp_session()
    for value, device in ((Far(X), "cuda:0"), (Gettable(X), "cuda")):
        assert device_of(value) == device
        np.testing.assert_array_equal(s.run(None, {"x": value})[0], -X)
        (copy,) = s.explain().to_dict()["copies"]
        assert (copy["value"], copy["from"], copy["to"], copy["bytes"]) == ("x", device, "cpu", X.nbytes)
    with pytest.raises(gpurt.InvalidArgument, match="float64, the model wants float32"):
        s.run(None, {"x": Far(X.astype(np.float64))})
    with pytest.raises(gpurt.InvalidArgument, match="2 at dimension 0"):
        s.run(None, {"x": Gettable(X[:2])})

    class Opaque:
        def __dlpack_device__(self):
            return 8, 0

    with pytest.raises(gpurt.InvalidArgument, match="on metal:0 cannot be read"):
        s.run(None, {"x": Opaque()})
    np.testing.assert_array_equal(s.run(None, {"x": X})[0], -X)


def test_a_narrow_type_that_came_as_integers_is_told_apart():
    s = exp_session(BF16)
    x = X.astype(ml_dtypes.bfloat16)
    with pytest.raises(gpurt.InvalidArgument, match=r"uint16, the model wants bfloat16.*from_dlpack"):
        s.run(None, {"x": x.view(np.uint16)})
    (y,) = s.run(None, {"x": Tensor.from_dlpack(x.view(np.uint16), dtype="bfloat16")})
    np.testing.assert_array_equal(y, -x)


def test_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    s = exp_session()
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    np.testing.assert_array_equal(s.run(None, {"x": x})[0], -x.numpy())
    np.testing.assert_array_equal(s.run(None, {"x": x.T.contiguous().T})[0], -x.numpy())
    with pytest.raises(gpurt.InvalidArgument, match=r"requires? grad|require gradient"):
        s.run(None, {"x": x.clone().requires_grad_()})
    out = torch.zeros(3, 4)
    binding = s.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", out)
    s.run_with_iobinding(binding)
    assert torch.equal(out, -x)
    assert torch.equal(torch.from_dlpack(binding.get_outputs()[0]), -x)

    narrow = exp_session(BF16)
    b = x.to(torch.bfloat16)
    with pytest.raises(gpurt.InvalidArgument, match=r"cannot be read.*bfloat16 and float8 cross DLPack"):
        narrow.run(None, {"x": b})
    (y,) = narrow.run_with_ort_values(None, {"x": Tensor.from_dlpack(b.view(torch.uint16), dtype="bfloat16")})
    assert torch.equal(torch.from_dlpack(y).view(torch.bfloat16), -b)
