"""What the planner knows of a value before it exists: dtype, shape, and for small host values the content."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Spec:
    """A tensor as the planner sees it.

    Attributes:
        dtype: element type (NumPy; ml_dtypes for the narrow ones; object for strings).
        shape: concrete dimensions.
        const: the content where it is known when the plan is made (weights, host shape arithmetic), else None.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    const: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in a dense buffer; sub-byte types take a byte each, as in NumPy."""
        return self.size * self.dtype.itemsize

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @staticmethod
    def of(array: np.ndarray) -> Spec:
        """Spec of a known array, content included."""
        return Spec(array.dtype, tuple(array.shape), array)

    def __repr__(self) -> str:
        text = f"{self.dtype.name}{list(self.shape)}"
        return text if self.const is None else f"{text}=const"


def aligned(nbytes: int) -> np.ndarray:
    """New memory at a 64-byte boundary, uint8, with room for whole vectors to its end; not initialised."""
    return _at_boundary(np.empty(-(-nbytes // 64) * 64 + 64, np.uint8), nbytes)


def aligned_zeros(nbytes: int) -> np.ndarray:
    """The same, of zeros."""
    return _at_boundary(np.zeros(-(-nbytes // 64) * 64 + 64, np.uint8), nbytes)


def _at_boundary(raw: np.ndarray, nbytes: int) -> np.ndarray:
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


class SizedSpec(Spec):
    """An integer tensor of known shape that holds symbolic sizes (see gpurt.symbolic).

    Attributes:
        sizes: the content: Size and int, dtype object. ``const`` is the content as plain numbers, at the price of
            guards that the sizes stay as they are.
    """

    __slots__ = ("sizes",)

    sizes: np.ndarray

    def __init__(self, dtype: np.dtype, sizes: np.ndarray) -> None:
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", tuple(sizes.shape))
        object.__setattr__(self, "sizes", sizes)

    @property
    def const(self) -> np.ndarray:
        """The content as plain numbers."""
        return np.array([int(v) for v in self.sizes.reshape(-1)], self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}=sizes"


class Unknown(Exception):
    """A shape rule needs the content of an input that is not known when the plan is made."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
