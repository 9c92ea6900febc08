"""The global transformations of level basic, and the loop that runs them until nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir

from gpurt import dtypes, logs
from gpurt.graph.edit import is_constant
from gpurt.graph.view import NodeView
from gpurt.loader import Views
from gpurt.options import GraphOptimizationLevel

logger = logs.get(__name__)

Evaluate = Callable[[NodeView, Sequence[Any]], Sequence[Any] | None]
"""Computes a node on the host: inputs in, outputs out; None where no kernel can."""

_ROUNDS: Final = 10
_FOLD_BYTES: Final = 512 << 20  # one folded output; a larger one is left for the run
_FOLD_TOTAL: Final = 2 << 30
_UNFOLDABLE: Final = frozenset(
    [
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
    ]
)


@dataclass(frozen=True, slots=True)
class Removed:
    """A node that an optimization took out, and why."""

    name: str
    op_type: str
    why: str


class GraphTransformer(Protocol):
    """A global transformation: edits all graphs of a model and reports the nodes it removed."""

    name: str

    def apply(self, model: ir.Model) -> list[Removed]:
        """Run once over the model."""


def optimize(model: ir.Model, level: GraphOptimizationLevel, evaluate: Evaluate) -> list[Removed]:
    """Run the transformations of a level, in place, until a round removes nothing."""
    if level == GraphOptimizationLevel.ORT_DISABLE_ALL:
        return []
    transformers: Sequence[GraphTransformer] = (IdentityElimination(), ConstantFolding(evaluate), DeadCode())
    removed: list[Removed] = []
    for _ in range(_ROUNDS):
        found = [r for t in transformers for r in t.apply(model)]
        removed += found
        if not found:
            break
    logger.debug("basic optimization removed %d nodes", len(removed))
    return removed


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all graphs nested in it, inner ones first."""
    for node in graph:
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                yield from all_graphs(attr.as_graph())
            elif attr.type == ir.AttributeType.GRAPHS:
                for inner in attr.as_graphs():
                    yield from all_graphs(inner)
    yield graph


class IdentityElimination:
    """Identity(x) -> x; Dropout(x) without training -> x; Cast(x) to x's own type -> x."""

    name = "IdentityElimination"

    def apply(self, model: ir.Model) -> list[Removed]:
        removed = []
        for graph in all_graphs(model.graph):
            for node in list(graph):
                why = self._why(node)
                if why is None or node.outputs[0].is_graph_output():
                    continue
                source = node.inputs[0]
                assert source is not None
                node.outputs[0].replace_all_uses_with(source)
                graph.remove(node, safe=True)
                removed.append(Removed(node.name or "", node.op_type, why))
        return removed

    @staticmethod
    def _why(node: ir.Node) -> str | None:
        if node.domain or not node.inputs or node.inputs[0] is None:
            return None
        if node.op_type == "Identity":
            return "identity"
        if node.op_type == "Dropout":
            mode = node.inputs[2] if len(node.inputs) > 2 else None
            off = mode is None or (is_constant(mode) and not bool(mode.const_value.numpy().ravel()[0]))  # type: ignore[union-attr]
            mask_used = len(node.outputs) > 1 and (bool(node.outputs[1].uses()) or node.outputs[1].is_graph_output())
            return "dropout without training" if off and not mask_used else None
        if node.op_type == "Cast" and isinstance(node.inputs[0].type, ir.TensorType):
            same = int(node.inputs[0].type.dtype) == node.attributes["to"].as_int()
            return "cast to its own type" if same else None
        return None


class ConstantFolding:
    """f(constants) -> constant, bounded by the size of the result; computed by the host provider's kernels."""

    name = "ConstantFolding"

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._total = 0

    def apply(self, model: ir.Model) -> list[Removed]:
        return [r for graph in all_graphs(model.graph) for r in self._graph(graph)]

    def _graph(self, graph: ir.Graph) -> list[Removed]:
        removed = []
        for node in list(graph):
            if node.op_type in _UNFOLDABLE or not all(v is None or is_constant(v) for v in node.inputs):
                continue
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
                continue
            view = Views().node(node)  # views remember values, and these change with every fold
            if self._too_large(view):
                continue
            values = self._evaluate(view, [None if v is None else v.const for v in view.inputs])
            if values is None or not all(isinstance(v, np.ndarray) for v in values):
                continue
            self._total += sum(v.nbytes for v in values)
            for old, array in zip(node.outputs, values, strict=False):
                if old.name == "":
                    continue
                replace_by_constant(graph, old, array)
            graph.remove(node, safe=True)
            removed.append(Removed(node.name or "", node.op_type, "constant"))
        return removed

    def _too_large(self, node: NodeView) -> bool:
        from gpurt.infer import infer
        from gpurt.spec import Spec, Unknown

        try:
            outs = infer(node, [None if v is None or v.const is None else Spec.of(v.const) for v in node.inputs])
        except (Unknown, ValueError):
            return False
        size = sum(s.nbytes for s in outs)
        return size > _FOLD_BYTES or self._total + size > _FOLD_TOTAL


class DeadCode:
    """Nodes and initializers that nobody reads."""

    name = "DeadCode"

    def apply(self, model: ir.Model) -> list[Removed]:
        removed = []
        for graph in all_graphs(model.graph):
            for node in reversed(list(graph)):
                if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                    graph.remove(node, safe=True)
                    removed.append(Removed(node.name or "", node.op_type, "its outputs are not used"))
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
        return removed


def replace_by_constant(graph: ir.Graph, old: ir.Value, array: np.ndarray) -> ir.Value:
    """Let an initializer with this content take the place and name of a value."""
    name = old.name
    tensor: Any
    if array.dtype == object:
        tensor = ir.StringTensor([str(s).encode() for s in array.ravel()], shape=ir.Shape(array.shape), name=name)
    else:
        tensor = ir.Tensor(array, dtype=ir.DataType(dtypes.to_onnx(array.dtype)), name=name)
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    old.name = f"{name}__folded"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.register_initializer(new)
    return new
