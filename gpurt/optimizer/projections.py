"""Queries, keys and values of one input as one product: with a few rows each of the three costs a launch of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.build import Builder
from gpurt.optimizer.transformer import NearMiss, Removed, Result, Tools
from gpurt.options import GraphOptimizationLevel

_FEW: Final = 8  # rows up to which it pays; beyond, three products are as fast as one
_MOST_BYTES: Final = 64 << 20  # of packed weights, which are a copy
_BETWEEN: Final = frozenset({"Reshape", "RotaryEmbedding", "Transpose"})
_DEPTH: Final = 6


@dataclass(slots=True)
class _Projection:
    """MatMul(x, weights), with a constant bias behind it where there is one; the last node's value is the result."""

    product: ir.Node
    sum: ir.Node | None
    weights: np.ndarray
    bias: np.ndarray | None

    @property
    def result(self) -> ir.Value:
        return (self.sum or self.product).outputs[0]


class PackedProjections:
    """MatMul(x, Wq), MatMul(x, Wk), MatMul(x, Wv) of one Attention -> Split(MatMul(x, [Wq Wk Wv])).

    Where x is not known to have more than 8 rows; a Split of one row moves nothing, and on devices Attention reads its
    heads where they are.
    """

    name = "PackedProjections"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in list(graph):
                if node.op_type != "Attention" or node.domain or len(node.inputs) < 3:
                    continue
                key = (self.name, node.name or "")
                tools.misses.pop(key, None)
                found = [_projection(v) for v in node.inputs[:3]]
                parts = [p for p in found if p is not None]
                if len(parts) < 3 or len({p.product for p in parts}) < 3:
                    continue
                reason = _unfit(parts)
                if reason:
                    tools.misses[key] = NearMiss(self.name, node.name or "", reason, 3)
                else:
                    self._pack(graph, parts, tools, result)
        return result

    def _pack(self, graph: ir.Graph, parts: list[_Projection], tools: Tools, result: Result) -> None:
        first = next(n for n in graph if any(n is p.product for p in parts))
        op = Builder(tools.names, first)
        x = first.inputs[0]
        value = op.MatMul(x, op.constant(np.concatenate([p.weights for p in parts], axis=1)))
        biases = [p.bias for p in parts if p.bias is not None]
        if biases:
            value = op.Add(value, op.constant(np.concatenate(biases)))
        sizes = np.array([p.weights.shape[1] for p in parts])
        outs = op.Split(value, sizes, axis=-1, _outputs=3)
        for constant in op.constants:
            graph.register_initializer(constant)
        graph.insert_before(first, op.nodes)
        for part, new in zip(parts, outs, strict=True):
            old = part.result
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new)
            for node in (part.sum, part.product):
                if node is not None:
                    graph.remove(node, safe=True)
                    why = "one product with the other projections of its input"
                    result.removed.append(Removed(node.name or "", node.op_type, why, self.name))
        result.changes += 1


def _projection(value: ir.Value | None) -> _Projection | None:
    """The product that a query, key or value comes from, through nodes that bring it in shape."""
    for _ in range(_DEPTH):
        node = value.producer() if value is not None else None
        if node is None or node.domain:
            return None
        if node.op_type == "MatMul":
            return _of(node, None)
        if node.op_type == "Add":
            for i in (0, 1):
                product = node.inputs[i].producer() if node.inputs[i] is not None else None  # type: ignore[union-attr]
                if product is not None and product.op_type == "MatMul" and not product.domain:
                    return _of(product, node)
            return None
        if node.op_type not in _BETWEEN:
            return None
        value = node.inputs[0]
    return None


def _of(product: ir.Node, total: ir.Node | None) -> _Projection | None:
    weights = facts.array(product.inputs[1])
    if weights is None or weights.ndim != 2 or not facts.is_float(product.inputs[1]):
        return None
    if total is None:
        return _Projection(product, None, weights, None)
    other = next(v for v in total.inputs if v is not product.outputs[0])
    bias = facts.array(other)
    alone = len(list(product.outputs[0].uses())) == 1 and not product.outputs[0].is_graph_output()
    if bias is None or bias.shape != weights.shape[1:] or not alone:
        return None
    return _Projection(product, total, weights, bias)


def _unfit(parts: list[_Projection]) -> str:
    """Why projections are not packed; empty if they are."""
    first = parts[0]
    x = first.product.inputs[0]
    if any(p.product.inputs[0] is not x for p in parts):
        return "queries, keys and values are not projected from one value"
    if len({p.weights.dtype for p in parts}) > 1 or len({p.bias is None for p in parts}) > 1:
        return "their types differ, or only some have a bias"
    if any(p.product.graph is not first.product.graph or p.result.is_graph_output() for p in parts):
        return "one of them is a graph output"
    dims = facts.dims(x)
    if dims is None or len(dims) < 2:
        return "the rank of what is projected is not known"
    rows = dims[:-1]
    if None not in rows and np.prod([r or 0 for r in rows]) > _FEW:
        return f"{rows} rows are enough to keep each product busy"
    return "" if sum(p.weights.nbytes for p in parts) <= _MOST_BYTES else "the weights are too large to copy"
