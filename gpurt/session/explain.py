"""Explanation: who runs each node and who refused it why, every copy and every cast; as text and as a dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpurt.layout import sentence
from gpurt.partitioner import CompiledGraph, ControlItem, Decisions, UnitItem
from gpurt.partitioner.compile import reads, writes
from gpurt.partitioner.shapes import shape_known
from gpurt.provider import HOST, DeviceMemory, Provider


class Explanation:
    """The answer of InferenceSession.explain()."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def to_dict(self) -> dict[str, Any]:
        """``version`` 1, and lists of dictionaries.

        ``nodes``, ``copies`` and ``casts``; ``removed``: what the optimizer took out, ``why`` and ``by`` what;
        ``layouts``: by graph and device how many nodes have channels last and what that left to transpose;
        ``transformations`` that changed the graph, each ``required`` (copies between devices, casts), ``general`` or
        of one ``provider``; ``near_misses``: rules that fitted a place in part, and the reason why they did not fire.
        A dry run has ``predicted`` too, see gpurt.session.dry_run.
        """
        return dict(self._data)

    def headline(self) -> str:
        """All of it in a line: nodes by device, and the operators that a device before theirs has refused."""
        nodes = self._data["nodes"]
        counts = Counter(n["device"] for n in nodes)
        handed_on = Counter(f"{n['op_type']} to {n['device']}" for n in nodes if n["refused"])
        told = f"{len(nodes)} nodes: " + ", ".join(f"{c} on {d}" for d, c in counts.most_common())
        told += "; " + ", ".join(f"{len(self._data[what])} {what}" for what in ("removed", "copies", "casts"))
        if handed_on:
            most = ", ".join(f"{c} {what}" for what, c in handed_on.most_common(5))
            told += f"; handed on: {most}" + (f" and {len(handed_on) - 5} more kinds" if len(handed_on) > 5 else "")
        return told

    def __str__(self) -> str:
        nodes, copies, casts = self._data["nodes"], self._data["copies"], self._data["casts"]
        lines = [self.headline()]
        width = max((len(n["device"]) for n in nodes), default=0)
        for node in nodes:
            fused = f" (fused: {', '.join(node['fused_from'])})" if node["fused_from"] else ""
            lines.append(f"  {node['device']:{width}}  {node['op_type']:24} {node['name']}{fused}")
            lines.extend(f"  {'':{width}}    not on {device}: {why}" for device, why in node["refused"].items())
        for copy in copies:
            size = "?" if copy["bytes"] is None else f"{copy['bytes']}"
            lines.append(f"  copy  {copy['value']}: {copy['from']} -> {copy['to']}, {size} bytes, {copy['cause']}")
        lines.extend(f"  layout  {sentence(entry)}" for entry in self._data.get("layouts", ()))
        lines.extend(f"  cast  {c['value']}: {c['from']} -> {c['to']}, {c['cause']}" for c in casts)
        return "\n".join([*lines, *self._predicted()])

    def _predicted(self) -> Iterator[str]:
        found = self._data.get("predicted")
        if found is None:
            return
        assumed = ", ".join(f"{name} {shape}" for name, shape in found["assumed"].items())
        yield f"predicted for {assumed}: {1e3 * found['seconds']:.3f} ms"
        for device, part in found["devices"].items():
            yield (
                f"  {device}: {part['nodes']} nodes, {1e3 * part['seconds']:.3f} ms, weights {part['weights']} bytes, "
                f"values alive at once {part['peak']} bytes"
            )
        yield f"  copies and waits: {1e3 * found['copies_seconds']:.3f} ms"


def explain(
    graph: CompiledGraph, providers: Sequence[Provider], decisions: Decisions, seen: Sequence[Mapping[str, Any]],
    fallbacks: Mapping[int, Sequence[UnitItem]],
) -> Explanation:  # fmt: skip
    """Describe a compiled model; `seen` are the copies of plans that were made, with their bytes."""
    nodes = [r for g in levels(graph) for item in g.items for r in _records(item, providers, decisions, fallbacks)]
    copies = []
    by_key = {(c["value"], c["from"], c["to"]): c for c in seen}
    for copy in _copies(graph, providers):
        key = (copy["value"], copy["from"], copy["to"])
        copies.append({**copy, "bytes": by_key.pop(key)["bytes"] if key in by_key else None})
    copies += [dict(c) for c in by_key.values()]  # plans may have moved nodes for their shapes
    return Explanation(
        {
            "version": 1,
            "nodes": nodes,
            "removed": list(decisions.removed),
            "copies": copies,
            "casts": list(decisions.casts),
            "transformations": [*decisions.applied, *_required(Cast=len(decisions.casts), Memcpy=len(copies))],
            "near_misses": list(decisions.misses),
            "layouts": list(decisions.layouts),
        }
    )


def _required(**changes: int) -> list[dict[str, Any]]:
    """What partitioning had to put in, in the form of the optimizer's transformations."""
    return [{"name": n, "kind": "required", "level": 0, "changes": c} for n, c in changes.items() if c]


def levels(graph: CompiledGraph) -> Iterator[CompiledGraph]:
    """A graph and all nested in it."""
    yield graph
    for item in graph.items:
        if isinstance(item, ControlItem):
            for body in item.bodies.values():
                yield from levels(body)


def _records(
    item: UnitItem | ControlItem, providers: Sequence[Provider], decisions: Decisions,
    fallbacks: Mapping[int, Sequence[UnitItem]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    if isinstance(item, ControlItem):
        yield _record(item.node.name, item.node.op_type, item.node.domain, "cpu", "cpu", [], {})
        return
    if id(item) in fallbacks:
        for inner in fallbacks[id(item)]:
            yield from _records(inner, providers, decisions, fallbacks)
        return
    provider = providers[item.provider]
    nodes = item.unit.nodes
    last = nodes[-1]
    refused = {d: r for n in nodes for d, r in decisions.refused.get(n.name, {}).items()}
    fused = [n.name for n in nodes] if len(nodes) > 1 else []
    yield _record(last.name, last.op_type, last.domain, provider.name, provider.device, fused, refused)


def _record(
    name: str, op_type: str, domain: str, provider: str, device: str, fused: list[str], refused: dict[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "op_type": op_type,
        "domain": domain,
        "provider": provider,
        "device": device,
        "fused_from": fused,
        "refused": refused,
    }


def _copies(graph: CompiledGraph, providers: Sequence[Provider]) -> Iterator[dict[str, Any]]:
    """Copies that placement makes necessary: one for each value and device that reads it."""
    host = next(p.device for p in providers if p.memory_space == HOST)
    homes: dict[str, str] = {}
    for name in graph.inputs:
        homes[name] = host
    yield from _level(graph, providers, homes, host, main=True)


def _level(
    graph: CompiledGraph, providers: Sequence[Provider], outer: Mapping[str, str], host: str, *, main: bool
) -> Iterator[dict[str, Any]]:
    homes = dict(outer)
    homes.update(dict.fromkeys(graph.inputs, host))
    nodes = [n for i in graph.items for n in (i.unit.nodes if isinstance(i, UnitItem) else (i.node,))]
    constant = set(graph.constants) | shape_known(nodes, graph.constants)
    done: set[tuple[str, str]] = set()
    one_memory = {host, *(p.device for p in providers if isinstance(p, DeviceMemory) and p.shares_host)}

    def copy(name: str, target: str, cause: str) -> Iterator[dict[str, Any]]:
        source = homes.get(name)
        if source is None or source == target or name in constant or (name, target) in done:
            return
        if {source, target} <= one_memory:
            return
        done.add((name, target))
        yield {"value": name, "from": source, "to": target, "bytes": None, "cause": cause}

    for item in graph.items:
        if isinstance(item, ControlItem):
            for value in item.node.inputs:
                if value is not None:
                    yield from copy(value.name, host, f"read by {item.node.op_type}")
            for body in item.bodies.values():
                yield from _level(body, providers, homes, host, main=False)
            homes.update(dict.fromkeys(writes(item), host))
            continue
        provider = providers[item.provider]
        on_host = provider.memory_space == HOST
        target = host if on_host else provider.device
        contents = set() if on_host else {item.unit.inputs[i] for i in item.unit.host_inputs}  # type: ignore[union-attr]
        shape_only = on_host and all(n.op_type in ("Shape", "Size") for n in item.unit.nodes)
        for name in reads(item):
            if not shape_only:
                yield from copy(name, host if name in contents else target, f"read by {item.unit.nodes[0].op_type}")
        homes.update(dict.fromkeys(writes(item), target))
    if main:
        for name in graph.outputs:
            yield from copy(name, host, "graph output")
