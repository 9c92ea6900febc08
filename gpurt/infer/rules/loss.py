"""Losses."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, like, need
from gpurt.infer.shapes import text
from gpurt.infer.table import rule
from gpurt.spec import Spec


@rule("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def class_loss(node: NodeView, inputs: Inputs) -> list[Spec]:
    scores, labels = need(node, inputs, 0), need(node, inputs, 1)
    if scores.rank < 2 or labels.shape != (scores.shape[0], *scores.shape[2:]):
        raise ValueError(f"{node.op}: labels {text(labels.shape)} do not fit scores {text(scores.shape)}")
    shape = labels.shape if node.attr("reduction", "mean") == "none" else ()
    return [like(scores, shape), like(scores)]  # the second is the log_prob of SoftmaxCrossEntropyLoss alone
