"""Arrays of other CUDA libraries, by CuPy: DLPack and the CUDA array interface in both directions."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from gpurt.provider import Borrowed, BufferRef

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def taken(value: Any, device: int, stream: Any) -> Borrowed | None:
    """An array on this device in place; one that is not dense is copied on the device.

    The protocols get the run's queue, so that it waits for the work that makes the array. None for arrays elsewhere.
    """
    if hasattr(value, "__dlpack_device__"):
        kind, index = value.__dlpack_device__()
        if int(kind) not in _DLPACK_CUDA or index != device:
            return None
        read = cupy.from_dlpack
    elif getattr(value, "__cuda_array_interface__", None) is not None:
        read = cupy.asarray
    else:
        return None
    with cupy.cuda.Device(device), stream.cupy:
        array = read(value)
        if array.device.id != device:
            return None
        dense = cupy.ascontiguousarray(array)
    ref = BufferRef(int(dense.data.ptr), 0, int(dense.nbytes))
    shape = tuple(int(d) for d in dense.shape)
    # ascontiguousarray makes a scalar a vector, and gives back what is dense.
    copied = int(dense.data.ptr) != int(array.data.ptr)
    return Borrowed(ref, np.dtype(array.dtype), shape if array.ndim else (), (dense, value), copied)


def exported(ref: BufferRef, dtype: np.dtype, shape: tuple[int, ...], owner: Any, device: int) -> Any:
    """A cupy.ndarray over memory that the owner keeps."""
    memory = cupy.cuda.UnownedMemory(ref.buffer + ref.offset, ref.nbytes, owner, device)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


def settle(device: int) -> None:
    """Wait for everything on the device."""
    with cupy.cuda.Device(device):
        runtime.deviceSynchronize()
