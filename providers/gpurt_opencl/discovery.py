"""Which OpenCL devices there are, in which order, and which one a session means.

The order is fixed: GPUs, accelerators, CPUs (pip's PoCL, other PoCLs, Intel's runtime, the rest), emulators (Oclgrind);
among equals the platform's name and version decide, then the driver's own order. Platforms are numbered by their first
device in this order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from gpurt.errors import InvalidArgument
from gpurt.provider import Unavailable
from gpurt_opencl.runtimes import compile_once, intel_library, vendors

KINDS: Final = ("gpu", "accelerator", "cpu", "emulator")


@dataclass(slots=True)
class _Found:
    """What the process has found; the loader can start only once in a process, so this is found once too."""

    pid: int
    devices: list[tuple[str, Any]]
    notes: list[str]


_found: _Found | None = None
_lock = threading.Lock()


def devices() -> list[tuple[str, Any]]:
    """(kind, device) in gpurt's order. Raises Unavailable with reason and remedy."""
    found = _discover()
    if not found.devices:
        raise Unavailable("no OpenCL device was found", 'Install your GPU\'s driver, or pip install "gpurt[opencl]"')
    return found.devices


def notes() -> list[str]:
    """What `gpurt doctor` should say besides the devices: drivers that are installed, but were not found."""
    try:
        return _discover().notes
    except Unavailable:
        return []


def forked() -> bool:
    """Whether an ancestor of this process used OpenCL before the fork: drivers' threads do not survive it."""
    return _found is not None and _found.pid != os.getpid()


def choose(index: int | None, platform: int | str | None, device: int | str | None) -> tuple[int, Any]:
    """(index in the list of devices, device).

    Args:
        index: index in :func:`devices`; platform and device must then match that device. None for the first that fits.
        platform: index among the platforms, or a case-insensitive part of "name version".
        device: index within what platform matched, or a case-insensitive part of the device's name.

    Raises:
        Unavailable: there is no device with this index, or none that matches; says which there are.
        InvalidArgument: platform or device is neither an index nor a text.
    """
    listed = [d for _, d in devices()]
    numbered = list(enumerate(listed))
    for option, value in (("platform", platform), ("device", device)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
            raise InvalidArgument(f"{option} is {value!r}", provider="opencl", remedy="Give an index or part of a name")
    if index is not None and index >= len(listed):
        raise Unavailable(f"there is no opencl:{index}", f"There is {_names(listed)}")
    matched = numbered
    if platform is not None:
        matched = _by_platform(numbered, platform)
        if not matched:
            raise Unavailable(f"no OpenCL platform matches {platform!r}", f"There is {_platform_names(listed)}")
    within = [d for _, d in matched]
    if isinstance(device, int):
        matched = matched[device : device + 1] if device >= 0 else []
    elif device is not None:
        matched = [(n, d) for n, d in matched if device.lower() in d.name.lower()]
    if not matched:
        where = "" if platform is None else f" on platform {platform!r}"
        raise Unavailable(f"no OpenCL device{where} matches {device!r}", f"There is {_names(within)}")
    if index is None:
        return matched[0]
    if index not in dict(matched):
        asked = ", ".join(f"{k} {v!r}" for k, v in (("platform", platform), ("device", device)) if v is not None)
        raise Unavailable(f"opencl:{index} is {describe(listed[index])}, not {asked}", "Give the index or the options")
    return index, listed[index]


def describe(device: Any) -> str:
    """Name of a device with its platform, for people."""
    return f"{device.name.strip()} ({_platform_name(device.platform)})"


def _platform_name(platform: Any) -> str:
    version = platform.version.split("  ")[0].strip()  # PoCL lists its build options behind two blanks
    return f"{platform.name.strip()} {version}"


def _by_platform(numbered: Sequence[tuple[int, Any]], wanted: int | str) -> list[tuple[int, Any]]:
    platforms = _platforms([d for _, d in numbered])
    if isinstance(wanted, int):
        chosen = platforms[wanted : wanted + 1] if wanted >= 0 else []
    else:
        chosen = [p for p in platforms if wanted.lower() in f"{p.name} {p.version}".lower()]
    return [(n, d) for n, d in numbered if d.platform in chosen]


def _platforms(listed: Sequence[Any]) -> list[Any]:
    platforms: list[Any] = []
    for device in listed:
        if device.platform not in platforms:
            platforms.append(device.platform)
    return platforms


def _names(listed: Sequence[Any]) -> str:
    return "; ".join(f"{i}: {describe(d)}" for i, d in enumerate(listed))


def _platform_names(listed: Sequence[Any]) -> str:
    return "; ".join(f"{i}: {_platform_name(p)}" for i, p in enumerate(_platforms(listed)))


def _discover() -> _Found:
    global _found  # noqa: PLW0603 - the loader's state is the process's
    if forked():  # asked before the lock, which a thread of the parent may have held when it forked
        raise Unavailable(
            "this process was forked from one that had used OpenCL, whose drivers' threads do not survive that",
            "Start processes with the spawn method, or use OpenCL in the children alone",
        )
    with _lock:
        if _found is None:
            _found = _look()
        return _found


def _look() -> _Found:
    library = intel_library()
    compile_once()
    notes: list[str] = []
    try:
        with vendors(library):
            import pyopencl as cl

            try:
                platforms = list(cl.get_platforms())  # starts the loader, if nobody has started it before
            except cl.Error:  # PLATFORM_NOT_FOUND_KHR: not one driver
                platforms = []
    except ImportError as e:
        raise Unavailable(f"PyOpenCL cannot be imported ({e})", 'pip install "gpurt[opencl]"') from e
    from gpurt_opencl.driver import device_info

    found: list[tuple[Any, list[tuple[str, Any]]]] = []
    for platform in platforms:
        try:
            found.append((platform, [(device_info(d).kind, d) for d in platform.get_devices()]))
        except cl.Error as e:  # one broken driver must not hide the others
            notes.append(f"the OpenCL platform {platform.name.strip()} was left out: {e}")
    if library is not None and not any("intel" in p.name.lower() for p, _ in found):
        notes.append(
            "Intel's CPU runtime is installed, but not visible: this process used OpenCL before gpurt looked for its "
            "devices, or OCL_ICD_VENDORS names another driver alone"
        )
    ordered = _order(_without_twins(found), _pip_pocl())
    return _Found(os.getpid(), ordered, notes)


def _without_twins(found: Sequence[tuple[Any, list[tuple[str, Any]]]]) -> list[tuple[str, Any]]:
    """All devices, but for platforms that cannot be told from one before: one driver that two .icd files name."""
    seen: set[tuple[Any, ...]] = set()
    kept: list[tuple[str, Any]] = []
    for platform, listed in found:
        looks = sorted((d.name, d.driver_version, d.max_compute_units, d.global_mem_size) for _, d in listed)
        key = (platform.name, platform.version, *looks)
        if key not in seen:
            kept.extend(listed)
        seen.add(key)
    return kept


def _order(found: Sequence[tuple[str, Any]], pip_pocl: str | None) -> list[tuple[str, Any]]:
    def key(item: tuple[str, Any]) -> tuple[Any, ...]:
        kind, device = item
        platform = device.platform
        rank = 0
        if kind == "cpu":
            pocl = "pocl" in platform.version.lower()
            from_pip = pocl and pip_pocl is not None and f"pocl {pip_pocl}" in platform.version.lower()
            rank = 0 if from_pip else 1 if pocl else 2 if "intel" in platform.name.lower() else 3
        return KINDS.index(kind), rank, platform.name, platform.version

    return sorted(found, key=key)  # stable: the driver's order remains within a platform


def _pip_pocl() -> str | None:
    """Version of pip's PoCL, as its platform states it; None where it is not installed."""
    try:
        return version("pocl-binary-distribution")
    except PackageNotFoundError:
        return None
