"""What is there twice: nodes that compute the same from the same, small constants with the same content."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.transformer import Result, Tools

_SHARED_BYTES = 1024  # equal constants are axes, shapes and scalars; hashing weights would cost more than it saves


class ConstantSharing:
    """Small constants of one graph with the same dtype, shape and content become one."""

    name = "ConstantSharing"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            first: dict[Hashable, ir.Value] = {}
            for name, value in list(graph.initializers.items()):
                if value.const_value is None or value.const_value.size > _SHARED_BYTES or value.is_graph_output():
                    continue
                content = facts.array(value)
                if content is None or content.nbytes > _SHARED_BYTES:
                    continue
                data = tuple(content.ravel()) if content.dtype == object else content.tobytes()
                same = first.setdefault((content.dtype, content.shape, data), value)
                if same is not value:
                    value.replace_all_uses_with(same)
                    del graph.initializers[name]
                    result.changes += 1
        return result


class CommonSubexpressionElimination:
    """Nodes of one graph with the same operator, inputs and attributes become the first of them."""

    name = "CommonSubexpressionElimination"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model; the inputs of a node are one before the node is looked at."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            first: dict[Hashable, ir.Node] = {}
            for node in list(graph):
                key = _key(node)
                same = node if key is None else first.setdefault(key, node)
                if same is node or any(v.is_graph_output() for v in node.outputs):
                    continue
                for old, new in zip(node.outputs, same.outputs, strict=True):
                    old.replace_all_uses_with(new)
                result.remove(node, f"the same as {same.name}")
        return result


def _key(node: ir.Node) -> Hashable | None:
    """What two nodes with the same outputs agree in; None for a node that may not be merged with any."""
    if not facts.deterministic(node) or facts.has_body(node) or not node.inputs:
        return None
    attributes = []
    for name in sorted(node.attributes):
        value = _plain(node.attributes[name])
        if value is None:
            return None
        attributes.append((name, value))
    inputs = tuple(None if facts.absent(v) else id(v) for v in node.inputs)
    outputs = tuple(facts.absent(v) for v in node.outputs)
    return node.domain, node.op_type, node.version, inputs, outputs, tuple(attributes)


def _plain(attr: ir.Attr) -> Any:
    value = attr.value
    if isinstance(value, int | float | str | bytes):
        return attr.type, value
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str | bytes) for v in value):
        return attr.type, tuple(value)
    return None
