"""Attention of the CPU class in one launch: a block of queries stays in the cache from its scores to its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from gpurt.device.lowering import Lowering
from gpurt.device.ops.lanes import F32, Args
from gpurt.device.scalars import i32, i64
from gpurt.symbolic import Size

if TYPE_CHECKING:
    from gpurt.device.ops.heads import Heads, Masking

_FEW: Final = 4  # queries up to which each is computed by itself
_LONGEST: Final = 256  # of a head: its vectors must fit in registers
_MOST_GROUPS: Final = 65535


def takes(c: Lowering, q: Heads, v: Heads, masking: Masking) -> bool:
    """Whether the kernels have what is asked for: floats, heads of whole vectors, no scores as an output."""
    if not c.cpu_class or q.ref.dtype != F32 or v.ref.dtype != F32 or masking.kept is not None:
        return False
    if any(n % 16 or not 0 < n <= _LONGEST for n in (q.size, v.size)):
        return False
    return max(q.heads, q.ref.shape[0]) <= _MOST_GROUPS


def attend_cpu(
    c: Lowering, q: Heads, k: Heads, v: Heads, out: Heads, masking: Masking, scale: float, mask: tuple[int, int, int]
) -> None:
    """Emit softmax(q k^T * scale, masked) v into out; mask: its strides for sequences, heads and queries."""
    batch, wide = q.ref.shape[0], c.info.vector_width >= 16
    block = q.length > _FEW
    types = {"T": F32}
    defines: dict[str, int | float | str] = {"DK": q.size, "DV": v.size}
    args: Args = [q.ref, k.ref, v.ref]
    mask_keys = k.length
    if masking.mask is not None:
        # A shorter mask hides the keys beyond it, one of a single key too.
        mask_keys = min(mask_keys, masking.mask.shape[-1])
        defines["MASK"] = 1
        if block and mask[2] == 0:
            defines["MASK_LINE"] = 1
        types["M"] = masking.mask.dtype
        if types["M"] == np.bool_:
            defines["MASK_BOOL"] = 1
        args.append(masking.mask)
    if masking.ends is not None:
        defines["VALID"] = 1
        types["N"] = masking.ends.dtype
        if masking.last:
            defines["VALID_LAST"] = 1
        args.append(masking.ends)
    if masking.cap > 0:
        defines["CAP"] = 1
    keys = k.length
    vectors = 2 if wide else 1
    defines["BV"] = vectors
    if block:
        columns = v.size // 16
        defines |= {"BLOCK": 1, "KT": 8 if wide else 6, "QT": 4, "NVV": _divisor(columns, 4 if wide else 1)}
        per_item = _share(c, batch * q.heads, q.length, 16 * vectors)
        floats = (q.size + keys) * 16 * vectors
    else:
        per_item = q.length
        floats = -(-keys // 16) * 16
    parts = -(-q.length // per_item)
    scratch = c.temp(F32, (batch * q.heads * parts, floats))
    args += [out.ref, scratch]
    args += [i64(s) for x in (q, k, v, out) for s in x.steps]
    args += [i64(s) for s in mask]
    numbers = (q.heads // k.heads, q.length, per_item, keys, masking.past, masking.left, masking.right, mask_keys)
    args += [i32(n) for n in numbers]
    args += [np.float32(scale), np.float32(masking.cap)]
    entry = "attend_block" if block else "attend_row"
    c.launch("attention_cpu.cl", entry, args, (parts, q.heads, batch), types=types, defines=defines)


def _divisor(count: int, most: int) -> int:
    """The largest number up to `most` that divides the count."""
    return next(n for n in range(most, 0, -1) if count % n == 0)


def _share(c: Lowering, heads: int, queries: int, block: int) -> int:
    """Queries an item takes: blocks one after the other while there are enough items to keep every core busy."""
    if isinstance(queries, Size) or isinstance(heads, Size):
        return block
    blocks = -(-queries // block)
    items = max(min(heads * blocks, 8 * c.info.compute_units), heads)
    parts = max(items // heads, 1)
    return -(-blocks // parts) * block
