"""Which nodes of a partition become one kernel: trees and small graphs of elementwise nodes with a single result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpurt.device.codegen import emit
from gpurt.device.lowering import Emitted, Ref
from gpurt.device.ops.elementwise import FUSIBLE, step_for
from gpurt.device.steps import Step, eight_wide
from gpurt.device.unit import Host, finish, lowering_for
from gpurt.graph.view import GraphView, NodeView
from gpurt.infer import infer
from gpurt.provider import DeviceUnit, Operand, Refused, UnitPlan
from gpurt.spec import Spec

MOST_INPUTS: Final = 16
MOST_NODES: Final = 32
_SCALED: Final = ("QuantizeLinear", "DequantizeLinear")


class FusedUnit:
    """Elementwise nodes as one kernel; all inner values live in registers.

    Only where broadcasting would compute a costly inner value many times over, a kernel of its own stores it first;
    that is seen when shapes are known, so grouping needs no shapes.
    """

    def __init__(self, host: Host, nodes: Sequence[NodeView]) -> None:
        self._host = host
        self.nodes = nodes
        made = {v.name for node in nodes for v in node.outputs if v is not None}
        names = [v.name for node in nodes for v in node.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        last = nodes[-1].outputs[0]
        assert last is not None
        self.outputs: Sequence[str | None] = [last.name]
        self.host_inputs: frozenset[int] = frozenset()

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Shapes from the rules, node by node; one launch for the last. Raises Refused or Unknown."""
        specs: dict[str, Spec] = {}
        values: dict[str, Ref | Step] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self.nodes[0].op}: {name!r} is not there")
            specs[name], values[name] = spec, Ref(spec, Operand("in", i))
        for node in self.nodes:
            try:
                out = infer(node, [None if v is None else specs[v.name] for v in node.inputs])[0]
                step = step_for(node, [None if v is None else values[v.name] for v in node.inputs], out)
            except ValueError as e:
                raise Refused(str(e)) from e
            output = node.outputs[0]
            assert output is not None
            specs[output.name], values[output.name] = out, step
        emitted = Emitted()
        c = lowering_for(self._host, self.nodes[-1], inputs, [out], emitted)
        emit(c, step, c.output())
        inplace = {0: _walked_alike(inputs, out)}
        return finish(self._host, emitted, [out], "+".join(n.op_type for n in self.nodes), inplace)


def _walked_alike(inputs: Sequence[Spec | None], out: Spec) -> tuple[int, ...]:
    """Positions of the inputs that are read exactly where the result is written, so that both may be one memory."""
    return tuple(
        i
        for i, spec in enumerate(inputs)
        if spec is not None and spec.shape == out.shape and spec.dtype.itemsize == out.dtype.itemsize
    )


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

    for number, node in enumerate(partition.nodes):
        if not _fusable(host, node):
            continue
        members = {number}
        while (name := _absorbable(host, partition, members, by_result, readers, kept)) is not None:
            members |= set(by_result.pop(name))
        by_result[node.outputs[0].name] = sorted(members)  # type: ignore[union-attr]

    by_last = {members[-1]: members for members in by_result.values()}
    inner = {number for members in by_result.values() for number in members[:-1]}
    units: list[DeviceUnit | tuple[NodeView, ...]] = []
    for number, node in enumerate(partition.nodes):
        if number in by_last:
            units.append(FusedUnit(host, [partition.nodes[i] for i in by_last[number]]))
        elif number not in inner:
            units.append((node,))
    return units


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
