"""Minimum cuts: Dinic's algorithm (1970) over lists, for the graphs that placement leaves after its reductions."""

from __future__ import annotations

from collections import deque
from typing import Final

INFINITE: Final = 1e30
_TINY: Final = 1e-15  # seconds; what is left on an arc below this is rounding


class FlowGraph:
    """Arcs with capacities between numbered vertices; 0 is the source, 1 the sink."""

    def __init__(self) -> None:
        self._arcs: list[list[int]] = [[], []]  # of each vertex the numbers of its arcs; arc ^ 1 is the way back
        self._to: list[int] = []
        self._capacity: list[float] = []

    def vertex(self) -> int:
        """A new vertex."""
        self._arcs.append([])
        return len(self._arcs) - 1

    def arc(self, tail: int, head: int, capacity: float, back: float = 0.0) -> None:
        """An arc, and one back."""
        if capacity <= 0 and back <= 0:
            return
        self._arcs[tail].append(len(self._to))
        self._arcs[head].append(len(self._to) + 1)
        self._to += (head, tail)
        self._capacity += (capacity, back)

    def cut(self, most: int) -> list[bool] | None:
        """For each vertex whether it is on the source's side of a minimum cut; None if that takes over `most` steps."""
        steps = 0
        while True:
            level = self._levels()
            if level[1] < 0:
                return [n >= 0 for n in level]
            steps += len(self._to) + self._saturate(level)
            if steps > most:
                return None

    def _levels(self) -> list[int]:
        to, capacity = self._to, self._capacity
        level = [-1] * len(self._arcs)
        level[0] = 0
        queue = deque([0])
        while queue:
            vertex = queue.popleft()
            for arc in self._arcs[vertex]:
                head = to[arc]
                if level[head] < 0 and capacity[arc] > _TINY:
                    level[head] = level[vertex] + 1
                    queue.append(head)
        return level

    def _saturate(self, level: list[int]) -> int:
        """A blocking flow along rising levels; returns the number of arcs looked at."""
        to, capacity, arcs = self._to, self._capacity, self._arcs
        position = [0] * len(arcs)
        path: list[int] = []
        vertex = steps = 0
        while True:
            steps += 1
            if vertex == 1:
                flow = min(capacity[a] for a in path)
                first = len(path)
                for i in range(len(path) - 1, -1, -1):
                    arc = path[i]
                    capacity[arc] -= flow
                    capacity[arc ^ 1] += flow
                    if capacity[arc] <= _TINY:
                        first = i
                steps += len(path)
                vertex = to[path[first] ^ 1]
                del path[first:]
                continue
            here, rising = arcs[vertex], level[vertex] + 1
            while position[vertex] < len(here):
                arc = here[position[vertex]]
                if capacity[arc] > _TINY and level[to[arc]] == rising:
                    break
                position[vertex] += 1
            if position[vertex] < len(here):
                path.append(here[position[vertex]])
                vertex = to[path[-1]]
            elif path:
                vertex = to[path.pop() ^ 1]
                position[vertex] += 1
            else:
                return steps
