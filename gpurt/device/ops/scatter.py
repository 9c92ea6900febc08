"""ScatterElements, ScatterND and TensorScatter: a copy of the data, then writes in the order of the indices.

The copy is left out where nobody reads the data later: a cache is then appended to in place.

Results are deterministic, duplicates included: see scatter.cl. Indices out of range are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.movement import BITS, Dim, ceil_div, collapse, launch_rows, rank_defines, strides
from gpurt.device.scalars import i32, i64
from gpurt.device.table import COMPUTED, STORED, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axis as front
from gpurt.infer.shapes import text
from gpurt.provider import Refused

_LINKED_FROM: Final = 256
"""Indices that an item of a GPU would loop over from which on each index gets an item instead."""

_REDUCTIONS = ("none", "add", "mul", "min", "max")


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    reduction = node.attr("reduction", "none")
    if reduction not in _REDUCTIONS:
        return f"no {node.op} kernel for reduction {reduction!r}"
    data = node.inputs[0]
    if reduction != "none" and data is not None and (data.dtype == np.bool_ or data.dtype not in COMPUTED):
        return f"{node.op} does not reduce {data.dtype}"
    return None


def _types(c: Lowering) -> dict[str, np.dtype]:
    data = c.input(0).dtype
    bits = c.node.attr("reduction", "none") == "none"
    return {"T": BITS[data.itemsize] if bits else data, "I": c.input(1).dtype}


def _parts(c: Lowering, lanes: int, count: int, size: int) -> int:
    """Number of parts to cut `size` places into, so that enough items share `count` indices of each lane."""
    wanted = c.info.compute_units if c.cpu_class else 4096
    if lanes >= wanted or count < 64:
        return 1
    return max(min(ceil_div(wanted, max(lanes, 1)), size), 1)


def _linked(
    c: Lowering,
    kind: str,
    places: Sequence[np.generic],
    dims: Sequence[tuple[int, int]],
    targets: int,
    inner: int,
) -> None:
    """Emit the writes as launches with an item for each index, see LINKED in scatter.cl.

    Args:
        c: the lowering.
        kind: ELEMENTS or ND.
        places: the arguments of PLACES.
        dims: n and t of each dimension.
        targets: number of places that an index may lead to.
        inner: elements of such a place.
    """
    indices, updates, y = c.input(1), c.input(2), c.output()
    total = updates.size // max(inner, 1)
    reduction = c.node.attr("reduction", "none").upper()
    head = c.temp(np.dtype(np.int32), (targets,))
    link = head if reduction == "NONE" else c.temp(np.dtype(np.int32), (total,))
    dims = dims or [(1, 0)]
    defines: dict[str, int | float | str] = {
        "LINKED": 1,
        f"LINKED_{kind}": 1,
        f"REDUCE_{reduction}": 1,
        "DEPTH": indices.shape[-1],
        "RANK": len(dims),
        **rank_defines("nt", len(dims)),
    }

    def launch(entry: str, tensors: Sequence[Ref], columns: int) -> None:
        launch_rows(
            c,
            "scatter.cl",
            entry,
            [indices, head, link, *tensors, *places],
            total,
            columns,
            types=_types(c),
            defines=defines,
            dims=[v for dim in dims for v in dim],
        )

    launch("scatter_clear", [], 1)
    launch("scatter_link", [], 1)
    launch("scatter_write", [updates, y], inner)


def _links(c: Lowering, count: int, total: int) -> bool:
    return not c.cpu_class and count >= _LINKED_FROM and total < 2**30


@op("ScatterElements", types={None: STORED, 1: "int32 int64"}, check=_check)
def scatter_elements(c: Lowering) -> None:
    """ScatterElements-18."""
    x, indices, y = c.input(0), c.input(1), c.output()
    if not indices.size or not x.size:
        c.alias()
        return
    along = front(c.node.attr("axis", 0), len(x.shape))
    # Larger ones would lead out of the data's memory.
    if any(m > n for i, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if i != along):
        raise Refused(f"ScatterElements: indices {text(indices.shape)} are larger than data {text(x.shape)}")
    c.carry()
    source, step = strides(x.shape), strides(indices.shape)
    dims = [Dim(n, s, t) for n, s, t in zip(indices.shape, source, step, strict=True)]
    size, count = x.shape[along], indices.shape[along]
    parts = _parts(c, indices.size // count, count, size)
    # Without parts there are enough lanes, and none looks at an index in vain.
    if parts > 1 and _links(c, count, indices.size):
        walk = [*collapse(dims[:along]), Dim(count, 0, 0), *collapse(dims[along + 1 :])]
        places: list[np.generic] = [i64(size), i64(source[along]), i32(count), i32(step[along])]
        _linked(c, "ELEMENTS", places, [(d.n, d.s) for d in walk], x.size, 1)
        return
    lanes = [*collapse(dims[:along]), *collapse(dims[along + 1 :])]
    inner = lanes.pop().n if lanes and lanes[-1].s == lanes[-1].t == 1 else 1
    lanes = lanes or [Dim(1, 0, 0)]
    rows = math.prod(d.n for d in lanes)
    span = ceil_div(size, parts)
    launch_rows(
        c,
        "scatter.cl",
        "scatter_elements",
        [indices, c.input(2), y, *map(np.int64, (rows, span, size, source[along], count, step[along]))],
        rows * parts,
        inner,
        types=_types(c),
        defines={
            "SCATTER_ELEMENTS": 1,
            f"REDUCE_{c.node.attr('reduction', 'none').upper()}": 1,
            "RANK": len(lanes),
            **rank_defines("nst", len(lanes)),
        },
        dims=[v for d in lanes for v in d],
        work=count,
    )


@op("ScatterND", types={None: STORED, 1: "int64"}, check=_check)
def scatter_nd(c: Lowering) -> None:
    """ScatterND-18."""
    x, indices, y = c.input(0), c.input(1), c.output()
    if not c.input(2).size or not x.size:
        c.alias()
        return
    c.carry()
    depth = indices.shape[-1]
    targets, inner = x.shape[:depth], math.prod(x.shape[depth:])
    rows, count = math.prod(targets), math.prod(indices.shape[:-1])
    if _links(c, count, count):
        _linked(c, "ND", [i32(count)], list(zip(targets, strides(targets), strict=True)), rows, inner)
        return
    span = ceil_div(rows, _parts(c, inner, count, rows))
    rank = max(depth, 1)
    launch_rows(
        c,
        "scatter.cl",
        "scatter_nd",
        [indices, c.input(2), y, i64(span), i64(count)],
        ceil_div(rows, span),
        inner,
        types=_types(c),
        defines={
            "SCATTER_ND": 1,
            f"REDUCE_{c.node.attr('reduction', 'none').upper()}": 1,
            "DEPTH": depth,
            "RANK": rank,
            **rank_defines("nt", rank),
        },
        dims=[v for pair in zip(targets, strides(targets), strict=True) for v in pair] or [1, 0],
        work=count,
    )


def _check_tensor(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    mode = node.attr("mode", "linear")
    return None if mode in ("linear", "circular") else f"no TensorScatter kernel for mode {mode!r}"


@op("TensorScatter", types={None: STORED, 2: "int64"}, check=_check_tensor)
def tensor_scatter(c: Lowering) -> None:
    """TensorScatter-24: each batch's update goes to the position that its write index says."""
    cache, update, y = c.input(0), c.input(1), c.output()
    if not update.size:
        c.alias()
        return
    if c.has(2) and c.input(2).size != cache.shape[0]:
        raise Refused(f"TensorScatter: {c.input(2).size} write indices for a batch of {cache.shape[0]}")
    c.carry()
    along = front(c.node.attr("axis", -2), len(cache.shape))
    middle, inner = math.prod(cache.shape[1:along]), math.prod(cache.shape[along + 1 :])
    offsets = [c.input(2)] if c.has(2) else []
    launch_rows(
        c,
        "scatter.cl",
        "tensor_scatter",
        [*offsets, update, y, *map(np.int64, (middle, cache.shape[along], update.shape[along]))],
        cache.shape[0] * middle * update.shape[along],
        inner,
        types={"T": BITS[cache.dtype.itemsize]},
        defines={
            "TENSOR_SCATTER": 1,
            "CIRCULAR": int(c.node.attr("mode", "linear") == "circular"),
            "OFFSETS": "INPUT(i64, offsets)," if offsets else "",
            "OPEN_OFFSETS": "OPEN_IN(i64, offsets);" if offsets else "",
            "OFFSET(b)": "offsets[b]" if offsets else "(i64)0",
        },
    )
