"""Tensors and other libraries' arrays on CUDA, against a stand-in for CuPy."""

import gc

import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from conftest import make_model
from fake_cupy_arrays import add_arrays
from onnx import TensorProto, helper

import gpurt
from gpurt.tensor import Tensor

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

F32 = TensorProto.FLOAT
RNG = np.random.default_rng(5)
W = RNG.standard_normal((16, 8), dtype=np.float32)
X = RNG.standard_normal((4, 16), dtype=np.float32)


plain = fake_cupy.fake


@pytest.fixture
def fake(monkeypatch, plain):
    made = plain
    made.cupy = add_arrays(made, monkeypatch)
    made.copied = []
    memcpy = made.memcpy

    def spy(dst, src, nbytes, kind, stream):
        made.copied.append((kind, nbytes))
        memcpy(dst, src, nbytes, kind, stream)

    monkeypatch.setattr(__import__("sys").modules["cupy.cuda.runtime"], "memcpyAsync", spy)
    yield made
    gc.collect()  # tensors' memory goes back to this fake, not to the next


@pytest.fixture
def session(fake):
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (F32, ["n", 16])}, ["y"], {"w": W})
    made = gpurt.InferenceSession(model, GREEDY, providers=["cuda", "cpu"])
    made.run(None, {"x": X})  # the weights are there from now on
    fake.copied.clear()
    return made


def test_content_there_and_back(fake):
    for array in (X, X.astype(ml_dtypes.bfloat16), np.zeros((0, 2), np.int8), np.float64(3)):
        tensor = Tensor.from_numpy(array, "cuda:1")
        assert tensor.device == "cuda:1"
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_what_a_tensor_shows_to_others(fake):
    tensor = Tensor.from_numpy(X, "cuda:1")
    assert tensor.__dlpack_device__() == (2, 1)
    about = tensor.__cuda_array_interface__
    assert about["shape"] == (4, 16)
    assert about["typestr"] == "<f4"
    np.testing.assert_array_equal(fake.view(about["data"][0], (4, 16), np.float32), X)
    exported = tensor.__dlpack__(stream=7)
    assert exported.data.ptr == tensor.data_ptr()
    assert exported.data.mem.owner is tensor
    narrow = Tensor.from_numpy(X.astype(ml_dtypes.bfloat16), "cuda")
    assert narrow.__cuda_array_interface__["typestr"] == "<u2"
    assert narrow.__dlpack__(stream=1).dtype == np.uint16
    with pytest.raises(BufferError, match="device"):
        tensor.__dlpack__(dl_device=(2, 0))
    np.testing.assert_array_equal(np.from_dlpack(tensor, device="cpu"), X)


def test_arrays_on_the_device_are_read_in_place(fake, session):
    array = fake.cupy.asarray(X)
    for value in (array, OnlyInterface(array), Tensor.from_dlpack(array), Tensor.from_dlpack(array, device="cuda:0")):
        fake.copied.clear()
        fake.cupy.asked.clear()
        np.testing.assert_allclose(session.run(None, {"x": value})[0], X @ W, rtol=1e-4, atol=1e-5)
        assert fake.copied == [(2, 4 * 8 * 4)]  # the result
        if not isinstance(value, Tensor):
            assert fake.cupy.asked[0] in fake.queues  # the run's own queue
    assert [c for c in session.explain().to_dict()["copies"] if c["cause"].startswith("fed")] == []


class OnlyInterface:
    """As Numba's arrays."""

    def __init__(self, array):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


def test_parts_of_arrays_are_copied_on_the_device(fake, session):
    whole = RNG.standard_normal((16, 5), dtype=np.float32)
    turned = fake.cupy.asarray(whole).T
    np.testing.assert_allclose(session.run(None, {"x": turned})[0], whole.T @ W, rtol=1e-4, atol=1e-5)
    assert {kind for kind, _ in fake.copied} == {2}
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (F32, ["n", 3])}, ["y"], {"w": W[:3]})
    odd = gpurt.InferenceSession(model, GREEDY, providers=["cuda", "cpu"])
    rows = RNG.standard_normal((4, 3), dtype=np.float32)
    part = fake.cupy.asarray(rows).part(1)
    assert part.data.ptr % 64
    np.testing.assert_allclose(odd.run(None, {"x": part})[0], rows[1:] @ W[:3], rtol=1e-4, atol=1e-5)
    assert (3, 36) in fake.copied


def test_arrays_of_another_device_come_through_the_host(fake, session):
    import cupy

    with cupy.cuda.Device(1):
        array = fake.cupy.asarray(X)
    np.testing.assert_allclose(session.run(None, {"x": array})[0], X @ W, rtol=1e-4, atol=1e-5)
    (copy,) = [c for c in session.explain().to_dict()["copies"] if c["cause"].startswith("fed")]
    assert (copy["from"], copy["bytes"]) == ("cuda:1", X.nbytes)


def test_results_stay_there_or_go_into_arrays_of_others(fake, session):
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", Tensor.from_numpy(X, "cuda"))
    binding.bind_output("y", "cuda", 0)
    fake.copied.clear()
    session.run_with_iobinding(binding)
    (y,) = binding.get_outputs()
    assert y.device == "cuda:0"
    assert fake.copied == []
    np.testing.assert_allclose(y.numpy(), X @ W, rtol=1e-4, atol=1e-5)

    mine = fake.cupy.ndarray((4, 8), np.float32)
    binding.bind_ortvalue_output("y", mine)
    fake.copied.clear()
    session.run_with_iobinding(binding)
    assert fake.copied == []
    np.testing.assert_allclose(mine.get(), X @ W, rtol=1e-4, atol=1e-5)

    binding.bind_input("x", "cuda", 0, np.float32, (4, 16), fake.cupy.asarray(2 * X).data.ptr)
    binding.bind_output("y", "cuda", 0, np.float32, (4, 8), mine.data.ptr)
    binding.synchronize_inputs()
    assert fake.cupy.settled == [0]
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(mine.get(), 2 * X @ W, rtol=1e-4, atol=1e-5)

    with pytest.raises(gpurt.InvalidArgument, match="not dense"):
        binding.bind_ortvalue_output("y", fake.cupy.ndarray((8, 4), np.float32).T)
    with pytest.raises(gpurt.InvalidArgument, match="rank 1"):
        binding.bind_ortvalue_output("y", fake.cupy.ndarray((8,), np.float32))


def test_arrays_of_another_kind_are_refused(fake, session):
    with pytest.raises(gpurt.InvalidArgument, match="float64, the model wants float32"):
        session.run(None, {"x": fake.cupy.asarray(X.astype(np.float64))})
    with pytest.raises(gpurt.InvalidArgument, match="15 at dimension 1"):
        session.run(None, {"x": fake.cupy.asarray(np.ascontiguousarray(X[:, :15]))})
    np.testing.assert_allclose(session.run(None, {"x": X})[0], X @ W, rtol=1e-4, atol=1e-5)
