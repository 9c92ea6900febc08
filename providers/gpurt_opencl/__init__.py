"""The OpenCL provider of gpurt."""

from gpurt_opencl.provider import OpenCLProvider

__all__ = ["OpenCLProvider"]
