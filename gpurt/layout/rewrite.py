"""Puts a choice into effect: nodes for turned values, and Transposes where a value is wanted in the other layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.graph.channels_last import DOMAIN, to_first, to_last
from gpurt.layout.choice import Choice, Level
from gpurt.layout.turn import Data, Made, Operand, Turn, idle_axes, places
from gpurt.loader import Names
from gpurt.loader.opsets import since
from gpurt.optimizer import facts


class Rewriter:
    """Rewrites one graph.

    Args:
        level: the graph, and how its nodes can be turned.
        choice: which of them are.
        names: the model's names.
        owners: node name -> position of its provider; it gains the new nodes and loses those that go.
        host: position of the host.

    Attributes:
        turned: nodes that work on turned values now.
        cancelled: Transposes of the model that are gone.
        transposes: bytes of the values that new Transposes move, by the Transpose's name.
    """

    def __init__(self, level: Level, choice: Choice, names: Names, owners: dict[str, int], host: int) -> None:
        self._level, self._choice, self._names, self._owners, self._host = level, choice, names, owners, host
        self._graph = level.graph
        self._turned: dict[ir.Value, ir.Value] = {}  # value in the model's layout -> itself turned
        self._now: dict[ir.Value, ir.Value] = {}  # replaced value -> what stands for it
        self._gone: list[ir.Node] = []
        self.turned: list[ir.Node] = []
        self.cancelled = 0
        self.transposes: dict[str, float] = {}

    def run(self) -> None:
        """Rewrite the graph. Names of graph inputs and outputs stay."""
        absorbed = {n for node in self._choice.reads if node in self._level.turns
                    for n in self._level.turns[node].absorbed}  # fmt: skip
        for node in list(self._graph):
            if node in absorbed:
                self._gone.append(node)
            elif node in self._level.transposes:
                self._transpose(node)
            elif node in self._choice.reads:
                self._turn(node, self._level.turns[node])
        kept = {n.name for n in self.turned}
        for node in reversed(self._gone):
            self._graph.remove(node, safe=True)
            if node.name not in kept:
                del self._owners[node.name or ""]

    def _turn(self, node: ir.Node, turn: Turn) -> None:
        made: list[ir.Node] = []
        position = self._owners[node.name or ""]
        for number, step in enumerate(turn.steps):
            last = number == len(turn.steps) - 1
            operands = [self._operand(o, made, node) for o in step.inputs]
            outputs = len(node.outputs) if last else 1
            new = self._node(step.op_type, operands, step.attrs, step.domain, step.like, outputs)
            new.meta.update(node.meta)
            owner = self._host if step.host else position
            if last:
                new.name = node.name
            else:
                new.name = self._names.node(f"{node.name}_{step.op_type}")
                new.outputs[0].name = self._names.value(f"{new.name}_out")
                new.outputs[0].type = _typed(step.dtype) if step.dtype is not None else node.outputs[0].type
            self._put(new, node, owner)
            made.append(new)
        for reader, at, content in turn.fixes:
            reader.replace_input_with(at, self._constant(content(), f"{reader.name}_channels_last"))
        for old, new_value in zip(node.outputs, made[-1].outputs, strict=True):
            if facts.absent(old):
                new_value.name = ""
            elif turn.exit:
                self._stand_for(old, new_value)
            else:
                self._now_turned(old, new_value, node)
        self.turned.append(made[-1])
        self._gone.append(node)

    def _operand(self, operand: Operand, made: list[ir.Node], node: ir.Node) -> ir.Value | None:
        if isinstance(operand, Made):
            return made[operand.step].outputs[0]
        if isinstance(operand, Data):
            return self._last(operand.value, node)
        if isinstance(operand, np.ndarray):
            content = np.ascontiguousarray(operand).reshape(operand.shape)  # which makes 0-d arrays 1-d
            return self._constant(content, f"{node.name}_channels_last")
        return None if operand is None else self._current(operand)

    def _transpose(self, node: ir.Node) -> None:
        """A Transpose of the model: it takes the permutation between the layouts that are there, or goes."""
        reads, makes = node in self._choice.reads, node in self._choice.makes
        if not reads and not makes:
            return
        x, old = node.inputs[0], node.outputs[0]
        rank = facts.rank(x) or 0
        assert x is not None, "only Transposes of values of known rank are asked"
        perm = facts.attr(node, "perm") or list(range(rank))[::-1]
        given = to_last(rank) if reads else tuple(range(rank))
        wanted = to_last(rank) if makes else tuple(range(rank))
        now = [given.index(perm[a]) for a in wanted]
        source = self._last(x, node) if reads else self._current(x)
        if now == sorted(now) and not (old.is_graph_output() and not makes):
            self.cancelled += 1
            made = source
        else:
            identity = now == sorted(now)
            new = self._node("Identity" if identity else "Transpose", [source], {} if identity else {"perm": now})
            new.name, made = node.name, new.outputs[0]
            new.meta.update(node.meta)
            self._put(new, node, self._owners[node.name or ""])
            self.turned.append(new)
        self._gone.append(node)
        if not makes:
            self._stand_for(old, made, fresh=made is not source)
        elif made is source:
            self._turned[old] = made
            self._natural_too(old, made, node)
        else:
            self._now_turned(old, made, node)

    def _current(self, value: ir.Value) -> ir.Value:
        while value in self._now:
            value = self._now[value]
        return value

    def _last(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value with its channels last; the first that asks has it made."""
        value = self._current(value)
        if value not in self._turned:
            turned = self._moved(value, before, self._owners[before.name or ""], back=False)
            turned.name = self._names.value(f"{value.name}_channels_last")
            turned.type, turned.shape = value.type, _permuted(value.shape)
            self._turned[value] = turned
        return self._turned[value]

    def _now_turned(self, old: ir.Value, turned: ir.Value, node: ir.Node) -> None:
        """What made a value makes it turned now."""
        turned.name = self._names.value(f"{old.name}_channels_last")
        turned.type, turned.shape = old.type, _permuted(old.shape)
        self._turned[old] = turned
        self._natural_too(old, turned, node)

    def _natural_too(self, old: ir.Value, turned: ir.Value, node: ir.Node) -> None:
        """Turn a value back for those who read it in the model's own layout, if there are any."""
        readers = self._choice.turned_reads
        if old.is_graph_output() or any((user, at) not in readers for user, at in old.uses()):
            natural = self._moved(turned, node, self._owners[node.name or ""], back=True, like=old)
            self._stand_for(old, natural)
            self._turned[natural] = turned

    def _stand_for(self, old: ir.Value, new: ir.Value, *, fresh: bool = True) -> None:
        """Let a value take the place of another one, its name included if it is a fresh one."""
        if fresh:
            new.name, old.name = old.name, self._names.value(f"{old.name}_replaced")
            new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._now[old] = new

    def _moved(
        self, value: ir.Value, before: ir.Node, owner: int, *, back: bool, like: ir.Value | None = None
    ) -> ir.Value:
        """The value in the other layout: a Transpose, or a Reshape where no element moves."""
        original = value if like is None else like
        rank = facts.rank(original) or 0
        name = f"{original.name}_{'channels_first' if back else 'channels_last'}"
        idle = idle_axes(original)
        if not idle:
            node = self._node("Transpose", [value], {"perm": list(to_first(rank) if back else to_last(rank))})
            node.name = self._names.node(name)
            self.transposes[node.name] = self._level.nbytes.get(original.name or "", 0.0)
        else:
            # One size may be unknown for each axis, so a Reshape could not say it.
            gone, new = (places(idle, rank), idle) if back else (idle, places(idle, rank))
            squeezed = self._node("Squeeze", [value, self._constant(np.array(gone, np.int64), name)])
            squeezed.name = self._names.node(f"{name}_Squeeze")
            self._put(squeezed, before, owner)
            squeezed.outputs[0].name, squeezed.outputs[0].type = self._names.value(f"{name}_squeezed"), original.type
            node = self._node("Unsqueeze", [squeezed.outputs[0], self._constant(np.array(new, np.int64), name)])
            node.name = self._names.node(name)
        self._put(node, before, owner)
        return node.outputs[0]

    def _put(self, node: ir.Node, before: ir.Node, owner: int) -> None:
        self._graph.insert_before(before, node)
        self._owners[node.name or ""] = owner

    def _constant(self, content: np.ndarray, name: str) -> ir.Value:
        constant = facts.constant(content, self._names.value(name))
        self._graph.register_initializer(constant)
        return constant

    def _node(
        self, op_type: str, inputs: list[ir.Value | None], attrs: Mapping[str, Any] | None = None, domain: str = "",
        like: ir.Node | None = None, outputs: int = 1,
    ) -> ir.Node:  # fmt: skip
        kept = {} if like is None else {k: v for k, v in like.attributes.items() if k not in (attrs or {})}
        given = ir.convenience.convert_attributes({k: v for k, v in (attrs or {}).items() if v is not None})
        while inputs and inputs[-1] is None:
            inputs.pop()
        version = 1 if domain == DOMAIN else since(op_type) if not domain or like is None else like.version
        return ir.Node(domain, op_type, inputs, [*kept.values(), *given], num_outputs=outputs, version=version)


def _typed(dtype: Any) -> ir.TensorType:
    return ir.TensorType(ir.DataType(dtypes.to_onnx(np.dtype(dtype))))


def _permuted(shape: ir.Shape | None) -> ir.Shape | None:
    if shape is None:
        return None
    dims = list(shape)
    return ir.Shape([dims[a] for a in to_last(len(dims))])
