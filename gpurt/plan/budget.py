"""The memory limit of a device as the plans of a session share it, where weights are streamed.

A run may need several plans at once: those of a graph and of a loop's body in it, those before and behind a cut. What
of their weights stays on the device must leave room for the memory of all of them. A plan that is made first does not
know of those behind it: if the memory is short then, all are made again, knowing each other.
"""

from __future__ import annotations

import threading
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

    def stays(self, space: int, demand: Demand) -> int:
        """See Budget.stays."""
        return self.budget.stays(space, self.place, demand)


class Budget:
    """What the plans of a session demand, by space and place; of plans for several shapes the newest counts.

    Args:
        memories: by space; None for the host.
    """

    def __init__(self, memories: Sequence[DeviceMemory | None]) -> None:
        self._memories = memories
        self._demands: dict[int, dict[Place, Demand]] = {}
        self._tight = False
        self._lock = threading.Lock()

    def limit(self, space: int, place: Place) -> int:
        """Bytes that a plan may take with all its weights, as far as others are known; 0 if there is no limit.

        Levels that ran later are a loop's bodies, whose weights would be copied at each turn: theirs stay first.
        """
        memory = self._memories[space]
        limit = 0 if memory is None else int(memory.arena.stats().get("limit", 0))
        if not limit:
            return 0
        with self._lock:
            others = [(p, d) for p, d in self._demands.get(space, {}).items() if p != place]
        taken = sum(d.least + (d.weights if p > place and not self._tight else 0) for p, d in others)
        return max(limit - taken, 1)

    def stays(self, space: int, place: Place, demand: Demand) -> int:
        """Note what a plan needs; returns how many bytes of its weights may stay on the device."""
        with self._lock:
            self._demands.setdefault(space, {})[place] = demand
        return 0 if self._tight else max(0, min(demand.weights, self.limit(space, place) - demand.least))

    def share(self, place: Place) -> Share:
        """What a plan at a place asks."""
        return Share(self, place)

    def known(self) -> dict[int, dict[Place, Demand]]:
        """All demands, to be compared or put back later."""
        with self._lock:
            return {space: dict(demands) for space, demands in self._demands.items()}

    def knew(self, demands: Mapping[int, Mapping[Place, Demand]]) -> bool:
        """Whether all places of plans are among those demands."""
        with self._lock:
            return all(found.keys() <= demands.get(space, {}).keys() for space, found in self._demands.items())

    def tighten(self) -> bool:
        """Let no weights stay from now on that can be streamed; False if that is so already, or none are streamed."""
        with self._lock:
            found = not self._tight and any(self._demands.values())
            self._tight = self._tight or found
            return found

    def reset(self, demands: dict[int, dict[Place, Demand]]) -> None:
        """Go back to what was known before."""
        with self._lock:
            self._demands, self._tight = demands, False
