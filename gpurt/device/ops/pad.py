"""Pad in all its modes, as a window of the input that the output surrounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.movement import BITS, Dim, launch_rows, rank_defines, strided_copy, strides
from gpurt.device.table import STORED, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axes as fronts
from gpurt.provider import Refused


@dataclass(frozen=True, slots=True)
class _Side:
    """A dimension: m elements of the output, of which the window's n (stride s in the input) begin at p."""

    m: int
    n: int
    p: int
    s: int

    @property
    def whole(self) -> bool:
        return self.p == 0 and self.m == self.n


def pad_window(c: Lowering, dst: Ref, src: Ref, begins: Sequence[int], mode: str, value: Ref | None) -> None:
    """Emit a copy of src into dst, whose dimension d begins begins[d] elements before src's (inside it if negative).

    What lies outside comes from `mode`: constant (value, or 0 where it is None), edge, reflect or wrap.
    """
    sides, offset = [], 0
    for m, have, s, begin in zip(dst.shape, src.shape, strides(src.shape), begins, strict=True):
        cropped = max(-begin, 0)
        n = max(have - cropped - max(begin + have - m, 0), 0)
        offset += cropped * s
        sides.append(_Side(m, n, max(begin, 0), s))
    if dst.size == 0:
        return
    if any(side.n == 0 for side in sides):
        if mode != "constant":
            raise Refused(f"{c.node.op}: mode {mode} has no element to repeat")
        offset = 0
    start = src.at(offset, ())
    if all(side.whole for side in sides):
        walk = zip(sides, strides(dst.shape), strict=True)
        strided_copy(c, dst, start, [Dim(side.m, side.s, t) for side, t in walk])
        return
    sides = _collapse(sides, mode)
    launch_rows(
        c,
        "pad.cl",
        "pad",
        [start, *([value] if value is not None and mode == "constant" else []), dst],
        math.prod(side.m for side in sides[:-1]),
        sides[-1].m,
        types={"T": BITS[dst.dtype.itemsize]},
        defines={
            "RANK": len(sides),
            f"MODE_{mode.upper()}": 1,
            **({"HAS_VALUE": 1} if value is not None and mode == "constant" else {}),
            **rank_defines("mnps", len(sides)),
        },
        dims=[v for side in sides for v in (side.m, side.n, side.p, side.s)],
    )


def _collapse(sides: Sequence[_Side], mode: str) -> list[_Side]:
    # A dimension that is whole joins the one before it; when that one is padded, only where all padding is alike.
    result: list[_Side] = []
    for side in sides:
        if result and side.whole and result[-1].s == side.s * side.n and (mode == "constant" or result[-1].whole):
            last = result.pop()
            side = _Side(last.m * side.m, last.n * side.n, last.p * side.n, side.s)
        result.append(side)
    return result


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    mode = node.attr("mode", "constant")
    return None if mode in ("constant", "edge", "reflect", "wrap") else f"no Pad kernel for mode {mode!r}"


@op("Pad", types=STORED, host=(1, 3), check=_check)
def pad(c: Lowering) -> None:
    """Pad-25: negative pads crop first; the value is read from device memory."""
    x, y = c.input(0), c.output()
    pads = c.ints(1) or []
    along = c.ints(3) if c.has(3) else None
    where = fronts(range(len(x.shape)) if along is None else along, len(x.shape))
    begins = [0] * len(x.shape)
    for i, a in enumerate(where):
        begins[a] = pads[i]
    if y.shape == x.shape and not any(begins):
        c.alias()
        return
    value = c.input(2) if c.has(2) and c.input(2).size else None
    pad_window(c, y, x, begins, c.node.attr("mode", "constant"), value)
