"""Recurrent layers: RNN, GRU and LSTM."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, like, need
from gpurt.infer.shapes import text
from gpurt.infer.table import rule
from gpurt.spec import Spec

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent_specs(node: NodeView, x: Spec, hidden: int, states: int) -> list[Spec]:
    """Y and the final states of a recurrent layer; layout 1 puts the batch first."""
    if x.rank != 3:
        raise ValueError(f"{node.op}: X {text(x.shape)} must have rank 3")
    directions = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    if node.attr("layout", 0):
        batch, steps, _ = x.shape
        return [like(x, (batch, steps, directions, hidden)), *[like(x, (batch, directions, hidden))] * states]
    steps, batch, _ = x.shape
    return [like(x, (steps, directions, batch, hidden)), *[like(x, (directions, batch, hidden))] * states]


@rule(*GATES)
def recurrent(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w, r = (need(node, inputs, i) for i in range(3))
    hidden = node.attr("hidden_size") or r.shape[-1]
    if r.shape[1:] != (GATES[node.op_type] * hidden, hidden):
        raise ValueError(f"{node.op}: R {text(r.shape)} does not fit hidden size {hidden}")
    if x.rank == 3 and w.shape[-1] != x.shape[2]:
        raise ValueError(f"{node.op}: X has {x.shape[2]} features, W {text(w.shape)} expects {w.shape[-1]}")
    return recurrent_specs(node, x, hidden, 2 if node.op_type == "LSTM" else 1)
