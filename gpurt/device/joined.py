"""A Concat as a unit with the convolutions and pools that make its inputs: these write their parts of it in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gpurt.device.epilogue import FLOAT32, HEADS, Epilogue
from gpurt.device.fused import steps_over
from gpurt.device.lowering import Emitted, Lowering, Ref
from gpurt.device.ops.movement import Dim, strided_copy, strides
from gpurt.device.steps import Step
from gpurt.device.unit import Host, finish, lowering_for
from gpurt.device.views import BESIDE, Strided
from gpurt.graph.view import GraphView, NodeView
from gpurt.infer import infer
from gpurt.infer.shapes import axis as front
from gpurt.provider import Operand, Refused, UnitPlan
from gpurt.spec import Spec
from gpurt.symbolic import Size

PARTS: Final = frozenset({"AveragePool", "Conv", "Gemm", "MatMul", "MaxPool"})

FARTHEST: Final = 32
"""Nodes between a part and the Concat: a part is computed when the Concat is, so its inputs are kept until then."""


@dataclass(frozen=True, slots=True)
class Part:
    """What makes an input of a Concat: a convolution, product or pool, and the elementwise nodes of its epilogue."""

    head: NodeView
    nodes: Sequence[NodeView] = ()

    @property
    def result(self) -> str:
        """The Concat's input."""
        value = (self.nodes[-1] if self.nodes else self.head).outputs[0]
        assert value is not None, "a part has a result"
        return value.name


class JoinedUnit:
    """Parts that are stored side by side.

    Where the Concat's axis is the outermost that counts, a part is dense memory within the result. Along the last axis
    the kernels of BESIDE write it with a stride, unless an epilogue reads by position. Everything else, other inputs of
    the Concat among it, is copied as a Concat would.

    Args:
        host: the provider.
        parts: of a Concat, which alone reads them.
        node: the Concat.
    """

    symbolic = True

    def __init__(self, host: Host, parts: Sequence[Part], node: NodeView) -> None:
        self._host, self._node = host, node
        self._parts = {part.result: part for part in parts}
        self.nodes: Sequence[NodeView] = (*(n for p in parts for n in (p.head, *p.nodes)), node)
        made = {v.name for n in self.nodes for v in n.outputs if v is not None}
        names = [v.name for n in self.nodes for v in n.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        last = node.outputs[0]
        assert last is not None, "the unit has a result"
        self.outputs: Sequence[str | None] = [last.name]
        rows = [(p.head, host.table.rows[p.head.domain, p.head.op_type].host) for p in parts]
        known = {v.name for n, row in rows for i, v in enumerate(n.inputs) if v is not None and i in row}
        self.host_inputs = frozenset(i for i, name in enumerate(self.inputs) if name in known)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """The parts' launches, and copies of what is no part. Raises Refused or Unknown."""
        values: dict[str, Ref | Step] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self._node.op}: {name!r} is not there")
            values[name] = Ref(spec, Operand("in", i))
        emitted = Emitted()
        c = lowering_for(self._host, self._node, [], [], emitted)
        made = {name: self._spec(part, values) for name, part in self._parts.items()}
        names = [v.name for v in self._node.inputs if v is not None]
        specs = [made[n][1] if n in made else _ref(values[n]).spec for n in names]
        try:
            out = infer(self._node, specs)[0]
        except ValueError as e:
            raise Refused(str(e)) from e
        along = front(self._node.attr("axis"), len(out.shape))
        offset = 0
        for name, spec in zip(names, specs, strict=True):
            if isinstance(spec.size, Size) or spec.size:
                target = _within(out, spec, offset)
                if name in self._parts:
                    self._store(c, self._parts[name], values, made[name][0], spec, target)
                else:
                    _copy(c, target, _ref(values[name]))
            offset += math.prod(spec.shape[along:])
        return finish(self._host, emitted, [out], "+".join(n.op_type for n in self.nodes))

    def _spec(self, part: Part, values: Mapping[str, Ref | Step]) -> tuple[Spec, Spec]:
        """Specs of a head's result, and of the part's."""
        try:
            product = infer(part.head, [None if v is None else _ref(values[v.name]).spec for v in part.head.inputs])[0]
        except ValueError as e:
            raise Refused(str(e)) from e
        if not part.nodes:
            return product, product
        stand_in = Ref(product, Operand("temp", nbytes=product.nbytes))
        return product, steps_over(part.nodes, {**values, _made(part.head): stand_in})[1]

    def _store(
        self, c: Lowering, part: Part, values: Mapping[str, Ref | Step], product: Spec, spec: Spec, target: Strided
    ) -> None:
        """Emit a part's launches, into its place if its kernels can write there."""
        head = part.head
        lower = self._host.table.rows[head.domain, head.op_type].lower
        ins = [None if v is None else _ref(values[v.name]) for v in head.inputs]
        c = replace(c, node=head, specs=[None if x is None else x.spec for x in ins], ins=ins, outs=[product])
        out: Ref = target
        if _dense(target):
            out = Ref(target.spec, target.operand, target.offset)
        elif lower not in BESIDE or not _alike(product, spec):
            out = c.temp(spec.dtype, spec.shape)
        result, epilogue = _product(c, part, values, product, out)
        if out is target and epilogue is not None and not (epilogue.placeless() and epilogue.fits(spec.shape[-1])):
            out = c.temp(spec.dtype, spec.shape)
            result, epilogue = _product(c, part, values, product, out)
        lower(replace(c, results=[result], epilogue=epilogue))
        if epilogue is not None and not epilogue.used:
            epilogue.store_apart()
        if out.operand is not target.operand:
            _copy(c, target, out)


def _product(
    c: Lowering, part: Part, values: Mapping[str, Ref | Step], product: Spec, out: Ref
) -> tuple[Ref, Epilogue | None]:
    """Where a part's head stores if its epilogue does not, and the epilogue, which stores to `out`."""
    if not part.nodes:
        return out, None
    result = out if _alike(product, out.spec) else c.temp(product.dtype, product.shape)
    root, _ = steps_over(part.nodes, {**values, _made(part.head): result})
    return result, Epilogue(c, root, out, result)


def _alike(one: Spec, two: Spec) -> bool:
    return (one.shape, one.dtype) == (two.shape, two.dtype)


def _within(out: Spec, spec: Spec, before: int) -> Strided:
    """The place of a Concat's input in its result, behind so many elements of the axis and those after it."""
    return Strided(Spec(spec.dtype, spec.shape), Operand("out", 0), before, tuple(strides(out.shape)))


def _dense(x: Strided) -> bool:
    """Whether the elements lie in order; where sizes are open, that is not counted on."""
    if any(isinstance(n, Size) for n in (*x.shape, *x.steps)):
        return False
    return all(n == 1 or s == t for n, s, t in zip(x.shape, x.steps, strides(x.shape), strict=True))


def _copy(c: Lowering, target: Strided, source: Ref) -> None:
    walk = zip(source.shape, strides(source.shape), target.steps, strict=True)
    strided_copy(c, target, source, [Dim(n, s, t) for n, s, t in walk])


def _ref(value: Ref | Step) -> Ref:
    assert isinstance(value, Ref), "a tensor in memory"
    return value


def _made(node: NodeView) -> str:
    value = node.outputs[0]
    assert value is not None, "a head has a result"
    return value.name


def joined(
    host: Host,
    partition: GraphView,
    readers: Mapping[str, set[int]],
    kept: set[str],
    groups: Mapping[int, Sequence[int]],
    heads: Mapping[int, int],
    inner: set[int],
    fed: set[int],
) -> dict[int, list[tuple[int, Sequence[int]]]]:
    """For each Concat that is a unit with others: its number -> for each part the head and its epilogue's nodes.

    Args:
        host: the provider.
        partition: the nodes.
        readers: value -> numbers of the nodes that read it.
        kept: values that are wanted outside.
        groups: last node of each elementwise group -> its nodes.
        heads: last node of a group -> the product whose epilogue it is.
        inner: numbers of nodes that are in units of others.
        fed: numbers of nodes that have a prologue.
    """
    nodes = partition.nodes
    makers = {v.name: number for number, node in enumerate(nodes) for v in node.outputs if v is not None}
    found: dict[int, list[tuple[int, Sequence[int]]]] = {}
    for number, node in enumerate(nodes):
        if node.domain or node.op_type != "Concat" or ("", "Concat") not in host.table.rows or number in inner:
            continue
        names = [v.name for v in node.inputs if v is not None]
        for name in names:
            made = makers.get(name, -1)
            alone = readers[name] == {number} and names.count(name) == 1 and name not in kept
            head = heads.get(made, made)
            if not alone or made in inner or number - made > FARTHEST or made < 0 or head in fed:
                continue
            if (head != made or made not in groups) and _is_part(host, nodes[head]):
                found.setdefault(number, []).append((head, groups.get(made, ())))
    return found


def _is_part(host: Host, node: NodeView) -> bool:
    row = host.table.rows.get((node.domain, node.op_type))
    out = node.outputs[0]
    own = row is not None and node.op_type in PARTS and row.lower in HEADS | BESIDE
    return own and out is not None and out.dtype == FLOAT32 and all(v is None for v in node.outputs[1:])
