"""Run one operator on a device provider without a session: every value in a buffer of its own, outputs poisoned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpurt.device.provider import DeviceProvider
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.infer.types import result_dtypes
from gpurt.provider import BufferRef, DeviceUnit
from gpurt.spec import Spec


def node_for(
    op_type: str, inputs: Sequence[np.ndarray | None], attrs: Mapping[str, Any] | None = None, *, domain: str = "",
    outputs: int = 1,
) -> NodeView:  # fmt: skip
    """A canonical node over values named x0, x1, ... and y0, y1, ..., with static types and shapes."""
    ins = tuple(None if a is None else ValueView(f"x{i}", a.dtype, a.shape) for i, a in enumerate(inputs))
    bare = NodeView(op_type, ins, tuple(ValueView(f"y{i}") for i in range(outputs)), dict(attrs or {}), domain, op_type)
    dtypes = result_dtypes(bare, [None if a is None else a.dtype for a in inputs])
    outs = tuple(ValueView(f"y{i}", dtypes[i]) for i in range(outputs))
    return NodeView(op_type, ins, outs, bare.attrs, domain, op_type)


def run_op(
    provider: DeviceProvider,
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    outputs: int = 1,
    constant: Sequence[int] = (),
    poison: bool = True,
) -> list[np.ndarray]:
    """Run one operator. Inputs at the positions `constant` are weights: the lowering may pack them.

    Outputs and workspaces begin filled with 0xFF; without `poison` as memory that nobody has written, which a simulator
    can tell from what was.

    Raises AssertionError with the provider's reason if it refuses the node.
    """
    node = node_for(op_type, inputs, attrs, domain=domain, outputs=outputs)
    names = {v.name: i for i, v in enumerate(node.inputs) if v is not None}
    graph = GraphView((node,), tuple(v for v in node.inputs if v), tuple(v for v in node.outputs if v))
    capability = provider.get_capability(graph)
    assert capability.claims, f"refused: {capability.refused}"
    (unit,) = provider.compile(graph)
    arrays = [None if n is None else inputs[names[n]] for n in unit.inputs]
    return run_unit(provider, unit, arrays, constant, poison=poison)  # type: ignore[arg-type]


def run_unit(
    provider: DeviceProvider,
    unit: DeviceUnit,
    inputs: Sequence[np.ndarray | None],
    constant: Sequence[int] = (),
    *,
    poison: bool = True,
) -> list[np.ndarray]:
    """Plan a unit for these inputs, bind it to poisoned buffers of the exact size, run it, read the outputs."""
    known = unit.host_inputs | set(constant)
    specs = [None if a is None else Spec(a.dtype, a.shape, a if i in known else None) for i, a in enumerate(inputs)]
    plan = unit.plan(specs)
    stream = provider.stream()
    ins: dict[int, BufferRef] = {}

    def fresh(nbytes: int, content: np.ndarray | None = None) -> BufferRef:
        ref = BufferRef(provider.driver.alloc(max(nbytes, 1)), 0, max(nbytes, 1))
        if content is None and poison:
            content = np.full(ref.nbytes, 0xFF, np.uint8)
        if content is not None:
            provider.write(ref, np.ascontiguousarray(content), stream)
            provider.synchronize(stream)
        return ref

    def input_ref(i: int) -> BufferRef:
        if i not in ins:
            array = inputs[i]
            assert array is not None
            ins[i] = fresh(array.nbytes, array if array.size else None)
        return ins[i]

    outs: dict[int, BufferRef] = {}
    for i, spec in enumerate(plan.outputs):
        if i in plan.aliases:
            source, offset = plan.aliases[i]
            base = input_ref(source)
            outs[i] = BufferRef(base.buffer, base.offset + offset, spec.nbytes)
        else:
            outs[i] = fresh(spec.nbytes)
    refs = []
    for operand in plan.operands:
        if operand.kind == "in":
            refs.append(input_ref(operand.index))
        elif operand.kind == "out":
            refs.append(outs[operand.index])
        elif operand.kind == "temp":
            refs.append(fresh(operand.nbytes))
        else:
            assert operand.array is not None
            refs.append(provider.constant(operand.array))
    if plan.bind is not None:
        for step in plan.bind(refs).steps:
            step(stream)
    results = []
    for i, spec in enumerate(plan.outputs):
        array = np.empty(spec.shape, spec.dtype)
        provider.read(array, outs[i], stream)
        results.append(array)
    provider.synchronize(stream)
    return results
