"""Copies inside the device, and the operators that are nothing but another view of their input."""

from __future__ import annotations

import numpy as np

from gpurt.device.lowering import Lowering, Ref
from gpurt.device.scalars import i64
from gpurt.device.table import STORED, op

_COPY = """
KFN(BLOCK, 1, 1) copy_elements(INPUT(T, x), TENSOR(T, y), const i64 n) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 begin = INDEX(0) * CHUNK;
  const i64 end = begin + CHUNK < n ? begin + CHUNK : n;
  for (i64 i = begin; i < end; i++) y[i] = x[i];
}
"""

# Copies move bits, so a type of the same size serves all.
_BITS: dict[int, np.dtype] = {t.itemsize: t for t in map(np.dtype, (np.uint8, np.uint16, np.uint32, np.uint64))}


def copy_elements(c: Lowering, dst: Ref, src: Ref) -> None:
    """Emit a copy of dst.size elements; both are dense and of one dtype."""
    chunk, block = (4096, 1) if c.cpu_class else (4, 64)
    c.launch(
        _COPY,
        "copy_elements",
        [src, dst, i64(dst.size)],
        [-(-dst.size // (chunk * block))],
        [block],
        types={"T": _BITS[dst.dtype.itemsize]},
        defines={"CHUNK": chunk, "BLOCK": block},
    )


@op("Identity", "Flatten", types=STORED)
def identity(c: Lowering) -> None:
    """Same elements, same order."""
    c.alias()


@op("Reshape", "Squeeze", "Unsqueeze", types=STORED, host=(1,))
def reshape(c: Lowering) -> None:
    """Same elements, same order; the second input only says the shape."""
    c.alias()
