"""Intel's CPU runtime from pip, made visible to the OpenCL loader without an environment variable of the user's.

PyOpenCL's own loader finds PoCL and Oclgrind from pip, as their wheels put an .icd file beside it. Intel's wheels bring
an .icd that names a path of the machine they were built on. So a private folder with a right one stands in for the
loader's folder while it starts, together with the .icd files that it would have read otherwise.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

VARIABLE: Final = "OCL_ICD_VENDORS"
SYSTEM: Final = "/etc/OpenCL/vendors"

SPECIALIZATION: Final = "POCL_WORK_GROUP_SPECIALIZATION"

# Intel's driver looks these up by name when it builds a program; the wheels put them where no loader looks.
_PRELOAD: Final = ("libintlc.so.5", "libirng.so", "libsvml.so", "libimf.so")


def intel_library() -> Path | None:
    """The driver in pip's intel-opencl-rt, or None where the wheel or a library that it needs is not installed."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        files = distribution("intel-opencl-rt").files or ()
    except PackageNotFoundError:
        return None
    found = [Path(str(f.locate())).resolve() for f in files if f.name == "libintelocl.so"]
    if not found or not found[0].exists():
        return None
    return found[0] if all((found[0].parent / name).exists() for name in _PRELOAD) else None


@contextmanager
def vendors(library: Path | None) -> Iterator[None]:
    """While this is open, a loader that starts also reads an .icd for `library`; does nothing if that is None.

    A user whose OCL_ICD_VENDORS names one driver, not a folder, wants that one alone: nothing is added to it.
    """
    given = os.environ.get(VARIABLE)
    if library is None or (given and not os.path.isdir(given)):
        yield
        return
    for name in _PRELOAD:
        ctypes.CDLL(str(library.parent / name), mode=ctypes.RTLD_GLOBAL)
    folder = tempfile.mkdtemp(prefix="gpurt-icd-")
    try:
        for source in _folders(given):
            _copy_icds(Path(source), Path(folder))
        Path(folder, "gpurt-intel-cpu.icd").write_text(f"{library}\n", encoding="utf-8")
        os.environ[VARIABLE] = folder
        yield
    finally:
        if given is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = given
        shutil.rmtree(folder, ignore_errors=True)


def compile_once() -> None:
    """Let PoCL run what it compiled for a program's binary.

    Without this it compiles each kernel again at its first launch, for grids that begin at 0 and are small, which is
    no faster here and takes as long as the first time; binaries do not have that form, so it is in no cache of ours.
    A value that the user gave stays.
    """
    os.environ.setdefault(SPECIALIZATION, "0")


def _folders(given: str | None) -> list[str]:
    """The folders that the loader would have read: the user's, else the system's and the environment's own (conda)."""
    if given:
        return [given]
    return [os.environ.get("OPENCL_VENDOR_PATH") or SYSTEM, os.path.join(sys.prefix, "etc", "OpenCL", "vendors")]


def _copy_icds(source: Path, folder: Path) -> None:
    """Copy .icd files but those that name a file which does not exist, as Intel's wheels do."""
    for icd in sorted(source.glob("*.icd")):
        try:
            text = icd.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        named = text.strip()
        if named and not (os.path.isabs(named) and not os.path.exists(named)) and not (folder / icd.name).exists():
            (folder / icd.name).write_text(text, encoding="utf-8")
