"""Offsets for values of a plan: lifetimes in, places in as few and as small blocks as possible out.

Values are placed one after the other, each in the smallest gap that is free during its whole lifetime (best fit;
Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, who place the largest first). No
single order is good on every model: by size loses a quarter on DenseNet's concatenations, by area a tenth on ResNet. So
several orders are tried until one reaches the lower bound, from the bottom alone and with long lives from the top of
what the bound leaves (two neighbours of a chain with large short lives between them need that); then the best is
improved by moving the value that ends highest to an earlier turn. Pure arithmetic; no device is touched.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

EFFORT: Final = 8000  # placements that improvement may try: some 40 ms for hundreds of values
CLOSE: Final = 1.02  # of the lower bound: where improvement stops
SHORT: Final = 2  # steps after its first that a life may have for it to be short


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


Conflicts = Sequence[frozenset[int]]
"""For each value those that it cannot share memory with, by position, where the order of steps is only partly fixed."""


def assign(lifetimes: Sequence[Lifetime], alignment: int, max_block: int, conflicts: Conflicts | None = None) -> Layout:
    """Place values; offsets are multiples of the alignment, no block is larger than max_block unless one value is.

    Conflicts take the place of overlapping lifetimes, which they include. The same lifetimes give the same layout in
    every process.
    """
    lives = [Lifetime(rounded(v.nbytes, alignment), v.first, v.last) for v in lifetimes]
    if not lives:
        return Layout([], [])
    bound = lower_bound(lives, alignment)
    best: _Trial | None = None
    ceilings = (0, bound) if bound <= max_block else (0,)
    for order, ceiling in ((o, c) for c in ceilings for o in _orders(lives)):
        trial = _Trial(lives, order, max_block, conflicts, ceiling)
        if best is None or trial.peak < best.peak:
            best = trial
        if best.peak <= bound * (CLOSE if ceiling else 1):
            break
    assert best is not None, "there is at least one order"
    return _improved(best, lives, bound, max_block, conflicts).layout()


def lower_bound(lifetimes: Sequence[Lifetime], alignment: int) -> int:
    """Largest sum of bytes alive at one step, each rounded up to the alignment: no layout can be smaller."""
    return max(_loads(lifetimes, alignment).values(), default=0)


def rounded(nbytes: int, alignment: int) -> int:
    """Bytes that a value takes: a multiple of the alignment, not zero."""
    return -(-max(nbytes, 1) // alignment) * alignment


def _loads(lifetimes: Sequence[Lifetime], alignment: int) -> dict[int, int]:
    """Bytes alive from a step on, for each step at which that changes."""
    change: dict[int, int] = {}
    for life in lifetimes:
        size = rounded(life.nbytes, alignment)
        change[life.first] = change.get(life.first, 0) + size
        change[life.last + 1] = change.get(life.last + 1, 0) - size
    alive = 0
    loads = {}
    for step in sorted(change):
        alive += change[step]
        loads[step] = alive
    return loads


class _Trial:
    """One order's placement; lives of more than SHORT steps come from the ceiling down, if there is one."""

    def __init__(
        self,
        lives: Sequence[Lifetime],
        order: Sequence[int],
        max_block: int,
        conflicts: Conflicts | None,
        ceiling: int = 0,
    ) -> None:
        self.order, self.ceiling = list(order), ceiling
        self.places: list[tuple[int, int]] = [(0, 0)] * len(lives)
        self.sizes: list[int] = []
        self.highest = order[0]  # value that ends where the last block grew last
        # By block: (offset, end, first, last), sorted.
        blocks: list[list[tuple[int, int, int, int]]] = []
        for i in order:
            life = lives[i]
            # Under conflicts a value's place in time is its position.
            first, last = (life.first, life.last) if conflicts is None else (i, i)
            for block in range(len(blocks) + 1):
                if block == len(blocks):
                    blocks.append([])
                    self.sizes.append(0)
                entries = blocks[block]
                others, own = entries, life
                if conflicts is not None:
                    others = [(o, e, 0, 0) for o, e, k, _ in entries if k in conflicts[i]]
                    own = Lifetime(life.nbytes, 0, 0)
                offset = -1
                if ceiling and life.last - life.first >= SHORT:
                    offset = _highest(others, own, ceiling)
                if offset < 0:
                    offset = _lowest(others, own)
                end = offset + life.nbytes
                if end <= max_block or not entries:
                    bisect.insort(entries, (offset, end, first, last))
                    self.places[i] = (block, offset)
                    if end > self.sizes[block]:
                        self.sizes[block] = end
                        self.highest = i
                    break
        self.peak = sum(self.sizes)

    def layout(self) -> Layout:
        return Layout(self.places, self.sizes)


def _lowest(entries: Sequence[tuple[int, int, int, int]], life: Lifetime) -> int:
    """Offset of the smallest gap that fits among the values alive at the same time, else the end of the last."""
    size, first, last = life.nbytes, life.first, life.last
    best, best_gap, end = -1, 1 << 62, 0
    for offset, stop, other_first, other_last in entries:
        if other_last < first or other_first > last:
            continue
        gap = offset - end
        if size <= gap < best_gap:
            best, best_gap = end, gap
        if stop > end:
            end = stop
    return best if best >= 0 else end


def _highest(entries: Sequence[tuple[int, int, int, int]], life: Lifetime, ceiling: int) -> int:
    """The largest offset under a ceiling that is free of the values alive at the same time; -1 if there is none."""
    best, end = -1, 0
    for offset, stop, other_first, other_last in entries:
        if other_last < life.first or other_first > life.last:
            continue
        if life.nbytes <= min(offset, ceiling) - end:
            best = min(offset, ceiling) - life.nbytes
        end = max(end, stop)
    return ceiling - life.nbytes if life.nbytes <= ceiling - end else best


def _orders(lives: Sequence[Lifetime]) -> Iterator[list[int]]:
    """Orders that are each the best on some real model."""
    turns = range(len(lives))
    yield sorted(turns, key=lambda i: (-lives[i].nbytes, lives[i].first))
    yield sorted(turns, key=lambda i: -lives[i].nbytes * (lives[i].last - lives[i].first + 1))
    yield sorted(turns, key=lambda i: (lives[i].first, -lives[i].last))
    yield sorted(turns, key=lambda i: (lives[i].first - lives[i].last, -lives[i].nbytes))
    yield sorted(turns, key=lambda i: (-lives[i].last, lives[i].first))
    loads = _loads(lives, 1)
    steps, values = list(loads), list(loads.values())

    def crowd(life: Lifetime) -> int:
        start = bisect.bisect_right(steps, life.first) - 1
        return max(values[start : bisect.bisect_right(steps, life.last)])

    crowds = [crowd(life) for life in lives]
    yield sorted(turns, key=lambda i: (-crowds[i], -lives[i].nbytes))


def _improved(
    best: _Trial, lives: Sequence[Lifetime], bound: int, max_block: int, conflicts: Conflicts | None
) -> _Trial:
    """Give the value that ends highest an earlier turn, again and again; seeded, so that plans are reproducible."""
    turns = random.Random(len(lives))  # noqa: S311 - a search, no secret
    for _ in range(min(64, EFFORT // len(lives))):
        turn = best.order.index(best.highest)
        if best.peak <= bound * CLOSE or turn == 0:
            break
        order = list(best.order)
        order.insert(turns.randrange(turn), order.pop(turn))
        trial = _Trial(lives, order, max_block, conflicts, best.ceiling)
        if trial.peak <= best.peak:
            best = trial
    return best
