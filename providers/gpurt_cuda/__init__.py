"""The CUDA provider of gpurt."""

from gpurt_cuda.provider import CudaProvider

__all__ = ["CudaProvider"]
