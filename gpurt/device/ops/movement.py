"""Strided copies, and the operators that are nothing but one: Transpose, Concat, Split, Expand, Tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

import gpurt_kernels
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.scalars import i32, i64
from gpurt.device.table import STORED, op
from gpurt.infer.shapes import axis as front

BITS: Final[Mapping[int, np.dtype]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
"""Movement needs no arithmetic: an unsigned type of the element's size serves all types of that size."""

ITEM_ELEMENTS: Final = 8192
"""What a CPU item should move at least, that starting it does not count."""

_SIDE: Final = 8  # of the block that a CPU transposes in registers
_CPU_TILE: Final = 64
_GPU_TILE: Final = 32


class Dim(NamedTuple):
    """A dimension of a strided copy: number of steps, elements a step in the source and in the destination."""

    n: int
    s: int
    t: int


def strides(shape: Sequence[int]) -> list[int]:
    """Elements that a step along each dimension of a dense tensor moves."""
    result = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        result[i] = result[i + 1] * shape[i + 1]
    return result


def collapse(dims: Sequence[Dim]) -> list[Dim]:
    """The same walk with as few dimensions as can be: without those of size 1, and with neighbours joined."""
    result: list[Dim] = []
    for dim in dims:
        if dim.n == 1:
            continue
        if result and result[-1].s == dim.s * dim.n and result[-1].t == dim.t * dim.n:
            result[-1] = Dim(result[-1].n * dim.n, dim.s, dim.t)
        else:
            result.append(dim)
    return result


def rank_defines(names: str, rank: int) -> dict[str, str]:
    """Macros for i64 arguments by dimension: PARAMS declares n0, s0, ..., n1, ...; for n there is LIST_N, and so on."""
    found = {"PARAMS": "".join(f", const i64 {name}{d}" for d in range(rank) for name in names)}
    for name in names:
        found[f"LIST_{name.upper()}"] = "{" + ", ".join(f"{name}{d}" for d in range(rank)) + "}"
    return found


def flat_args(rows: Sequence[Sequence[int]]) -> list[np.int64]:
    """The arguments that PARAMS of :func:`rank_defines` declares."""
    return [i64(value) for row in rows for value in row]


def ceil_div(a: int, b: int) -> int:
    """The least n with n * b >= a."""
    return -(-a // b)


def position_type(count: int) -> str:
    """Type for a position among `count` items: GPUs divide 64-bit integers slowly."""
    return "i32" if count < 2**31 - 1024 else "i64"


def split_rows(rows: int, inner: int, work: int = 1) -> tuple[int, int, tuple[int, int]]:
    """How CPU items share rows of `inner` elements: rows an item, elements of a row an item, grid of (rows, chunks)."""
    share = max(ITEM_ELEMENTS // work, 64)
    chunk = inner if inner < 2 * share else max(share, ceil_div(inner, 60000))
    per_item = max(1, ITEM_ELEMENTS // max(chunk * work, 1))
    return per_item, chunk, (ceil_div(rows, per_item), ceil_div(inner, chunk) if inner else 0)


def launch_rows(
    c: Lowering,
    source: str,
    entry: str,
    args: Sequence[Ref | np.generic],
    rows: int,
    inner: int,
    *,
    types: Mapping[str, np.dtype],
    defines: Mapping[str, int | float | str] | None = None,
    dims: Sequence[int] = (),
    work: int = 1,
) -> None:
    """Emit a kernel written with the macros of rows.h.

    Args:
        c: the lowering.
        source: a file of gpurt_kernels or kernel text; rows.h is put before it.
        entry: the kernel's name.
        args: the arguments before ROW_PARAMS.
        rows: number of rows.
        inner: elements of a row.
        types: see Lowering.launch.
        defines: see Lowering.launch.
        dims: the arguments after ROW_PARAMS.
        work: how many elements' time one element takes.
    """
    text = gpurt_kernels.text("rows.h") + (source if "\n" in source else gpurt_kernels.text(source))
    after = [i64(d) for d in dims]
    if c.cpu_class:
        per_item, chunk, grid = split_rows(rows, inner, work)
        own = [i64(rows), i64(inner), i64(per_item), i64(chunk)]
        c.launch(text, entry, [*args, *own, *after], grid, types=types, defines={"POS": "i64", **(defines or {})})
        return
    position = position_type(rows * inner)
    sizes = [i32(v) if position == "i32" else i64(v) for v in (rows, inner)]
    macros = {"POS": position, **(defines or {})}
    c.launch(text, entry, [*args, *sizes, *after], [ceil_div(rows * inner, 256)], [256], types=types, defines=macros)


def strided_copy(c: Lowering, dst: Ref, src: Ref, dims: Sequence[Dim]) -> None:
    """Emit a copy of math.prod(n) elements; dst and src are the first element's places.

    Dimensions are in the destination's order, its last one innermost. A Ref says only where the memory begins here: its
    shape is not looked at.
    """
    if any(d.n == 0 for d in dims):
        return
    walk = collapse(dims) or [Dim(1, 1, 1)]
    if walk[-1].s == walk[-1].t == 1 and len(walk) == 1:
        c.copy(dst.at(0, (walk[0].n,)), src.at(0, (walk[0].n,)))
        return
    if _transposes(walk):
        _tiled(c, dst, src, walk)
        return
    bits = {"T": BITS[dst.dtype.itemsize]}
    if not c.cpu_class:
        total = math.prod(d.n for d in walk)
        position = position_type(total)
        c.launch(
            "movement.cl",
            "strided_copy",
            [src, dst, i32(total) if position == "i32" else i64(total), *flat_args(walk)],
            [ceil_div(total, 256)],
            [256],
            types=bits,
            defines={"RANK": len(walk), "POS": position, **_sizes(len(walk))},
        )
        return
    if len(walk) > 1:
        # A short inner loop costs its overhead: the longer of the two innermost goes inside.
        outer, inner = walk[-2:]
        if inner.n < 16 and outer.n > 4 * inner.n:
            walk[-2:] = [inner, outer]
    *outers, last = walk
    rows = math.prod(d.n for d in outers)
    per_item, chunk, grid = split_rows(rows, last.n)
    if last.t != 1 and last.n > 512 and outers:
        # The rows that fill the gaps of this one follow it, while its lines are still in the cache.
        chunk, per_item = 512, outers[-1].n * max(1, ITEM_ELEMENTS // (512 * outers[-1].n))
        grid = (ceil_div(rows, per_item), ceil_div(last.n, chunk))
        if grid[1] > 65535:
            per_item, chunk, grid = split_rows(rows, last.n)
    c.launch(
        "movement.cl",
        "strided_copy",
        [src, dst, i64(rows), i64(per_item), i64(chunk), *flat_args(walk)],
        grid,
        types=bits,
        defines={
            "RANK": len(walk),
            "SX": last.s if last.s in (0, 1) else "s[RANK - 1]",
            "SY": last.t if last.t in (0, 1) else "t[RANK - 1]",
            **_sizes(len(walk)),
        },
    )


def _sizes(rank: int) -> dict[str, str]:
    found = rank_defines("nst", rank)
    return {"PARAMS": found["PARAMS"], "SIZES": found["LIST_N"], "SOURCE": found["LIST_S"], "TARGET": found["LIST_T"]}


def _transposes(walk: Sequence[Dim]) -> bool:
    # The destination runs along the last dimension, the source along another one, and both are long enough for tiles.
    last = walk[-1]
    return last.t == 1 and abs(last.s) > 1 and last.n >= _SIDE and any(d.s == 1 and d.n >= _SIDE for d in walk[:-1])


def _tiled(c: Lowering, dst: Ref, src: Ref, walk: list[Dim]) -> None:
    b = walk.pop()
    a = walk.pop(next(i for i, d in enumerate(walk) if d.s == 1 and d.n >= _SIDE))
    walk = walk or [Dim(1, 0, 0)]
    tile = _CPU_TILE if c.cpu_class else _GPU_TILE
    tiles_a, tiles_b = ceil_div(a.n, tile), ceil_div(b.n, tile)
    sizes = [a.n, b.n, b.s, a.t, tiles_a, tiles_b]
    c.launch(
        "movement.cl",
        "transpose_tile",
        [src, dst, *map(i64, sizes), *flat_args(walk)],
        [tiles_a * tiles_b * math.prod(d.n for d in walk)],
        [1] if c.cpu_class else [tile, 8],
        types={"T": BITS[dst.dtype.itemsize]},
        defines={"TILED": 1, "TILE": tile, "SIDE": _SIDE, "RANK": len(walk), **_sizes(len(walk))},
    )


@op("Transpose", types=STORED)
def transpose(c: Lowering) -> None:
    """Transpose-25. Where only dimensions of size 1 move, the output is the input's memory."""
    x = c.input(0)
    order = [front(int(p), len(x.shape)) for p in c.node.attr("perm") or reversed(range(len(x.shape)))]
    kept = [p for p in order if x.shape[p] != 1]
    if kept == sorted(kept) or x.size == 0:
        c.alias()
        return
    source, target = strides(x.shape), strides([x.shape[p] for p in order])
    strided_copy(c, c.output(), x, [Dim(x.shape[p], source[p], t) for p, t in zip(order, target, strict=True)])


@op("Concat", types=STORED)
def concat(c: Lowering) -> None:
    """Concat-13: each input is a block of columns of the output, seen as a matrix."""
    y = c.output()
    along = front(c.node.attr("axis"), len(y.shape))
    filled = [i for i in range(len(c.specs)) if c.input(i).size]
    if len(filled) == 1:
        c.alias(source=filled[0])
        return
    rows, width = math.prod(y.shape[:along]), math.prod(y.shape[along:])
    offset = 0
    for i in filled:
        part = math.prod(c.input(i).shape[along:])
        strided_copy(c, y.at(offset, ()), c.input(i), [Dim(rows, part, width), Dim(part, 1, 1)])
        offset += part


@op("Split", types=STORED, host=(1,))
def split(c: Lowering) -> None:
    """Split-18. Where nothing lies before the axis the parts are contiguous: they stay in the input's memory."""
    x = c.input(0)
    along = front(c.node.attr("axis", 0), len(x.shape))
    rows, width = math.prod(x.shape[:along]), math.prod(x.shape[along:])
    offset = 0
    for i, spec in enumerate(c.outs):
        part = math.prod(spec.shape[along:])
        if not c.wants(i) or spec.size == 0:
            pass
        elif rows == 1:
            c.alias(i, offset=offset)
        else:
            strided_copy(c, c.output(i), x.at(offset, ()), [Dim(rows, width, part), Dim(part, 1, 1)])
        offset += part


@op("Expand", types=STORED, host=(1,))
def expand(c: Lowering) -> None:
    """Expand-13: a broadcast dimension is one that the source does not move along."""
    x, y = c.input(0), c.output()
    if x.size == y.size:
        c.alias()
        return
    shape = (1,) * (len(y.shape) - len(x.shape)) + x.shape
    walk = zip(y.shape, shape, strides(shape), strides(y.shape), strict=True)
    strided_copy(c, y, x, [Dim(n, 0 if d == 1 else s, t) for n, d, s, t in walk])


@op("Tile", types=STORED, host=(1,))
def tile(c: Lowering) -> None:
    """Tile-13: a repeat is a dimension of its own that the source does not move along."""
    x, y = c.input(0), c.output()
    if x.size == y.size:
        c.alias()
        return
    dims = []
    for n, s, t, times in zip(x.shape, strides(x.shape), strides(y.shape), c.ints(1) or [], strict=True):
        dims += [Dim(times, 0, n * t), Dim(n, s, t)]
    strided_copy(c, y, x, dims)
