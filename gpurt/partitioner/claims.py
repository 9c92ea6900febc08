"""Claims of several nodes that get in each other's way: one is kept whole, and the other's provider is asked again.

A claim is compiled as one or not at all. So where two providers want a node for different claims, or a pin takes a node
out of one, the provider that does not get the node says what it can do without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gpurt.partitioner.placement import Candidates, Option

Ask = Callable[[int, frozenset[str]], tuple[list[tuple[int, tuple[str, ...]]], dict[str, Option | None]]]
"""What a provider (by position) can do if these nodes are not offered to it: its claims of several nodes, and an option
for each node."""


def settle(candidates: Candidates, ask: Ask, seconds: Callable[[str, int], float]) -> None:
    """Take claims out of the candidates until none contradicts a pin or another claim.

    Args:
        candidates: changed in place.
        ask: see Ask.
        seconds: what a node would take on a provider; of claims that overlap the one that saves more is kept, and the
            one of the earlier provider where that is equal.
    """
    blocked: dict[int, frozenset[str]] = {}

    def without(position: int, names: frozenset[str]) -> bool:
        """Whether there is a way to run everything if a provider does not get some nodes; then it is taken."""
        wanted = blocked.get(position, frozenset()) | names
        groups, options = ask(position, wanted)
        for name, option in options.items():
            others = (o for p, o in enumerate(candidates.options[name]) if p != position)
            if option is None and not any(others):
                return False
        blocked[position] = wanted
        candidates.groups = [g for g in candidates.groups if g[0] != position] + groups
        for name, option in options.items():
            candidates.options[name][position] = option
        return True

    def saved(group: tuple[int, tuple[str, ...]]) -> float:
        """Seconds that a claim saves against running its nodes where that is quickest otherwise."""
        position, members = group
        total = 0.0
        for name in members:
            others = [seconds(name, p) for p, o in enumerate(candidates.options[name]) if o and p != position]
            if not others:
                return math.inf
            total += min(others) - seconds(name, position)
        return total

    def collide(one: tuple[int, tuple[str, ...]], two: tuple[int, tuple[str, ...]]) -> bool:
        """Whether claims share nodes, and neither provider could run the nodes of both."""
        both = {*one[1], *two[1]}
        if one[0] == two[0] or len(both) == len(one[1]) + len(two[1]):
            return False
        return not any(all(candidates.options[n][p] == Option("native") for n in both) for p in (one[0], two[0]))

    def step() -> bool:
        """Mend one contradiction; False if there is none, or none that can be mended."""
        groups = [(p, tuple(n for n in members if n in candidates.options)) for p, members in candidates.groups]
        for position, members in groups:
            elsewhere = {n for n in members if candidates.pinned.get(n, ("", position))[1] != position}
            here = any(candidates.pinned.get(n, ("", -1))[1] == position for n in members)
            if elsewhere and here and without(position, frozenset(elsewhere)):
                return True
        for i, one in enumerate(groups):
            for two in groups[i + 1 :]:
                if collide(one, two):
                    shared = frozenset(one[1]) & frozenset(two[1])
                    loser, winner = (one, two) if saved(two) > saved(one) else (two, one)
                    if without(loser[0], shared) or without(winner[0], shared):
                        return True
        return False

    while step():
        pass
