"""The choice of a provider for each node, from the session's settings: cost or order, pins, memory limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gpurt.errors import InvalidArgument
from gpurt.graph.view import GraphView, NodeView
from gpurt.loader import Views
from gpurt.partitioner.claims import Ask, settle
from gpurt.partitioner.estimate import Estimate, Shapes
from gpurt.partitioner.pins import Pins
from gpurt.partitioner.placement import Candidates, Choice, Placement, memory_limit
from gpurt.partitioner.rates import rates
from gpurt.provider import HOST, Provider


@dataclass(frozen=True, slots=True)
class Settings:
    """How nodes are placed.

    Attributes:
        partitioning: "greedy" or "cost".
        pins: see Pins.
        shapes: sizes of graph inputs to reckon with, by name.
        folder: where measured rates are kept, None for nowhere.
        last_resort: position of a provider that takes only what no other can run; None if there is none.
    """

    partitioning: str = "greedy"
    pins: Mapping[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    folder: Path | None = None
    last_resort: int | None = None

    def decides(self, providers: Sequence[Provider]) -> bool:
        """Whether more is to be decided than that the first provider that can run a node takes it."""
        if self.pins:
            return True
        return len(providers) > 1 and (self.partitioning == "cost" or any(memory_limit(p) for p in providers))


def choices(
    model: ir.Model, providers: Sequence[Provider], settings: Settings, candidates: Candidates, ask: Ask
) -> dict[ir.Node, Choice]:
    """Node -> choice. Raises InvalidArgument for a pin that cannot be kept."""
    nodes = {n.name or "": n for n in model.graph.all_nodes()}
    pins = Pins(settings.pins, providers)
    for name, node in nodes.items():
        found = pins.find(node)
        if found is None:
            continue
        key, position = found
        if name in candidates.hosted:
            if pins.exact(key) and providers[position].memory_space != HOST:
                raise _kept(key, node, providers[position], "control flow and shape arithmetic stay on the host")
            continue
        if candidates.options[name][position] is None:
            raise _kept(key, node, providers[position], _reason(providers[position], node))
        candidates.pinned[name] = (key, position)
    pins.report()
    last = settings.last_resort
    if last is not None:
        for name, row in candidates.options.items():
            if sum(o is not None for o in row) > 1 and candidates.pinned.get(name, ("", -1))[1] != last:
                row[last] = None
    cost = settings.partitioning == "cost"
    speeds = [rates(p, settings.folder) for p in providers] if cost and candidates.options else None
    view = Views().graph(model.graph)
    placement = Placement(view, providers, speeds, estimate(view, providers, settings.shapes), candidates)
    settle(candidates, ask, placement.seconds)
    for name, (key, position) in candidates.pinned.items():
        if candidates.options[name][position] is None:
            raise _kept(
                key, nodes[name], providers[position], "it runs it together with nodes that are pinned elsewhere"
            )
    return {nodes[name]: choice for name, choice in placement.decide().items()}


def estimate(graph: GraphView, providers: Sequence[Provider], shapes: Shapes) -> Estimate:
    """Shapes of a model; what they are computed from is computed on the host provider."""
    host = next(p for p in providers if p.memory_space == HOST)

    def evaluate(node: NodeView, inputs: Sequence[Any]) -> Sequence[Any] | None:
        outputs = tuple(v for v in node.outputs if v is not None)
        view = GraphView((node,), tuple(v for v in node.inputs if v is not None), outputs)
        if not host.get_capability(view).takes(node):
            return None
        try:
            return host.compile(view)[0].call(inputs)  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - assumed sizes need not fit: then the shape stays unknown
            return None

    return Estimate(graph, shapes, evaluate)


def _reason(provider: Provider, node: ir.Node) -> str:
    view = Views().node(node)
    inputs, outputs = ([v for v in values if v is not None] for values in (view.inputs, view.outputs))
    answer = provider.get_capability(GraphView((view,), tuple(inputs), tuple(outputs)))
    return answer.refused.get(view.name, f"{provider.name} does not claim {view.op}")


def _kept(key: str, node: ir.Node, provider: Provider, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"the pin {key!r} cannot be kept: {provider.device} does not run {node.op_type}: {reason}",
        node=node.name or "",
        op=node.op_type,
        provider=provider.device,
        remedy="Pin it to another device, or take the pin out",
    )
