"""Convolutions and pools over data with the channels last: the rules of ONNX's own on permuted shapes."""

from __future__ import annotations

from dataclasses import replace

from gpurt.graph.channels_last import DOMAIN, OPERATORS, to_first, to_last
from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, like, need
from gpurt.infer.shapes import text
from gpurt.infer.table import infer, rule
from gpurt.spec import Spec


@rule(*sorted(OPERATORS), domain=DOMAIN)
def channels_last(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank < 3:
        raise ValueError(f"{node.op}: X {text(x.shape)} has no spatial axes")
    first = like(x, (x.shape[a] for a in to_first(x.rank)))
    made = infer(replace(node, domain=""), [first, *inputs[1:]])[0]
    return [like(made, (made.shape[a] for a in to_last(made.rank)))]
