"""Blocks of device memory for values that come to a device between plans, kept from run to run.

A loop's body reads values of the graph around it that no plan has a place for. Runs of the same shapes want the same
blocks again; so that they allocate nothing, a block stays for some runs before it goes back to the arena.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final

from gpurt.provider import Arena, BufferRef

PATIENCE: Final = 4  # runs after which a block that none of them took goes back


_Blocks = dict[tuple[int, int], list[tuple[int, Arena, BufferRef]]]


class Reserve:
    """The idle blocks of a session, by space and size; runs of several threads share it."""

    def __init__(self) -> None:
        self._blocks: _Blocks = {}
        self._runs = 0
        weakref.finalize(self, _free_all, self._blocks)  # an arena may be shared, and live on
        self._lock = threading.RLock()  # the garbage collector may end a lease in the midst of a call

    def take(self, space: int, nbytes: int) -> BufferRef | None:
        """A block of the size; None if there is none."""
        with self._lock:
            blocks = self._blocks.get((space, nbytes))
            return blocks.pop()[2] if blocks else None

    def keep(self, space: int, nbytes: int, arena: Arena, ref: BufferRef) -> None:
        """Take a block back that no queue uses any more."""
        with self._lock:
            self._blocks.setdefault((space, nbytes), []).append((self._runs, arena, ref))

    def ended(self) -> None:
        """A run has ended: what was idle for too many goes back to its arena."""
        with self._lock:
            self._runs += 1
            if self._blocks:
                self._free(self._runs - PATIENCE)

    def release(self) -> None:
        """Give all idle blocks back to their arenas."""
        with self._lock:
            self._free(self._runs + 1)

    def _free(self, before: int) -> None:
        for key, blocks in list(self._blocks.items()):
            for _, arena, ref in (b for b in blocks if b[0] < before):
                arena.free(ref)
            self._blocks[key] = [b for b in blocks if b[0] >= before]
            if not self._blocks[key]:
                del self._blocks[key]


def _free_all(blocks: _Blocks) -> None:
    for _, arena, ref in (b for group in blocks.values() for b in group):
        arena.free(ref)
    blocks.clear()
