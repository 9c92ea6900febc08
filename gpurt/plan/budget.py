"""The memory limit of a device as the plans of a session share it, where weights are streamed.

A run may need several plans at once: those of a graph and of a loop's body in it, those before and behind a cut. What
of their weights stays on the device must leave room for the memory of all of them. A plan that is made first does not
know of those behind it: if the memory is short then, all are made again, knowing each other. Of branches only one runs,
and yet both are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpurt.provider import DeviceMemory

Place = tuple[int, int]
"""Where a plan begins: number of its graph level, in the order in which levels first ran, and of its first item."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a plan needs on a device, in bytes.

    Attributes:
        least: with all weights streamed that can be, values and what stays anyway.
        weights: those that may stay besides.
    """

    least: int
    weights: int


Demands = Mapping[tuple[int, Place], Demand]
"""By memory space and place; never changed, but replaced by another."""


class Budget:
    """What the plans of a session demand; of plans for several shapes the newest counts.

    Plans are made one at a time, under the session's lock for that.

    Args:
        memories: by space; None for the host.
    """

    def __init__(self, memories: Sequence[DeviceMemory | None]) -> None:
        self._memories = memories
        self._tight = False
        self.demands: Demands = {}

    def share(self, place: Place) -> Share:
        """What a plan at a place asks."""
        return Share(self, place)

    def limit(self, space: int, place: Place) -> int:
        """Bytes that a plan may take with all its weights, as far as others are known; 0 if there is no limit.

        Levels that ran later are a loop's bodies, whose weights would be copied at each turn: theirs stay first.
        """
        memory = self._memories[space]
        limit = 0 if memory is None else int(memory.arena.stats().get("limit", 0))
        others = ((p, d) for (s, p), d in self.demands.items() if s == space and p != place)
        taken = sum(d.least + (d.weights if p > place and not self._tight else 0) for p, d in others)
        return max(limit - taken, 1) if limit else 0

    def stays(self, space: int, place: Place, demand: Demand, limit: int) -> int:
        """Note what a plan needs; returns how many bytes of its weights may stay on the device under its limit."""
        self.demands = {**self.demands, (space, place): demand}
        return 0 if self._tight else max(0, min(demand.weights, limit - demand.least))

    def tighten(self) -> bool:
        """Let no weights stay from now on that can be streamed; False if that is so already, or none are streamed."""
        found = not self._tight and bool(self.demands)
        self._tight = self._tight or found
        return found

    def reset(self, demands: Demands) -> None:
        """Go back to what was known before."""
        self.demands, self._tight = demands, False


@dataclass(frozen=True, slots=True)
class Share:
    """A plan's part of a budget."""

    budget: Budget
    place: Place

    @property
    def inner(self) -> bool:
        """Whether it is a plan of a nested graph."""
        return self.place[0] > 0

    def limit(self, space: int) -> int:
        """See Budget.limit."""
        return self.budget.limit(space, self.place)

    def stays(self, space: int, demand: Demand, limit: int) -> int:
        """See Budget.stays."""
        return self.budget.stays(space, self.place, demand, limit)
