"""The OpenCL driver: gpurt.device.Driver over PyOpenCL."""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from gpurt import logs
from gpurt.device import DeviceInfo, TensorArg
from gpurt.errors import EPFail
from gpurt.provider import BufferRef
from gpurt.spec import aligned_zeros
from gpurt_opencl.timer import OpenCLTimer

logger = logs.get("gpurt.opencl")

_WRITABLE = cl.mem_flags.READ_WRITE
_OPTIONS = ("-cl-std=CL1.2", "-cl-mad-enable", "-w")


class OpenCLDriver:
    """One OpenCL device, in a context that all sessions of the process share, or in the caller's."""

    def __init__(
        self,
        device: cl.Device,
        kernel_class: str = "auto",
        *,
        zero_copy: bool = True,
        context: cl.Context | None = None,
    ) -> None:
        self.device = device
        self.context = cl.Context([device]) if context is None else context
        self._info = device_info(device, kernel_class)
        self._maps: dict[int, np.ndarray | None] = {}  # of the buffers that were made here
        self._mapping: cl.CommandQueue | None = None
        self._first_view = threading.Lock()
        if zero_copy and self._info.kind == "cpu" and device.host_unified_memory and self._computes_in_place():
            self._info = replace(self._info, shares_host=True)

    def info(self) -> DeviceInfo:
        """Facts about the device."""
        return self._info

    def alloc(self, nbytes: int) -> cl.Buffer:
        """Raises MemoryError when the device has no room."""
        try:
            buffer = cl.Buffer(self.context, _WRITABLE, nbytes)
            self._maps[buffer.int_ptr] = None
            return buffer
        except (cl.MemoryError, cl.RuntimeError, cl.LogicError) as e:
            raise MemoryError(f"{self._info.name}: {nbytes} bytes: {e}") from e

    def free(self, buffer: cl.Buffer) -> None:
        """Give the buffer back."""
        self._maps.pop(buffer.int_ptr, None)  # unmaps it
        buffer.release()

    def view(self, ref: BufferRef) -> np.ndarray:
        """See SharingDriver; a buffer that was made here is mapped at the first call, once for all.

        OpenCL leaves open what kernels do with a mapped buffer. Where the driver computes in place, which is tried
        before sharing is announced, the mapping is the buffer itself, and waiting for the queue is enough.
        """
        key = ref.buffer.int_ptr
        whole = self._maps.get(key)
        if whole is None:
            with self._first_view:  # PoCL crashes where two threads map one buffer
                whole = self._maps.get(key)
                if whole is None:
                    whole = self._map(ref.buffer)
                if key in self._maps:  # nobody says here when another buffer goes
                    self._maps[key] = whole
        return whole[ref.offset : ref.offset + ref.nbytes]

    def wrap(self, array: np.ndarray) -> cl.Buffer:
        """See SharingDriver."""
        buffer = cl.Buffer(self.context, _WRITABLE | cl.mem_flags.USE_HOST_PTR, hostbuf=array)
        buffer.gpurt_address = array.ctypes.data  # type: ignore[attr-defined]
        return buffer

    def address(self, buffer: cl.Buffer) -> int:
        """See AddressingDriver; noted on the buffer, which stays where it is."""
        known: int | None = getattr(buffer, "gpurt_address", None)
        if known is None:
            known = buffer.gpurt_address = self.view(BufferRef(buffer, 0, buffer.size)).ctypes.data  # type: ignore[attr-defined]
        return known

    def done(self, token: cl.Event) -> bool:
        """See AddressingDriver."""
        return bool(token.command_execution_status == cl.command_execution_status.COMPLETE)

    def wait(self, token: cl.Event) -> None:
        """See AddressingDriver."""
        token.wait()

    def _map(self, buffer: cl.Buffer) -> np.ndarray:
        if self._mapping is None:
            self._mapping = self.stream()
        flags: Any = cl.map_flags.READ | cl.map_flags.WRITE
        mapped: np.ndarray = cl.enqueue_map_buffer(self._mapping, buffer, flags, 0, (buffer.size,), np.uint8)[0]  # type: ignore[type-var]
        return mapped

    def _computes_in_place(self) -> bool:
        """Whether a buffer over host memory is that memory, and two mappings of a buffer are the same."""
        host = aligned_zeros(4096)
        wrapped, own = self.wrap(host), self.alloc(4096)
        first, second, over = self._map(own), self._map(own), self._map(wrapped)
        return bool(first.ctypes.data == second.ctypes.data and over.ctypes.data == host.ctypes.data)

    def write(self, dst: BufferRef, src: np.ndarray, stream: cl.CommandQueue) -> cl.Event | None:
        """Enqueue a copy from host memory. The event holds the array, and its destructor would wait: keep it."""
        if not src.nbytes:
            return None
        return cl.enqueue_copy(stream, dst.buffer, src, dst_offset=dst.offset, is_blocking=False)

    def read(self, dst: np.ndarray, src: BufferRef, stream: cl.CommandQueue) -> cl.Event | None:
        """Enqueue a copy to host memory; the event as in write."""
        if not dst.nbytes:
            return None
        return cl.enqueue_copy(stream, dst, src.buffer, src_offset=src.offset, is_blocking=False)

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: cl.CommandQueue) -> cl.Event | None:
        """Enqueue a copy within the device."""
        if not nbytes:
            return None
        return cl.enqueue_copy(
            stream, dst.buffer, src.buffer, byte_count=nbytes, src_offset=src.offset, dst_offset=dst.offset
        )

    def build(self, source: str, name: str) -> cl.Program:
        """Compile for this device. Raises EPFail with the compiler's log."""
        try:
            return self._finished(cl.Program(self.context, source))
        except cl.RuntimeError as e:
            log = str(e).strip()
            raise EPFail(
                f"the kernel for {name} does not compile: {log[:2000]}",
                op=name,
                provider="opencl",
                remedy="Leave opencl out of the providers for this model and report the log",
            ) from e

    def _finished(self, program: cl.Program) -> cl.Program:
        # PyOpenCL's cache is off: ours is keyed by content and device, see gpurt.device.binaries.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)  # Intel's compiler reports that it succeeded
            built: cl.Program = program.build(list(_OPTIONS), [self.device], cache_dir=False)  # type: ignore[arg-type]
        return built

    def portability(self) -> str:
        """See PortableDriver. A CPU device's name may not tell what instructions it has."""
        about = (*_OPTIONS, self._info.name, self._info.vendor, self._info.driver, self.device.version)
        return " ".join((*about, instructions() if self._info.kind == "cpu" else ""))

    def binary(self, program: cl.Program) -> bytes | None:
        """See PortableDriver."""
        try:
            devices: Any = program.get_info(cl.program_info.DEVICES)
            binaries: Any = program.get_info(cl.program_info.BINARIES)
        except cl.Error as e:
            logger.info("%s does not give compiled programs: %s", self._info.name, e)
            return None
        return dict(zip(devices, binaries, strict=True)).get(self.device) or None

    def load(self, binary: bytes, name: str) -> cl.Program:  # noqa: ARG002 - the driver need not know
        """See PortableDriver."""
        return self._finished(cl.Program(self.context, [self.device], [binary]))

    def prepare(
        self,
        program: cl.Program,
        entry: str,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> OpenCLLauncher:
        """A kernel object of its own with all arguments set."""
        return OpenCLLauncher(cl.Kernel(program, entry), args, grid, block)

    def stream(self) -> cl.CommandQueue:
        """A new in-order queue."""
        return cl.CommandQueue(self.context, self.device)  # PoCL would take the device of which this one is a part

    def synchronize(self, stream: cl.CommandQueue) -> None:
        """Wait for the queue."""
        stream.finish()

    def mark(self, stream: cl.CommandQueue) -> Callable[[], None]:
        """A function that waits for what is on the queue by now."""
        wait: Callable[[], None] = cl.enqueue_marker(stream).wait
        return wait

    def follow(self, stream: cl.CommandQueue, leader: cl.CommandQueue) -> None:
        """See FollowingDriver."""
        done = cl.enqueue_marker(leader)
        leader.flush()  # else the one may wait for what the driver holds back of the other
        cl.enqueue_barrier(stream, wait_for=[done])

    def timer(self) -> OpenCLTimer:
        """A queue whose work is timed."""
        return OpenCLTimer(self.context, self.device)

    def close(self) -> None:
        """Nothing: the context goes with its last buffer."""


class OpenCLLauncher:
    """A bound kernel; a call costs one or two microseconds on the host."""

    __slots__ = ("_block", "_global", "_kernel", "_local", "_number", "_slots")

    def __init__(
        self,
        kernel: cl.Kernel,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> None:
        self._kernel = kernel
        # set_arg asks first whether a number is a buffer, an image, ..., which takes a hundred times as long.
        self._number = getattr(kernel, "_set_arg_buf", kernel.set_arg)
        self._block = block
        self.resize(grid)
        self._slots: list[int] = []
        slot = 0
        for position, arg in enumerate(args):
            self._slots.append(slot)
            self.set(position, arg)
            slot += 2 if isinstance(arg, TensorArg) else 1

    def resize(self, grid: tuple[int, int, int]) -> None:
        """See Launcher."""
        block = self._block
        dims = 3 if grid[2] * block[2] > 1 else 2 if grid[1] * block[1] > 1 else 1
        self._global = tuple(g * b for g, b in zip(grid, block, strict=True))[:dims]
        self._local = block[:dims]

    def set(self, position: int, arg: TensorArg | np.generic) -> None:
        """Set an argument; a tensor is the buffer, and the offset in elements."""
        slot = self._slots[position]
        if not isinstance(arg, TensorArg):
            self._number(slot, arg)
            return
        self._kernel.set_arg(slot, arg.ref.buffer)
        self._number(slot + 1, np.int64(arg.ref.offset // arg.itemsize))

    @property
    def block(self) -> tuple[int, int, int]:
        """Items of a group along three axes."""
        x, y, z, *_ = (*self._local, 1, 1)
        return x, y, z

    @property
    def grid(self) -> tuple[int, int, int]:
        """Groups along three axes."""
        x, y, z, *_ = (*(n // b for n, b in zip(self._global, self._local, strict=True)), 1, 1)
        return x, y, z

    def __call__(self, stream: cl.CommandQueue) -> cl.Event:
        return cl.enqueue_nd_range_kernel(stream, self._kernel, self._global, self._local)


def sub_device(device: cl.Device, threads: int) -> cl.Device:
    """So many compute units of a CPU device; the device itself for 0, and where it cannot be divided (GPUs)."""
    if not threads or not device.type & cl.device_type.CPU:
        return device
    try:
        divided: Any = [cl.device_partition_property.BY_COUNTS, threads]
        return device.create_sub_devices(divided)[0]
    except cl.Error:  # a driver need not be able to
        logger.warning("%s cannot be limited to %d threads; all are used", device.name.strip(), threads)
        return device


@cache
def instructions() -> str:
    """What tells this host's processor from others of the same name, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return " ".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def device_info(device: cl.Device, kernel_class: str = "auto") -> DeviceInfo:
    """What OpenCL says about a device, in gpurt's words."""
    kinds = {cl.device_type.GPU: "gpu", cl.device_type.ACCELERATOR: "accelerator", cl.device_type.CPU: "cpu"}
    kind = next((name for bit, name in kinds.items() if device.type & bit), "accelerator")
    if "oclgrind" in device.platform.name.lower() or "oclgrind" in device.name.lower():
        kind = "emulator"
    extensions = set(device.extensions.split())
    chosen = kernel_class if kernel_class != "auto" else "cpu" if kind == "cpu" else "gpu"
    return DeviceInfo(
        name=device.name.strip(),
        kind=kind,
        dialect="opencl",
        kernel_class=chosen,
        vendor=device.vendor.strip(),
        driver=f"{device.platform.version} {device.driver_version}".strip(),
        fp16="cl_khr_fp16" in extensions,
        fp64="cl_khr_fp64" in extensions,
        subgroups="cl_khr_subgroups" in extensions or "cl_intel_subgroups" in extensions,
        compute_units=device.max_compute_units,
        vector_width=max(device.native_vector_width_float, 1),
        max_group=device.max_work_group_size,
        local_bytes=device.local_mem_size,
        max_alloc=device.max_mem_alloc_size,
        memory=device.global_mem_size,
        base_align=max(device.mem_base_addr_align // 8, 64),
        sleeps=kind == "cpu" and "portable computing language" in device.platform.name.lower(),
    )
