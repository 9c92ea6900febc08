"""From assigned nodes to units in topological order: convex partitions, compiled by their providers."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpurt import logs
from gpurt.errors import GpurtError, Unsupported
from gpurt.graph.view import GraphView, NodeView, part
from gpurt.partitioner.assign import CONTROL
from gpurt.partitioner.result import CompiledGraph, ControlItem, Decisions, Item, UnitItem
from gpurt.partitioner.shapes import deciding, shape_operands
from gpurt.provider import HOST, Capability, Provider

logger = logs.get(__name__)


class Compiler:
    """Compiles graph levels, nested ones first, and finds other providers for units that are refused later.

    Args:
        providers: in priority order.
        owners: node name -> position of the provider that runs it.
        groups: claims of several nodes that are compiled as one.
        decisions: where reasons are collected.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        owners: Mapping[str, int],
        groups: Sequence[tuple[int, tuple[str, ...]]],
        decisions: Decisions,
    ) -> None:
        self._providers = providers
        self._owners = dict(owners)
        self._group_of = {name: i for i, (_, members) in enumerate(groups) for name in members}
        self._decisions = decisions
        self._host = next(i for i, p in enumerate(providers) if p.memory_space == HOST)

    def compile(self, graph: GraphView, outer: Mapping[str, np.ndarray] | None = None) -> CompiledGraph:
        """Compile a graph level and all below it. `outer` are the constants of the graphs around it."""
        constants = {**(outer or {}), **{n: v.const for n, v in graph.initializers.items() if v.const is not None}}
        bodies = {
            node.name: {
                name: self.compile(attr, constants) for name, attr in node.attrs.items() if isinstance(attr, GraphView)
            }
            for node in graph.nodes
            if node.op_type in CONTROL and not node.domain
        }
        items: list[Item] = []
        readers = _readers(graph)
        for partition in self._partitions(graph.nodes):
            if partition[0].name in bodies:
                items.append(ControlItem(partition[0], bodies[partition[0].name]))
            else:
                items += self._units(self._owners[partition[0].name], _view(partition, readers, graph.name))
        items = _sorted(items, {n.name: i for i, n in enumerate(graph.nodes)})
        needs = _needs(items, [v.name for v in graph.outputs], constants)
        used = {n for item in items for n in reads(item)} | {v.name for v in graph.outputs}
        inputs = [v.name for v in graph.inputs]
        wanted = {n for b in bodies.values() for g in b.values() for n in g.keyed}
        for item in items:
            if isinstance(item, UnitItem) and self._providers[item.provider].memory_space != HOST:
                wanted |= {n for i in item.unit.host_inputs if (n := item.unit.inputs[i]) is not None}  # type: ignore[union-attr]
        return CompiledGraph(
            name=graph.name,
            items=items,
            inputs=inputs,
            outputs=[v.name for v in graph.outputs],
            constants={n: a for n, a in constants.items() if n in used},
            keyed=frozenset(deciding(graph.nodes, wanted)),
            captures=[n for n in needs[0] if n not in set(inputs)],
            needs=needs,
        )

    def fallback(self, item: UnitItem, reason: str) -> list[UnitItem]:
        """Units of the next providers for what a unit's provider refused when it was planned.

        Raises NotImplemented if no later provider takes a node.
        """
        nodes = item.unit.nodes
        if len(nodes) > 1:
            return self._units(item.provider, self._view_alone(nodes, item), single=True)
        node = nodes[0]
        device = self._providers[item.provider].device
        refused = self._decisions.refused.setdefault(node.name, {})
        refused[device] = reason
        later = [*range(item.provider + 1, len(self._providers)), self._host]
        for position in dict.fromkeys(p for p in later if p != item.provider):
            view = part([node])
            answer = self._providers[position].get_capability(view)
            if answer.takes(node):
                logger.debug("%s: %s moves from %s: %s", self._providers[position].device, node.name, device, reason)
                self._owners[node.name] = position
                return self._units(position, view)
            refused[self._providers[position].device] = answer.refused.get(node.name, "not claimed")
        why = "; ".join(f"{d}: {r}" for d, r in refused.items())
        raise Unsupported(
            f"no provider can run {node.op} with these shapes: {why}",
            node=node.name,
            op=node.op,
            remedy='Add "cpu" to the providers',
        )

    def _units(self, position: int, view: GraphView, *, single: bool = False) -> list[UnitItem]:
        provider = self._providers[position]
        try:
            if single:
                return [UnitItem(u, position) for n in view.nodes for u in provider.compile(part([n]))]
            return [UnitItem(u, position) for u in provider.compile(view)]
        except GpurtError as e:
            logger.warning("%s cannot compile %d nodes: %s", provider.device, len(view.nodes), e)
            items = []
            for node in view.nodes:
                items += self._moved(node, position, str(e))
            return items

    def _moved(self, node: NodeView, position: int, reason: str) -> list[UnitItem]:
        """Units of the next provider that claims a node which its provider could not compile."""
        refused = self._decisions.refused.setdefault(node.name, {})
        refused[self._providers[position].device] = f"compilation failed: {reason}"
        for later in [*range(position + 1, len(self._providers)), self._host]:
            answer: Capability = self._providers[later].get_capability(part([node]))
            if later != position and answer.takes(node):
                self._owners[node.name] = later
                return self._units(later, part([node]))
        raise Unsupported(
            f"{self._providers[position].device} cannot compile {node.op} and no later provider has it: {reason}",
            node=node.name,
            op=node.op,
            remedy='Add "cpu" to the providers',
        )

    def _view_alone(self, nodes: Sequence[NodeView], item: UnitItem) -> GraphView:
        view = part(nodes)
        wanted = {n for n in item.unit.outputs if n is not None}
        return GraphView(view.nodes, view.inputs, tuple(v for v in view.outputs if v.name in wanted), view.initializers)

    def _partitions(self, nodes: Sequence[NodeView]) -> list[list[NodeView]]:
        """Convex sets of nodes of one provider and claim.

        A node's level is the largest of its predecessors', plus one where provider or claim changes. Nodes of one claim
        and level form a convex set, and no cycle between sets is possible, as levels never fall along an edge. Between
        nodes that become units of their own, shape arithmetic does not count: its results are constants of a plan.
        """
        producer = {v.name: n for n in nodes for v in n.outputs if v is not None}
        level: dict[str, int] = {}
        sets: dict[tuple[int, int, int], list[NodeView]] = {}
        for order, node in enumerate(nodes):
            claim = (self._owners[node.name], self._group_of.get(node.name, -1))
            operands = {v.name for v in shape_operands(node)} if claim[1] < 0 else set()
            height = 0
            for name in [*(v.name for v in node.inputs if v is not None), *_captured(node)]:
                source = producer.get(name)
                if source is None:
                    continue
                same = (self._owners[source.name], self._group_of.get(source.name, -1)) == claim
                height = max(height, level[source.name] + (0 if same or name in operands else 1))
            level[node.name] = height
            control = node.op_type in CONTROL and not node.domain
            sets.setdefault((order + len(nodes), -1, -1) if control else (height, *claim), []).append(node)
        return list(sets.values())


def reads(item: Item) -> list[str]:
    """Names of the values an item reads from outside of it, captures of bodies included."""
    if isinstance(item, UnitItem):
        return [n for n in item.unit.inputs if n is not None]
    own = [v.name for v in item.node.inputs if v is not None]
    return [*own, *(n for b in item.bodies.values() for n in [*b.captures, *b.constants])]


def writes(item: Item) -> list[str]:
    """Names of the values an item yields."""
    if isinstance(item, UnitItem):
        return [n for n in item.unit.outputs if n is not None]
    return [v.name for v in item.node.outputs if v is not None]


def _captured(node: NodeView) -> Iterable[str]:
    """Names that the bodies of a node read from around it."""
    for attr in node.attrs.values():
        if isinstance(attr, GraphView):
            made = {v.name for v in attr.inputs} | {v.name for n in attr.nodes for v in n.outputs if v is not None}
            for inner in attr.nodes:
                yield from (v.name for v in inner.inputs if v is not None and v.name not in made)
                yield from (n for n in _captured(inner) if n not in made)
            yield from (v.name for v in attr.outputs if v.name not in made)


def _readers(graph: GraphView) -> dict[str, set[str]]:
    """Value -> names of the nodes that read it, by themselves or in their bodies; "" stands for the graph's outputs."""
    found: dict[str, set[str]] = {v.name: {""} for v in graph.outputs}
    for node in graph.nodes:
        for name in [*(v.name for v in node.inputs if v is not None), *_captured(node)]:
            found.setdefault(name, set()).add(node.name)
    return found


def _view(nodes: Sequence[NodeView], readers: Mapping[str, set[str]], name: str) -> GraphView:
    """A partition as its provider sees it; outputs are only what is read outside of it."""
    inside = {n.name for n in nodes}
    view = part(nodes)
    wanted = tuple(v for v in view.outputs if not readers.get(v.name, set()) <= inside)
    return GraphView(view.nodes, view.inputs, wanted, view.initializers, name)


def _sorted(items: Sequence[Item], order: Mapping[str, int]) -> list[Item]:
    """Topological order of units, nearest to the order of the nodes."""
    producer = {name: i for i, item in enumerate(items) for name in writes(item)}
    waiting: list[set[int]] = [
        {producer[n] for n in reads(item) if n in producer} - {i} for i, item in enumerate(items)
    ]
    after: dict[int, list[int]] = {}
    for i, sources in enumerate(waiting):
        for source in sources:
            after.setdefault(source, []).append(i)

    def rank(i: int) -> int:
        item = items[i]
        nodes = item.unit.nodes if isinstance(item, UnitItem) else (item.node,)
        return max(order.get(n.name, 0) for n in nodes)

    ready = [(rank(i), i) for i, sources in enumerate(waiting) if not sources]
    heapq.heapify(ready)
    result: list[Item] = []
    while ready:
        _, i = heapq.heappop(ready)
        result.append(items[i])
        for j in after.get(i, ()):
            waiting[j].discard(i)
            if not waiting[j]:
                heapq.heappush(ready, (rank(j), j))
    if len(result) != len(items):
        raise Unsupported(
            "the units of the providers depend on each other in a circle", remedy="A provider's claim must be convex"
        )
    return result


def _needs(items: Sequence[Item], outputs: Sequence[str], constants: Mapping[str, np.ndarray]) -> list[list[str]]:
    """For each position, what the items from there on and the outputs read from before it; constants are everywhere."""
    alive = dict.fromkeys(n for n in outputs if n not in constants)
    needs = [list(alive)]
    for item in reversed(items):
        for name in writes(item):
            alive.pop(name, None)
        alive.update(dict.fromkeys(n for n in reads(item) if n not in constants))
        needs.append(list(alive))
    return needs[::-1]
