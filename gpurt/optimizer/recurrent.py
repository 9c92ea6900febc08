"""Recurrent layers that exporters write as loops: a Loop or Scan over a cell becomes an LSTM or a GRU.

Keras through tf2onnx writes a Loop whose body takes row i of the input by Gather and counts i up; others write a Scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.build import Builder
from gpurt.optimizer.cells import Cell, find_cell
from gpurt.optimizer.loops import plain
from gpurt.optimizer.transformer import NearMiss, Removed, Result, Tools
from gpurt.options import GraphOptimizationLevel

_PASSED = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"})


@dataclass(slots=True)
class Steps:
    """A loop as steps over the rows of tensors.

    Attributes:
        body: the graph that is repeated.
        states: body input -> value before the first step, what the step makes of it, and the loop's output for it.
        rows: body value that is row t of a tensor in step t -> that tensor.
        stacked: body output -> the loop's outputs that have it for every step along the first axis.
        counters: of a Loop, the body values that are the number of the step.
    """

    body: ir.Graph
    states: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]]
    rows: dict[ir.Value, ir.Value]
    stacked: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)
    counters: set[ir.Value] = field(default_factory=set)


class Unfit(Exception):
    """Why a loop is no recurrent layer."""


class RecurrentLoopFusion:
    """Loop or Scan over an LSTM's or a GRU's cell with constant weights -> LSTM, GRU.

    The loop must take all rows of its input in order, and nothing may be wanted of it but states and their sequences.
    """

    name = "RecurrentLoopFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in list(graph):
                if node.domain or node.op_type not in ("Loop", "Scan"):
                    continue
                key = (self.name, node.name or "")
                tools.misses.pop(key, None)
                try:
                    self._fuse(graph, node, tools, result)
                except Unfit as e:
                    tools.misses[key] = NearMiss(self.name, node.name or "", str(e), 2)
        return result

    def _fuse(self, graph: ir.Graph, node: ir.Node, tools: Tools, result: Result) -> None:
        steps = _loop(node) if node.op_type == "Loop" else _scan(node)
        cell = find_cell(steps.body)
        if cell is None:
            raise Unfit("its body is no cell of an LSTM or a GRU")
        source = steps.rows.get(cell.x)
        if source is None:
            raise Unfit("the cell's input is not the next row of a tensor")
        if node.op_type == "Loop":
            _all_rows(node, steps, source)
        op = Builder(tools.names, node)
        try:
            made = _layer(op, steps, cell, source)
            for new in op.nodes:
                if tools.owner is not None and tools.owner(new) is None:
                    raise Unfit(f"no provider has a kernel for {new.op_type}")
        except Unfit:
            op.discard()
            raise
        for constant in op.constants:
            graph.register_initializer(constant)
        graph.insert_before(node, op.nodes)
        for old, new_value in made.items():
            name, old.name = old.name, f"{old.name}__replaced"
            new_value.name = name
            new_value.shape = old.shape if new_value.shape is None else new_value.shape
            old.replace_all_uses_with(new_value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        facts.release(node)
        result.changes += 1
        result.removed.append(Removed(node.name or "", node.op_type, f"its steps are an {cell.op_type}", self.name))


def _layer(op: Any, steps: Steps, cell: Cell, source: ir.Value) -> dict[ir.Value, ir.Value]:
    """The layer's nodes, and which of their values take the place of which outputs of the loop."""
    for state, after in cell.states:
        known = steps.states.get(state)
        if known is None or plain(known[1]) is not after:
            raise Unfit("a state of the cell is not carried to the next step")
    hidden = cell.hidden
    before = [steps.states[state][0] for state, _ in cell.states]
    for value in before:
        dims = facts.dims(value)
        if dims is None or len(dims) != 2 or dims[1] not in (None, hidden):
            raise Unfit("the rank of a first state is not known")
    if facts.rank(source) != 3 or facts.dtype(source) != facts.dtype(before[0]):
        raise Unfit("the input is not known to be (steps, batch, size) of the states' type")
    dtype = facts.dtype(source)
    assert dtype is not None, "types were compared"
    weights = [op.constant(np.ascontiguousarray(w, dtype.numpy())) for w in (cell.w, cell.r, cell.b)]
    first = [op.Unsqueeze(value, np.array([0])) for value in before]
    attrs = {"linear_before_reset": cell.linear_before_reset} if cell.op_type == "GRU" else {}
    outs = getattr(op, cell.op_type)(
        source, *weights, None, *first, hidden_size=hidden, _outputs=1 + len(before), **attrs
    )
    wanted = {v for values in steps.stacked.values() for v in values} | {known[2] for known in steps.states.values()}
    made: dict[ir.Value, ir.Value] = {}
    for (state, _), value in zip(cell.states, outs[1:], strict=True):
        made[steps.states[state][2]] = op.Squeeze(value, np.array([0]))
    for inner, outputs in steps.stacked.items():
        if plain(inner) is cell.states[0][1]:
            for output in outputs:
                made[output] = op.Squeeze(outs[0], np.array([1]))
    for output in wanted:
        if facts.wanted(output) and output not in made:
            raise Unfit(f"{output.name!r} is wanted, which is neither a state nor all of its values")
    return {old: new for old, new in made.items() if not facts.absent(old)}


def _scan(node: ir.Node) -> Steps:
    body = node.attributes["body"].as_graph()
    count = facts.attr(node, "num_scan_inputs", 1)
    lists = ("scan_input_axes", "scan_output_axes", "scan_input_directions", "scan_output_directions")
    if any(any(facts.attr(node, name) or ()) for name in lists):
        raise Unfit("it goes along another axis than the first, or backwards")
    held = len(node.inputs) - count
    outputs = list(node.outputs)
    states = {}
    for inner, before, after, output in zip(body.inputs, node.inputs[:held], body.outputs, outputs, strict=False):
        if before is not None:
            states[inner] = (before, after, output)
    rows = {i: v for i, v in zip(body.inputs[held:], node.inputs[held:], strict=True) if v is not None}
    steps = Steps(body, states, rows)
    for inner, output in zip(body.outputs[held:], outputs[held:], strict=True):
        steps.stacked.setdefault(inner, []).append(output)
    return steps


def _loop(node: ir.Node) -> Steps:
    body = node.attributes["body"].as_graph()
    held = len(node.inputs) - 2
    states = {}
    carried = zip(body.inputs[2:], node.inputs[2:], body.outputs[1:], node.outputs, strict=False)
    for inner, before, after, output in carried:
        if before is not None:
            states[inner] = (before, after, output)
    counters = {body.inputs[0]} | {
        inner
        for inner, (before, after, _) in states.items()
        if facts.scalar(before) == 0 and facts.rank(before) == 0 and _next(after, inner)
    }
    steps = Steps(body, states, {})
    for inside in body:
        taken = inside.inputs[1] if inside.op_type == "Gather" and not inside.domain else None
        if taken is not None and taken in counters and facts.attr(inside, "axis", 0) == 0:
            source = inside.inputs[0]
            if source is not None and (source.graph is not body):
                steps.rows[inside.outputs[0]] = source
    for inner, output in zip(body.outputs[1 + held :], node.outputs[held:], strict=True):
        steps.stacked.setdefault(inner, []).append(output)
    steps.counters = counters
    return steps


def _next(after: ir.Value, counter: ir.Value) -> bool:
    """Whether a value is a counter and one."""
    node = plain(after).producer()
    if node is None or node.domain or node.op_type != "Add":
        return False
    return any(
        node.inputs[i] is counter and facts.scalar(node.inputs[1 - i]) == 1 and facts.rank(node.inputs[1 - i]) == 0
        for i in (0, 1)
    )


def _all_rows(node: ir.Node, steps: Steps, source: ir.Value) -> None:
    """Raise Unfit unless the loop makes as many steps as a tensor has rows."""

    def is_length(value: ir.Value | None) -> bool:
        if value in steps.states:  # one that the loop only hands on
            before, after, _ = steps.states[value]
            return plain(after) is value and is_length(before)
        return value is not None and _length(value, source)

    trips, going = node.inputs[0], node.inputs[1]
    if facts.absent(trips) or not is_length(trips):
        raise Unfit("its number of steps is not known to be the number of rows")

    def below(value: ir.Value | None, count: Callable[[ir.Value], bool]) -> bool:
        """Whether a condition holds as long as there are rows left."""
        if value is None or facts.scalar(value) is True:
            return True
        made = plain(value).producer()
        if made is None:
            return value is steps.body.inputs[1]
        if made.op_type == "And" and not made.domain:
            return all(below(v, count) for v in made.inputs)
        if made.op_type != "Less" or made.domain or made.inputs[0] is None:
            return False
        return count(_uncast(made.inputs[0])) and is_length(_uncast(made.inputs[1]))

    def counted(value: ir.Value) -> bool:
        return value in steps.counters or any(_next(value, counter) for counter in steps.counters)

    first = None if facts.absent(going) else going
    if not below(first, lambda v: facts.scalar(v) == 0) or not below(steps.body.outputs[0], counted):
        raise Unfit("its condition may end it before the last row")


def _length(value: ir.Value, source: ir.Value) -> bool:
    """Whether a value is the number of rows of a tensor."""
    rows = facts.symbols(source)
    number = facts.scalar(value)
    if number is not None:
        return rows is not None and rows[0] == number
    node = value.producer()
    while node is not None and not node.domain and node.inputs and node.inputs[0] is not None:
        if node.op_type == "Shape":
            of = facts.symbols(node.inputs[0])
            same = node.inputs[0] is source or (of is not None and rows is not None and of[:1] == rows[:1] != [None])
            return same and facts.attr(node, "start", 0) == 0
        first = node.op_type == "Gather" and facts.ints(node.inputs[1]) == [0]
        cut = node.op_type == "Slice" and [facts.ints(v) for v in node.inputs[1:3]] == [[0], [1]]
        if node.op_type not in _PASSED and not first and not cut:
            return False
        node = node.inputs[0].producer()
    return False


def _uncast(value: ir.Value | None) -> Any:
    if value is None:
        return None
    value = plain(value)
    node = value.producer()
    if node is not None and node.op_type == "Cast" and not node.domain and node.inputs[0] is not None:
        return _uncast(node.inputs[0])
    return value
