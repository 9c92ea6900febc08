"""Placement: of the providers that can run a node, the one with which work and copies of the whole model cost least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from gpurt import dtypes
from gpurt.graph.view import GraphView, NodeView
from gpurt.partitioner.assignment import Net, Problem, find, solve
from gpurt.partitioner.budget import Resident, overflow
from gpurt.partitioner.cost import Work, work
from gpurt.partitioner.estimate import Estimate
from gpurt.partitioner.flow import levels, values
from gpurt.provider import HOST, DeviceMemory, Provider, Rates

PREFERENCE: Final = 3.0
"""The order of the list is the user's wish: a node leaves the first provider that can run it only where that takes this
many times as long as another one, copies counted. It also keeps the noise of measured rates from moving layers."""

_ATTEMPTS: Final = 6  # of fitting the memory limits by taking away what is too many, and nothing else


@dataclass(frozen=True, slots=True)
class Option:
    """How a provider would run a node: "native", "casts" or "body", and how many nodes that makes."""

    way: str
    nodes: int = 1


@dataclass(slots=True)
class Candidates:
    """What the providers said of a model's nodes.

    Attributes:
        options: node name -> by position an Option, or None where the provider cannot.
        groups: claims of several nodes.
        hosted: names of nodes that run on the host whatever is decided.
        pinned: node name -> (key of the pin, position).
    """

    options: dict[str, list[Option | None]] = field(default_factory=dict)
    groups: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    hosted: set[str] = field(default_factory=set)
    pinned: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a node goes, and for each device that could have had it by the list's order the reason why not."""

    position: int
    reasons: Mapping[str, str]


class Placement:
    """Decides for a model.

    Args:
        graph: view of the model before casts and bodies are put in.
        providers, rates: by position; rates are None under greedy partitioning, where the first that can takes a node.
        estimate: the model's shapes.
        candidates: what can run where.
    """

    def __init__(
        self,
        graph: GraphView,
        providers: Sequence[Provider],
        rates: Sequence[Rates] | None,
        estimate: Estimate,
        candidates: Candidates,
    ) -> None:
        self._providers = providers
        self._rates = rates
        self._estimate = estimate
        self._candidates = candidates
        self._levels = levels(graph, estimate.trips)
        self._values = values(graph, self._levels, candidates.hosted, estimate.trips)
        self._reasons: dict[str, dict[str, str]] = {}
        self._order = [n for n in _depth_first(graph) if n.name in candidates.options]
        self._jobs: dict[str, tuple[NodeView, Work]] = {}
        self._times = {n.name: level.times for level in self._levels for n in level.graph.nodes}

    def seconds(self, name: str, position: int) -> float:
        """What a node would take on a provider, copies not counted; infinite where it cannot run there."""
        if not self._jobs:
            self._jobs = {n.name: (n, work(n, *specs_of(n, self._estimate))) for n in self._order}
        option = self._candidates.options[name][position]
        return math.inf if option is None else self._seconds(*self._jobs[name], option, position)

    def decide(self) -> dict[str, Choice]:
        """Node name -> choice, for all nodes with options."""
        names = [n.name for n in self._order]
        vertex = _grouped(names, self._candidates)
        rows, plain = self._unary(vertex)
        nets = self._nets(vertex)
        banned: set[tuple[str, int]] = set()
        labels: list[int] = []
        for attempt in count():
            labels = self._solve(rows, nets)
            owners = {n: labels[vertex[n]] for n in names}
            over = self._over(owners)
            if attempt >= _ATTEMPTS:  # node by node it takes too long: nothing that comes later stays there either
                first = {p: next(i for i, n in enumerate(names) if (n, p) in over) for p in {p for _, p in over}}
                over |= {(n, p) for p, begin in first.items() for n in names[begin:] if owners[n] == p}
            fresh = {
                (n, p) for n, p in over
                if (n, p) not in banned and sum(c < math.inf for c in rows[vertex[n]]) > 1
                and n not in self._candidates.pinned
            }  # fmt: skip
            if not fresh:
                break
            banned |= fresh
            for name, position in fresh:
                if sum(c < math.inf for c in rows[vertex[name]]) > 1:
                    rows[vertex[name]][position] = math.inf
        found = {}
        for name in names:
            position = labels[vertex[name]]
            reasons = dict(self._reasons.get(name, {}))
            for earlier in range(position):
                device = self._providers[earlier].device
                if self._candidates.options[name][earlier] is not None and device not in reasons:
                    here, there = plain[name][position], plain[name][earlier]
                    reasons[device] = (
                        f"work and copies cost less elsewhere (alone {_time(there)} against {_time(here)})"
                    )
            found[name] = Choice(position, reasons)
        return found

    def _solve(self, rows: Sequence[Sequence[float]], nets: Sequence[Net]) -> list[int]:
        if self._rates is None:
            return [next(i for i, c in enumerate(row) if c < math.inf) for row in rows]
        return solve(Problem(rows, nets, spaces(self._providers)))

    def _unary(self, vertex: Mapping[str, int]) -> tuple[list[list[float]], dict[str, list[float]]]:
        count = len(self._providers)
        host = next(i for i, p in enumerate(self._providers) if p.memory_space == HOST)
        rows = [[0.0] * count for _ in range(max(vertex.values(), default=0) + 1)]
        rows[0] = [0.0 if i == host else math.inf for i in range(count)]
        plain: dict[str, list[float]] = {}
        for node in self._order:
            options = self._candidates.options[node.name]
            first = next(i for i, o in enumerate(options) if o is not None)
            times = self._times.get(node.name, 1.0)
            plain[node.name] = []
            pin = self._candidates.pinned.get(node.name)
            for position in range(len(options)):
                cost = self.seconds(node.name, position)
                plain[node.name].append(cost)
                if pin is not None and position != pin[1]:
                    cost = math.inf
                    device = self._providers[position].device
                    self._reasons.setdefault(node.name, {})[device] = f"pinned elsewhere by {pin[0]!r}"
                rows[vertex[node.name]][position] += times * cost * (1.0 if position <= first else PREFERENCE)
        return rows, plain

    def _seconds(self, node: NodeView, job: Work, option: Option, position: int) -> float:
        if self._rates is None:
            return 0.0
        rates = self._rates[position]
        if option.way == "body":
            return option.nodes * (rates.launch + 0.7 * job.nbytes / rates.data)
        seconds = job.seconds(rates)
        if option.way == "casts":
            crossing = [v for v in (*node.inputs, *node.outputs) if v is not None and v.const is None]
            narrow = [v for v in crossing if v.dtype in dtypes.WIDER and dtypes.is_float(v.dtype)]
            seconds += sum(rates.launch + 3 * self._estimate.nbytes(v.name) / rates.data for v in narrow)
        return seconds

    def _nets(self, vertex: Mapping[str, int]) -> list[Net]:
        if self._rates is None:
            return []
        nets = []
        tables: dict[tuple[int, float], tuple[list[float], list[float]]] = {}
        for value in self._values:
            source = vertex.get(value.maker, 0)
            nbytes = self._estimate.nbytes(value.name)
            by_times: dict[float, set[int]] = {}
            for reader, times in value.readers.items():
                if vertex.get(reader, 0) != source:
                    by_times.setdefault(times, set()).add(vertex.get(reader, 0))
            for times, sinks in by_times.items():
                if (nbytes, times) not in tables:
                    tables[nbytes, times] = self._transfers(nbytes, times)
                nets.append(Net(source, sorted(sinks), *tables[nbytes, times]))
        return nets

    def _transfers(self, nbytes: int, times: float) -> tuple[list[float], list[float]]:
        assert self._rates is not None, "asked under cost partitioning alone"
        numbers = spaces(self._providers)
        read, write = [0.0] * (max(numbers) + 1), [0.0] * (max(numbers) + 1)
        for number, provider, rates in zip(numbers, self._providers, self._rates, strict=True):
            if number:
                one, two = transfer_seconds(provider, rates, nbytes)
                read[number], write[number] = times * one, times * two
        return read, write

    def _over(self, owners: Mapping[str, int]) -> set[tuple[str, int]]:
        found: set[tuple[str, int]] = set()
        for position, provider in enumerate(self._providers):
            limit = memory_limit(provider)
            if not limit:
                continue
            mine = [n for n in self._order if owners[n.name] == position]
            streamed = streams(provider)
            late, needed = overflow(mine, self._values, Resident(self._estimate), limit, streamed=streamed)
            for name in late:
                found.add((name, position))
                self._reasons.setdefault(name, {})[provider.device] = (
                    f"with all before it it would need {needed} bytes, memory_limit is {limit}"
                )
        return found


def spaces(providers: Sequence[Provider]) -> list[int]:
    """By position the number of the provider's memory space; 0 is the host's."""
    numbers = {HOST: 0}
    return [numbers.setdefault(p.memory_space, len(numbers)) for p in providers]


def transfer_seconds(provider: Provider, rates: Rates, nbytes: float) -> tuple[float, float]:
    """Seconds to read so many bytes from a device, and to write them; a wait where it shares the host's memory."""
    if isinstance(provider, DeviceMemory) and provider.shares_host:
        return rates.sync, rates.view
    return rates.sync + nbytes / rates.read, rates.launch + nbytes / rates.write


def memory_limit(provider: Provider) -> int:
    """Bytes that weights and plans may take on a provider's device; 0 where there is no limit."""
    return int(provider.arena.stats().get("limit", 0)) if isinstance(provider, DeviceMemory) else 0


def streams(provider: Provider) -> bool:
    """Whether weights beyond the provider's limit are copied to its device as they are needed."""
    return isinstance(provider, DeviceMemory) and provider.streams_weights


def specs_of(node: NodeView, estimate: Estimate) -> tuple[list, list]:  # type: ignore[type-arg]
    """Specs of a node's inputs and outputs, None where they are not known."""
    ins = [None if v is None else estimate.specs.get(v.name) for v in node.inputs]
    outs = [None if v is None else estimate.specs.get(v.name) for v in node.outputs]
    return ins, outs


def _grouped(names: Sequence[str], candidates: Candidates) -> dict[str, int]:
    """Number of each node's vertex, from 1 on; nodes of a claim share one if some provider can run them all."""
    number = {name: i for i, name in enumerate(names)}
    parent = list(range(len(names)))
    for _, members in candidates.groups:
        inside = [number[m] for m in members if m in number]
        roots = {find(parent, i) for i in inside}
        joined = [n for n in names if find(parent, number[n]) in roots] if len(roots) > 1 else []
        shared = [all(c) for c in zip(*(candidates.options[n] for n in joined), strict=True)]
        pins = {candidates.pinned[n][1] for n in joined if n in candidates.pinned}
        if any(shared) and len(pins) <= 1 and all(shared[p] for p in pins):
            for i in inside:
                parent[find(parent, i)] = find(parent, inside[0])
    numbers: dict[int, int] = {}
    return {n: numbers.setdefault(find(parent, i), len(numbers) + 1) for n, i in number.items()}


def _depth_first(graph: GraphView) -> list[NodeView]:
    found = []
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, GraphView):
                found += _depth_first(body)
        found.append(node)
    return found


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"
