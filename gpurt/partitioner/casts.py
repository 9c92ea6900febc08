"""Cast nodes at a provider's edges: a node runs in a wider dtype where the provider lacks the one it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.graph.edit import is_constant
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.infer.types import result_dtypes
from gpurt.loader import Names, Views
from gpurt.partitioner.result import Decisions
from gpurt.provider import Provider

# Where the dtype is the point of the operator, a wider one would be another operator.
_TYPED: Final = frozenset(
    [
        "Cast",
        "CastLike",
        "BitCast",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
    ]
)

# Defined by a body whose every step has the node's own dtype; with that body the steps are rounded, not the end alone.
_BY_STEPS: Final = frozenset(["Attention"])


class Widener:
    """Inserts casts, one for each value and dtype.

    What a node yields is narrowed before the next one widens it: the standard's values have the narrow type's digits.
    """

    def __init__(self, providers: Sequence[Provider], names: Names, decisions: Decisions) -> None:
        self._providers = providers
        self._names = names
        self._decisions = decisions
        self._wide: dict[tuple[ir.Value, np.dtype], ir.Value] = {}

    def widen(self, node: ir.Node, position: int) -> dict[ir.Node, int] | None:
        """Put casts around a node so that a provider can run it.

        Returns the inserted nodes with the positions of their providers, or None if no wider dtype helps.
        """
        found = self._find(node, position)
        return None if found is None else self._insert(node, *found, position)

    def can(self, node: ir.Node, position: int) -> bool:
        """Whether casts would help; nothing is changed."""
        return self._find(node, position) is not None

    def _find(self, node: ir.Node, position: int) -> tuple[NodeView, NodeView, np.dtype, np.dtype] | None:
        """The node as it is and as it would be, and the two dtypes."""
        if node.op_type in _TYPED | _BY_STEPS:
            return None
        if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return None
        view = Views().node(node)
        narrow = {
            v.dtype for v in view.inputs if v is not None and v.dtype in dtypes.WIDER and dtypes.is_float(v.dtype)
        }
        for dtype in sorted(narrow, key=str):
            for wide in dtypes.WIDER[dtype]:
                variant = _variant(view, dtype, wide)
                if variant is not None and self._claims(position, variant):
                    return view, variant, dtype, wide
        return None

    def _claims(self, position: int, node: NodeView) -> bool:
        inputs = tuple(v for v in node.inputs if v is not None)
        outputs = tuple(v for v in node.outputs if v is not None)
        return self._providers[position].get_capability(GraphView((node,), inputs, outputs)).takes(node)

    def _insert(
        self, node: ir.Node, view: NodeView, variant: NodeView, narrow: np.dtype, wide: np.dtype, position: int
    ) -> dict[ir.Node, int]:
        graph = node.graph
        assert graph is not None, "the node is in a graph"
        inserted: dict[ir.Node, int] = {}
        device = self._providers[position].device
        for i, value in enumerate(node.inputs):
            seen = view.inputs[i]
            if value is None or seen is None or seen.dtype != narrow:
                continue
            node.replace_input_with(i, self._widened(graph, node, value, wide, inserted, position))
        for old, before, after in zip(node.outputs, view.outputs, variant.outputs, strict=True):
            if before is None or after is None or before.dtype == after.dtype or before.dtype is None:
                continue
            name = old.name or ""
            back = self._cast(old, before.dtype, name)
            back.outputs[0].shape = old.shape
            old.name = self._names.value(f"{name}_{wide.name}")
            old.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
            back.replace_input_with(0, old)
            assert after.dtype is not None, "the schema gives the wider dtype"
            old.type = _tensor_type(after.dtype)
            graph.insert_after(node, back)
            inserted[back] = self._provider_of(back, position)
            self._note(name, after.dtype, before.dtype, f"{view.op} runs as {wide.name} on {device}")
        return inserted

    def _widened(
        self,
        graph: ir.Graph,
        node: ir.Node,
        value: ir.Value,
        wide: np.dtype,
        inserted: dict[ir.Node, int],
        position: int,
    ) -> ir.Value:
        known = self._wide.get((value, wide))
        if known is not None and (known.graph is graph or known.graph is None):
            return known
        if is_constant(value):
            constant = ir.Value(name=self._names.value(f"{value.name}_{wide.name}"), type=_tensor_type(wide))
            assert value.const_value is not None, "a constant has content"
            array = value.const_value.numpy().astype(wide)
            constant.const_value = ir.Tensor(array, dtype=ir.DataType(dtypes.to_onnx(wide)), name=constant.name)
            constant.shape = ir.Shape(array.shape)
            graph.register_initializer(constant)
            self._wide[value, wide] = constant
            return constant
        cast = self._cast(value, wide, self._names.value(f"{value.name}_{wide.name}"))
        cast.outputs[0].shape = value.shape
        graph.insert_before(node, cast)
        inserted[cast] = self._provider_of(cast, position)
        narrow = "?" if value.dtype is None else dtypes.from_onnx(int(value.dtype))
        device = self._providers[position].device
        self._note(value.name or "", narrow, wide, f"{node.op_type} has no {narrow} kernel on {device}")
        self._wide[value, wide] = cast.outputs[0]
        return cast.outputs[0]

    def _cast(self, value: ir.Value, to: np.dtype, name: str) -> ir.Node:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtypes.to_onnx(to))], num_outputs=1, version=25)
        node.name = self._names.node(f"{name}_Cast")
        node.outputs[0].name = name
        node.outputs[0].type = _tensor_type(to)
        return node

    def _provider_of(self, cast: ir.Node, position: int) -> int:
        """The widened node's own provider if it can, so that the value crosses once and narrow; else the first."""
        view = Views().node(cast)
        order: list[int] = [position, *range(len(self._providers))]
        return next(i for i in order if self._claims(i, view))

    def _note(self, value: str, source: object, target: object, cause: str) -> None:
        self._decisions.casts.append({"value": value, "from": str(source), "to": str(target), "cause": cause})


def _variant(view: NodeView, narrow: np.dtype, wide: np.dtype) -> NodeView | None:
    """The node as it would be with one dtype replaced, or None where the schema cannot tell its outputs."""

    def changed(value: ValueView | None) -> ValueView | None:
        return replace(value, dtype=wide, const=None) if value is not None and value.dtype == narrow else value

    inputs = tuple(changed(v) for v in view.inputs)
    bare = replace(view, inputs=inputs)
    found = result_dtypes(bare, [None if v is None else v.dtype for v in inputs])
    outputs = tuple(None if v is None else replace(v, dtype=d) for v, d in zip(view.outputs, found, strict=False))
    if len(outputs) != len(view.outputs) or any(v is not None and v.dtype is None for v in outputs):
        return None
    return replace(bare, outputs=outputs)


def _tensor_type(dtype: np.dtype) -> ir.TensorType:
    return ir.TensorType(ir.DataType(dtypes.to_onnx(dtype)))
