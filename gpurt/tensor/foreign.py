"""Arrays of other libraries: which of them lie on a device, and how they come to the host.

Known are ``__dlpack__`` of the Python array API (2023.12, with DLPack 1.x), Numba's ``__cuda_array_interface__``,
PyOpenCL's arrays, which speak neither, and everything that NumPy makes an array of.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import numpy as np

from gpurt import dtypes
from gpurt.errors import InvalidArgument

# DLDeviceType of DLPack: memory that the host can read.
_HOST: Final = frozenset({1, 3, 11})  # kDLCPU, kDLCUDAHost, kDLROCMHost
_NAMES: Final = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda", 14: "oneapi"}


def element_type(value: Any) -> np.dtype:
    """The NumPy dtype of what ONNX can hold, by any of its names.

    Args:
        value: a NumPy or ml_dtypes dtype or type, ``"float"``, ``"tensor(float)"``, ``"bfloat16"``, or the number in
            ``onnx.TensorProto``.

    Raises InvalidArgument for anything else.
    """
    try:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return dtypes.from_onnx(int(value))
        dtype: np.dtype
        if isinstance(value, str):
            name = value.removeprefix("tensor(").removesuffix(")")
            try:
                return dtypes.from_name(name)
            except KeyError:
                pass
        dtype = np.dtype(value)
        if dtype.kind not in "UST":
            dtypes.to_onnx(dtype)
            return dtype
    except (KeyError, TypeError):
        pass
    raise InvalidArgument(f"{value!r} is no element type", remedy='Use a NumPy dtype, or a name such as "float"')


def device_of(value: Any) -> str | None:
    """Where another library's array lies: ``"cuda:0"``, or with PyOpenCL's arrays just ``"opencl"``; None: the host."""
    if isinstance(value, np.ndarray):
        return None
    if hasattr(value, "__dlpack_device__"):
        try:
            kind, index = value.__dlpack_device__()
        except Exception as e:  # of another library, or a class in place of an array
            raise InvalidArgument(
                f"a {type(value).__name__} does not say where it is: {e}", remedy="Give an array"
            ) from e
        return None if int(kind) in _HOST else f"{_NAMES.get(int(kind), f'DLPack device type {int(kind)}')}:{index}"
    if is_pyopencl(value):
        return "opencl"
    # A missing attribute is the protocol's way to say that the array is on the host.
    if getattr(value, "__cuda_array_interface__", None) is not None:
        return "cuda"
    return None


def is_pyopencl(value: Any) -> bool:
    """Whether a value is a pyopencl.array.Array, asked without importing PyOpenCL."""
    return any(c.__module__ == "pyopencl.array" and c.__name__ == "Array" for c in type(value).__mro__)


def to_host(value: Any) -> np.ndarray:
    """Another library's array as a NumPy array: the same memory if that is the host's, else a copy.

    Raises InvalidArgument where the library cannot say what is in it.
    """
    if isinstance(value, np.ndarray):
        return value
    where = device_of(value)
    try:
        if where is None:
            return _from_host(value)
        if hasattr(value, "__dlpack__") and "dl_device" in _parameters(value.__dlpack__):
            return np.from_dlpack(value, device="cpu")
        if hasattr(value, "get"):  # CuPy, PyOpenCL
            return np.asarray(value.get())
        if hasattr(value, "cpu"):  # torch
            return to_host(value.cpu())
        if hasattr(value, "copy_to_host"):  # Numba
            return np.asarray(value.copy_to_host())
    except (BufferError, TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise InvalidArgument(f"a {_kind(value)} cannot be read: {e}", remedy=_REMEDY) from e
    raise InvalidArgument(f"a {_kind(value)} on {where} cannot be read", remedy="Copy it to the host first")


_REMEDY: Final = (
    "Give an array that is dense, or a NumPy array. bfloat16 and float8 cross DLPack as integers of their size: "
    'gpurt.Tensor.from_dlpack(x.view(uint16), dtype="bfloat16")'
)


def _from_host(value: Any) -> np.ndarray:
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__") and not isinstance(value, np.generic):
        return np.from_dlpack(value)
    return np.asarray(value)


def _parameters(function: Any) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of compiled functions nothing is known
        return frozenset()


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
