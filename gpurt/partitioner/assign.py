"""Who runs which node: each provider in turn takes what it can natively, then with casts, then as a function body.

Under cost partitioning, with pins and under memory limits it is decided first which provider that is to be for which
node; a provider is then offered what was meant for it, and what no one took is offered to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from gpurt import dtypes, logs
from gpurt.errors import Unsupported
from gpurt.graph.view import NodeView, part
from gpurt.infer.types import result_dtypes
from gpurt.loader import Expansion, Names, Views, expand, has_body
from gpurt.partitioner.casts import Widener
from gpurt.partitioner.decide import Settings, choices
from gpurt.partitioner.placement import Candidates, Choice, Option
from gpurt.partitioner.result import Decisions
from gpurt.partitioner.shapes import host_nodes, shape_known
from gpurt.provider import HOST, Provider

logger = logs.get(__name__)

CONTROL: Final = frozenset({"If", "Loop", "Scan"})
SHAPE_REASON: Final = "shape arithmetic stays on the host"
_DEPTH = 8  # function bodies inside function bodies


class Assigner:
    """Assigns every node of a model to a provider, editing the graphs where casts or bodies are put in.

    Args:
        model: in canonical form, optimized.
        providers: in priority order; one of them, usually the last, has the host's memory.
        names: the model's names, for new values and nodes.
        decisions: where the reasons are collected.
        settings: how to choose.
    """

    def __init__(
        self,
        model: ir.Model,
        providers: Sequence[Provider],
        names: Names,
        decisions: Decisions,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._choice: dict[ir.Node, Choice] = {}
        self._model = model
        self._providers = providers
        self._host = next(i for i, p in enumerate(providers) if p.memory_space == HOST)
        self._names = names
        self._decisions = decisions
        self._claimed: dict[ir.Node, int] = {}
        self._groups: list[tuple[int, list[ir.Node]]] = []
        self._expansions: dict[ir.Node, Expansion | None] = {}
        self._widener = Widener(providers, names, decisions)

    def assign(self) -> tuple[dict[str, int], list[tuple[int, tuple[str, ...]]]]:
        """Node name -> position of its provider, and the claims of several nodes that are compiled as one.

        Raises:
            NotImplemented: a node that no provider can run.
            InvalidArgument: a pin that cannot be kept.
        """
        complete_types(self._model.graph)
        self._pin_levels(self._model.graph, set(), ())
        if self._settings.decides(self._providers):
            self._choice = choices(self._model, self._providers, self._settings, self._candidates(), self._without)
        self._place(self._model.graph)
        for expansion in self._expansions.values():
            if expansion is not None:
                expansion.discard()
        owners = {node.name or "": owner for node, owner in self._claimed.items() if node.graph is not None}
        return owners, [(p, tuple(n.name or "" for n in g)) for p, g in self._groups]

    def _pin_levels(self, graph: ir.Graph, known: set[str], deciding: Iterable[str]) -> None:
        known = known | {n for n, v in graph.initializers.items() if not v.is_graph_input()}
        inside = known | shape_known(Views().graph(graph).nodes, known)
        for node in graph:
            for name, attr in node.attributes.items():
                if attr.type == ir.AttributeType.GRAPH:
                    body = attr.as_graph()
                    condition = body.outputs[0].name if node.op_type == "Loop" and name == "body" else None
                    self._pin_levels(body, inside, () if condition is None else (condition,))
        self._pin_to_host(graph, known, deciding)

    def _place(self, graph: ir.Graph) -> None:
        for node in list(graph):
            for attr in node.attributes.values():
                if attr.type == ir.AttributeType.GRAPH:
                    self._place(attr.as_graph())
        if self._choice:
            for position in range(len(self._providers)):
                self._offer(graph, position, chosen=True)
        for position in range(len(self._providers)):
            self._offer(graph, position)
        for node in graph:
            if node not in self._claimed:
                raise self._unsupported(node)

    def _candidates(self) -> Candidates:
        """What each provider could do with each node that is not the host's anyway; nothing is changed."""
        found = Candidates(hosted={n.name or "" for n in self._claimed})
        for graph in all_graphs(self._model.graph):
            free = [n for n in graph if n not in self._claimed]
            views = Views()
            nodes = [views.node(n) for n in free]
            options: list[list[Option | None]] = [[] for _ in free]
            for position in range(len(self._providers)):
                claims, _ = self._capability(position, nodes)
                native = {n for c in claims for n in c}
                found.groups += [(position, c) for c in claims if len(c) > 1]
                for node, row in zip(free, options, strict=True):
                    row.append(Option("native") if node.name in native else self._other_way(node, position))
            for node, row in zip(free, options, strict=True):
                if not any(row):
                    raise self._unsupported_anywhere(node)
                found.options[node.name or ""] = row
        return found

    def _without(
        self, position: int, blocked: frozenset[str]
    ) -> tuple[list[tuple[int, tuple[str, ...]]], dict[str, Option | None]]:
        """A provider's claims of several nodes, and its option for each node, if some are not offered to it."""
        groups: list[tuple[int, tuple[str, ...]]] = []
        options: dict[str, Option | None] = {}
        for graph in all_graphs(self._model.graph):
            free = [n for n in graph if n not in self._claimed]
            views = Views()
            nodes = [views.node(n) for n in free]
            claims, _ = self._capability(position, [v for v in nodes if v.name not in blocked])
            native = {n for c in claims for n in c}
            groups += [(position, c) for c in claims if len(c) > 1]
            for node, view in zip(free, nodes, strict=True):
                if view.name in blocked:
                    options[view.name] = None
                else:
                    options[view.name] = Option("native") if view.name in native else self._other_way(node, position)
        return groups, options

    def _other_way(self, node: ir.Node, position: int) -> Option | None:
        if self._widener.can(node, position):
            return Option("casts")
        if self._runs_as_body(node, position, 0):
            expansion = self._expansions[node]
            return Option("body", 1 if expansion is None else len(expansion.nodes))
        return None

    def _unsupported_anywhere(self, node: ir.Node) -> Unsupported:
        for position, provider in enumerate(self._providers):
            _, refused = self._capability(position, [Views().node(node)])
            self._refuse(node, provider, refused.get(node.name or "", f"{provider.name} does not claim {node.op_type}"))
        return self._unsupported(node)

    def _pin_to_host(self, graph: ir.Graph, known: set[str], deciding: Iterable[str]) -> None:
        """Control flow belongs to the framework, shape arithmetic to the host, whoever else could run it."""
        views = Views()
        view = views.graph(graph)
        wanted = set(deciding)
        chosen = host_nodes(view.nodes, [v for v in view.outputs if v.name in wanted], known)
        by_name = {n.name: n for n in view.nodes}
        capable = {n for c in self._capability(self._host, [by_name[n] for n in chosen])[0] for n in c}
        for node in graph:
            if node.op_type in CONTROL and not node.domain:
                self._claimed[node] = self._host
            elif node.name in chosen and node.name in capable:
                self._claimed[node] = self._host
                for provider in self._providers:
                    if provider.memory_space != HOST:
                        self._refuse(node, provider, SHAPE_REASON)

    def _offer(self, graph: ir.Graph, position: int, *, chosen: bool = False) -> None:
        """Let a provider take what it can: of what was chosen for it, or of all that is left."""
        provider = self._providers[position]
        free = [n for n in graph if n not in self._claimed]
        if chosen:
            for node in free:
                if node in self._choice and self._choice[node].position > position:
                    self._passed_over(node, position)
            free = [n for n in free if n in self._choice and self._choice[n].position == position]
        if not free:
            return
        refused = self._take(position, free)
        for node in free:
            if node in self._claimed:
                continue
            reason = refused.get(node.name or "", f"{provider.name} does not claim {node.op_type}")
            if self._widen(node, position) or self._expand(node, position):
                continue
            self._refuse(node, provider, reason)

    def _take(self, position: int, free: Sequence[ir.Node]) -> dict[str, str]:
        """Let a provider claim nodes; the reasons for those it refuses.

        Of its claims that overlap the first is kept, and it is asked again about what is left.
        """
        provider = self._providers[position]
        while True:
            views = Views()
            by_name = {n.name or "": n for n in free if n not in self._claimed}
            claims, refused = self._capability(position, [views.node(n) for n in by_name.values()])
            late = 0
            for claim in claims:
                nodes = [by_name[n] for n in claim if n in by_name]
                if any(n in self._claimed for n in nodes):
                    late += 1
                    continue
                self._claimed.update(dict.fromkeys(nodes, position))
                if len(nodes) > 1:
                    self._groups.append((position, nodes))
            if not late or late == len(claims):
                return refused
            logger.debug("%s: %d claims overlap others; it is asked again without these", provider.device, late)

    def _capability(self, position: int, nodes: Sequence[NodeView]) -> tuple[Sequence[tuple[str, ...]], dict[str, str]]:
        if not nodes:
            return (), {}
        answer = self._providers[position].get_capability(part(nodes))
        return answer.claims, dict(answer.refused)

    def _widen(self, node: ir.Node, position: int) -> bool:
        """Run a node in a wider dtype on this provider, with casts around it."""
        inserted = self._widener.widen(node, position)
        if inserted is None:
            return False
        self._claimed[node] = position
        self._claimed.update(inserted)
        return True

    def _expand(self, node: ir.Node, position: int) -> bool:
        """Replace a node by its function body if this provider can run all of it."""
        if not self._runs_as_body(node, position, 0):
            return False
        self._put_body(node, position)
        return True

    def _runs_as_body(self, node: ir.Node, position: int, depth: int) -> bool:
        """Whether a provider can run all of a node's function body, bodies inside it included; nothing is changed."""
        if depth > _DEPTH or not has_body(node.op_type, node.domain):
            return False
        if node not in self._expansions:
            self._expansions[node] = expand(node, self._names)
        expansion = self._expansions[node]
        if expansion is None:
            return False
        fill_types(expansion.nodes)
        able, shapes = self._able(expansion, position)
        return all(
            n.name in able
            or n.name in shapes
            or (n.op_type in CONTROL and not n.domain and position == self._host)
            or self._runs_as_body(n, position, depth + 1)
            for n in expansion.nodes
        )

    def _able(self, expansion: Expansion, position: int) -> tuple[set[str], set[str]]:
        """Of a body the nodes that a provider claims, and those that are shape arithmetic; both by name."""
        views = Views()
        body = [views.node(n) for n in expansion.nodes]
        shapes = host_nodes(body, (), {v.name or "" for v in expansion.initializers})
        claims, _ = self._capability(position, [n for n in body if n.name not in shapes])
        return {n for c in claims for n in c}, shapes

    def _put_body(self, node: ir.Node, position: int) -> None:
        expansion = self._expansions.pop(node)
        assert expansion is not None, "_runs_as_body said that there is one"
        able, shapes = self._able(expansion, position)
        expansion.apply()
        for inner in expansion.nodes:
            if inner.name in able:
                self._claimed[inner] = position
            elif inner.name in shapes or (inner.op_type in CONTROL and not inner.domain):
                self._claimed[inner] = self._host
                for attr in inner.attributes.values():
                    if attr.type == ir.AttributeType.GRAPH:
                        complete_types(attr.as_graph())
                        self._pin_levels(attr.as_graph(), {v.name or "" for v in expansion.initializers}, ())
                        self._place(attr.as_graph())
            else:
                self._put_body(inner, position)

    def _passed_over(self, node: ir.Node, position: int) -> None:
        """Note why an earlier provider does not get a node: what was decided, or what it says itself."""
        provider = self._providers[position]
        reason = self._choice[node].reasons.get(provider.device)
        if reason is None:
            _, refused = self._capability(position, [Views().node(node)])
            reason = refused.get(node.name or "", f"{provider.name} does not claim {node.op_type}")
        self._refuse(node, provider, reason)

    def _refuse(self, node: ir.Node, provider: Provider, reason: str) -> None:
        self._decisions.refused.setdefault(node.name or "", {})[provider.device] = reason

    def _unsupported(self, node: ir.Node) -> Unsupported:
        view = Views().node(node)
        types = ", ".join("?" if v is None or v.dtype is None else str(v.dtype) for v in view.inputs)
        reasons = self._decisions.refused.get(node.name or "", {})
        why = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        return Unsupported(
            f"no provider can run {view.op} (version {view.version or '?'}) on ({types}): {why}",
            node=view.name,
            op=view.op,
            remedy="Add a provider that has this operator to the list, or export the model without it",
        )


def all_graphs(graph: ir.Graph) -> Iterable[ir.Graph]:
    """A graph and all nested in it."""
    yield graph
    for node in graph:
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                yield from all_graphs(attr.as_graph())


def complete_types(graph: ir.Graph) -> None:
    """Fill in the dtypes that onnx's inference left open, in a graph and those nested in it."""
    for node in graph:
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                complete_types(attr.as_graph())
        fill_types([node])
        if node.op_type in CONTROL and not node.domain:
            _control_types(node)


def fill_types(nodes: Iterable[ir.Node]) -> None:
    """Dtypes of outputs from the schemas, where they are not known yet."""
    for node in nodes:
        if all(v.type is not None or v.name == "" for v in node.outputs):
            continue
        view = Views().node(node)
        found = result_dtypes(view, [None if v is None else v.dtype for v in view.inputs])
        for value, dtype in zip(node.outputs, found, strict=False):
            if value.type is None and dtype is not None and value.name != "":
                value.type = ir.TensorType(ir.DataType(dtypes.to_onnx(np.dtype(dtype))))


def _control_types(node: ir.Node) -> None:
    body = next((a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH), None)
    if body is None:
        return
    skip = 1 if node.op_type == "Loop" else 0
    for value, inner in zip(node.outputs, list(body.outputs)[skip:], strict=False):
        if value.type is None:
            value.type = inner.type
