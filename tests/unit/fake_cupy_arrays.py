"""CuPy's arrays over the stand-in for CUDA: memory of theirs, and the protocols by which libraries exchange them.

A capsule of DLPack is the array itself; what matters is who asks whom for which queue.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from fake_cupy import FakeCuda


def add_arrays(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the installed fake CuPy arrays; returns its module, whose `asked` lists the queues arrays were read on."""
    cupy = sys.modules["cupy"]
    asked: list[int] = []

    class UnownedMemory:
        def __init__(self, ptr: int, size: int, owner: object, device_id: int) -> None:
            fake.inside(ptr, size)
            self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id

    class MemoryPointer:
        def __init__(self, mem: UnownedMemory, offset: int) -> None:
            self.mem, self.ptr = mem, mem.ptr + offset

    class Array:
        """cupy.ndarray; the strides are in bytes."""

        def __init__(self, shape: Any, dtype: Any, memptr: Any = None, strides: Any = None) -> None:
            self.shape, self.dtype = tuple(shape), np.dtype(dtype)
            if memptr is None:
                nbytes = max(math.prod(self.shape) * self.dtype.itemsize, 1)
                memptr = MemoryPointer(UnownedMemory(fake.malloc(nbytes), nbytes, None, fake.current), 0)
            self.data = memptr
            dense = np.empty(self.shape, self.dtype).strides
            self.strides = dense if strides is None else strides
            self.dense = self.strides == dense
            self.nbytes = math.prod(self.shape) * self.dtype.itemsize
            self.ndim = len(self.shape)
            self.device = fake_device(memptr.mem.device_id)

        def host(self) -> np.ndarray:
            """The memory itself, for tests."""
            span = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.dtype.itemsize
            flat = fake.view(self.data.ptr, (span,), np.uint8)
            return np.ndarray(self.shape, self.dtype, flat.data, 0, self.strides)

        def get(self) -> np.ndarray:
            return self.host().copy()

        def part(self, first: int) -> Array:
            """Rows from `first` on, in the same memory."""
            pointer = MemoryPointer(self.data.mem, self.data.ptr - self.data.mem.ptr + first * self.strides[0])
            return Array((self.shape[0] - first, *self.shape[1:]), self.dtype, pointer, self.strides)

        @property
        def T(self) -> Array:
            return Array(self.shape[::-1], self.dtype, self.data, self.strides[::-1])

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, self.device.id

        def __dlpack__(self, *, stream: Any = None, max_version: Any = None, copy: Any = None) -> Array:
            assert stream is not None, "the consumer has to name its queue"
            asked.append(stream)
            return self

    class fake_device:
        def __init__(self, index: int) -> None:
            self.id = index

    def from_dlpack(value: Any) -> Array:
        kind, index = value.__dlpack_device__()
        assert kind == 2
        assert index == fake.current, "read on another device than the array's"
        found = value.__dlpack__(stream=fake.local.streams[-1])
        return Array(found.shape, found.dtype, found.data, found.strides)

    def asarray(value: Any) -> Array:
        if isinstance(value, np.ndarray):
            made = Array(value.shape, value.dtype)
            made.host()[...] = value
            return made
        about = value.__cuda_array_interface__
        asked.append(fake.local.streams[-1])
        count = math.prod(about["shape"]) * np.dtype(about["typestr"]).itemsize
        memory = UnownedMemory(about["data"][0], count, value, fake.current)
        return Array(about["shape"], about["typestr"], MemoryPointer(memory, 0), about.get("strides"))

    def ascontiguousarray(value: Array) -> Array:
        if value.dense:
            return value
        made = Array(value.shape, value.dtype)
        fake.queues[fake.local.streams[-1]].append(lambda: np.copyto(made.host(), value.host()))
        return made

    members = {"ndarray": Array, "from_dlpack": from_dlpack, "asarray": asarray, "asked": asked,
               "ascontiguousarray": ascontiguousarray}  # fmt: skip
    for name, member in members.items():
        monkeypatch.setattr(cupy, name, member, raising=False)
    cuda: Any = sys.modules["cupy.cuda"]
    monkeypatch.setattr(cuda, "UnownedMemory", UnownedMemory, raising=False)
    monkeypatch.setattr(cuda, "MemoryPointer", MemoryPointer, raising=False)
    runtime: Any = sys.modules["cupy.cuda.runtime"]
    settled: list[int] = []
    monkeypatch.setattr(runtime, "deviceSynchronize", lambda: settled.append(fake.current), raising=False)
    monkeypatch.setattr(cupy, "settled", settled, raising=False)
    monkeypatch.delitem(sys.modules, "gpurt_cuda.sharing", raising=False)
    return cupy
