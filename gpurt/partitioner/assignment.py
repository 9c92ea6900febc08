"""Which of several devices takes each vertex, so that work plus copies cost least.

Two labels: an exact minimum cut, with one auxiliary vertex for each copy that several readers share. More labels:
alpha-beta swaps (Boykov, Veksler and Zabih, 2001), each of them such a cut, from several starting points. What a swap
asks is first reduced: a vertex that gains more from one side than all copies around it cost is settled there, and a
value's maker and only reader are one vertex where the copy costs more than either could gain by leaving the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from gpurt.partitioner.maxflow import INFINITE, FlowGraph

_STEPS: Final = 3_000_000  # of a cut, about a second; past that the moves of whole islands have to do
_ROUNDS: Final = 6
_MANY: Final = 2000  # vertices from which on time matters more than another starting point


@dataclass(frozen=True, slots=True)
class Net:
    """A value: the vertex that makes it, those that read it, and what its copies cost.

    Attributes:
        source: vertex.
        sinks: vertices, each once.
        read: by space, seconds to bring the value from there to the host.
        write: by space, seconds to bring it from the host to there.
    """

    source: int
    sinks: Sequence[int]
    read: Sequence[float]
    write: Sequence[float]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be decided.

    Attributes:
        unary: by vertex and label, seconds; infinite where the label cannot take the vertex. One is finite.
        nets: the values.
        spaces: by label, the number of its memory space; 0 is the host's. Labels of one space need no copies.
    """

    unary: Sequence[Sequence[float]]
    nets: Sequence[Net]
    spaces: Sequence[int]

    def cost(self, labels: Sequence[int]) -> float:
        """Seconds of work and copies under an assignment."""
        work = sum(row[label] for row, label in zip(self.unary, labels, strict=True))
        return work + sum(self.copies(n, labels) for n in self.nets)

    def copies(self, net: Net, labels: Sequence[int]) -> float:
        """Seconds of the copies of one value: one read from its maker's device, one write to each other device."""
        return transfer(net, self.spaces[labels[net.source]], {self.spaces[labels[s]] for s in net.sinks})


def transfer(net: Net, home: int, wanted: set[int]) -> float:
    """Seconds to bring a value from its home space to all others where it is wanted."""
    away = wanted - {home}
    if not away:
        return 0.0
    return (net.read[home] if home else 0.0) + sum(net.write[s] for s in away if s)


def solve(problem: Problem) -> list[int]:
    """Labels of all vertices: optimal for two labels, a strong local optimum for more."""
    count = len(problem.spaces)
    cheapest = [min(range(count), key=row.__getitem__) for row in problem.unary]
    starts = [cheapest]
    for label in range(count):
        whole = [label if row[label] < math.inf else c for row, c in zip(problem.unary, cheapest, strict=True)]
        if whole not in starts:
            starts.append(whole)
    if count <= 2:
        starts = starts[:1]  # one cut is the optimum from anywhere
    elif len(problem.unary) > _MANY:
        starts = starts[:2]
    found = [_improved(problem, list(start)) for start in starts]
    return min(found, key=problem.cost)


def _improved(problem: Problem, labels: list[int]) -> list[int]:
    pairs = list(combinations(range(len(problem.spaces)), 2))
    best = problem.cost(labels)
    for _ in range(_ROUNDS):
        before = best
        for a, b in pairs:
            trial = _Swap(problem, labels, a, b).solve()
            cost = problem.cost(trial)
            if cost < best - 1e-12:
                labels, best = trial, cost
        if len(pairs) > 1:
            labels, best = _islands(problem, labels, best)
        if best >= before - 1e-12 or len(pairs) == 1:
            break
    return labels


def _islands(problem: Problem, labels: list[int], best: float) -> tuple[list[int], float]:
    """Move whole connected sets of one label, and single vertices, wherever that is cheaper."""
    touching: list[list[int]] = [[] for _ in labels]
    for i, net in enumerate(problem.nets):
        for vertex in {net.source, *net.sinks}:
            touching[vertex].append(i)
    single = [[v] for v in range(len(labels))]
    for island in [*_components(problem, labels), *single]:
        nets = {i for v in island for i in touching[v]}
        now = _local(problem, labels, island, nets)
        for label in range(len(problem.spaces)):
            if any(problem.unary[v][label] == math.inf for v in island):
                continue
            kept = [labels[v] for v in island]
            for v in island:
                labels[v] = label
            cost = _local(problem, labels, island, nets)
            if cost < now - 1e-12:
                best, now = best - (now - cost), cost
            else:
                for v, label_before in zip(island, kept, strict=True):
                    labels[v] = label_before
    return labels, best


def _local(problem: Problem, labels: Sequence[int], island: Sequence[int], nets: Iterable[int]) -> float:
    """Seconds of some vertices' work and of the copies of some values."""
    work = sum(problem.unary[v][labels[v]] for v in island)
    return work + sum(problem.copies(problem.nets[i], labels) for i in nets)


def _components(problem: Problem, labels: Sequence[int]) -> list[list[int]]:
    parent = list(range(len(labels)))
    for net in problem.nets:
        for sink in net.sinks:
            if labels[sink] == labels[net.source]:
                parent[find(parent, sink)] = find(parent, net.source)
    sets: dict[int, list[int]] = {}
    for v in range(len(labels)):
        sets.setdefault(find(parent, v), []).append(v)
    return [s for s in sets.values() if len(s) > 1]


def find(parent: list[int], i: int) -> int:
    """Root of an element of a union-find forest, with path halving."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


class _Swap:
    """All vertices labelled a or b choose again between the two; side 0 is a, side 1 is b."""

    def __init__(self, problem: Problem, labels: Sequence[int], a: int, b: int) -> None:
        self._problem = problem
        self._labels = list(labels)
        self._pair = (a, b)
        self._spaces = (problem.spaces[a], problem.spaces[b])
        rows = problem.unary
        self._free = {
            v for v, label in enumerate(labels)
            if label in (a, b) and rows[v][a] < math.inf and rows[v][b] < math.inf
        }  # fmt: skip

    def solve(self) -> list[int]:
        """The best labels that differ from the given ones only by a and b."""
        a, b = self._pair
        while self._free:
            gain = {v: self._problem.unary[v][b] - self._problem.unary[v][a] for v in self._free}
            bound = dict.fromkeys(self._free, 0.0)
            terms = self._terms(gain)
            for source, sinks, one, two in terms:
                for v in (*sinks, *([source] if source is not None else [])):
                    bound[v] += max(one, two)
            settled = [v for v in self._free if abs(gain[v]) >= bound[v]]
            if not settled:
                self._cut(gain, bound, terms)
                break
            for v in settled:
                self._labels[v] = a if gain[v] >= 0 else b
            self._free.difference_update(settled)
        return self._labels

    def _terms(self, gain: dict[int, float]) -> list[tuple[int | None, list[int], float, float]]:
        """What the values cost beyond the vertices themselves; contributions of single vertices go into `gain`.

        A term (maker, readers, x, y) costs x if the maker is on side 0 and a reader on side 1, and y the other way
        round. Without a maker it costs x if any reader is on side 0, and y if any is on side 1.
        """
        terms: list[tuple[int | None, list[int], float, float]] = []
        spaces, (side0, side1) = self._problem.spaces, self._spaces
        if side0 == side1:
            return terms
        for net in self._problem.nets:
            sinks = [s for s in net.sinks if s in self._free]
            maker_free = net.source in self._free
            if not sinks and not maker_free:
                continue
            fixed = {spaces[self._labels[s]] for s in net.sinks if s not in self._free}
            if maker_free:
                base0, base1 = transfer(net, side0, fixed), transfer(net, side1, fixed)
                gain[net.source] += base1 - base0
                sinks = [s for s in sinks if s != net.source]
                if sinks:
                    one = transfer(net, side0, fixed | {side1}) - base0
                    two = transfer(net, side1, fixed | {side0}) - base1
                    if one > 0 or two > 0:
                        terms.append((net.source, sinks, one, two))
                continue
            home = spaces[self._labels[net.source]]
            base = transfer(net, home, fixed)
            one = transfer(net, home, fixed | {side0}) - base
            two = transfer(net, home, fixed | {side1}) - base
            if home not in (side0, side1):  # either way the value leaves its home: only the writes differ
                shared = min(one, two, net.read[home] if home and not fixed - {home} else 0.0)
                one, two = one - shared, two - shared
            if len(sinks) == 1:
                gain[sinks[0]] += two - one
            elif one > 0 or two > 0:
                terms.append((None, sinks, one, two))
        return terms

    def _cut(
        self, gain: dict[int, float], bound: dict[int, float], terms: list[tuple[int | None, list[int], float, float]]
    ) -> None:
        parent = {v: v for v in self._free}

        def root(v: int) -> int:
            while parent[v] != v:
                parent[v] = parent[parent[v]]
                v = parent[v]
            return v

        around = dict(bound)  # of a merged vertex what the other terms could pull
        changed = True
        while changed:
            changed = False
            for source, sinks, one, two in terms:
                if source is None or len(sinks) != 1:
                    continue
                p, q = root(source), root(sinks[0])
                if p == q:
                    continue
                most, least = max(one, two), min(one, two)
                if min(abs(gain[p]) + around[p], abs(gain[q]) + around[q]) - most <= least:
                    parent[q] = p
                    gain[p] += gain[q]
                    around[p] += around[q] - 2 * most
                    changed = True
        flow = FlowGraph()
        vertices = {r: flow.vertex() for r in sorted({root(v) for v in self._free})}
        for r, vertex in vertices.items():
            flow.arc(0, vertex, max(gain[r], 0.0))  # cut when it is on the sink's side, that is b
            flow.arc(vertex, 1, max(-gain[r], 0.0))
        for source, sinks, one, two in terms:
            ends = sorted({vertices[root(s)] for s in sinks})
            maker = None if source is None else vertices[root(source)]
            if maker is not None and maker in ends:
                # One reader is one with the maker: the readers elsewhere are then compared with the maker alone.
                ends.remove(maker)
            if maker is not None and len(ends) == 1:
                flow.arc(maker, ends[0], one, two)
            elif ends:
                _shared(flow, maker, ends, one, two)
        side = flow.cut(_STEPS)
        if side is None:
            self._labels, _ = _islands(self._problem, self._labels, 0.0)
            return
        for v in self._free:
            self._labels[v] = self._pair[0] if side[vertices[root(v)]] else self._pair[1]


def _shared(flow: FlowGraph, maker: int | None, readers: Sequence[int], one: float, two: float) -> None:
    """A copy that all readers on a side share."""
    if maker is None:
        if one > 0:
            aux = flow.vertex()
            flow.arc(aux, 1, one)
            for reader in readers:
                flow.arc(reader, aux, INFINITE)
        if two > 0:
            aux = flow.vertex()
            flow.arc(0, aux, two)
            for reader in readers:
                flow.arc(aux, reader, INFINITE)
        return
    if one > 0:
        aux = flow.vertex()
        flow.arc(maker, aux, one)
        for reader in readers:
            flow.arc(aux, reader, INFINITE)
    if two > 0:
        aux = flow.vertex()
        flow.arc(aux, maker, two)
        for reader in readers:
            flow.arc(reader, aux, INFINITE)
