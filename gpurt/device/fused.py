"""Units of several nodes: elementwise nodes as one kernel, alone, or around a product or reduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpurt.device.codegen import emit
from gpurt.device.epilogue import Epilogue
from gpurt.device.lowering import Emitted, Lowering, Ref
from gpurt.device.ops.elementwise import step_for
from gpurt.device.prologue import Prologue
from gpurt.device.steps import Step
from gpurt.device.unit import Host, finish, lowering_for
from gpurt.graph.view import NodeView, ValueView
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


class ChainedUnit:
    """A product, reduction or normalisation and the elementwise nodes around it: prologue and epilogue, if they can be.

    Where they cannot (other types, broadcasting that the kernel does not walk, a vendor's routine), they are kernels of
    their own; behind it one that works in place.

    Args:
        host: the provider.
        before: nodes of which the last one's result is the first input of `core`.
        core: a node of prologue.FED or epilogue.HEADS.
        after: nodes that alone read the first output of `core`, which then has no others.
        wanted: the result of `before` is read by others too; it is the last output.
    """

    symbolic = True

    def __init__(
        self,
        host: Host,
        before: Sequence[NodeView],
        core: NodeView,
        after: Sequence[NodeView],
        *,
        wanted: bool = False,
    ) -> None:
        self._host, self._before, self._core, self._after = host, before, core, after
        self.nodes: Sequence[NodeView] = (*before, core, *after)
        made = {v.name for n in self.nodes for v in n.outputs if v is not None}
        names = [v.name for n in self.nodes for v in n.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        self.outputs: Sequence[str | None] = [None if v is None else v.name for v in self.nodes[-1].outputs]
        self._wanted = wanted
        if wanted:
            self.outputs = [*self.outputs, _first(before[-1].outputs)]
        known = host.table.rows[core.domain, core.op_type].host
        numbers = {v.name for i, v in enumerate(core.inputs) if v is not None and i in known}
        self.host_inputs = frozenset(i for i, name in enumerate(self.inputs) if name in numbers)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """The launches of the core, and around them whatever it leaves to do. Raises Refused or Unknown."""
        values: dict[str, Ref | Step] = {}
        for i, (name, spec) in enumerate(zip(self.inputs, inputs, strict=True)):
            if name is None or spec is None:
                raise Refused(f"{self._core.op}: {name!r} is not there")
            values[name] = Ref(spec, Operand("in", i))
        emitted = Emitted()
        c = lowering_for(self._host, self._core, [], [], emitted)
        prologue = None
        if self._before:
            root, spec = _steps(self._before, values)
            place = Operand("out", len(self.outputs) - 1) if self._wanted else Operand("temp", nbytes=spec.nbytes)
            data = Ref(spec, place)
            prologue = Prologue(c, root, data, wanted=self._wanted)
            values[_first(self._before[-1].outputs)] = data
        ins = [None if v is None else values[v.name] for v in self._core.inputs]
        refs = [x if isinstance(x, Ref) else None for x in ins]
        specs = [None if x is None else x.spec for x in refs]
        try:
            outs = infer(self._core, specs)
        except ValueError as e:
            raise Refused(str(e)) from e
        results = [Ref(s, Operand("out", i)) for i, s in enumerate(outs)]
        c = replace(c, specs=specs, outs=outs, ins=refs, results=results, prologue=prologue)
        epilogue = None
        if self._after:
            epilogue, outs = self._epilogue(c, values)
            c = replace(c, results=[epilogue.head], epilogue=epilogue)
        self._host.table.rows[self._core.domain, self._core.op_type].lower(c)
        if prologue is not None:
            prologue.settle(c, 0)
        if epilogue is not None and not epilogue.used:
            epilogue.store_apart()
        outs = outs[: len(self.outputs) - self._wanted]
        inplace = {}
        if prologue is not None and self._wanted:
            outs = [*outs, data.spec]
            inplace[len(outs) - 1] = self._walked(inputs, data.spec)
        return finish(self._host, emitted, outs, "+".join(n.op_type for n in self.nodes), inplace)

    def _walked(self, inputs: Sequence[Spec | None], data: Spec) -> tuple[int, ...]:
        """Positions of the inputs whose memory the data may take: nothing reads them after they are there."""
        later = {v.name for n in (self._core, *self._after) for v in n.inputs if v is not None}
        return tuple(i for i in _walked_alike(inputs, data) if self.inputs[i] not in later)

    def _epilogue(self, c: Lowering, values: dict[str, Ref | Step]) -> tuple[Epilogue, list[Spec]]:
        """What follows, and the spec of its result."""
        made, name = c.outs[0], _first(self._core.outputs)
        spec = _steps(self._after, {**values, name: Ref(made, Operand("temp", nbytes=made.nbytes))})[1]
        out = Ref(spec, Operand("out", 0))
        alike = (spec.shape, spec.dtype) == (made.shape, made.dtype)
        values[name] = result = Ref(made, out.operand) if alike else c.temp(made.dtype, made.shape)
        return Epilogue(c, _steps(self._after, values)[0], out, result), [spec]


def _first(values: Sequence[ValueView | None]) -> str:
    value = values[0]
    assert value is not None, "a chain goes on with its first result"
    return value.name


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
