"""Walks over onnx-ir graphs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs in the attributes of a node."""
    for attr in node.attributes.data.values():  # a plain dictionary's are ten times as fast, and walks are many
        kind = attr.type
        if kind is ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.as_graph()
        elif kind is ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.as_graphs()


def graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all graphs nested in it, outer before inner."""
    yield graph
    for node in list(graph):
        for body in bodies(node):
            yield from graphs(body)
