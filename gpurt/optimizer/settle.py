"""What is folded once more after partitioning: function bodies bring shape arithmetic over shapes that are known.

Only transformations that make no new node may run here, as every node has its provider by now.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpurt.infer import infer
from gpurt.loader import Views
from gpurt.optimizer.passes import (
    ConstantFolding,
    DeadCode,
    Evaluate,
    IdentityElimination,
    Removed,
    all_graphs,
    replace_by_constant,
)
from gpurt.spec import Spec, Unknown


class StaticShapes:
    """Shape(x), Size(x) -> constant where all dimensions of x are known."""

    name = "StaticShapes"

    def apply(self, model: ir.Model) -> list[Removed]:
        """Run once over the model."""
        removed = []
        for graph in all_graphs(model.graph):
            for node in list(graph):
                _propagate(node)
                array = self._content(node)
                if array is not None:
                    replace_by_constant(graph, node.outputs[0], array)
                    graph.remove(node, safe=True)
                    removed.append(Removed(node.name or "", node.op_type, "its input's shape is static"))
        return removed

    @staticmethod
    def _content(node: ir.Node) -> np.ndarray | None:
        if node.domain or node.op_type not in ("Shape", "Size"):
            return None
        source = node.inputs[0]
        if source is None or source.shape is None or not isinstance(source.type, ir.TensorType):
            return None
        dims = _static(source)
        if dims is None:
            return None
        shape = np.asarray(dims, np.int64)
        if node.op_type == "Size":
            return np.asarray(shape.prod(), np.int64)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(dims)
        return shape[start:end]


def _static(value: ir.Value) -> tuple[int, ...] | None:
    dims = None if value.shape is None else list(value.shape)
    if dims is None or not all(isinstance(d, int) and d >= 0 for d in dims):
        return None
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]


def _propagate(node: ir.Node) -> None:
    """Give outputs the shapes that follow from static input shapes; onnx's inference ran before anything was folded."""
    if all(v.shape is not None and v.shape.is_static() for v in node.outputs) or any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    ):
        return
    view = Views().node(node)
    specs = []
    for value, seen in zip(node.inputs, view.inputs, strict=True):
        dims = None if value is None else _static(value)
        if seen is not None and (dims is None or seen.dtype is None):
            return
        specs.append(None if seen is None or seen.dtype is None or dims is None else Spec(seen.dtype, dims, seen.const))
    try:
        outs = infer(view, specs)
    except (Unknown, ValueError):
        return
    for value, spec in zip(node.outputs, outs, strict=False):
        if value.name != "":
            value.shape = ir.Shape(spec.shape)


def settle(model: ir.Model, evaluate: Evaluate) -> list[Removed]:
    """Fold what function bodies left to fold, until nothing changes."""
    transformers = (StaticShapes(), IdentityElimination(), ConstantFolding(evaluate), DeadCode())
    removed: list[Removed] = []
    for _ in range(4):
        found = [r for t in transformers for r in t.apply(model)]
        removed += found
        if not found:
            break
    return removed
