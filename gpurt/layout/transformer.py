"""The transformation: channels last where the providers of the nodes prefer it, and it is worth its Transposes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt import logs
from gpurt.graph.channels_last import to_last
from gpurt.graph.view import NodeView, ValueView, part
from gpurt.layout import along_axes, elementwise, reshapes, windows
from gpurt.layout.choice import Level, choose, values
from gpurt.layout.rewrite import Rewriter
from gpurt.layout.turn import Data, Made, Operand, Turn, rank_of, turn_of
from gpurt.loader import Names, Views
from gpurt.optimizer import facts
from gpurt.optimizer.symbols import name_outputs
from gpurt.options import GraphOptimizationLevel
from gpurt.partitioner.cost import work
from gpurt.partitioner.decide import estimate
from gpurt.partitioner.estimate import Estimate, Shapes
from gpurt.partitioner.placement import specs_of
from gpurt.partitioner.result import Decisions
from gpurt.provider import HOST, Provider

logger = logs.get(__name__)

NAME: Final = "ChannelsLast"
"""What the transformation is switched off by."""

LEVEL: Final = GraphOptimizationLevel.ORT_ENABLE_LAYOUT

_RULES = (along_axes, elementwise, reshapes, windows)  # they fill the table

OPERATIONS: Final = 16.0
"""Operations of a convolution that take the time of a byte that is copied: devices of all sizes are near that."""


def channels_last(
    model: ir.Model,
    providers: Sequence[Provider],
    owners: dict[str, int],
    groups: Sequence[tuple[int, tuple[str, ...]]],
    names: Names,
    shapes: Shapes,
    decisions: Decisions,
) -> None:
    """Give nodes channels last, in place, in all graphs of a model.

    Args:
        model: with a provider for every node.
        providers: of the session.
        owners: node name -> position of its provider; kept up to date.
        groups: claims of several nodes that are compiled as one; they stay as they are.
        names: the model's names.
        shapes: sizes of graph inputs to reckon with.
        decisions: gains in ``layouts``, by graph and device that prefers the layout: ``graph``, ``device``, ``turned``
            (nodes that have channels last), ``preferred`` and ``kept`` (numbers of nodes that the device would rather
            run so, and of those among them that stay as they are), ``transposes`` that were put in and ``bytes`` that
            they move (estimated), ``cancelled`` Transposes of the model. Why nodes were kept is in ``misses``.
    """
    if all(type(p).channels_last is Provider.channels_last for p in providers):
        return
    graphs = list(facts.all_graphs(model.graph))
    for graph in graphs:
        _tell_ranks(graph)
    views = Views()
    view = views.graph(model.graph)
    grouped = {name for _, members in groups for name in members}
    sites = [_Site(graph, providers, owners, grouped, views) for graph in graphs]
    if not any(site.preferred for site in sites):
        return
    sized = estimate(view, providers, shapes)
    host = next(i for i, p in enumerate(providers) if p.memory_space == HOST)
    for site in sites:
        if site.preferred:
            site.turn(sized, names, owners, host, decisions)
    changes = sum(g["turned"] for g in decisions.layouts)
    if changes:
        decisions.applied.append({"name": NAME, "kind": "provider", "level": int(LEVEL), "changes": changes})


def _tell_ranks(graph: ir.Graph) -> None:
    """Ranks that follow from a convolution's weights: what a loop carries is often of a shape that nobody has said."""
    for node in graph:
        rank = facts.rank(node.inputs[1]) if node.op_type in ("Conv", "ConvTranspose") and not node.domain else None
        for value in (node.inputs[0], node.outputs[0]) if rank is not None else ():
            if value is not None and value.shape is None:
                value.shape = ir.Shape([None] * rank)  # type: ignore[operator]
        name_outputs(node)


class _Site:
    """One graph, and what its nodes' providers say of them."""

    def __init__(
        self,
        graph: ir.Graph,
        providers: Sequence[Provider],
        owners: Mapping[str, int],
        grouped: set[str],
        views: Views,
    ) -> None:
        self._graph, self._providers, self._owners, self._views = graph, providers, owners, views
        free = [n for n in graph if n.name not in grouped and n.name in owners and not facts.has_body(n)]
        self._free = free
        asked = {n: self._share(n) for n in free if rank_of(next(iter(n.inputs), None))}
        self.shares = {n: share for n, share in asked.items() if share}
        self.preferred = [n for n, share in self.shares.items() if share > 0]

    def _share(self, node: ir.Node) -> float:
        return self._providers[self._owners[node.name or ""]].channels_last(self._views.node(node))

    def turn(self, sized: Estimate, names: Names, owners: dict[str, int], host: int, decisions: Decisions) -> None:
        """Choose and rewrite."""
        preferring = {owners[n.name or ""] for n in self.preferred}
        turns = self._turns(preferring)
        refused = self._refused(turns)
        others = {n: other for n in refused if (other := turns[n].instead) is not None}
        turns |= others
        again = self._refused(others)
        refused = {n: why for n, why in refused.items() if n not in others or n in again}
        turns = {n: t for n, t in turns.items() if n not in refused}
        taken = {inner for t in turns.values() for inner in t.absorbed}
        turns = {n: t for n, t in turns.items() if n not in taken}
        transposes = {
            n
            for n in self._free
            if n.op_type == "Transpose" and not n.domain and rank_of(n.inputs[0]) and owners[n.name or ""] in preferring
        } - taken
        nbytes = {name: float(spec.nbytes) for name, spec in sized.specs.items()}
        saved = {n: share * self._worth(n, sized) for n, share in self.shares.items() if n in turns}
        level = Level(self._graph, turns, transposes, saved, nbytes)
        if not self._movable(level, preferring):
            return
        choice = choose(level)
        for node in self.preferred:
            if node not in choice.reads:
                reason = refused.get(node) or ("it cannot be turned" if node not in turns else _TOO_DEAR)
                decisions.misses.append({"rule": NAME, "node": node.name or "", "reason": reason})
        if not choice.reads & self.shares.keys():
            return
        rewriter = Rewriter(level, choice, names, owners, host)
        kept = [n for n in self.preferred if n not in choice.reads]
        device_of = {n: self._providers[owners[n.name or ""]].device for n in self.preferred}
        rewriter.run()
        for position in sorted(preferring):
            device = self._providers[position].device
            moved = {n: b for n, b in rewriter.transposes.items() if owners[n] == position}
            decisions.layouts.append(
                {
                    "graph": self._graph.name or "",
                    "device": device,
                    "turned": sum(owners[n.name or ""] == position for n in rewriter.turned),
                    "preferred": sum(d == device for d in device_of.values()),
                    "kept": sum(device_of[n] == device for n in kept),
                    "transposes": len(moved),
                    "bytes": int(sum(moved.values())),
                    "cancelled": rewriter.cancelled,
                }
            )
            logger.info("%s", sentence(decisions.layouts[-1]))

    def _turns(self, preferring: set[int]) -> dict[ir.Node, Turn]:
        """How the graph's nodes can be turned, those of the providers concerned and those that look at shapes alone."""
        found = {}
        for node in self._free:
            turn = turn_of(node)
            if turn is None or not (turn.shapes or self._owners[node.name or ""] in preferring):
                continue
            if all(self._owners.get(n.name or "") == self._owners[node.name or ""] for n in turn.absorbed):
                found[node] = turn
        return found

    def _refused(self, turns: Mapping[ir.Node, Turn]) -> dict[ir.Node, str]:
        """Nodes whose turned form their providers do not run, with the reasons; each provider is asked once."""
        asked: dict[int, list[tuple[ir.Node, NodeView]]] = {}
        for node, turn in turns.items():
            if not turn.shapes:
                for view in self._as_views(node, turn):
                    asked.setdefault(self._owners[node.name or ""], []).append((node, view))
        refused: dict[ir.Node, str] = {}
        for position, pairs in asked.items():
            provider = self._providers[position]
            answer = provider.get_capability(part([view for _, view in pairs]))
            claimed = {name for claim in answer.claims for name in claim}
            for node, view in pairs:
                if view.name not in claimed:
                    reason = answer.refused.get(view.name, f"{provider.name} does not claim {view.op}")
                    refused.setdefault(node, reason)
        return refused

    def _as_views(self, node: ir.Node, turn: Turn) -> Iterable[NodeView]:
        """The nodes that a turn would make, as a provider sees them; shape arithmetic is left out."""
        seen = self._views.node(node)
        made: list[ValueView] = []
        for number, step in enumerate(turn.steps):
            last = number == len(turn.steps) - 1
            name = f"{seen.name}/{number}"
            if last:
                outputs = tuple(None if v is None else _renamed(v, name, turn.exit) for v in seen.outputs)
            else:
                first = seen.outputs[0]
                dtype = step.dtype if step.dtype is not None or first is None else first.dtype
                outputs = (ValueView(name, dtype, (None,) * step.rank),)
            inputs = tuple(self._operand(o, made, name, i) for i, o in enumerate(step.inputs))
            made += [v for v in outputs[:1] if v is not None]
            kept = {} if step.like is None else dict(self._views.node(step.like).attrs)
            attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in {**kept, **step.attrs}.items()}
            if not step.host:
                yield NodeView(step.op_type, inputs, outputs, attrs, step.domain, name, 1 if step.domain else 0)

    def _operand(self, operand: Operand, made: Sequence[ValueView], name: str, index: int) -> ValueView | None:
        if isinstance(operand, Made):
            return made[operand.step]
        if isinstance(operand, np.ndarray):
            return ValueView(f"{name}/in{index}", operand.dtype, operand.shape, operand)
        if isinstance(operand, Data):
            seen = self._views.value(operand.value)
            return None if seen is None else _renamed(seen, f"{seen.name}/last", natural=False)
        return self._views.value(operand)

    def _movable(self, level: Level, preferring: set[int]) -> bool:
        """Whether the providers run the Transposes that values may need."""
        kinds: dict[tuple[Any, int], ValueView] = {}
        for value in values(level.graph, level.turns):
            seen = self._views.value(value)
            if seen is not None and seen.dtype is not None and seen.rank is not None:
                kinds.setdefault((seen.dtype, seen.rank), seen)
        nodes = []
        for i, seen in enumerate(kinds.values()):
            perm = to_last(seen.rank or 0)
            nodes.append(
                NodeView("Transpose", (seen,), (_renamed(seen, f"t{i}", natural=False),), {"perm": perm}, name=f"t{i}")
            )
        return all(
            all(answer.takes(n) for n in nodes)
            for answer in (self._providers[p].get_capability(part(nodes)) for p in preferring)
        )

    def _worth(self, node: ir.Node, sized: Estimate) -> float:
        """Time of a node, in bytes that could be copied in it."""
        job = work(self._views.node(node), *specs_of(self._views.node(node), sized))
        return max(job.amount / OPERATIONS if job.kind in ("conv", "depthwise") else 0.0, job.nbytes)


_TOO_DEAR: Final = "the Transposes around it would cost more than it saves"


def _renamed(value: ValueView, name: str, natural: bool) -> ValueView:
    """A view of a value under another name, turned unless it is natural."""
    if natural or value.shape is None or len(value.shape) < 3:
        return replace(value, name=name)
    shape = tuple(value.shape[a] for a in to_last(len(value.shape)))
    return replace(value, name=name, shape=shape, const=None)


def sentence(entry: Mapping[str, Any]) -> str:
    """An entry of Decisions.layouts in words."""
    kept = f", {entry['kept']} kept" if entry["kept"] else ""
    return (
        f"{entry['device']}: {entry['turned']} nodes have channels last ({entry['preferred']} preferred it{kept}); "
        f"transposes put in: {entry['transposes']}, of {entry['bytes']} bytes; cancelled: {entry['cancelled']}"
    )
