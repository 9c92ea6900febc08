"""What a run uses of the memory of devices: what its plans reserve, what any layout would need, what it allocates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Usage:
    """Bytes by memory space over the course of one run; it belongs to the run's thread.

    Plans of a run overlap in time: a loop's body runs while the plan around it waits, and what a plan yields lives
    until its last reader is done. So both figures are sums over what is alive at once, and the largest is kept.

    Attributes:
        peak: most bytes that the plans alive at once reserve.
        bound: most bytes of values alive at once: no layout of the same steps could be smaller.
        allocations: blocks taken from the device's arena.
        streamed: bytes of weights that were copied to the device because they do not all stay there.
    """

    peak: dict[int, int] = field(default_factory=dict)
    bound: dict[int, int] = field(default_factory=dict)
    allocations: dict[int, int] = field(default_factory=dict)
    streamed: dict[int, int] = field(default_factory=dict)
    _reserved: dict[int, int] = field(default_factory=dict)
    _alive: dict[int, int] = field(default_factory=dict)

    def begin(self, sizes: Mapping[int, int], bounds: Mapping[int, int]) -> None:
        """A plan starts that reserves `sizes` and has values of `bounds` bytes alive at its fullest step."""
        for space, nbytes in sizes.items():
            now = self._reserved[space] = self._reserved.get(space, 0) + nbytes
            self.peak[space] = max(self.peak.get(space, 0), now)
        for space, nbytes in bounds.items():
            self.bound[space] = max(self.bound.get(space, 0), self._alive.get(space, 0) + nbytes)

    def yielded(self, outputs: Mapping[int, int]) -> None:
        """A plan is done, but for its outputs, which stay alive."""
        for space, nbytes in outputs.items():
            self._alive[space] = self._alive.get(space, 0) + nbytes

    def end(self, sizes: Mapping[int, int], outputs: Mapping[int, int]) -> None:
        """The last output of a plan went, and its memory with it."""
        for space, nbytes in sizes.items():
            self._reserved[space] -= nbytes
        for space, nbytes in outputs.items():
            self._alive[space] -= nbytes

    def allocated(self, space: int, count: int) -> None:
        """Blocks were taken from the arena of a space."""
        self.allocations[space] = self.allocations.get(space, 0) + count

    def copied(self, space: int, nbytes: int) -> None:
        """A plan copies so many bytes of weights."""
        self.streamed[space] = self.streamed.get(space, 0) + nbytes
