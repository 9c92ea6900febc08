"""What a Loop only hands on from step to step: it is the same in every step, and outside of the loop."""

from __future__ import annotations

import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.transformer import Result, Tools


class LoopInvariants:
    """A carried value that no step changes -> the value that the loop begins with.

    tf2onnx hands weights on like this; once the body reads them from outside they are constants there.
    """

    name = "LoopInvariants"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in graph:
                if node.op_type == "Loop" and not node.domain:
                    result.changes += self._hoist(node)
        return result

    @staticmethod
    def _hoist(node: ir.Node) -> int:
        body = node.attributes["body"].as_graph()
        changes = 0
        for inner, before, after, output in zip(
            body.inputs[2:], node.inputs[2:], body.outputs[1:], node.outputs, strict=False
        ):
            if before is None or plain(after) is not inner or before.type != inner.type:
                continue
            # What hands it on stays: a body's outputs are its own values.
            handing = {after.producer()}
            uses = [(user, i) for user, i in inner.uses() if user not in handing]
            for user, i in uses:
                user.replace_input_with(i, before)
            read = facts.wanted(output) and not output.is_graph_output()
            if read:
                output.replace_all_uses_with(before)
            changes += bool(uses) + read
        return changes


def plain(value: ir.Value) -> ir.Value:
    """The value behind nodes that only hand it on."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
