"""Which OpenCL devices there are, in which order, and which one a session means."""

from __future__ import annotations

from typing import Any

from gpurt.provider import Unavailable


def devices() -> list[tuple[str, Any]]:
    """(kind, device) in gpurt's order. Raises Unavailable with reason and remedy."""
    try:
        import pyopencl as cl
    except ImportError as e:
        raise Unavailable(f"PyOpenCL cannot be imported ({e})", 'pip install "gpurt[opencl]"') from e
    from gpurt_opencl.driver import device_info

    found = [(device_info(d).kind, d) for p in cl.get_platforms() for d in p.get_devices()]
    if not found:
        raise Unavailable("no OpenCL device was found", 'Install your GPU\'s driver, or pip install "gpurt[opencl]"')
    order = ("gpu", "accelerator", "cpu", "emulator")
    return sorted(found, key=lambda kd: order.index(kd[0]))


def choose(index: int | None, platform: int | str | None, device: int | str | None) -> tuple[int, Any]:
    """(index in the list of devices, device)."""
    found = devices()
    for number, (_, d) in enumerate(found):
        if index is not None and number != index:
            continue
        if isinstance(platform, str) and platform.lower() not in f"{d.platform.name} {d.platform.version}".lower():
            continue
        if isinstance(device, str) and device.lower() not in d.name.lower():
            continue
        return number, d
    raise Unavailable("no OpenCL device matches")
