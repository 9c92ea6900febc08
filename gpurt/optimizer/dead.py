"""Nodes and initializers that nobody reads."""

from __future__ import annotations

import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.transformer import Result, Tools


class DeadCode:
    """Takes out nodes none of whose outputs is read, and the constants that only they read."""

    name = "DeadCode"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model: readers come after what they read, so one walk from the end finds everything."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in reversed(list(graph)):
                if not any(facts.wanted(v) for v in node.outputs):
                    result.remove(node, "its outputs are not used")
        # A body may have been the last reader of an outer graph's constant, so constants come after all nodes.
        for graph in facts.all_graphs(model.graph):
            for name, value in list(graph.initializers.items()):
                if not facts.wanted(value) and not value.is_graph_input():
                    del graph.initializers[name]
        return result
