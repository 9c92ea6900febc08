"""Convolutions, pools and LRN over data with channels last, in the CPU class."""

from gpurt.device.ops.channels_last import conv, lrn, pool

__all__ = ["conv", "lrn", "pool"]
