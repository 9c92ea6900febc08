"""Products of rows that elementwise nodes compute on the way, in the CPU class: prologues of Conv, MatMul and Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpurt.device.chains import behind, chained_text
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.scalars import i32
from gpurt.device.tiles import Tile

STAGE: Final = 1 << 15
"""Floats of the rows that are ready to be multiplied: they lie on the stack, and stay in a core's second cache."""

MOST_WEIGHTS: Final = 1 << 18
"""Floats of W beyond which blocks of rows wait for it longer than what is before the product takes by itself."""


@dataclass(frozen=True, slots=True)
class Fed:
    """y = f(x) W + bias, where f are the elementwise nodes before.

    Attributes:
        rows, columns, depth: M, N and K of the product; x is [M, K], dense.
        w: float32 panels [panel, K, 16], as many as make whole tiles.
        panels: their number.
        y: float32, where the first row of the result begins.
        pitch: elements from one of its rows to the next.
        bias: float32 [N], or None.
    """

    rows: int
    columns: int
    depth: int
    w: Ref
    panels: int
    y: Ref
    pitch: int
    bias: Ref | None


def fed_product(c: Lowering, product: Fed, tile: Tile) -> bool:
    """Emit it with the context's prologue and epilogue; False if the prologue cannot or should not be part of it."""
    pitch = (product.depth + 31) // 16 * 16
    block = STAGE // pitch // tile.rows * tile.rows
    if c.prologue is None or not block or product.panels * 16 * product.depth > MOST_WEIGHTS:
        return False
    made = c.prologue.over(product.depth, 1)
    if made is None:
        return False
    text, args = made
    args = [*args, product.w, product.y]
    if product.bias is not None:
        args.append(product.bias)
    first = 0 if c.epilogue is None else product.y.offset - c.epilogue.begin
    more, operands = behind(c.epilogue, product.columns, first)
    args += operands
    tiles, steps = product.panels // tile.vectors, -(-product.rows // tile.rows)
    # What comes before is computed once if an item has all columns; they are shared out where rows are too few.
    parts = min(8 * c.info.compute_units, steps)
    each = -(-tiles * parts // (4 * c.info.compute_units)) if parts < 4 * c.info.compute_units else tiles
    rows = -(-steps // parts) * tile.rows
    numbers = (product.rows, product.columns, product.depth, product.pitch, rows, block, tiles, each)
    c.launch(
        chained_text(text + more, "batch.h", "lanes16.h", "panels16.h", "fed_product.cl"),
        "fed_product",
        [*args, *(i32(v) for v in numbers)],
        [-(-tiles // each), -(-product.rows // rows)],
        defines={
            "MR": tile.rows,
            "NV": tile.vectors,
            "HAS_BIAS": int(product.bias is not None),
            "STAGE": STAGE,
        },
    )
    return True
