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
MOST: Final = 256  # pieces; what is beyond is the C library's
SLACK: Final = 8  # how many times larger than needed a piece may be


class Recycler:
    """Memory of float32 arrays that is handed out again when the last array that lies in it is gone.

    A piece is free when nobody but the recycler refers to it: arrays refer to the memory that they are a view of, so
    do views of them, whoever holds these. Of the free pieces that are large enough the one is taken that was handed out
    last, which is most likely still in the processor's cache. Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._pieces: list[Array] = []  # the one handed out last is the last
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int]) -> Array:
        """A C-contiguous float32 array at a 64-byte boundary; its content is undefined."""
        count = math.prod(shape)
        if 4 * count < LEAST:
            return np.empty(shape, np.float32)
        with self._lock:
            pieces = self._pieces
            at = _unused(pieces, count, SLACK * count)
            if at is None:
                piece = _aligned(_rounded(4 * count + ALIGNMENT))
                if len(pieces) >= MOST:
                    return piece[:count].reshape(shape)
            else:
                piece = pieces.pop(at)
            pieces.append(piece)
            return piece[:count].reshape(shape)

    def trim(self) -> int:
        """Forget the pieces that nobody uses; returns their bytes."""
        freed = 0
        with self._lock:
            while (at := _unused(self._pieces, 0, sys.maxsize)) is not None:
                freed += self._pieces.pop(at).nbytes
        return freed

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces, in use or not."""
        with self._lock:
            return sum(piece.nbytes for piece in self._pieces)


def _aligned(nbytes: int) -> Array:
    """A float32 array at a 64-byte boundary, which owns its memory but for the view that it is of it."""
    whole = np.empty(nbytes, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + (nbytes - ALIGNMENT) // 4 * 4].view(np.float32)


def _rounded(nbytes: int) -> int:
    """The size of a piece: at most a quarter more than is asked for, so that few sizes serve many shapes."""
    step = 1 << max(nbytes.bit_length() - 3, 12)
    return -(-nbytes // step) * step


def _unused(pieces: Sequence[Array], least: int, most: int, idle: int | None = None) -> int | None:
    """Position of the last piece of a size that nobody refers to; what is a view of one refers to its memory."""
    for at in range(len(pieces) - 1, -1, -1):
        if least <= pieces[at].size <= most and sys.getrefcount(pieces[at].base) <= (_IDLE if idle is None else idle):
            return at
    return None


def _idle() -> int:
    """References to a piece that nobody uses, as `_unused` counts them; interpreters differ in this."""
    pieces = [_aligned(2 * ALIGNMENT)]
    return next(n for n in range(1, 10) if _unused(pieces, 0, 1 << 10, n) is not None)


_IDLE: Final = _idle()
