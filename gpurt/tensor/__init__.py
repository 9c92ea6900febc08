"""Tensors that live on the host or on a device, and what other libraries' arrays are to gpurt."""

from gpurt.tensor.tensor import Tensor

__all__ = ["Tensor"]
