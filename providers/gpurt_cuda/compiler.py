"""Kernel text to code for one architecture, by NVRTC through CuPy; it needs neither a driver nor a GPU.

NVRTC is called without CuPy's compiler: that adds options of its own (denormals as zeros), and asks the device.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

from gpurt.errors import EPFail

STANDARD: Final = "-std=c++17"
_HEADER: Final = "cuda_fp16.h"


@dataclass(frozen=True, slots=True)
class Compiled:
    """Code that the driver loads: a cubin for a known architecture, else PTX. `log` is what the compiler said."""

    code: bytes
    log: str


@cache
def include_dirs() -> tuple[str, ...]:
    """The folder with CUDA's headers: of NVIDIA's wheels, else of an installed toolkit; empty if there is none."""
    candidates: list[Path] = []
    with suppress(Exception):  # CuPy 14 brings it; it raises errors of its own
        folder = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
        candidates += [Path(folder)] if folder else []
    for site in dict.fromkeys([sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]):
        nvidia = Path(site) / "nvidia"
        candidates.append(nvidia / "cuda_runtime" / "include")  # CUDA 12
        candidates.extend(sorted(nvidia.glob("cu[0-9]*/include"), reverse=True))  # CUDA 13 and later
    roots = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates.extend(Path(root) / "include" for root in roots if root)
    return next(((str(folder),) for folder in candidates if (folder / _HEADER).exists()), ())


def target(arch: int) -> tuple[str, str]:
    """(NVRTC's option, "cubin" or "ptx") for compute capability 10 * major + minor.

    A device newer than NVRTC gets PTX of the newest architecture known, which the driver compiles. Raises EPFail for
    a device that is too old for this NVRTC.
    """
    from cupy.cuda import nvrtc

    known = [int(a) for a in nvrtc.getSupportedArchs()]
    if arch in known:
        return f"-arch=sm_{arch}", "cubin"
    older = [a for a in known if a < arch]
    if not older:
        raise EPFail(
            f"CUDA's compiler {'.'.join(map(str, nvrtc.getVersion()))} has no compute capability {arch / 10}",
            provider="cuda",
            remedy="Use the CuPy for an older CUDA, or the opencl provider",
        )
    return f"-arch=compute_{max(older)}", "ptx"


def compile_text(source: str, name: str, arch: int, options: Sequence[str] = ()) -> Compiled:
    """Compile; `name` is for messages. Raises EPFail with the compiler's log."""
    from cupy.cuda import nvrtc

    option, kind = target(arch)
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (STANDARD, option, *(f"-I{d}" for d in include_dirs()), *options))
        except nvrtc.NVRTCError as e:
            log = nvrtc.getProgramLog(program).strip("\0\n ")
            raise EPFail(
                f"the kernel for {name} does not compile for {option.removeprefix('-arch=')}: {log[:2000] or e}",
                op=name,
                provider="cuda",
                remedy="Leave cuda out of the providers for this model and report the log",
            ) from e
        code: bytes = nvrtc.getCUBIN(program) if kind == "cubin" else nvrtc.getPTX(program)
        # CuPy takes both for text and cuts the last byte, which the driver wants in both.
        return Compiled(code + b"\0", nvrtc.getProgramLog(program).strip("\0\n "))
    finally:
        nvrtc.destroyProgram(program)


def compile_cached(source: str, name: str, arch: int) -> bytes:
    """Code for a text, kept on disk by content, architecture and compiler. Raises EPFail with the compiler's log."""
    from cupy.cuda import nvrtc

    folder = cache_folder()
    if folder is None:
        return compile_text(source, name, arch).code
    key = hashlib.blake2b(source.encode(), digest_size=16)
    key.update(f"{target(arch)} {nvrtc.getVersion()} {include_dirs()} {STANDARD}".encode())
    path = folder / f"{key.hexdigest()}.bin"
    with suppress(OSError):
        return path.read_bytes()
    code = compile_text(source, name, arch).code
    with suppress(OSError):  # a full or read-only disk costs the time of the next start, nothing else
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)
    return code


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: GPURT_CACHE_DIR or the user's cache folder; None if that variable is empty."""
    given = os.environ.get("GPURT_CACHE_DIR")
    if given is None:
        from platformdirs import user_cache_dir

        given = user_cache_dir("gpurt")
    return Path(given) / "cuda" if given else None
