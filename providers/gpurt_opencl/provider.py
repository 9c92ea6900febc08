"""The OpenCL provider: devices found, chosen and opened; everything else is the shared device layer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gpurt.device import MEMORY_OPTIONS, DeviceProvider
from gpurt.errors import EPFail, InvalidArgument
from gpurt.provider import Device, Provider


class OpenCLProvider(DeviceProvider):
    """Kernel provider for OpenCL 1.2 devices, by PyOpenCL."""

    name: ClassVar[str] = "opencl"
    options: ClassVar[Mapping[str, str]] = {
        **MEMORY_OPTIONS,
        "platform": "index, or case-insensitive part of a platform's name and version",
        "device": "index within the platform, or case-insensitive part of a device's name",
    }

    @classmethod
    def probe(cls) -> Sequence[Device]:
        """GPUs first, then accelerators, CPUs (pip's PoCL, other PoCLs, Intel's, the rest) and emulators."""
        from gpurt_opencl.discovery import describe, devices

        return [Device(f"opencl:{i}", describe(d), kind) for i, (kind, d) in enumerate(devices())]

    @classmethod
    def notes(cls) -> Sequence[str]:
        """What `gpurt doctor` should say besides the devices."""
        from gpurt_opencl.discovery import notes

        return notes()

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        """Open by index in probe's order, or the first device that platform and device match."""
        from gpurt_opencl.discovery import choose

        kernel_class = options.get("kernel_class", "auto")
        if kernel_class not in ("auto", "gpu", "cpu"):
            raise InvalidArgument(f"kernel_class is {kernel_class!r}", provider="opencl", remedy="Use auto, gpu or cpu")
        number, device = choose(index, options.get("platform"), options.get("device"))
        return cls(_driver(device, kernel_class), f"opencl:{number}", options)

    def synchronize(self, stream: Any) -> None:
        """See DeviceMemory. Raises EPFail in a child that was forked: a driver without its threads never finishes."""
        from gpurt_opencl.discovery import forked

        if forked():
            raise EPFail(
                "a session does not survive a fork", provider="opencl", remedy="Start processes with the spawn method"
            )
        super().synchronize(stream)


_DRIVERS: dict[tuple[int, str], Any] = {}
_LOCK = threading.Lock()


def _driver(device: Any, kernel_class: str) -> Any:
    """The process's driver for a device: one context, and one set of weights, for all sessions."""
    from gpurt_opencl.driver import OpenCLDriver

    key = (device.int_ptr, kernel_class)
    with _LOCK:
        if key not in _DRIVERS:
            _DRIVERS[key] = OpenCLDriver(device, kernel_class)
        return _DRIVERS[key]
