"""Gather, GatherElements and GatherND. Indices out of range read the nearest element that there is."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.movement import BITS, Dim, collapse, launch_rows, rank_defines, strides
from gpurt.device.scalars import i64
from gpurt.device.table import STORED, op
from gpurt.infer.shapes import axis as front
from gpurt.infer.shapes import text
from gpurt.provider import Refused

_SHORT: Final = 16
"""Elements of a row up to which the row's length specialises the program."""

INDEX_TYPES = {None: STORED, 1: "int32 int64"}


def _types(c: Lowering) -> dict[str, np.dtype]:
    return {"T": BITS[c.input(0).dtype.itemsize], "I": c.input(1).dtype}


def _short(c: Lowering, outer: int, inner: int) -> dict[str, int]:
    # Macros for a kernel that copies rows; a CPU gets the length of short ones as a constant.
    return {"ONE_BATCH": int(outer == 1), **({"INNER": inner} if c.cpu_class and inner <= _SHORT else {})}


def _nothing(c: Lowering, size: int) -> bool:
    # Whether there is nothing to read; an axis without elements has none for any index.
    if c.output().size and not size:
        raise Refused(f"{c.node.op}: an index into a dimension of size 0")
    return c.output().size == 0


@op("Gather", types=INDEX_TYPES)
def gather(c: Lowering) -> None:
    """Gather-13. One index that is known when the plan is made picks a part of the input's memory."""
    x, indices = c.input(0), c.input(1)
    along = front(c.node.attr("axis", 0), len(x.shape))
    outer, n, inner = math.prod(x.shape[:along]), x.shape[along], math.prod(x.shape[along + 1 :])
    m = indices.size
    if _nothing(c, n):
        return
    known = indices.spec.const
    if known is not None and m == 1 and outer == 1:
        k = int(known.reshape(())) if known.size == 1 else 0
        k = min(max(k + n if k < 0 else k, 0), n - 1)
        c.alias(offset=k * inner)
    elif inner == 1 and m > 1:
        _launch(c, [i64(n)], outer, m, {"GATHER_LAST": 1})
    else:
        _launch(c, [i64(n), i64(m)], outer * m, inner, {"GATHER": 1, **_short(c, outer, inner)})


def _launch(c: Lowering, sizes: list[np.int64], rows: int, inner: int, defines: dict[str, int]) -> None:
    args: list[Ref | np.generic] = [c.input(0), c.input(1), c.output(), *sizes]
    launch_rows(c, "gather.cl", "gather", args, rows, inner, types=_types(c), defines=defines)


@op("GatherElements", types=INDEX_TYPES)
def gather_elements(c: Lowering) -> None:
    """GatherElements-13: the indices' shape may be smaller than the data's outside of the axis."""
    x, indices = c.input(0), c.input(1)
    along = front(c.node.attr("axis", 0), len(x.shape))
    if _nothing(c, x.shape[along]):
        return
    # Larger ones would lead out of the data's memory.
    if any(m > n for i, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if i != along):
        raise Refused(f"GatherElements: indices {text(indices.shape)} are larger than data {text(x.shape)}")
    source = strides(x.shape)
    dims = [Dim(n, s, t) for n, s, t in zip(indices.shape, source, strides(indices.shape), strict=True)]
    axis = Dim(indices.shape[along], 0, 0)
    walk = [*collapse(dims[:along]), axis, *collapse(dims[along + 1 :])]
    *outers, last = walk
    outers = outers or [Dim(1, 0, 0)]
    launch_rows(
        c,
        "gather.cl",
        "gather_elements",
        [x, indices, c.output(), i64(x.shape[along]), i64(source[along]), i64(last.s)],
        math.prod(d.n for d in outers),
        last.n,
        types=_types(c),
        defines={"GATHER_ELEMENTS": 1, "RANK": len(outers), **rank_defines("ns", len(outers))},
        dims=[v for d in outers for v in (d.n, d.s)],
    )


@op("GatherND", types={None: STORED, 1: "int64"})
def gather_nd(c: Lowering) -> None:
    """GatherND-13, with batch_dims."""
    x, indices = c.input(0), c.input(1)
    batch, depth = c.node.attr("batch_dims", 0), indices.shape[-1]
    picked = x.shape[batch : batch + depth]
    if _nothing(c, math.prod(picked)):
        return
    if indices.shape[:batch] != x.shape[:batch]:
        raise Refused(f"GatherND: indices {text(indices.shape)} and data {text(x.shape)} differ in the batch")
    rank = max(depth, 1)
    inner = math.prod(x.shape[batch + depth :])
    source = strides(x.shape)[batch : batch + depth]
    dims = [v for pair in zip(picked, source, strict=True) for v in pair] or [1, 0]
    launch_rows(
        c,
        "gather.cl",
        "gather_nd",
        [x, indices, c.output(), i64(math.prod(indices.shape[batch:-1])), i64(math.prod(x.shape[batch:]))],
        math.prod(indices.shape[:-1]),
        inner,
        types=_types(c),
        defines={
            "GATHER_ND": 1,
            "DEPTH": depth,
            "RANK": rank,
            **_short(c, math.prod(x.shape[:batch]), inner),
            **rank_defines("ns", rank),
        },
        dims=dims,
    )
