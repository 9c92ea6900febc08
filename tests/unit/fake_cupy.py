"""A stand-in for the part of CuPy that gpurt_cuda calls: device memory is host memory, and queues run when waited for.

It is stricter than CUDA: copies must lie inside one allocation, fresh memory is poisoned, a launch needs the thread's
context, cuBLAS checks its arguments as the library documents them and computes with matrices by columns.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpurt_cuda import compiler
from gpurt_cuda import provider as cuda_provider


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class NVRTCError(RuntimeError):
    pass


class FakeCuda:
    """One process's CUDA: memory, queues, what was launched; `install` puts it in the place of cupy."""

    def __init__(self, devices: int = 2, memory: int = 1 << 24, version: int = 12090) -> None:
        self.devices, self.memory, self.version = devices, memory, version
        self.failure: CUDARuntimeError | None = None
        self.allocations: dict[int, np.ndarray] = {}
        self.pool_freed = 0
        self.launches: list[tuple[Any, ...]] = []
        self.gemms: list[tuple[Any, ...]] = []
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.signatures: dict[str, list[type]] = {}  # kernel -> types of its parameters
        self.kernels: dict[str, Callable[..., None]] = {}
        self.queues: dict[int, list[Callable[[], Any]]] = {}
        self.local = threading.local()
        self.handles: dict[int, int] = {}
        self.events: dict[int, Any] = {}
        self.ticks = 0
        self._names: dict[int, str] = {}

    # Threads: the device that is current, the context, CuPy's current stream.

    @property
    def current(self) -> int:
        return getattr(self.local, "device", 0)

    def need_context(self) -> None:
        assert getattr(self.local, "context", False), "the driver API was called without a context"

    def step(self, queue: int) -> None:
        """Do the next work of a queue; only recording an event, which returns True, takes no time."""
        if not self.queues[queue].pop(0)():
            self.ticks += 1

    # Memory

    def malloc(self, nbytes: int) -> int:
        if sum(a.size for a in self.allocations.values()) + nbytes > self.memory:
            raise CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")
        raw = np.full(nbytes + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256  # as cudaMalloc aligns
        block = raw[start : start + nbytes]
        self.allocations[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, ptr: int) -> None:
        del self.allocations[ptr]

    def inside(self, ptr: int, nbytes: int) -> None:
        assert any(base <= ptr and ptr + nbytes <= base + a.size for base, a in self.allocations.items()), (
            "out of bounds"
        )

    def memcpy(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        if kind in (1, 3):
            self.inside(dst, nbytes)
        if kind in (2, 3):
            self.inside(src, nbytes)
        self.queues[stream].append(lambda: ctypes.memmove(dst, src, nbytes) and None)

    def view(self, ptr: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Device memory as an array."""
        count = int(np.prod(shape))
        self.inside(ptr, count * np.dtype(dtype).itemsize)
        raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(ptr)
        return np.frombuffer(raw, dtype).reshape(shape)

    # Kernels

    def launch(self, f: int, *rest: int) -> None:
        self.need_context()
        gx, gy, gz, bx, by, bz, shared, stream, params, extra = rest
        name = self._names[f]
        types = self.signatures[name]
        addresses = (ctypes.c_uint64 * len(types)).from_address(params)
        args = [t.from_address(a).value for t, a in zip(types, addresses, strict=True)]  # CUDA reads them at once
        self.launches.append((name, (gx, gy, gz), (bx, by, bz), args, stream, self.current))
        assert shared == 0
        assert extra == 0
        kernel = self.kernels.get(name)
        if kernel is not None:
            self.queues[stream].append(lambda: kernel(*args))

    # cuBLAS

    def gemm(self, handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, *rest: int) -> None:
        """gemmStridedBatchedEx; by columns, as BLAS has it."""
        a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, count, compute, algo = rest
        assert algo == -1
        assert at == bt == ct
        assert lda >= max(1, k if ta else m)
        assert ldb >= max(1, n if tb else k)
        assert ldc >= max(1, m)
        dtype = {0: np.float32, 1: np.float64, 2: np.float16}[at]
        scalar = {68: np.float32, 77: np.float32, 70: np.float64}[compute]
        x, y = (
            float(np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(scalar) * 1).from_address(p))[0])
            for p in (alpha, beta)
        )
        stream = self.handles[handle] = self.local.streams[-1]
        self.gemms.append((ta, tb, m, n, k, lda, ldb, ldc, count, compute))

        def columns(ptr: int, rows: int, cols: int, ld: int) -> np.ndarray:
            flat = self.view(ptr, ((cols - 1) * ld + rows,), dtype)
            return np.lib.stride_tricks.as_strided(flat, (rows, cols), (flat.itemsize, ld * flat.itemsize))

        def run() -> None:
            size = np.dtype(dtype).itemsize
            for i in range(count):
                left = columns(a + i * sa * size, *((k, m) if ta else (m, k)), lda)
                right = columns(b + i * sb * size, *((n, k) if tb else (k, n)), ldb)
                out = columns(c + i * sc * size, m, n, ldc)
                product = (left.T if ta else left).astype(scalar) @ (right.T if tb else right).astype(scalar)
                # With beta 0 the result is not read: it may be poison.
                out[...] = (x * product + (y * out.astype(scalar) if y else 0)).astype(dtype)

        self.queues[stream].append(run)

    # Modules

    def install(self, monkeypatch: pytest.MonkeyPatch, *, blas: bool = True) -> None:
        fake = self

        class Device:
            def __init__(self, index: int) -> None:
                self.id = index
                self._before: list[int] = []

            def __enter__(self) -> None:
                self._before.append(fake.current)
                fake.local.device = self.id

            def __exit__(self, *_: object) -> None:
                fake.local.device = self._before.pop()

        class Stream:
            def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
                assert non_blocking
                self.ptr = 1000 + len(fake.queues)
                self.device = fake.current
                fake.queues[self.ptr] = []

            def __enter__(self) -> None:
                fake.local.streams = [*getattr(fake.local, "streams", [0]), self.ptr]

            def __exit__(self, *_: object) -> None:
                fake.local.streams.pop()

            def wait_event(self, event: Any) -> None:
                fake.queues[self.ptr].append(lambda: event.synchronize() or True)

            def synchronize(self) -> None:
                while fake.queues[self.ptr]:
                    fake.step(self.ptr)
                if fake.failure:
                    raise fake.failure

        class Event:
            """Recorded when the queue reaches it; the device's clock ticks a millisecond at every work."""

            def __init__(self, disable_timing: bool = False) -> None:
                self.ptr = 9000 + len(fake.events)
                self.timing = not disable_timing
                fake.events[self.ptr] = None
                self._stream: Any = None

            def record(self, stream: Any) -> None:
                self._stream = stream
                fake.queues[stream.ptr].append(lambda: fake.events.__setitem__(self.ptr, fake.ticks) or True)

            def synchronize(self) -> None:
                while fake.events[self.ptr] is None:
                    fake.step(self._stream.ptr)

        def elapsed(start: int, end: int) -> float:
            return float(np.float32(fake.events[end] - fake.events[start]))

        class Function:
            def __init__(self, name: str) -> None:
                self.ptr = 5000 + len(fake._names)
                fake._names[self.ptr] = name

        class Module:
            def load(self, code: bytes) -> None:
                fake.need_context()
                assert code.endswith(b"\0")

            def get_function(self, name: str) -> Function:
                fake.need_context()
                return Function(name)

        class Pool:
            def free_all_blocks(self) -> None:
                fake.pool_freed += 1

        def get_count() -> int:
            if fake.failure:
                raise fake.failure
            return fake.devices

        def mem_info() -> tuple[int, int]:
            fake.local.context = True
            return 0, fake.memory

        def compile_program(program: int, options: tuple[str, ...]) -> None:
            source = fake.compiled[program][0]
            fake.compiled[program] = (source, tuple(options))
            if "#error" in source:
                raise NVRTCError("NVRTC_ERROR_COMPILATION")

        def create_program(source: str, *_: object) -> int:
            fake.compiled.append((source, ()))
            return len(fake.compiled) - 1

        def create_handle() -> int:
            fake.handles[len(fake.handles) + 1] = 0
            return len(fake.handles)

        def gemm_ex(handle: int, *args: int) -> None:
            ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, compute, algo = args
            fake.gemm(
                handle, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct, ldc, 0, 1, compute, algo
            )

        facts = {"name": b"Fake", "major": 9, "minor": 0, "multiProcessorCount": 8, "maxThreadsPerBlock": 1024,
                 "sharedMemPerBlock": 49152, "totalGlobalMem": self.memory}  # fmt: skip
        modules = {
            "cupy": {"__version__": "14.0.0", "get_default_memory_pool": Pool},
            "cupy.cuda": {"Device": Device, "Stream": Stream, "Event": Event},
            "cupy.cuda.runtime": {
                "CUDARuntimeError": CUDARuntimeError, "is_hip": False, "getDeviceCount": get_count,
                "getDeviceProperties": lambda index: facts, "driverGetVersion": lambda: self.version,
                "runtimeGetVersion": lambda: 13000, "memGetInfo": mem_info, "malloc": self.malloc, "free": self.free,
                "eventElapsedTime": elapsed,
                "memcpyAsync": self.memcpy, "memcpyHostToDevice": 1, "memcpyDeviceToHost": 2, "memcpyDeviceToDevice": 3,
            },
            "cupy.cuda.driver": {"launchKernel": self.launch},
            "cupy.cuda.function": {"Module": Module},
            "cupy.cuda.nvrtc": {
                "NVRTCError": NVRTCError, "createProgram": create_program, "compileProgram": compile_program,
                "getProgramLog": lambda p: "the log\0", "getCUBIN": lambda p: b"cubin", "getPTX": lambda p: b"ptx",
                "destroyProgram": lambda p: None, "getSupportedArchs": lambda: (75, 80, 90),
                "getVersion": lambda: (12, 9),
            },
        }  # fmt: skip
        if blas:
            modules["cupy.cuda.cublas"] = {
                "create": create_handle, "destroy": lambda h: None, "gemmEx": gemm_ex,
                "gemmStridedBatchedEx": self.gemm,
            }  # fmt: skip
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
            if "." in name:
                parent, _, child = name.rpartition(".")
                setattr(sys.modules[parent], child, module)
        for name in ("gpurt_cuda.driver", "gpurt_cuda.blas", "gpurt_cuda.timer"):
            monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    """A stand-in that is in CuPy's place, with two devices and an empty cache of code."""
    made = FakeCuda()
    made.install(monkeypatch)
    monkeypatch.setenv("GPURT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "include_dirs", lambda: ("/cuda/include",))
    monkeypatch.setattr(cuda_provider, "_DRIVERS", {})
    return made
