"""Tiles of products in the GPU class: what a work-group computes, and what each item of it."""

from __future__ import annotations

from typing import Final

import numpy as np

from gpurt.device.lowering import Lowering

GroupTile = tuple[int, int, int, int, int]
"""Rows and columns of a group, steps of the sum that are brought into local memory, rows and columns of an item."""

DEFAULT: Final[GroupTile] = (64, 64, 16, 4, 4)

TILES: Final[tuple[GroupTile, ...]] = (
    DEFAULT,
    (32, 32, 32, 4, 4),
    (32, 64, 16, 4, 8),
    (64, 32, 16, 4, 4),
    (64, 64, 16, 4, 8),
    (64, 64, 32, 4, 8),
    (64, 64, 16, 8, 8),
    (64, 128, 16, 8, 8),
    (128, 64, 16, 8, 4),
    (128, 128, 8, 8, 8),
    (128, 128, 16, 8, 8),
)
"""Tiles that tuning tries; the group's items are a multiple of its columns, as gemm_gpu.cl wants with a table."""


def items_of(tile: GroupTile) -> int:
    """Items of a group."""
    rows, columns, _, per_row, per_column = tile
    return rows // per_row * (columns // per_column)


def group_tile(
    c: Lowering, size: tuple[int, int, int], batch: int, dtype: np.dtype, acc_bytes: int, *, table: bool
) -> GroupTile:  # fmt: skip
    """The tile for a product, of those for which the device has room.

    Args:
        c: the operator's context.
        size: M, N and K.
        batch: products in all.
        dtype: of the result.
        acc_bytes: of an element in local memory.
        table: whether the right operand is a convolution's columns.
    """

    def fits(tile: GroupTile) -> bool:
        local = tile[2] * (tile[0] + tile[1] + 2) * acc_bytes
        return items_of(tile) <= c.info.max_group and local <= c.info.local_bytes

    kind = f"{dtype.name} {'columns' if table else 'mat'}"
    return c.choose("gemm.group", (batch, *size), [t for t in TILES if fits(t)], DEFAULT, kind)
