"""Memory that is used again: a fresh page costs as much as computing what goes into it."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Empty = Callable[[Sequence[int]], Array]
"""Makes a float32 array of a shape, its content undefined."""

ALIGNMENT: Final = 64  # bytes: a cache line, and the widest vector
LEAST: Final = 1 << 15  # bytes from which memory is kept; the C library is good at smaller pieces
MOST: Final = 512  # pieces; what is beyond is the C library's


class Recycler:
    """Memory of float32 arrays that is handed out again when the last array that lies in it is gone.

    A piece is free when nobody but the recycler refers to it: arrays refer to the piece that they are a view of, so
    do views of them, whoever holds these. Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[Array]] = {}
        self._lock = threading.Lock()
        self._count = 0

    def empty(self, shape: Sequence[int]) -> Array:
        """A C-contiguous float32 array at a 64-byte boundary; its content is undefined."""
        count = math.prod(shape)
        if 4 * count < LEAST:
            return np.empty(shape, np.float32)
        size = _rounded(4 * count + ALIGNMENT)
        with self._lock:
            piece = _unused(self._pieces.get(size, ()))
            if piece is None:
                piece = _aligned(size)
                if self._count < MOST:
                    self._pieces.setdefault(size, []).append(piece)
                    self._count += 1
            return piece[:count].reshape(shape)

    def clear(self) -> None:
        """Forget all pieces; those in use stay until their arrays go."""
        with self._lock:
            self._pieces.clear()
            self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces, in use or not."""
        with self._lock:
            return sum(size * len(pieces) for size, pieces in self._pieces.items())


def _aligned(nbytes: int) -> Array:
    """A float32 array at a 64-byte boundary, which owns its memory but for the view that it is of it."""
    whole = np.empty(nbytes, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + (nbytes - ALIGNMENT) // 4 * 4].view(np.float32)


def _rounded(nbytes: int) -> int:
    """The size of a piece: at most a quarter more than is asked for, so that few sizes serve many shapes."""
    step = 1 << max(nbytes.bit_length() - 3, 12)
    return -(-nbytes // step) * step


def _unused(pieces: Sequence[Array], idle: int | None = None) -> Array | None:
    """The first piece that nobody else refers to; what is a view of it refers to the memory that it is a view of."""
    for piece in pieces:
        if sys.getrefcount(piece.base) <= (_IDLE if idle is None else idle):
            return piece
    return None


def _idle() -> int:
    """References to a piece that nobody uses, as `_unused` counts them; interpreters differ in this."""
    pieces = [_aligned(2 * ALIGNMENT)]
    return next(n for n in range(1, 10) if _unused(pieces, n) is not None)


_IDLE: Final = _idle()
