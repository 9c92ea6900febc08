"""The place of one node that is upgraded: reads its old form, inserts new nodes before it, edits or replaces it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt import dtypes, errors
from gpurt.errors import InvalidGraph
from gpurt.loader.names import Names
from gpurt.loader.opsets import since

ORIGIN = "gpurt.origin"
"""Key in ``node.meta`` of the operator and version that the model had, such as ``Clip-6``."""


class Site:
    """A node in its graph, with what rules need to rewrite it."""

    def __init__(self, graph: ir.Graph, node: ir.Node, names: Names, opset: int) -> None:
        self.graph = graph
        self.node = node
        self.names = names
        self.opset = opset

    # reading

    def input(self, index: int) -> ir.Value | None:
        """Input at a position, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def need(self, index: int) -> ir.Value:
        """Input at a position, which must be there."""
        value = self.input(index)
        if value is None:
            raise InvalidGraph(f"input {index} is missing", node=self.node.name, op=self.node.op_type)
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attr = self.node.attributes.get(name)
        return default if attr is None or attr.value is None else attr.value

    def pop(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default; the node does not have it any more."""
        value = self.attr(name, default)
        self.node.attributes.pop(name, None)
        return value

    def rank(self, value: ir.Value | None) -> int | None:
        """Rank of a value where it is known."""
        return None if value is None or value.shape is None else len(value.shape)

    def dtype(self, value: ir.Value) -> np.dtype | None:
        """Element type of a value where it is known."""
        return dtypes.from_onnx(int(value.dtype)) if value.dtype is not None else None

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """Content of an initializer that nobody can override."""
        if value is None or value.const_value is None or value.is_graph_input():
            return None
        return np.asarray(value.const_value.numpy())

    def wanted(self, index: int) -> bool:
        """Whether somebody uses an output."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return value.name != "" and (bool(value.uses()) or value.is_graph_output())

    # building

    def const(self, array: Any, base: str, dtype: Any = None) -> ir.Value:
        """A new initializer of the node's graph."""
        content = np.asarray(array, dtype=dtype)
        name = self.names.value(f"{self.node.name}_{base}")
        tensor = ir.Tensor(content, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(content.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def ints(self, values: Sequence[int] | int, base: str) -> ir.Value:
        """A new int64 initializer: a list, or a scalar."""
        return self.const(values, base, np.int64)

    def scalar_like(self, number: float, base: str, like: ir.Value) -> ir.Value:
        """A scalar of the element type of another value."""
        dtype = self.dtype(like)
        if dtype is not None:
            return self.const(np.array(number).astype(dtype), base)
        return self.op("CastLike", [self.const(number, base, np.float32), like])

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Insert a node of one output before this one."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Insert a node before this one; returns its outputs."""
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items() if value is not None]
        node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs, version=since(op_type))
        node.name = self.names.node(f"{self.node.name}_{op_type}")
        node.meta[ORIGIN] = self.node.meta.get(ORIGIN)
        for value in node.outputs:
            value.name = self.names.value(f"{node.name}_out")
        self.graph.insert_before(self.node, node)
        return node.outputs

    # editing

    def rename(self, op_type: str, domain: str = "") -> None:
        """Make the node one of another operator."""
        self.node.op_type, self.node.domain = op_type, domain

    def set(self, **attributes: Any) -> None:
        """Set attributes of the node."""
        for key, value in attributes.items():
            self.node.attributes[key] = ir.convenience.convert_attribute(key, value)

    def set_inputs(self, *inputs: ir.Value | None) -> None:
        """Give the node other inputs; those left out at the end are dropped."""
        wanted = list(inputs)
        while wanted and wanted[-1] is None:
            wanted.pop()
        self.node.resize_inputs(len(wanted))
        for index, value in enumerate(wanted):
            if self.node.inputs[index] is not value:
                self.node.replace_input_with(index, value)

    def drop_outputs(self, keep: int, reason: str) -> None:
        """Keep the first outputs; NotImplemented if somebody uses one of the others."""
        for index in range(keep, len(self.node.outputs)):
            if self.wanted(index):
                self.refuse(f"output {index} is used, {reason}")
        self.node.resize_outputs(min(keep, len(self.node.outputs)))

    def replace(self, *values: ir.Value) -> None:
        """Put new values, which nodes of this graph make, in place of the node's outputs, and remove the node."""
        for old, new in zip(self.node.outputs, values, strict=True):
            if old.name:
                new.name = old.name  # the old value goes, so the name stays unique
            new.type = new.type or old.type
            new.shape = new.shape if new.shape is not None else old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)

    def refuse(self, why: str) -> None:
        """Raise NotImplemented: the old form has no equal in the canonical opset."""
        origin = self.node.meta.get(ORIGIN) or self.node.op_type
        raise errors.NotImplemented(
            f"{origin} cannot be brought to the newest opset: {why}",
            node=self.node.name, op=self.node.op_type, remedy="Export the model with a newer opset",
        )  # fmt: skip
