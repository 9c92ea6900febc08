"""Register tiles of products in the CPU class: rows by vectors of 16 columns that are summed at a time.

The sums of a tile must be enough to hide an addition's latency and few enough to stay in registers: 32 of AVX-512, or
16 of half the width. What a tile loses against the best was measured on such CPUs, over the layers of ResNet-50.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

LANES: Final = 16


class Tile(NamedTuple):
    """A register tile: rows, and vectors of 16 columns."""

    rows: int
    vectors: int


_WIDE: Final = {
    Tile(6, 4): 1.0,
    Tile(5, 4): 1.04,
    Tile(5, 5): 0.99,
    Tile(8, 3): 1.0,
    Tile(7, 3): 1.0,
    Tile(8, 2): 1.04,
    Tile(7, 2): 1.05,
    Tile(6, 2): 1.09,
    Tile(4, 4): 1.12,
    Tile(12, 1): 1.22,
    Tile(8, 1): 1.25,
    Tile(4, 1): 1.9,
    Tile(4, 2): 1.4,
    Tile(2, 4): 1.6,
    Tile(1, 8): 1.9,
    Tile(1, 4): 2.2,
    Tile(1, 2): 4.0,
    Tile(1, 1): 8.0,
}
_NARROW: Final = {Tile(6, 1): 1.0, Tile(5, 1): 1.1, Tile(4, 1): 1.2, Tile(2, 2): 1.3, Tile(1, 4): 1.6, Tile(1, 1): 4.0}


def candidates(columns: int, vector_width: int) -> list[Tile]:
    """The tiles worth trying for so many columns, the plainest first."""
    panels = -(-columns // LANES)
    found = [t for t in (_WIDE if vector_width >= LANES else _NARROW) if t.vectors <= panels]
    return sorted(found, key=lambda t: (t.vectors, t.rows))


def tile_for(
    rows: int, columns: int, vector_width: int, fits: Callable[[int], bool] = lambda _: True
) -> tuple[Tile, float]:
    """The tile that computes rows x columns with the least loss, and its cost in rows of one vector.

    Args:
        rows: of the result, for one item.
        columns: of the result.
        vector_width: of the device, in floats.
        fits: which numbers of vectors a tile may have; one always fits.
    """
    panels = -(-columns // LANES)

    def cost(tile: Tile, loss: float) -> float:
        return -(-rows // tile.rows) * tile.rows * -(-panels // tile.vectors) * tile.vectors * loss

    table = _WIDE if vector_width >= LANES else _NARROW
    costs = {tile: cost(tile, loss) for tile, loss in table.items() if tile.vectors == 1 or fits(tile.vectors)}
    best = min(costs, key=lambda tile: costs[tile])
    return best, costs[best]
