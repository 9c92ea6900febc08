"""Where values go: from the nodes that make them to those that read them, through loops and branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gpurt.graph.view import GraphView, NodeView
from gpurt.partitioner.shapes import shape_known, shape_operands

HOST_VERTEX: Final = ""
"""Stands for the host as a maker or a reader of values: the caller, control flow, shape arithmetic."""


@dataclass(slots=True)
class Level:
    """A graph level.

    Attributes:
        graph: its view.
        times: how often it is estimated to run in one run of the model.
        known: names of values that are constants of a plan here.
    """

    graph: GraphView
    times: float
    known: set[str]


@dataclass(slots=True)
class Value:
    """A value that is made at run time.

    Attributes:
        name: its name.
        maker: name of the node, or HOST_VERTEX.
        times: how often it is made in one run.
        readers: names of the nodes that read it, HOST_VERTEX among them, with the number of times that a copy for them
            is made: less than `times` where the last of a loop's values alone is read, more for what a loop carries.
    """

    name: str
    maker: str
    times: float
    readers: dict[str, float] = field(default_factory=dict)


def levels(graph: GraphView, trips: Mapping[str, int]) -> list[Level]:
    """A graph and all nested in it; outer ones first."""
    return list(_levels(graph, trips, 1.0, set()))


def _levels(graph: GraphView, trips: Mapping[str, int], times: float, known: set[str]) -> Iterator[Level]:
    known = known | set(graph.initializers)
    inside = known | shape_known(graph.nodes, known)
    yield Level(graph, times, inside)
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, GraphView):
                yield from _levels(body, trips, times * max(trips.get(node.name, 1), 1), inside)


def values(graph: GraphView, found: Sequence[Level], hosted: set[str], trips: Mapping[str, int]) -> list[Value]:
    """All values with who makes and who reads them, except constants and what a plan knows from shapes.

    Args:
        graph: the outermost graph.
        found: its levels.
        hosted: names of nodes that run on the host whatever is decided.
        trips: estimated iterations, by node.
    """
    made: dict[str, Value] = {}
    passes: dict[str, list[tuple[str, float]]] = {}  # value -> values that it becomes, and how often
    known = {n for level in found for n in level.known}
    for start in graph.inputs:
        made[start.name] = Value(start.name, HOST_VERTEX, 1.0)
    reads: list[tuple[str, str, float]] = []
    for level in found:
        for node in level.graph.nodes:
            bodies = {n: b for n, b in node.attrs.items() if isinstance(b, GraphView)}
            if bodies:
                _control(node, bodies, level.times, max(trips.get(node.name, 1), 1), made, passes, reads)
                continue
            reader = HOST_VERTEX if node.name in hosted else node.name
            contents = {v.name for v in shape_operands(node)}
            shape_only = node.op_type in ("Shape", "Size") and not node.domain
            wanted = [] if shape_only else [v.name for v in node.inputs if v is not None]
            reads += [(name, HOST_VERTEX if name in contents else reader, level.times) for name in wanted]
            for output in node.outputs:
                if output is not None:
                    made[output.name] = Value(output.name, reader, level.times)
    reads += [(v.name, HOST_VERTEX, 1.0) for v in graph.outputs]
    direct: dict[str, dict[str, float]] = {}
    for name, reader, times in reads:
        direct.setdefault(name, {}).setdefault(reader, times)
    for name, value in made.items():
        if name in known:
            continue
        for reader, times in direct.get(name, {}).items():
            value.readers[reader] = min(times, value.times)
        seen = {name}
        ahead = list(passes.get(name, ()))
        while ahead:
            target, times = ahead.pop()
            if target in seen:
                continue
            seen.add(target)
            for reader in direct.get(target, {}):
                value.readers[reader] = max(value.readers.get(reader, 0.0), times)
            ahead += [(t, min(times, n)) for t, n in passes.get(target, ())]
    return [v for n, v in made.items() if n not in known and v.readers]


def _control(
    node: NodeView, bodies: Mapping[str, GraphView], times: float, trips: float, made: dict[str, Value],
    passes: dict[str, list[tuple[str, float]]], reads: list[tuple[str, str, float]],
) -> None:  # fmt: skip
    """What If, Loop and Scan read, and how values go into bodies, round in them and out of them."""

    def become(source: str, target: str, often: float) -> None:
        passes.setdefault(source, []).append((target, often))

    outputs = [None if v is None else v.name for v in node.outputs]
    inputs = [None if v is None else v.name for v in node.inputs]
    if node.op_type not in ("Loop", "Scan"):
        reads += [(name, HOST_VERTEX, times) for name in inputs if name is not None]
        for body in bodies.values():
            for inner, outer in zip(body.outputs, outputs, strict=False):
                if outer is not None:
                    become(inner.name, outer, times)
        return
    body = bodies["body"]
    if node.op_type == "Loop":
        reads += [(name, HOST_VERTEX, times) for name in inputs[:2] if name is not None]
        reads.append((body.outputs[0].name, HOST_VERTEX, times * trips))
        states, first, entering = inputs[2:], 1, body.inputs[2:]
        host_made = body.inputs[:2]
    else:
        split = len(inputs) - int(node.attr("num_scan_inputs"))
        reads += [(name, HOST_VERTEX, times) for name in inputs[split:] if name is not None]
        states, first, entering = inputs[:split], 0, body.inputs[:split]
        host_made = body.inputs[split:]
    for value in host_made:
        made[value.name] = Value(value.name, HOST_VERTEX, times * trips)
    for i, (start, inner) in enumerate(zip(states, entering, strict=False)):
        if start is not None:
            become(start, inner.name, times)
        again = body.outputs[first + i].name
        become(again, inner.name, times * trips)
        if i < len(outputs) and (outer := outputs[i]) is not None:
            become(again, outer, times)
    for inner, outer in zip(body.outputs[first + len(states) :], outputs[len(states) :], strict=False):
        reads.append((inner.name, HOST_VERTEX, times * trips))
        if outer is not None:
            made[outer] = Value(outer, HOST_VERTEX, times)
