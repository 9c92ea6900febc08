"""Shapes once more: what was folded and rewritten says more of them than the model did when it was loaded."""

from __future__ import annotations

import onnx_ir as ir

from gpurt.loader import inference
from gpurt.loader.opsets import CANONICAL_OPSETS
from gpurt.optimizer import facts
from gpurt.optimizer.symbols import forget_made
from gpurt.optimizer.transformer import Result, Tools


class ShapeInference:
    """onnx's shape inference over the graph as it is now; a change is what was not known before."""

    name = "ShapeInference"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model, if there is anything to find out."""
        values = [v for g in facts.all_graphs(model.graph) for n in g for v in n.outputs if not facts.absent(v)]
        if all(v.shape is not None and v.shape.is_static() for v in values):
            return Result()
        # Inference keeps a name that is there, and so would never replace one that it made itself by a better one.
        for value in values:
            forget_made(value)
        before = [_known(v) for v in values]
        inference.annotate(model, CANONICAL_OPSETS)
        return Result(changes=sum(_known(v) > b for v, b in zip(values, before, strict=True)))


def _known(value: ir.Value) -> int:
    """How much is known of a shape: its rank, its numbers and its names."""
    return -1 if value.shape is None else sum(2 * isinstance(d, int) + bool(facts.symbol(d)) for d in value.shape)
