"""The arena of a device: regions taken from the driver, cut into chunks, handed out best fit, coalesced when freed.

Pure arithmetic over two callbacks; it never touches a device itself. The scheme is best fit with coalescing as in
ONNX Runtime's BFCArena, without bins: plans allocate few large blocks, so a sorted scan is cheap.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpurt.errors import InvalidArgument, OutOfMemory
from gpurt.provider import BufferRef

STRATEGIES = ("next_power_of_two", "same_as_requested")
INITIAL: Final = 1 << 20
MAX_EXTEND: Final = 1 << 30


@dataclass(slots=True, eq=False)
class _Region:
    buffer: Any
    nbytes: int
    free: list[tuple[int, int]] = field(default_factory=list)  # (offset, length), sorted, never adjacent


class RegionArena:
    """Region based arena over a driver's alloc and free.

    Args:
        alloc: bytes -> buffer; raises MemoryError (or OutOfMemory) when the device has no room.
        free: gives a buffer back to the device.
        alignment: in bytes, a power of two; offsets and lengths are multiples of it.
        max_block: largest single allocation that the device allows, in bytes.
        limit: most bytes held from the device at once, reserved ones included; None for no limit.
        strategy: ``next_power_of_two`` doubles the size of new regions, ``same_as_requested`` takes what is asked for.
        initial: bytes of the first region under ``next_power_of_two``; 1 MiB if None.
        max_extend: bytes up to which that strategy doubles; larger regions are made for larger requests only. 1 GiB if
            None. Where there is a limit, the two are at most a sixteenth of it unless they are given: what one plan
            has in reserve is room that the weights of a later one lack.
        name: the device, for messages.
    """

    def __init__(
        self,
        alloc: Callable[[int], Any],
        free: Callable[[Any], None],
        *,
        alignment: int = 128,
        max_block: int = 1 << 62,
        limit: int | None = None,
        strategy: str = "next_power_of_two",
        initial: int | None = None,
        max_extend: int | None = None,
        name: str = "device",
    ) -> None:
        if not (isinstance(strategy, str) and strategy in STRATEGIES):
            raise InvalidArgument(
                f"arena_extend_strategy is {strategy!r}", remedy=f"Use one of {', '.join(STRATEGIES)}"
            )
        self.alignment = alignment
        self.max_block = max_block - max_block % alignment
        self._alloc, self._free = alloc, free
        self._limit, self._strategy, self._name = limit, strategy, name
        most = MAX_EXTEND if limit is None else max(limit // 16 // alignment * alignment, alignment)
        self._next = min(INITIAL, most) if initial is None else initial
        self._max_extend = min(MAX_EXTEND, most) if max_extend is None else max_extend
        self._regions: list[_Region] = []
        # Buffers of some drivers are mere addresses: nothing but this gives them back when the arena goes.
        weakref.finalize(self, _free_all, self._regions, free).atexit = False
        # What was given back and is not yet entered: the garbage collector may free from within any call, one of this
        # arena's included, and must not wait for a lock that its own thread holds.
        self._returned: deque[BufferRef | int] = deque()
        self._lock = threading.Lock()
        self._in_use = self._held = self._peak = self._allocations = self._extensions = self._reserved = 0

    def alloc(self, nbytes: int) -> BufferRef:
        """A block of nbytes rounded up to the alignment.

        Raises OutOfMemory with what was asked, held and the limit.
        """
        size = -(-max(nbytes, 1) // self.alignment) * self.alignment
        with self._lock:
            self._settle()
            place = self._best_fit(size) or self._extend(size)
            region, slot = place
            offset, length = region.free[slot]
            if length == size:
                del region.free[slot]
            else:
                region.free[slot] = (offset + size, length - size)
            self._in_use += size
            self._peak = max(self._peak, self._in_use)
            self._allocations += 1
            return BufferRef(region.buffer, offset, size)

    def free(self, ref: BufferRef) -> None:
        """Give a block back; it never waits."""
        self._returned.append(ref)
        self._try_settle()

    def reserve(self, nbytes: int) -> None:
        """Count memory beside the arena (weights) against its limit; negative to give it back, which never waits.

        Raises OutOfMemory with what was asked, held and the limit.
        """
        if nbytes < 0:
            self._returned.append(nbytes)
            self._try_settle()
            return
        with self._lock:
            self._settle()
            if self._over(nbytes):
                self._shrink()
                if self._over(nbytes):
                    raise self._exhausted(nbytes)
            self._reserved += nbytes

    def shrink(self) -> int:
        """Give regions that hold nothing back to the device; returns the bytes freed."""
        with self._lock:
            self._settle()
            return self._shrink()

    def stats(self) -> Mapping[str, int]:
        """Bytes in_use, held, peak, reserved and limit (0: none); counts of allocations and extensions."""
        with self._lock:
            self._settle()
            return {
                "in_use": self._in_use,
                "held": self._held,
                "peak": self._peak,
                "reserved": self._reserved,
                "limit": self._limit or 0,
                "allocations": self._allocations,
                "extensions": self._extensions,
            }

    def _try_settle(self) -> None:
        """Enter what was given back, unless somebody holds the lock: then the next call that takes it does."""
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._returned:
            entry = self._returned.popleft()
            if isinstance(entry, BufferRef):
                self._enter(entry)
            else:
                self._reserved += entry

    def _enter(self, ref: BufferRef) -> None:
        """A block is free again; neighbouring free chunks become one."""
        region = next(r for r in self._regions if r.buffer is ref.buffer)
        chunks = sorted([*region.free, (ref.offset, ref.nbytes)])
        merged = [chunks[0]]
        for offset, length in chunks[1:]:
            last, size = merged[-1]
            if last + size == offset:
                merged[-1] = (last, size + length)
            else:
                merged.append((offset, length))
        region.free = merged
        self._in_use -= ref.nbytes

    def _shrink(self) -> int:
        empty = [r for r in self._regions if r.free == [(0, r.nbytes)]]
        for region in empty:
            self._regions.remove(region)
            self._free(region.buffer)
        freed = sum(r.nbytes for r in empty)
        self._held -= freed
        return freed

    def _best_fit(self, size: int) -> tuple[_Region, int] | None:
        best: tuple[int, _Region, int] | None = None
        for region in self._regions:
            for slot, (_, length) in enumerate(region.free):
                if length >= size and (best is None or length < best[0]):
                    best = (length, region, slot)
        return None if best is None else (best[1], best[2])

    def _extend(self, size: int) -> tuple[_Region, int]:
        if size > self.max_block:
            raise OutOfMemory(
                f"{self._name}: {size} bytes asked for in one piece, the device allows {self.max_block}",
                remedy="Use a smaller batch, or run the layer on another provider",
            )
        want = size
        if self._strategy == "next_power_of_two":
            while self._next < size and self._next < self._max_extend:
                self._next *= 2
            want = max(min(self._next, self.max_block), size)
        if self._over(want):
            want = size  # near the limit only what is needed is taken
            if self._over(want):
                self._shrink()
            if self._over(want):
                raise self._exhausted(size)
        try:
            buffer = self._alloc(want)
        except MemoryError:
            self._shrink()
            want = size
            try:
                buffer = self._alloc(want)
            except MemoryError as e:
                raise self._exhausted(size) from e
        if self._strategy == "next_power_of_two":
            self._next = min(self._next * 2, max(self._max_extend, self._next))
        region = _Region(buffer, want, [(0, want)])
        self._regions.append(region)
        self._held += want
        self._extensions += 1
        return region, 0

    def _over(self, more: int) -> bool:
        return self._limit is not None and self._held + self._reserved + more > self._limit

    def _exhausted(self, size: int) -> OutOfMemory:
        limit = "none" if self._limit is None else f"{self._limit}"
        return OutOfMemory(
            f"{self._name}: out of memory, {size} bytes asked for, {self._held} held, {self._in_use} in use, "
            f"{self._reserved} weights, limit {limit}",
            remedy="Raise memory_limit, use smaller inputs, or open the session with expected_shapes of this size, so "
            "that the next provider gets the layers that do not fit",
        )


def _free_all(regions: list[_Region], free: Callable[[Any], None]) -> None:
    while regions:
        free(regions.pop().buffer)
