"""gpurt.compat: a program written for onnxruntime, line for line."""

import ml_dtypes
import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt.compat as onnxruntime

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model():
    return make_model([helper.make_node("Exp", ["x"], ["y"])], {"x": (TensorProto.FLOAT, ["n", 3])}, ["y"])


def test_a_program_for_onnxruntime():
    session = onnxruntime.InferenceSession(
        model().SerializeToString(), onnxruntime.SessionOptions(), providers=[("CPUExecutionProvider", {})]
    )
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
    assert onnxruntime.get_device().startswith(("CPU", "GPU"))
    x = onnxruntime.OrtValue.ortvalue_from_numpy(X)
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32, "cpu", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    (found,) = binding.get_outputs()
    assert found.data_ptr() == y.data_ptr()
    np.testing.assert_allclose(y.numpy(), np.exp(X), rtol=1e-6)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], y.numpy())
    (again,) = session.run_with_ort_values(["y"], {"x": x})
    np.testing.assert_array_equal(again.numpy(), y.numpy())


def test_what_an_ortvalue_says():
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X)
    assert value.is_tensor()
    assert value.has_value()
    assert not value.is_sparse_tensor()
    assert not value.is_tensor_sequence()
    assert (value.device_name(), value.shape(), value.data_type(), value.element_type()) == (
        "cpu", [2, 3], "tensor(float)", 1,
    )  # fmt: skip
    assert value.tensor_size_in_bytes() == 24
    assert np.shares_memory(np.from_dlpack(value), X)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X.copy())
    value.update_inplace(X + 1)
    np.testing.assert_array_equal(value.numpy(), X + 1)
    narrow = X.astype(ml_dtypes.bfloat16)
    value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(narrow.view(np.uint16), 16)
    assert value.data_type() == "tensor(bfloat16)"
    np.testing.assert_array_equal(value.numpy(), narrow)
    truth = onnxruntime.OrtValue.from_dlpack(np.array([0, 1], np.uint8), is_bool_tensor=True)
    assert truth.data_type() == "tensor(bool)"
    many = onnxruntime.OrtValue([X, X])
    assert many.is_tensor_sequence()
    with pytest.raises(onnxruntime.InvalidArgument, match="the value is a list"):
        many.shape()


def test_on_a_device(sim):
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X, sim, 0)
    assert value.device_name() == "sim"
    np.testing.assert_array_equal(value.numpy(), X)


def test_every_name_is_there():
    for name in onnxruntime.__all__:
        assert getattr(onnxruntime, name) is not None
