"""Which nodes of a partition become one kernel: trees and small graphs of elementwise nodes with a single result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpurt.device.attended import AttendedUnit, attended
from gpurt.device.epilogue import FLOAT32, HEADS
from gpurt.device.fused import ChainedUnit, FusedUnit
from gpurt.device.joined import JoinedUnit, Part, joined
from gpurt.device.ops.elementwise import FUSIBLE
from gpurt.device.ops.expressions import EXPRESSIONS
from gpurt.device.prologue import FED, PRODUCTS, STORING
from gpurt.device.steps import eight_wide
from gpurt.device.unit import Host
from gpurt.graph.view import GraphView, NodeView
from gpurt.provider import DeviceUnit

MOST_INPUTS: Final = 16
MOST_NODES: Final = 32
FOLDED: Final = ("Slice", "Split", "Transpose")
"""Operators whose results elementwise nodes read where they are."""
_Shape = Sequence[int | str | None] | None
_SCALED: Final = ("QuantizeLinear", "DequantizeLinear")


def groups(host: Host, partition: GraphView) -> Sequence[DeviceUnit | tuple[NodeView, ...]]:
    """Units and single nodes in topological order.

    A node takes in the groups of its producers whose results nobody outside the group wants. Such a group stands at the
    position of its last node: all its inputs are there, and no node in between needs an inner value.
    """
    readers: dict[str, set[int]] = {}
    for number, node in enumerate(partition.nodes):
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v.name, set()).add(number)
    kept = {v.name for v in partition.outputs}
    by_result: dict[str, list[int]] = {}  # result of a group -> numbers of its nodes, in order
    makers = {v.name: number for number, node in enumerate(partition.nodes) for v in node.outputs if v is not None}
    whole = set(kept)  # what no group takes in: also what is better computed behind a product

    for number, node in enumerate(partition.nodes):
        if not _fusable(host, node):
            continue
        members = {number}
        whole |= _apart(host, partition, node, by_result, makers, readers, kept)
        while (name := _absorbable(host, partition, members, by_result, readers, whole)) is not None:
            members |= set(by_result.pop(name))
        by_result[node.outputs[0].name] = sorted(members)  # type: ignore[union-attr]

    by_last = {members[-1]: members for members in by_result.values()}
    heads = _heads(host, partition, list(by_last.values()), makers, readers, kept)
    inner = {number for members in by_result.values() for number in members[:-1]} | set(heads.values())
    fed = _fed(host, partition, by_last, heads, readers, kept)
    inner |= {members[-1] for members in fed.values()}
    concats = joined(host, partition, readers, kept, by_last, heads, inner, set(fed))
    for parts in concats.values():
        inner |= {number for head, members in parts for number in (head, *members)}
    attentions = attended(host, partition, readers, kept, inner | set(by_last) | set(fed))
    inner |= {number for members in attentions.values() for number in members[:-1]}
    views = _views(host, partition, by_last, fed, heads, inner | set(attentions), readers, kept)
    inner |= {number for members in views.values() for number in members}
    units: list[DeviceUnit | tuple[NodeView, ...]] = []
    for number, node in enumerate(partition.nodes):
        if number in attentions:
            units.append(_attended(host, [partition.nodes[i] for i in attentions[number]]))
        elif number in concats:
            units.append(_joined(host, partition, concats[number], node))
        elif number in inner:
            continue
        elif number in fed or number in heads:
            core = heads.get(number, number)
            before = [partition.nodes[i] for i in fed.get(core, ())]
            after = [partition.nodes[i] for i in by_last.get(number, ())]
            wanted = bool(before) and _wanted(before, readers, kept)
            seen = [partition.nodes[i] for i in views.get(number, ())]
            units.append(ChainedUnit(host, before, partition.nodes[core], after, wanted=wanted, views=seen))
        elif number in by_last:
            seen = [partition.nodes[i] for i in views.get(number, ())]
            units.append(FusedUnit(host, [partition.nodes[i] for i in by_last[number]], seen))
        else:
            units.append((node,))
    return units


def _joined(host: Host, partition: GraphView, parts: Sequence[tuple[int, Sequence[int]]], node: NodeView) -> JoinedUnit:
    made = [Part(partition.nodes[head], [partition.nodes[i] for i in members]) for head, members in parts]
    return JoinedUnit(host, made, node)


def _attended(host: Host, nodes: Sequence[NodeView]) -> AttendedUnit:
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Attention")
    return AttendedUnit(host, nodes[:at], nodes[at], nodes[at + 1] if at + 1 < len(nodes) else None)


def _heads(
    host: Host,
    partition: GraphView,
    groups: Sequence[Sequence[int]],
    makers: dict[str, int],
    readers: dict[str, set[int]],
    kept: set[str],
) -> dict[int, int]:
    """Last node of a group -> the node whose epilogue it is; where two come into question, the later one."""
    found = {members[-1]: _possible_heads(host, partition, members, makers, readers, kept) for members in groups}
    return {last: max(heads) for last, heads in found.items() if heads}


def _possible_heads(
    host: Host,
    partition: GraphView,
    members: Sequence[int],
    makers: dict[str, int],
    readers: dict[str, set[int]],
    kept: set[str],
) -> list[int]:
    """The nodes whose epilogue a group can be."""
    nodes = [partition.nodes[i] for i in members]
    if not _eight_wide_throughout(host, nodes) or any(n.op_type in _SCALED for n in nodes):
        return []
    names = {v.name for node in nodes for v in node.inputs if v is not None}
    return [
        makers[name]
        for name in names
        if name in makers
        and name not in kept
        and readers[name] <= set(members)
        and _heading(host, partition, makers[name], nodes)
    ]


def _heading(host: Host, partition: GraphView, number: int, nodes: Sequence[NodeView]) -> bool:
    node = partition.nodes[number]
    row = host.table.rows.get((node.domain, node.op_type))
    out, result = node.outputs[0], nodes[-1].outputs[0]
    if row is None or row.lower not in HEADS or out is None or out.dtype != FLOAT32:
        return False
    if any(v is not None for v in node.outputs[1:]) or not _hostless(node, row.host, nodes):
        return False
    if row.lower not in FED or row.lower in PRODUCTS:
        return True
    # What a reduction leaves is mostly broadcast to the data again, and what does that is no epilogue.
    return result is not None and out.shape is not None and out.shape == result.shape


def _hostless(node: NodeView, positions: Sequence[int], nodes: Sequence[NodeView]) -> bool:
    """Whether nodes read nothing of what must be known on the host for another: of that kernels get no tensors."""
    numbers = {v.name for i, v in enumerate(node.inputs) if v is not None and i in positions}
    return numbers.isdisjoint(v.name for n in nodes for v in n.inputs if v is not None)


def _fed(
    host: Host,
    partition: GraphView,
    by_last: dict[int, list[int]],
    heads: dict[int, int],
    readers: dict[str, set[int]],
    kept: set[str],
) -> dict[int, Sequence[int]]:
    """Node whose first input a group computes -> the group's nodes.

    What others read too comes out beside the node's own results, which must be before they need it.
    """
    behind = {head: by_last[last] for last, head in heads.items()}
    found: dict[int, Sequence[int]] = {}
    for last, members in by_last.items():
        if last in heads:
            continue
        nodes = [partition.nodes[i] for i in members]
        made = nodes[-1].outputs[0]
        assert made is not None
        if not readers.get(made.name) or any(n.op_type in _SCALED for n in nodes):
            continue
        first, *others = sorted(readers[made.name])
        node = partition.nodes[first]
        row = host.table.rows.get((node.domain, node.op_type))
        if row is None or row.lower not in FED or not _eight_wide_throughout(host, nodes):
            continue
        own = behind.get(first, [first])
        early = any(i < own[-1] and i not in own for i in others)
        if _wanted(nodes, readers, kept) and (early or row.lower not in STORING):
            continue
        names = [None if v is None else v.name for v in node.inputs]
        if names[0] == made.name and made.name not in names[1:] and _hostless(node, row.host, nodes):
            found[first] = members
    return found


def _views(
    host: Host,
    partition: GraphView,
    by_last: dict[int, list[int]],
    fed: dict[int, Sequence[int]],
    heads: dict[int, int],
    taken: set[int],
    readers: dict[str, set[int]],
    kept: set[str],
) -> dict[int, list[int]]:
    """Where a unit stands -> the nodes that only view what its elementwise nodes alone read."""
    units: dict[int, set[int]] = {}
    places = {head: last for last, head in heads.items()}
    before = {members[-1]: places.get(number, number) for number, members in fed.items()}
    for last, members in by_last.items():
        if last in before or last not in taken:  # what is taken and feeds nothing is in a unit of others
            units.setdefault(before.get(last, last), set()).update(members)
    owner = {i: place for place, members in units.items() for i in members}
    arranged = {p for p, m in units.items() if any(not _walks(partition.nodes[i]) for i in m)}
    found: dict[int, list[int]] = {}
    for number in reversed(range(len(partition.nodes))):
        node = partition.nodes[number]
        if number in taken or node.domain or node.op_type not in FOLDED or ("", node.op_type) not in host.table.rows:
            continue
        names = [v.name for v in node.outputs if v is not None]
        at = {owner.get(i) for name in names for i in readers.get(name, ())}
        place = at.pop() if len(at) == 1 and kept.isdisjoint(names) else None
        if place is None or place in arranged:
            continue
        nodes = [partition.nodes[i] for i in units[place]]
        if _hostless(node, host.table.rows["", node.op_type].host, nodes):
            owner[number] = place
            found.setdefault(place, []).insert(0, number)
    return found


def _walks(node: NodeView) -> bool:
    return EXPRESSIONS[node.domain, node.op_type].arrange is None


def _wanted(nodes: Sequence[NodeView], readers: dict[str, set[int]], kept: set[str]) -> bool:
    """Whether more than one node reads the result of a group, or it is wanted outside."""
    made = nodes[-1].outputs[0]
    assert made is not None
    return made.name in kept or len(readers[made.name]) > 1


def _eight_wide_throughout(host: Host, nodes: Sequence[NodeView]) -> bool:
    return host.info.kernel_class != "cpu" or all(_eight_wide(node) for node in nodes)


def _fusable(host: Host, node: NodeView) -> bool:
    # A provider that replaces a row means it: only nodes of the shared elementwise row are fused.
    row = host.table.rows.get((node.domain, node.op_type))
    # A scale for each block changes the shape that the kernel walks, so such a node stays alone.
    fusible = row is not None and row.lower in FUSIBLE and not node.attr("block_size", 0)
    return fusible and len(node.outputs) == 1 and node.outputs[0] is not None


def _absorbable(
    host: Host,
    partition: GraphView,
    members: set[int],
    by_result: dict[str, list[int]],
    readers: dict[str, set[int]],
    kept: set[str],
) -> str | None:
    """An input of a group that is the result of another group and that only this group reads."""
    for number in members:
        node = partition.nodes[number]
        # A scale that broadcasts along an axis must be stored before it can be viewed so.
        for v in node.inputs[:1] if node.op_type in _SCALED else node.inputs:
            if v is None or v.name not in by_result or v.name in kept or not readers[v.name] <= members:
                continue
            other = by_result[v.name]
            if members.isdisjoint(other) and _fits(host, [partition.nodes[i] for i in sorted(members | set(other))]):
                return v.name
    return None


def _apart(
    host: Host,
    partition: GraphView,
    node: NodeView,
    by_result: dict[str, list[int]],
    makers: dict[str, int],
    readers: dict[str, set[int]],
    kept: set[str],
) -> set[str]:
    """Results of groups that a node broadcasts, and that are better computed before: behind a product or reduction."""
    out = node.outputs[0]
    assert out is not None
    return {
        v.name
        for v in node.inputs
        if v is not None
        and v.name in by_result
        and _broadcast(v.shape, out.shape)
        and _possible_heads(host, partition, by_result[v.name], makers, readers, kept)
    }


def _broadcast(shape: _Shape, to: _Shape) -> bool:
    """Whether a value has fewer elements than another that it is broadcast to, as far as shapes are known."""
    if shape is None or to is None or len(shape) > len(to):
        return False
    aligned = (*(1,) * (len(to) - len(shape)), *shape)
    return any(d == 1 and e != 1 for d, e in zip(aligned, to, strict=True))


def _fits(host: Host, nodes: Sequence[NodeView]) -> bool:
    made = {v.name for node in nodes for v in node.outputs if v is not None}
    inputs = {v.name for node in nodes for v in node.inputs if v is not None} - made
    if len(nodes) > MOST_NODES or len(inputs) > MOST_INPUTS:
        return False
    # On a CPU a node that cannot be eight-wide would make the whole group scalar.
    return host.info.kernel_class != "cpu" or len({_eight_wide(node) for node in nodes}) == 1


def _eight_wide(node: NodeView) -> bool:
    output = node.outputs[0]
    assert output is not None
    assert output.dtype is not None
    return eight_wide(node, [None if v is None else v.dtype for v in node.inputs], output.dtype)
