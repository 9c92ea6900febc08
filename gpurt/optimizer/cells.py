"""Cells of recurrent layers as exporters write them, with their weights in the order of the standard's operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts


@dataclass(frozen=True, slots=True)
class Cell:
    """One step of a recurrent layer.

    Attributes:
        op_type: the operator.
        x: the step's input, (batch, size).
        states: for each state its value before and after the step, the hidden state first.
        w: weights of the input, (1, gates * hidden, size).
        r: weights of the hidden state, (1, gates * hidden, hidden).
        b: biases of both, (1, 2 * gates * hidden).
        hidden: size of the hidden state.
    """

    op_type: str
    x: ir.Value
    states: Sequence[tuple[ir.Value, ir.Value]]
    w: np.ndarray
    r: np.ndarray
    b: np.ndarray
    hidden: int
    linear_before_reset: int = 0


def find_cell(body: ir.Graph) -> Cell | None:
    """The cell that a graph is a step of, if it has one."""
    for node in body:
        if node.domain or node.op_type not in ("Mul", "Add"):
            continue
        cell = _lstm(node) if node.op_type == "Mul" else _gru(node)
        if cell is not None and all(state.graph is body for state, _ in cell.states):
            return cell
    return None


@dataclass(slots=True)
class _Gate:
    """A part of a sum of products: which Split, which of its parts, and what is added to it alone."""

    split: ir.Node
    part: int
    shift: float = 0.0


def _made(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Identity" and not node.domain:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _pair(node: ir.Node | None, one: str, two: str) -> tuple[ir.Node, ir.Node] | None:
    """The makers of a node's two inputs, of these operators, in this order."""
    for a, b in ((0, 1), (1, 0)) if node is not None else ():
        first, second = _made(node.inputs[a], one), _made(node.inputs[b], two)  # type: ignore[union-attr]
        if first is not None and second is not None:
            return first, second
    return None


def _gate(value: ir.Value | None, parts: int) -> _Gate | None:
    """A part of a Split of the last axis, maybe with a constant, as the bias of forget gates."""
    node, shift = value.producer() if value is not None else None, 0.0
    if node is not None and node.op_type == "Add" and not node.domain:
        constants = [facts.scalar(v) for v in node.inputs]
        number = next((c for c in constants if isinstance(c, float)), None)
        if number is None:
            return None
        value, shift = node.inputs[0 if constants[0] is None else 1], number
        node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Split" or node.domain or len(node.outputs) != parts:
        return None
    sizes = facts.ints(facts.given(node, 1))
    if facts.attr(node, "axis", 0) not in (1, -1) or (sizes is not None and len(set(sizes)) > 1):
        return None
    return _Gate(node, value.index() or 0, shift)


def _lstm(node: ir.Node) -> Cell | None:
    """i, o, f, c = x W + h R + b; C' = f * C + i * tanh(c); h' = o * tanh(C') (Hochreiter and Schmidhuber 1997)."""
    ends = _pair(node, "Sigmoid", "Tanh")
    total = _made(ends[1].inputs[0], "Add") if ends else None
    if ends is None or total is None:
        return None
    for kept, added in ((0, 1), (1, 0)):
        forget, fresh = _made(total.inputs[kept], "Mul"), _pair(_made(total.inputs[added], "Mul"), "Sigmoid", "Tanh")
        if forget is None or fresh is None:
            continue
        for gate_at in (0, 1):
            sigmoid, state = _made(forget.inputs[gate_at], "Sigmoid"), forget.inputs[1 - gate_at]
            if sigmoid is None or state is None or state.producer() is not None:
                continue
            order = (fresh[0], ends[0], sigmoid, fresh[1])  # i, o, f, c
            gates = [_gate(n.inputs[0], 4) for n in order]
            known = [g for g in gates if g is not None]
            if len(known) < 4 or any(g.split is not known[0].split for g in known):
                continue
            sums = _Sums.of(known[0].split.inputs[0])
            if sums is None:
                return None
            states = [(sums.h, node.outputs[0]), (state, total.outputs[0])]
            return _cell("LSTM", sums, states, known)
    return None


@dataclass(slots=True)
class _Sums:
    """x W + h R + b, with weights as (size, gates * hidden)."""

    x: ir.Value
    h: ir.Value
    w: np.ndarray
    r: np.ndarray
    b: np.ndarray

    @staticmethod
    def of(value: ir.Value | None) -> _Sums | None:
        terms: list[tuple[ir.Value, np.ndarray]] = []
        biases: list[np.ndarray] = []
        if value is None or not _terms(value, terms, biases):
            return None
        if len(terms) == 1:  # one product with input and state side by side
            joined = _made(terms[0][0], "Concat")
            if joined is None or len(joined.inputs) != 2 or facts.attr(joined, "axis") not in (1, -1):
                return None
            x, h = joined.inputs
            size = terms[0][1].shape[0] - terms[0][1].shape[1] // 4
            if x is None or h is None or size <= 0:
                return None
            terms = [(x, terms[0][1][:size]), (h, terms[0][1][size:])]
        if len(terms) != 2:
            return None
        hidden = [i for i, (v, _) in enumerate(terms) if v.producer() is None and v.is_graph_input()]
        # In a Scan the input is a graph input as well: the state's weights have a row for each hidden unit.
        hidden = [i for i in hidden if terms[i][1].shape[1] % terms[i][1].shape[0] == 0] or hidden
        if not hidden:
            return None
        at = hidden[-1]
        (h, r), (x, w) = terms[at], terms[1 - at]
        b = np.zeros(w.shape[1])
        for bias in biases:
            if bias.size not in (1, w.shape[1]):
                return None
            b = b + bias.reshape(-1)
        return _Sums(x, h, w, r, b)


def _terms(value: ir.Value, terms: list[tuple[ir.Value, np.ndarray]], biases: list[np.ndarray]) -> bool:
    """Take a sum apart into products with constant matrices and constants; False for anything else."""
    content = facts.array(value)
    if content is not None:
        biases.append(content.astype(np.float64))
        return content.ndim <= 2
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in ("Add", "Identity"):
        return all(v is not None and _terms(v, terms, biases) for v in node.inputs)
    plain = all(facts.attr(node, n, d) == d for n, d in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))
    if node.op_type not in ("MatMul", "Gemm") or not (node.op_type == "MatMul" or plain):
        return False
    weights = facts.array(node.inputs[1])
    if weights is None or weights.ndim != 2 or node.inputs[0] is None:
        return False
    turned = node.op_type == "Gemm" and facts.attr(node, "transB", 0)
    terms.append((node.inputs[0], weights.T if turned else weights))
    more = facts.given(node, 2)
    return more is None or _terms(more, terms, biases)


def _cell(
    op_type: str, sums: _Sums, states: Sequence[tuple[ir.Value, ir.Value]], gates: Sequence[_Gate]
) -> Cell | None:
    count = len(gates)
    columns = sums.w.shape[1]
    hidden = columns // count
    if columns % count or sums.r.shape != (hidden, columns) or sorted(g.part for g in gates) != list(range(count)):
        return None
    parts = [slice(g.part * hidden, (g.part + 1) * hidden) for g in gates]
    w, r = (np.concatenate([m[:, p] for p in parts], axis=1).T[None] for m in (sums.w, sums.r))
    b = np.concatenate([sums.b[p] + g.shift for p, g in zip(parts, gates, strict=True)])
    return Cell(op_type, sums.x, states, w, r, np.concatenate([b, np.zeros_like(b)])[None], hidden)


def _gru(node: ir.Node) -> Cell | None:
    """A GRU's: h' = z * h + (1 - z) * tanh(xh + r * hh), with x W + b and h R + c split apart (Cho et al. 2014)."""
    for kept, added in ((0, 1), (1, 0)):
        old, new = _made(node.inputs[kept], "Mul"), _made(node.inputs[added], "Mul")
        fresh = _pair(new, "Sub", "Tanh")
        if old is None or fresh is None or facts.scalar(fresh[0].inputs[0]) != 1:
            continue
        for gate_at in (0, 1):
            update, h = _made(old.inputs[gate_at], "Sigmoid"), old.inputs[1 - gate_at]
            if update is None or h is None or _made(fresh[0].inputs[1], "Sigmoid") is not update:
                continue
            cell = _gru_gates(node, update, fresh[1], h)
            if cell is not None:
                return cell
    return None


def _gru_gates(node: ir.Node, update: ir.Node, fresh: ir.Node, h: ir.Value) -> Cell | None:
    total, ends = _made(update.inputs[0], "Add"), _made(fresh.inputs[0], "Add")
    if total is None or ends is None:
        return None
    for x_at in (0, 1):
        reset = _made(ends.inputs[1 - x_at], "Mul")
        for r_at in (0, 1) if reset is not None else ():
            sigmoid = _made(reset.inputs[r_at], "Sigmoid")  # type: ignore[union-attr]
            inner = _made(sigmoid.inputs[0], "Add") if sigmoid is not None else None
            new = [_gate(ends.inputs[x_at], 3), _gate(reset.inputs[1 - r_at], 3)]  # type: ignore[union-attr]
            if inner is None or None in new:
                continue
            pairs = [_sorted_gates(n, new) for n in (total, inner)]
            if any(p is None for p in pairs):
                continue
            rows = [*[p for p in pairs if p is not None], new]  # z, r, h: of x and of h
            return _gru_cell(node, h, [r[0] for r in rows], [r[1] for r in rows])
    return None


def _sorted_gates(node: ir.Node, like: Sequence[_Gate | None]) -> list[_Gate | None] | None:
    """The two gates that a node adds up, in the order of the Splits of two others; None where they are of others."""
    gates = [_gate(v, 3) for v in node.inputs]
    if any(g is None for g in (*gates, *like)):
        return None
    wanted = [g.split for g in like if g is not None]
    found = [g.split for g in gates if g is not None]
    return gates if found == wanted else gates[::-1] if found[::-1] == wanted else None


def _gru_cell(node: ir.Node, h: ir.Value, of_x: Sequence[_Gate | None], of_h: Sequence[_Gate | None]) -> Cell | None:
    sides = []
    for gates in (of_x, of_h):
        terms: list[tuple[ir.Value, np.ndarray]] = []
        biases: list[np.ndarray] = []
        first = gates[0].split.inputs[0] if gates[0] is not None else None
        if first is None or not _terms(first, terms, biases) or len(terms) != 1:
            return None
        columns = terms[0][1].shape[1]
        if columns % 3 or any(b.size not in (1, columns) for b in biases):
            return None
        hidden = columns // 3
        parts = [slice(g.part * hidden, (g.part + 1) * hidden) for g in gates if g is not None]
        total = np.zeros(columns)
        for bias in biases:
            total = total + bias.reshape(-1)
        weights = np.concatenate([terms[0][1][:, p] for p in parts], axis=1).T[None]
        shifts = [g.shift for g in gates if g is not None]
        sides.append((terms[0][0], weights, np.concatenate([total[p] + s for p, s in zip(parts, shifts, strict=True)])))
    (x, w, b), (state, r, c) = sides
    if state is not h or r.shape[1:] != (3 * hidden, hidden) or w.shape[1] != 3 * hidden:
        return None
    return Cell("GRU", x, [(h, node.outputs[0])], w, r, np.concatenate([b, c])[None], hidden, 1)
