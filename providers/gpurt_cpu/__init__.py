"""The cpu provider of gpurt."""

from gpurt_cpu.provider import CpuProvider

__all__ = ["CpuProvider"]
