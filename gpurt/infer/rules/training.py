"""The optimizers of ai.onnx.preview.training: each updates n tensors and their n states, of the shapes they have."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, like, need
from gpurt.infer.table import rule
from gpurt.spec import Spec

# Inputs after R and T come in groups of n tensors; the gradients, the second group, are not an output.
_GROUPS = {"Adagrad": 3, "Adam": 4, "Momentum": 3}


@rule(*_GROUPS, domain="ai.onnx.preview.training")
def optimizer(node: NodeView, inputs: Inputs) -> list[Spec]:
    groups = _GROUPS[node.op_type]
    count, rest = divmod(len(inputs) - 2, groups)
    if rest or count < 1:
        raise ValueError(f"{node.op}: {len(inputs) - 2} tensors do not divide into {groups} groups")
    kept = [group for group in range(groups) if group != 1]
    return [like(need(node, inputs, 2 + group * count + i)) for group in kept for i in range(count)]
