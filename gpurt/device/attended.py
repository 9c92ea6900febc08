"""Attention as a unit with the nodes that only view queries, keys and values, and with the one that joins heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from gpurt.device.lowering import Emitted, Ref
from gpurt.device.ops.movement import strides
from gpurt.device.unit import Host, finish, lowering_for
from gpurt.device.views import VIEWS, Strided, dense, seen_through, whole
from gpurt.graph.view import GraphView, NodeView
from gpurt.infer import infer
from gpurt.provider import Operand, Refused, UnitPlan
from gpurt.spec import Spec

_HEADS: Final = 3  # the first inputs: queries, keys, values
_JOIN: Final = [0, 2, 1, 3]


class AttendedUnit:
    """Attention that reads and writes heads where they are.

    Args:
        host: the provider.
        before: nodes of VIEWS, in topological order, whose results only the others of the unit read.
        node: the Attention; its first output is its only one.
        after: a Transpose that alone reads the result, and brings a token's heads together.
    """

    symbolic = True

    def __init__(self, host: Host, before: Sequence[NodeView], node: NodeView, after: NodeView | None) -> None:
        self._host, self._before, self._node, self._after = host, before, node, after
        self.nodes: Sequence[NodeView] = (*before, node, *([after] if after else ()))
        made = {v.name for n in before for v in n.outputs if v is not None}
        names = [v.name for n in (*before, node) for v in n.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        last = self.nodes[-1].outputs[0]
        assert last is not None, "the unit has a result"
        self.outputs: Sequence[str | None] = [last.name]
        rows = [(n, host.table.rows[n.domain, n.op_type]) for n in (*before, node)]
        known = {v.name for n, row in rows for i, v in enumerate(n.inputs) if v is not None and i in row.host}
        self.host_inputs = frozenset(i for i, name in enumerate(self.inputs) if name in known)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Views of the inputs, then the Attention's launches. Raises Refused or Unknown."""
        values: dict[str, Strided] = {}
        specs: dict[str, Spec] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self._node.op}: {name!r} is not there")
            specs[name], values[name] = spec, whole(Ref(spec, Operand("in", i)))
        emitted = Emitted()
        c = lowering_for(self._host, self._node, [], [], emitted)
        try:
            seen_through(c, self._before, specs, values)
            own = [None if v is None else specs[v.name] for v in self._node.inputs]
            outs = infer(self._node, own)
        except ValueError as e:
            raise Refused(str(e)) from e
        ins = [None if v is None else values[v.name] for v in self._node.inputs]
        heads = [dense(c, x) if i < _HEADS and x is not None and not _side_by_side(x) else x for i, x in enumerate(ins)]
        result, spec = self._result(outs[0])
        c = replace(c, specs=own, outs=outs, ins=heads, results=[result])
        self._host.table.rows[self._node.domain, self._node.op_type].lower(c)
        return finish(self._host, emitted, [spec], "+".join(n.op_type for n in self.nodes))

    def _result(self, out: Spec) -> tuple[Ref, Spec]:
        """Where the Attention stores, and the spec of the unit's output."""
        operand = Operand("out", 0)
        if self._after is None:
            return Ref(out, operand), out
        spec = infer(self._after, [out])[0]
        steps = strides(spec.shape)
        return Strided(out, operand, 0, tuple(steps[p] for p in _JOIN)), spec


def _side_by_side(x: Strided) -> bool:
    return not x.shape or x.shape[-1] == 1 or x.steps[-1] == 1


def attended(
    host: Host, partition: GraphView, readers: Mapping[str, set[int]], kept: set[str], taken: set[int]
) -> dict[int, list[int]]:
    """For each Attention that is a unit with others: number of the unit's last node -> numbers of all its nodes.

    Args:
        host: the provider.
        partition: the nodes.
        readers: value -> numbers of the nodes that read it.
        kept: values that are wanted outside.
        taken: numbers of nodes that are in other units.
    """
    nodes = partition.nodes
    makers = {v.name: number for number, node in enumerate(nodes) for v in node.outputs if v is not None}
    found: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        if node.domain or node.op_type != "Attention" or any(v is not None for v in node.outputs[1:]):
            continue
        members = _feeding(host, partition, number, makers, taken)
        while outside := [m for m in members if not _inner(nodes[m], readers, kept, {*members, number})]:
            members.difference_update(outside)
        result = node.outputs[0]
        after = None if result is None or result.name in kept else _joining(partition, readers[result.name])
        if after is not None and after not in taken:
            found[after] = [*sorted(members), number, after]
        elif members:
            found[number] = [*sorted(members), number]
    return found


def _feeding(host: Host, partition: GraphView, number: int, makers: Mapping[str, int], taken: set[int]) -> set[int]:
    """The nodes of VIEWS from which queries, keys and values come."""
    nodes = partition.nodes
    members: set[int] = set()
    waiting = [v for v in nodes[number].inputs[:_HEADS] if v is not None]
    while waiting:
        made = makers.get(waiting.pop().name)
        if made is None or made in members or made in taken:
            continue
        node = nodes[made]
        first = node.inputs[0]
        if node.domain or node.op_type not in VIEWS or first is None or ("", node.op_type) not in host.table.rows:
            continue
        members.add(made)
        waiting.append(first)
    return members


def _inner(node: NodeView, readers: Mapping[str, set[int]], kept: set[str], members: set[int]) -> bool:
    names = [v.name for v in node.outputs if v is not None]
    return all(name not in kept and readers.get(name, set()) <= members for name in names)


def _joining(partition: GraphView, readers: set[int]) -> int | None:
    """The node that alone reads a result and brings a token's heads together."""
    if len(readers) != 1:
        return None
    (number,) = readers
    node = partition.nodes[number]
    joins = not node.domain and node.op_type == "Transpose" and list(node.attr("perm") or ()) == _JOIN
    return number if joins else None
