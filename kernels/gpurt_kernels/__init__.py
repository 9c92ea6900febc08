"""Portable device source: one text for OpenCL C 1.2 and CUDA C++, against the macros of a dialect header."""

from functools import cache
from importlib.resources import files

__all__ = ["header", "text"]


@cache
def text(name: str) -> str:
    """Source of one kernel file, for example ``reduce.cl``. Raises FileNotFoundError for an unknown name."""
    return files("gpurt_kernels").joinpath(name).read_text(encoding="utf-8")


@cache
def header(dialect: str) -> str:
    """The dialect header (``opencl`` or ``cuda``) followed by what is common to both."""
    return text(f"dialect/{dialect}.h") + text("common.h")
