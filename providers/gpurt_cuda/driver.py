"""The CUDA driver: gpurt.device.Driver over CuPy's low-level bindings.

A buffer is a device address, an int. CuPy's memory pool is not used: blocks come from gpurt's own arena, which must be
able to give them back, and cudaFree waits for kernels that still read them, where a pool would hand them on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import cupy
import numpy as np
from cupy.cuda import driver as cuda_driver
from cupy.cuda import function, runtime

from gpurt.device import DeviceInfo, TensorArg
from gpurt.errors import EPFail
from gpurt.provider import BufferRef
from gpurt_cuda.compiler import compile_cached

_OUT_OF_MEMORY: Final = 2  # cudaErrorMemoryAllocation


class CudaStream:
    """An in-order queue, the host arrays whose copies it has not finished, and its cuBLAS handle."""

    def __init__(self, driver: CudaDriver) -> None:
        self.driver = driver
        self.cupy = cupy.cuda.Stream(non_blocking=True)
        self.ptr: int = self.cupy.ptr
        self.held: list[np.ndarray] = []
        self._handle: int | None = None

    def blas(self) -> int:
        """A cuBLAS handle of the stream's own, so that no two streams share a workspace."""
        if self._handle is None:
            from cupy.cuda import cublas

            self._handle = cublas.create()
            weakref.finalize(self, _destroy, cublas, self._handle).atexit = False
        return self._handle


def _destroy(cublas: Any, handle: int) -> None:
    with suppress(Exception):  # the context may be gone before the handle
        cublas.destroy(handle)


class CudaDriver:
    """One CUDA device: its primary context, which CuPy and other libraries share."""

    def __init__(self, index: int) -> None:
        self.device = cupy.cuda.Device(index)
        self._threads = threading.local()
        facts = runtime.getDeviceProperties(index)
        self.arch = 10 * int(facts["major"]) + int(facts["minor"])
        name = facts["name"].decode() if isinstance(facts["name"], bytes) else str(facts["name"])
        self._info = DeviceInfo(
            name=f"{name} (compute capability {facts['major']}.{facts['minor']})",
            kind="gpu",
            dialect="cuda",
            kernel_class="gpu",
            vendor="NVIDIA",
            driver=f"CUDA {version_text(runtime.driverGetVersion())}, CuPy {cupy.__version__}",
            fp16=True,
            fp64=True,
            subgroups=True,
            compute_units=int(facts["multiProcessorCount"]),
            max_group=int(facts["maxThreadsPerBlock"]),
            local_bytes=int(facts["sharedMemPerBlock"]),
            max_alloc=int(facts["totalGlobalMem"]),
            memory=int(facts["totalGlobalMem"]),
            base_align=256,
        )

    def info(self) -> DeviceInfo:
        """Facts about the device."""
        return self._info

    def alloc(self, nbytes: int) -> int:
        """Raises MemoryError when the device has no room."""
        with self.device:
            for attempt in range(2):
                try:
                    return int(runtime.malloc(nbytes))
                except runtime.CUDARuntimeError as e:
                    if e.status != _OUT_OF_MEMORY:
                        raise _failure("the allocation", e) from e
                    if attempt:
                        raise MemoryError(f"{self._info.name}: {nbytes} bytes: {e}") from e
                    cupy.get_default_memory_pool().free_all_blocks()  # what CuPy's users have let go of
        raise AssertionError("unreachable")

    def free(self, buffer: int) -> None:
        """Give the buffer back; waits for what the device still does with it."""
        # At interpreter exit the runtime may have been unloaded before the last buffer.
        with suppress(runtime.CUDARuntimeError), self.device:
            runtime.free(buffer)

    def write(self, dst: BufferRef, src: np.ndarray, stream: CudaStream) -> None:
        """Enqueue a copy from contiguous host memory, which is kept alive until synchronize."""
        if src.nbytes:
            stream.held.append(src)
            self._copy(dst.buffer + dst.offset, src.ctypes.data, src.nbytes, runtime.memcpyHostToDevice, stream)

    def read(self, dst: np.ndarray, src: BufferRef, stream: CudaStream) -> None:
        """Enqueue a copy to contiguous host memory, which is kept alive until synchronize."""
        if dst.nbytes:
            stream.held.append(dst)
            self._copy(dst.ctypes.data, src.buffer + src.offset, dst.nbytes, runtime.memcpyDeviceToHost, stream)

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: CudaStream) -> None:
        """Enqueue a copy within the device."""
        if nbytes:
            kind = runtime.memcpyDeviceToDevice
            self._copy(dst.buffer + dst.offset, src.buffer + src.offset, nbytes, kind, stream)

    def _copy(self, dst: int, src: int, nbytes: int, kind: int, stream: CudaStream) -> None:
        with self.device:
            runtime.memcpyAsync(dst, src, nbytes, kind, stream.ptr)

    def build(self, source: str, name: str) -> Any:
        """Compile for this device, or take it from the cache, and load it. Raises EPFail with the compiler's log."""
        code = compile_cached(source, name, self.arch)
        module = function.Module()
        with self.device:
            self.enter()
            module.load(code)
        return module

    def prepare(
        self,
        program: Any,
        entry: str,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> CudaLauncher:
        """Bind a kernel; its parameters are laid out once."""
        with self.device:
            self.enter()
            return CudaLauncher(self, program.get_function(entry), args, grid, block)

    def stream(self) -> CudaStream:
        """A new in-order queue that does not wait for CUDA's default stream."""
        with self.device:
            return CudaStream(self)

    def synchronize(self, stream: CudaStream) -> None:
        """Wait for the queue. Raises EPFail if something that was enqueued has failed."""
        try:
            with self.device:
                stream.cupy.synchronize()
        except runtime.CUDARuntimeError as e:
            raise _failure("the device", e) from e
        finally:
            stream.held.clear()

    def mark(self, stream: CudaStream) -> Callable[[], None]:
        """A function that waits for what is on the stream by now."""
        with self.device:
            event = cupy.cuda.Event(disable_timing=True)
            event.record(stream.cupy)
        wait: Callable[[], None] = event.synchronize
        return wait

    def follow(self, stream: CudaStream, leader: CudaStream) -> None:
        """See FollowingDriver."""
        with self.device:
            event = cupy.cuda.Event(disable_timing=True)
            event.record(leader.cupy)
            stream.cupy.wait_event(event)

    def timer(self) -> Any:
        """A stream whose work is timed."""
        from gpurt_cuda.timer import CudaTimer

        return CudaTimer(self)

    def enter(self) -> None:
        """Make sure that this thread has the device's context, which the driver API, unlike the runtime's, asks for."""
        if not getattr(self._threads, "entered", False):
            runtime.memGetInfo()  # any call of the runtime's that needs a context makes it current
            self._threads.entered = True

    def close(self) -> None:
        """Nothing: the primary context belongs to the process."""


class CudaLauncher:
    """A bound kernel: parameters lie in host memory as cuLaunchKernel reads them, eight bytes for each."""

    __slots__ = ("_block", "_driver", "_function", "_grid", "_pointers", "_slots", "_values")

    def __init__(
        self,
        driver: CudaDriver,
        kernel: Any,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> None:
        self._driver, self._function, self._grid, self._block = driver, kernel, grid, block
        count = sum(2 if isinstance(arg, TensorArg) else 1 for arg in args)
        self._values = np.zeros(max(count, 1), np.uint64)
        self._pointers = (self._values.ctypes.data + 8 * np.arange(max(count, 1))).astype(np.uint64)
        self._slots: list[int] = []
        slot = 0
        for position, arg in enumerate(args):
            self._slots.append(slot)
            self.set(position, arg)
            slot += 2 if isinstance(arg, TensorArg) else 1

    def set(self, position: int, arg: TensorArg | np.generic) -> None:
        """Set an argument. A tensor's address includes the offset, so the kernel's own offset stays 0."""
        slot = self._slots[position]
        if isinstance(arg, TensorArg):
            self._values[slot] = arg.ref.buffer + arg.ref.offset
            return
        raw = np.frombuffer(arg.tobytes(), np.uint8)
        self._values[slot : slot + 1].view(np.uint8)[: raw.size] = raw

    def resize(self, grid: tuple[int, int, int]) -> None:
        """See Launcher."""
        self._grid = grid

    @property
    def grid(self) -> tuple[int, int, int]:
        """Groups along three axes."""
        return self._grid

    @property
    def block(self) -> tuple[int, int, int]:
        """Items of a group along three axes."""
        return self._block

    def __call__(self, stream: CudaStream) -> None:
        with self._driver.device:
            self._driver.enter()
            cuda_driver.launchKernel(
                self._function.ptr, *self._grid, *self._block, 0, stream.ptr, self._pointers.ctypes.data, 0
            )


def version_text(number: int) -> str:
    """CUDA's version as people write it: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _failure(what: str, error: Exception) -> EPFail:
    return EPFail(
        f"{what} failed: {error}",
        provider="cuda",
        remedy="After such an error CUDA cannot be used in this process any more: start it again",
    )
