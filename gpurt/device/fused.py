"""Units of several nodes: elementwise nodes as one kernel, alone, behind a product, or before a reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpurt.device.codegen import emit
from gpurt.device.epilogue import Epilogue
from gpurt.device.lowering import Emitted, Ref
from gpurt.device.ops.elementwise import step_for
from gpurt.device.prologue import Prologue
from gpurt.device.steps import Step
from gpurt.device.unit import Host, finish, lowering_for
from gpurt.graph.view import NodeView
from gpurt.infer import infer
from gpurt.provider import Operand, Refused, UnitPlan
from gpurt.spec import Spec


class FusedUnit:
    """Elementwise nodes as one kernel; all inner values live in registers.

    Only where broadcasting would compute a costly inner value many times over, a kernel of its own stores it first;
    that is seen when shapes are known, so grouping needs no shapes.
    """

    symbolic = True

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
        values: dict[str, Ref | Step] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self.nodes[0].op}: {name!r} is not there")
            values[name] = Ref(spec, Operand("in", i))
        step, out = _steps(self.nodes, values)
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


class HeadedUnit:
    """A product and the elementwise nodes that alone read it; they are its epilogue where that can be.

    Where it cannot (other types, broadcasting that the product's kernel does not walk, a vendor's routine), they are a
    kernel of their own that works in place.
    """

    symbolic = True

    def __init__(self, host: Host, head: NodeView, nodes: Sequence[NodeView]) -> None:
        self._host = host
        self.nodes = (head, *nodes)
        made = {v.name for node in self.nodes for v in node.outputs if v is not None}
        own = [None if v is None else v.name for v in head.inputs]
        names = [v.name for node in nodes for v in node.inputs if v is not None]
        others = [n for n in dict.fromkeys(names) if n not in made and n not in own]
        self.inputs: Sequence[str | None] = [*own, *others]
        last = nodes[-1].outputs[0]
        assert last is not None
        self.outputs: Sequence[str | None] = [last.name]
        self.host_inputs: frozenset[int] = frozenset()

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """The product's launches, then whatever its epilogue leaves to do. Raises Refused or Unknown."""
        head, *nodes = self.nodes
        own = inputs[: len(head.inputs)]
        try:
            product = infer(head, own)
        except ValueError as e:
            raise Refused(str(e)) from e
        values: dict[str, Ref | Step] = {
            name: Ref(spec, Operand("in", i))
            for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True))
            if name is not None and spec is not None
        }
        emitted = Emitted()
        c = lowering_for(self._host, head, own, product, emitted)
        made = head.outputs[0]
        assert made is not None
        out_spec = _shape_of(nodes, values, made.name, product[0])
        out = Ref(out_spec, Operand("out", 0))
        alike = (out_spec.shape, out_spec.dtype) == (product[0].shape, product[0].dtype)
        result = Ref(product[0], out.operand) if alike else c.temp(product[0].dtype, product[0].shape)
        values[made.name] = result
        root, _ = _steps(nodes, values)
        epilogue = Epilogue(c, root, out, result)
        self._host.table.rows[head.domain, head.op_type].lower(replace(c, results=[result], epilogue=epilogue))
        if not epilogue.used:
            epilogue.store_apart()
        return finish(self._host, emitted, [out_spec], "+".join(n.op_type for n in self.nodes))


class FedUnit:
    """Elementwise nodes and the reduction or normalisation whose data they compute; its prologue, where they can be.

    Args:
        host: the provider.
        nodes: the elementwise nodes.
        node: reads their result as its first input, and nobody else does.
    """

    symbolic = True

    def __init__(self, host: Host, nodes: Sequence[NodeView], node: NodeView) -> None:
        self._host, self._node = host, node
        self._chain = nodes
        self.nodes = (*nodes, node)
        made = {v.name for n in nodes for v in n.outputs if v is not None}
        names = [v.name for n in self.nodes for v in n.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        self.outputs: Sequence[str | None] = [None if v is None else v.name for v in node.outputs]
        known = host.table.rows[node.domain, node.op_type].host
        shapes = {v.name for i, v in enumerate(node.inputs) if v is not None and i in known}
        self.host_inputs = frozenset(i for i, name in enumerate(self.inputs) if name in shapes)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """The launches of the last node, after whatever it leaves of the others. Raises Refused or Unknown."""
        values: dict[str, Ref | Step] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self._node.op}: {name!r} is not there")
            values[name] = Ref(spec, Operand("in", i))
        others = [None if v is None else values.get(v.name) for v in self._node.inputs[1:]]
        ins = [x if isinstance(x, Ref) else None for x in others]
        root, out = _steps(self._chain, values)
        specs = [out, *(None if x is None else x.spec for x in ins)]
        try:
            outs = infer(self._node, specs)
        except ValueError as e:
            raise Refused(str(e)) from e
        emitted = Emitted()
        c = lowering_for(self._host, self._node, specs, outs, emitted)
        data = c.temp(out.dtype, out.shape)
        prologue = Prologue(c, root, data)
        self._host.table.rows[self._node.domain, self._node.op_type].lower(
            replace(c, ins=[data, *ins], prologue=prologue)
        )
        prologue.settle(c, 0)
        return finish(self._host, emitted, outs[: len(self.outputs)], "+".join(n.op_type for n in self.nodes))


def _shape_of(nodes: Sequence[NodeView], values: Mapping[str, Ref | Step], made: str, product: Spec) -> Spec:
    """The result's spec, when the product's is known."""
    placeholder = Ref(product, Operand("temp", nbytes=product.nbytes))
    return _steps(nodes, {**values, made: placeholder})[1]


def _steps(nodes: Sequence[NodeView], values: dict[str, Ref | Step]) -> tuple[Step, Spec]:
    """The steps of elementwise nodes over the tensors of `values`, which gains them; the last one and its spec."""
    specs = {
        name: value.spec if isinstance(value, Ref) else Spec(value.dtype, value.shape) for name, value in values.items()
    }
    for node in nodes:
        try:
            out = infer(node, [None if v is None else specs[v.name] for v in node.inputs])[0]
            step = step_for(node, [None if v is None else values[v.name] for v in node.inputs], out)
        except ValueError as e:
            raise Refused(str(e)) from e
        output = node.outputs[0]
        assert output is not None
        specs[output.name], values[output.name] = out, step
    return step, out
