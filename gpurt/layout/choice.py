"""Which nodes of a graph work with the channels last, so that what is saved outweighs the transposes that are left.

Every node that could be turned is a vertex that is turned or not. A value whose maker and reader differ costs a
Transpose, shared by all readers that differ; a node costs what its provider would save by the other layout. The least
sum is a minimum cut, the same problem as the placement of nodes on two devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from gpurt.graph.channels_last import to_first, to_last
from gpurt.layout.turn import Data, Turn, idle_axes, rank_of
from gpurt.optimizer import facts
from gpurt.partitioner.assignment import Net, Problem, solve

FIXED: Final = 0
"""The vertex of everything that keeps the model's own layout."""

LAUNCH: Final = 16384.0
"""What a Transpose costs besides its bytes: a launch is worth so many bytes of copying."""

_VIEW: Final = 64.0  # a view in place of a Transpose: free, but not wanted for nothing
_NEAR: Final = 16  # nodes that are looked at for a gain
_REST: Final = 1.0  # what nothing is gained by stays as it is


@dataclass(slots=True)
class Level:
    """What is known of one graph.

    Attributes:
        graph: it.
        turns: for nodes that could be turned, how.
        transposes: the model's own ones that may take other permutations, of rank 3 at least.
        saved: by node, bytes' worth of time that turning it saves; negative where it costs time.
        nbytes: bytes of values, estimated.
    """

    graph: ir.Graph
    turns: dict[ir.Node, Turn]
    transposes: set[ir.Node]
    saved: Mapping[ir.Node, float]
    nbytes: Mapping[str, float]


@dataclass(slots=True)
class Choice:
    """The answer.

    Attributes:
        reads: nodes that read turned values.
        makes: nodes whose results are turned.
        turned_reads: (node, input position) of all turned reads.
    """

    reads: set[ir.Node] = field(default_factory=set)
    makes: set[ir.Node] = field(default_factory=set)
    turned_reads: set[tuple[ir.Node, int]] = field(default_factory=set)


def data_positions(node: ir.Node, turn: Turn) -> list[int]:
    """Inputs of a node that its turn reads turned."""
    read = {o.value for step in turn.steps for o in step.inputs if isinstance(o, Data)}
    return [i for i, v in enumerate(node.inputs) if v in read]


def choose(level: Level) -> Choice:
    """The cheapest choice for a graph."""
    enter, leave, positions, unary = _vertices(level)
    problem = Problem(unary, list(_nets(level, enter, leave, positions)), (0, 1))
    labels = solve(problem)
    answer = Choice()
    for node, vertex in enter.items():
        if labels[vertex]:
            answer.reads.add(node)
            answer.turned_reads.update((node, i) for i in positions[node])
    answer.makes = {node for node, vertex in leave.items() if labels[vertex]}
    return answer


def _vertices(
    level: Level,
) -> tuple[dict[ir.Node, int], dict[ir.Node, int], dict[ir.Node, list[int]], list[list[float]]]:
    """By node the vertex of what it reads and of what it makes, its inputs concerned, and the cost of both labels."""
    unary: list[list[float]] = [[0.0, math.inf]]
    enter: dict[ir.Node, int] = {}
    leave: dict[ir.Node, int] = {}
    positions: dict[ir.Node, list[int]] = {}

    def vertex(stays: float, turns: float) -> int:
        unary.append([stays, turns])
        return len(unary) - 1

    for node, turn in level.turns.items():
        saved = level.saved.get(node, 0.0)
        both = vertex(max(saved, 0.0), max(-saved, 0.0) + _REST)
        enter[node], positions[node] = both, data_positions(node, turn)
        if not turn.exit:
            leave[node] = both
        for inner in turn.absorbed:
            enter[inner] = leave[inner] = both
            positions[inner] = [0]
        if turn.absorbed:
            positions[node] = [0]
    for node in level.transposes:
        rank = rank_of(node.inputs[0])
        perm = facts.attr(node, "perm") or list(range(rank))[::-1]
        cost = price(node.inputs[0], level.nbytes)
        positions[node] = [0]
        if tuple(perm) == to_last(rank) and not (rank == 3 and _before_gain(level, node)):
            enter[node] = vertex(cost, 0.0)
        elif tuple(perm) == to_first(rank):
            leave[node] = vertex(cost, 0.0)
        else:
            enter[node], leave[node] = vertex(0.0, _REST), vertex(0.0, _REST)
    return enter, leave, positions, unary


def _before_gain(level: Level, node: ir.Node) -> bool:
    """Whether a node that gains follows a Transpose soon: one of rank 3 may begin a region as well as end one."""
    reached, near = [node], 0
    while near < min(len(reached), _NEAR):
        for value in reached[near].outputs:
            for user, _ in value.uses():
                if level.saved.get(user, 0.0) > 0:
                    return True
                if user in level.turns and not level.turns[user].exit:
                    reached.append(user)
        near += 1
    return False


def _nets(
    level: Level, enter: Mapping[ir.Node, int], leave: Mapping[ir.Node, int], positions: Mapping[ir.Node, list[int]]
) -> Iterator[Net]:
    for value in values(level.graph, enter):
        maker = value.producer()
        source = leave.get(maker, FIXED) if maker is not None and maker.graph is level.graph else FIXED
        sinks = {FIXED} if value.is_graph_output() else set()
        for user, position in value.uses():
            sinks.add(enter[user] if user in enter and position in positions[user] else FIXED)
        sinks.discard(source)
        if sinks:
            cost = price(value, level.nbytes)
            yield Net(source, sorted(sinks), (0.0, cost), (0.0, cost))


def values(graph: ir.Graph, readers: Iterable[ir.Node]) -> list[ir.Value]:
    """Values of two layouts: all that nodes of a graph make, and what else the given nodes read; no constants."""
    found = dict.fromkeys(v for n in graph for v in n.outputs if rank_of(v))
    found.update((v, None) for n in readers for v in n.inputs if v is not None and rank_of(v))
    return [v for v in found if facts.array(v) is None]


def price(value: ir.Value | None, nbytes: Mapping[str, float]) -> float:
    """What it costs to turn a value, or to turn it back: it is read and written."""
    if value is None or idle_axes(value):
        return _VIEW
    return 2.0 * nbytes.get(value.name or "", 0.0) + LAUNCH
