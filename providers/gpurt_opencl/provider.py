"""The OpenCL provider: devices found, chosen and opened; everything else is the shared device layer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpurt.device import MEMORY_OPTIONS, DeviceProvider
from gpurt.errors import EPFail, InvalidArgument
from gpurt.provider import Borrowed, BufferRef, Device, Provider
from gpurt_opencl import discovery


class OpenCLProvider(DeviceProvider):
    """Kernel provider for OpenCL 1.2 devices, by PyOpenCL."""

    name: ClassVar[str] = "opencl"
    options: ClassVar[Mapping[str, str]] = {
        **MEMORY_OPTIONS,
        "platform": "index, or case-insensitive part of a platform's name and version",
        "zero_copy": "False: copy between host and device even where the device computes in the host's memory",
        "intra_op_num_threads": "cores of a CPU device to use, by a sub-device; default: SessionOptions', else all",
        "cache_dir": "folder for compiled programs, False for none; default: SessionOptions', else the user's caches",
        "device": "index within the platform, or case-insensitive part of a device's name",
        "context": "a pyopencl.Context to work in, so that arrays of it are used in place; default: gpurt's own",
        "queue": "the in-order pyopencl.CommandQueue of all runs; its context is then the context",
    }

    @classmethod
    def probe(cls) -> Sequence[Device]:
        """GPUs first, then accelerators, CPUs (pip's PoCL, other PoCLs, Intel's, the rest) and emulators."""
        return [Device(f"opencl:{i}", discovery.describe(d), kind) for i, (kind, d) in enumerate(discovery.devices())]

    @classmethod
    def notes(cls) -> Sequence[str]:
        """What `gpurt doctor` should say besides the devices."""
        return discovery.notes()

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        """Open by index in probe's order, or the first device that platform and device match."""
        kernel_class = options.get("kernel_class", "auto")
        if not (isinstance(kernel_class, str) and kernel_class in ("auto", "gpu", "cpu")):
            raise InvalidArgument(f"kernel_class is {kernel_class!r}", provider="opencl", remedy="Use auto, gpu or cpu")
        zero_copy = options.get("zero_copy", True)
        if not isinstance(zero_copy, bool):
            raise InvalidArgument(f"zero_copy is {zero_copy!r}", provider="opencl", remedy="Give True or False")
        threads = options.get("intra_op_num_threads", 0)
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise InvalidArgument(f"intra_op_num_threads is {threads!r}", provider="opencl", remedy="Give a number")
        context, queue = options.get("context"), options.get("queue")
        if context is not None or queue is not None:
            from gpurt_opencl.sharing import chosen, driver_in

            number, device, context = chosen(index, options)
            opened = cls(driver_in(context, device, kernel_class, zero_copy), f"opencl:{number}", options)
            opened._queue = queue
            opened.branches = 1 if queue is not None else opened.branches  # everything is on the caller's
            return opened
        number, device = discovery.choose(index, options.get("platform"), options.get("device"))
        return cls(_driver(device, kernel_class, zero_copy, threads), f"opencl:{number}", options)

    def __init__(self, driver: Any, device: str, options: Mapping[str, Any]) -> None:
        super().__init__(driver, device, options)
        self.dlpack_device = (4, int(device.partition(":")[2]))
        self._queue: Any = None

    # In a child that was forked, a driver without its threads waits for ever; so whatever may wait asks first.

    def stream(self) -> Any:
        """See DeviceMemory."""
        _not_forked()
        return super().stream() if self._queue is None else self._queue

    def write(self, dst: BufferRef, src: np.ndarray, stream: Any) -> Any:
        """See DeviceMemory."""
        _not_forked()
        return super().write(dst, src, stream)

    def read(self, dst: np.ndarray, src: BufferRef, stream: Any) -> Any:
        """See DeviceMemory."""
        _not_forked()
        return super().read(dst, src, stream)

    def synchronize(self, stream: Any) -> None:
        """See DeviceMemory."""
        _not_forked()
        super().synchronize(stream)

    def timer(self) -> Any:
        """See DeviceMemory."""
        _not_forked()
        return super().timer()

    def reaches(self, ref: BufferRef) -> bool:
        """See DeviceMemory: buffers of the same context."""
        from gpurt_opencl.sharing import context_of

        return bool(context_of(ref.buffer) == self.driver.context)  # type: ignore[attr-defined]

    def take(self, value: Any, stream: Any) -> Borrowed | None:
        """See DeviceMemory: PyOpenCL's arrays in the provider's context."""
        from gpurt_opencl.sharing import taken

        return taken(value, self.driver.context, stream)  # type: ignore[attr-defined]

    def at(self, pointer: int, nbytes: int) -> BufferRef:
        """See DeviceMemory; the pointer is a cl_mem, as PyOpenCL's ``buffer.int_ptr``."""
        from gpurt_opencl.sharing import buffer_at

        return BufferRef(buffer_at(pointer, nbytes, self.driver.context), 0, nbytes)  # type: ignore[attr-defined]


def _not_forked() -> None:
    if discovery.forked():
        raise EPFail("a session does not survive a fork", provider="opencl", remedy="Start processes by spawn")


_DRIVERS: dict[tuple[int, str, bool, int], Any] = {}
_LOCK = threading.Lock()


def _driver(device: Any, kernel_class: str, zero_copy: bool, threads: int) -> Any:
    """The process's driver for a device: one context, and one set of weights, for all sessions."""
    from gpurt_opencl.driver import OpenCLDriver, sub_device

    if not 0 < threads < device.max_compute_units:
        threads = 0
    key = (device.int_ptr, kernel_class, zero_copy, threads)
    with _LOCK:
        if key not in _DRIVERS:
            # One context for all drivers on a whole device: sessions of other options use its tensors in place.
            whole = (d.context for (pointer, *_, part), d in _DRIVERS.items() if (pointer, part) == (key[0], 0))
            context = None if threads else next(whole, None)
            _DRIVERS[key] = OpenCLDriver(
                sub_device(device, threads), kernel_class, zero_copy=zero_copy, context=context
            )
        return _DRIVERS[key]
