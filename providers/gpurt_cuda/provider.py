"""The CUDA provider: devices found and opened, cuBLAS for products; everything else is the shared device layer."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from gpurt.device import MEMORY_OPTIONS, TABLE, DeviceProvider
from gpurt.errors import InvalidArgument
from gpurt.provider import Borrowed, BufferRef, Device, Provider, Unavailable

INSTALL: Final = 'pip install "gpurt[cuda12]", or "gpurt[cuda13]" for a driver of CUDA 13'

_OLD_DRIVER: Final = 35  # cudaErrorInsufficientDriver: too old, or none at all


class CudaProvider(DeviceProvider):
    """Kernel provider for NVIDIA GPUs, by CuPy."""

    name: ClassVar[str] = "cuda"
    options: ClassVar[Mapping[str, str]] = {
        **MEMORY_OPTIONS,
        "use_tf32": "True lets cuBLAS round float32 factors to TF32 on GPUs that have it; default: False",
    }

    def __init__(self, driver: Any, device: str, options: Mapping[str, Any]) -> None:
        super().__init__(driver, device, options)
        if has_cublas():
            from gpurt_cuda.blas import rows

            tf32 = bool(options.get("use_tf32", False))
            self.table = rows(TABLE, tf32=tf32)  # type: ignore[misc]  # the rows differ by option
        self._index = int(device.partition(":")[2])
        self.dlpack_device = (2, self._index)

    def reaches(self, ref: BufferRef) -> bool:
        """See DeviceMemory: all memory of a device is one address space."""
        return isinstance(ref.buffer, int)

    def take(self, value: Any, stream: Any) -> Borrowed | None:
        """See DeviceMemory: CuPy's arrays, and what speaks DLPack or the CUDA array interface."""
        from gpurt_cuda.sharing import taken

        return taken(value, self._index, stream)

    def at(self, pointer: int, nbytes: int) -> BufferRef:
        """See DeviceMemory."""
        return BufferRef(int(pointer), 0, nbytes)

    def export(self, ref: BufferRef, dtype: np.dtype, shape: tuple[int, ...], owner: Any) -> Any:
        """See DeviceMemory: a cupy.ndarray."""
        from gpurt_cuda.sharing import exported

        return exported(ref, dtype, shape, owner, self._index)

    def settle(self) -> None:
        """See DeviceMemory."""
        from gpurt_cuda.sharing import settle

        settle(self._index)

    @classmethod
    def probe(cls) -> Sequence[Device]:
        """CUDA's own order, which CUDA_VISIBLE_DEVICES changes."""
        found = []
        for index in range(device_count()):
            from cupy.cuda import runtime

            facts = runtime.getDeviceProperties(index)
            name = facts["name"].decode() if isinstance(facts["name"], bytes) else str(facts["name"])
            about = f"{name}, compute capability {facts['major']}.{facts['minor']}, {facts['totalGlobalMem'] >> 20} MiB"
            found.append(Device(f"cuda:{index}", about, "gpu"))
        return found

    @classmethod
    def notes(cls) -> Sequence[str]:
        """What `gpurt doctor` should say besides the devices."""
        try:
            device_count()
        except Unavailable:
            return []
        return [] if has_cublas() else [f"cuBLAS was not found, so gpurt's own kernels multiply matrices. {INSTALL}"]

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        """Open by index; the default is 0."""
        kernel_class = options.get("kernel_class", "auto")
        if not (isinstance(kernel_class, str) and kernel_class in ("auto", "gpu")):
            raise InvalidArgument(f"kernel_class is {kernel_class!r}", provider="cuda", remedy="Use auto or gpu")
        if not isinstance(options.get("use_tf32", False), bool):
            raise InvalidArgument(f"use_tf32 is {options['use_tf32']!r}", provider="cuda", remedy="Use True or False")
        count = device_count()
        number = index or 0
        if number >= count:
            raise Unavailable(
                f"there is no cuda:{number}", "; ".join(f"{d.name}: {d.description}" for d in cls.probe())
            )
        return cls(_driver(number), f"cuda:{number}", options)


def device_count() -> int:
    """Number of GPUs, at least 1. Raises Unavailable with reason and remedy."""
    if _DRIVERS and os.getpid() not in {pid for pid, _ in _DRIVERS}:
        raise Unavailable(
            "this process was forked from one that had used CUDA, which does not survive that",
            "Start processes with the spawn method, or use CUDA in the children alone",
        )
    try:
        from cupy.cuda import nvrtc, runtime
    except ImportError as e:
        reason = "CuPy is not installed" if e.name in ("cupy", "cupy.cuda") else f"CuPy cannot be imported ({e})"
        raise Unavailable(reason, INSTALL) from e
    if runtime.is_hip:
        raise Unavailable("this CuPy is built for ROCm, which gpurt does not support yet", "Use the opencl provider")
    version = runtime.driverGetVersion()
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as e:
        if version == 0:
            raise Unavailable("the NVIDIA driver or a GPU is missing", "Install the driver, or use opencl") from e
        if e.status == _OLD_DRIVER:
            have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (version, runtime.runtimeGetVersion()))
            raise Unavailable(
                f"the NVIDIA driver is for CUDA {have}, CuPy for CUDA {need}",
                "Update the driver, or install the CuPy that is made for its CUDA version",
            ) from e
        raise Unavailable(f"CUDA does not start: {e}", "See whether nvidia-smi lists a GPU") from e
    if count == 0:
        raise Unavailable("there is no NVIDIA GPU", "Use the opencl provider")
    try:
        nvrtc.getVersion()
    except Exception as e:
        raise Unavailable(f"CUDA's run-time compiler (NVRTC) was not found ({e})", INSTALL) from e
    from gpurt_cuda.compiler import include_dirs

    if not include_dirs():
        raise Unavailable("CUDA's headers (cuda_fp16.h) were not found", INSTALL)
    return count


def has_cublas() -> bool:
    """Whether CuPy finds cuBLAS, which CUDA's wheels bring apart from everything else."""
    try:
        from cupy.cuda import cublas
    except ImportError:
        return False
    return hasattr(cublas, "gemmEx")


_DRIVERS: dict[tuple[int, int], Any] = {}  # by process and index: a context belongs to the process that made it
_LOCK = threading.Lock()


def _driver(index: int) -> Any:
    """The process's driver for a device: one set of weights for all sessions."""
    from gpurt_cuda.driver import CudaDriver

    key = (os.getpid(), index)
    with _LOCK:
        if key not in _DRIVERS:
            _DRIVERS[key] = CudaDriver(index)
        return _DRIVERS[key]
