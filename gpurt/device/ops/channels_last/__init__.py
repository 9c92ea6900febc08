"""Convolutions and pools over data with channels last, in the CPU class."""

from gpurt.device.ops.channels_last import conv, pool

__all__ = ["conv", "pool"]
