"""The OpenCL provider: devices found, chosen and opened; everything else is the shared device layer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpurt.device import MEMORY_OPTIONS, DeviceProvider
from gpurt.errors import EPFail, InvalidArgument
from gpurt.provider import BufferRef, Device, Provider
from gpurt_opencl import discovery


class OpenCLProvider(DeviceProvider):
    """Kernel provider for OpenCL 1.2 devices, by PyOpenCL."""

    name: ClassVar[str] = "opencl"
    options: ClassVar[Mapping[str, str]] = {
        **MEMORY_OPTIONS,
        "platform": "index, or case-insensitive part of a platform's name and version",
        "zero_copy": "False: copy between host and device even where the device computes in the host's memory",
        "intra_op_num_threads": "cores of a CPU device to use, by a sub-device; default: SessionOptions', else all",
        "device": "index within the platform, or case-insensitive part of a device's name",
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
        if kernel_class not in ("auto", "gpu", "cpu"):
            raise InvalidArgument(f"kernel_class is {kernel_class!r}", provider="opencl", remedy="Use auto, gpu or cpu")
        number, device = discovery.choose(index, options.get("platform"), options.get("device"))
        zero_copy = options.get("zero_copy", True)
        if not isinstance(zero_copy, bool):
            raise InvalidArgument(f"zero_copy is {zero_copy!r}", provider="opencl", remedy="Give True or False")
        threads = options.get("intra_op_num_threads", 0)
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise InvalidArgument(f"intra_op_num_threads is {threads!r}", provider="opencl", remedy="Give a number")
        return cls(_driver(device, kernel_class, zero_copy, threads), f"opencl:{number}", options)

    # In a child that was forked, a driver without its threads waits for ever; so whatever may wait asks first.

    def stream(self) -> Any:
        """See DeviceMemory."""
        _not_forked()
        return super().stream()

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
            _DRIVERS[key] = OpenCLDriver(sub_device(device, threads), kernel_class, zero_copy=zero_copy)
        return _DRIVERS[key]
