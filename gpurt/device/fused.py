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
from gpurt.device.views import dense, runs, seen_through, whole
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

    def __init__(self, host: Host, nodes: Sequence[NodeView], views: Sequence[NodeView] = ()) -> None:
        self._host, self._chain, self._views = host, nodes, views
        self.nodes: Sequence[NodeView] = (*views, *nodes)
        self.inputs: Sequence[str | None] = _read_by(self.nodes)
        self.outputs: Sequence[str | None] = [_first(nodes[-1].outputs)]
        self.host_inputs = _numbers(host, views, self.inputs)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Shapes from the rules, node by node; one launch for the last. Raises Refused or Unknown."""
        emitted = Emitted()
        c = lowering_for(self._host, self._chain[-1], inputs, [], emitted)
        values = _values(c, self._views, self.inputs, inputs)
        step, out = steps_over(self._chain, values)
        emit(c, step, Ref(out, Operand("out", 0)))
        inplace = {0: _walked_alike(self._views, self.inputs, inputs, out)}
        return finish(self._host, emitted, [out], "+".join(n.op_type for n in self.nodes), inplace)


def _read_by(nodes: Sequence[NodeView]) -> list[str]:
    """What nodes read of others than themselves."""
    made = {v.name for n in nodes for v in n.outputs if v is not None}
    return list(dict.fromkeys(v.name for n in nodes for v in n.inputs if v is not None and v.name not in made))


def _numbers(host: Host, nodes: Sequence[NodeView], names: Sequence[str | None]) -> frozenset[int]:
    """Positions of the inputs that nodes must know when the plan is made."""
    rows = [(n, host.table.rows[n.domain, n.op_type].host) for n in nodes]
    known = {v.name for n, positions in rows for i, v in enumerate(n.inputs) if v is not None and i in positions}
    return frozenset(i for i, name in enumerate(names) if name in known)


def _values(
    c: Lowering, views: Sequence[NodeView], names: Sequence[str | None], inputs: Sequence[Spec | None]
) -> dict[str, Ref | Step]:
    """A unit's inputs, and views of them; one whose elements lie too far apart is brought in order."""
    specs: dict[str, Spec] = {}
    for name, spec in zip(names, inputs, strict=True):
        if name is None or spec is None:
            raise Refused(f"{c.node.op}: {name!r} is not there")
        specs[name] = spec
    values: dict[str, Ref | Step] = {n: Ref(s, Operand("in", i)) for i, (n, s) in enumerate(specs.items())}
    if views:
        seen = {n: whole(x) for n, x in values.items() if isinstance(x, Ref)}
        try:
            seen_through(c, views, specs, seen)
        except ValueError as e:
            raise Refused(str(e)) from e
        made = [v.name for n in views for v in n.outputs if v is not None]
        values |= {name: seen[name] if runs(seen[name]) else dense(c, seen[name]) for name in made}
    return values


def _walked_alike(
    views: Sequence[NodeView], names: Sequence[str | None], inputs: Sequence[Spec | None], out: Spec
) -> tuple[int, ...]:
    """Positions of the inputs that are read exactly where the result is written, so that both may be one memory."""
    elsewhere = {v.name for n in views for v in n.inputs if v is not None}
    return tuple(
        i
        for i, (name, spec) in enumerate(zip(names, inputs, strict=True))
        if spec is not None
        and name not in elsewhere
        and (spec.shape, spec.dtype.itemsize) == (out.shape, out.dtype.itemsize)
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
        views: nodes of views.VIEWS whose results only nodes before and after read.
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
        views: Sequence[NodeView] = (),
    ) -> None:
        self._host, self._before, self._core, self._after = host, before, core, after
        self._wanted, self._views = wanted, views
        self.nodes: Sequence[NodeView] = (*views, *before, core, *after)
        self.inputs: Sequence[str | None] = _read_by(self.nodes)
        self.outputs: Sequence[str | None] = [None if v is None else v.name for v in self.nodes[-1].outputs]
        if wanted:
            self.outputs = [*self.outputs, _first(before[-1].outputs)]
        self.host_inputs = _numbers(host, (*views, core), self.inputs)

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """The launches of the core, and around them whatever it leaves to do. Raises Refused or Unknown."""
        emitted = Emitted()
        c = lowering_for(self._host, self._core, [], [], emitted)
        values = _values(c, self._views, self.inputs, inputs)
        start = len(emitted.launches)
        prologue = None
        if self._before:
            root, spec = steps_over(self._before, values)
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
            prologue.settle(c, start)
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
        alike = _walked_alike(self._views, self.inputs, inputs, data)
        return tuple(i for i in alike if self.inputs[i] not in later)

    def _epilogue(self, c: Lowering, values: dict[str, Ref | Step]) -> tuple[Epilogue, list[Spec]]:
        """What follows, and the spec of its result."""
        made, name = c.outs[0], _first(self._core.outputs)
        spec = steps_over(self._after, {**values, name: Ref(made, Operand("temp", nbytes=made.nbytes))})[1]
        out = Ref(spec, Operand("out", 0))
        alike = (spec.shape, spec.dtype) == (made.shape, made.dtype)
        values[name] = result = Ref(made, out.operand) if alike else c.temp(made.dtype, made.shape)
        return Epilogue(c, steps_over(self._after, values)[0], out, result), [spec]


def _first(values: Sequence[ValueView | None]) -> str:
    value = values[0]
    assert value is not None, "a chain goes on with its first result"
    return value.name


def steps_over(nodes: Sequence[NodeView], values: dict[str, Ref | Step]) -> tuple[Step, Spec]:
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
