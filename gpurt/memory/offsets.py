"""Offsets for values of a plan: lifetimes in, places in as few and as small blocks as possible out.

Greedy by size: the largest value first, each at the lowest offset that is free during its whole lifetime (Pisarchyk and
Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). Pure arithmetic; no device is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value needs nbytes from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each value lies: (block, offset) by position, and the bytes of each block."""

    places: Sequence[tuple[int, int]]
    blocks: Sequence[int]

    @property
    def peak(self) -> int:
        """Bytes of all blocks."""
        return sum(self.blocks)


def assign(lifetimes: Sequence[Lifetime], alignment: int, max_block: int) -> Layout:
    """Place values; offsets are multiples of the alignment, no block is larger than max_block unless one value is."""
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].nbytes, lifetimes[i].first))
    placed: list[list[tuple[int, int, Lifetime]]] = []  # by block: (offset, end, lifetime), sorted by offset
    sizes: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lifetimes)
    for i in order:
        life = lifetimes[i]
        size = -(-max(life.nbytes, 1) // alignment) * alignment
        for block in range(len(placed) + 1):
            if block == len(placed):
                placed.append([])
                sizes.append(0)
            offset = _lowest(placed[block], life, size)
            if offset + size <= max_block or not placed[block]:
                placed[block].append((offset, offset + size, life))
                placed[block].sort(key=lambda entry: entry[0])
                sizes[block] = max(sizes[block], offset + size)
                places[i] = (block, offset)
                break
    return Layout(places, sizes)


def _lowest(entries: Sequence[tuple[int, int, Lifetime]], life: Lifetime, size: int) -> int:
    """Smallest gap that fits among the values alive at the same time, else the end of the last of them."""
    best, best_gap, end = -1, 1 << 62, 0
    for offset, stop, other in entries:
        if other.last < life.first or other.first > life.last:
            continue
        gap = offset - end
        if gap >= size and gap < best_gap:
            best, best_gap = end, gap
        end = max(end, stop)
    return best if best >= 0 else end


def lower_bound(lifetimes: Sequence[Lifetime], alignment: int) -> int:
    """Largest sum of bytes alive at one step, each rounded up to the alignment: no layout can be smaller."""
    change: dict[int, int] = {}
    for life in lifetimes:
        size = -(-max(life.nbytes, 1) // alignment) * alignment
        change[life.first] = change.get(life.first, 0) + size
        change[life.last + 1] = change.get(life.last + 1, 0) - size
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most
