"""Read-only views of the loaded model: what providers, shape rules and plug-ins see instead of onnx-ir's objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.graph.view import GraphView, NodeView, ValueView

Shape = tuple[int | str | None, ...]


class Views:
    """Makes views and remembers them: the same value, node or graph always gives the same view.

    Views show the graph as it was when they were made. After the graph was edited, make a new ``Views``.
    """

    def __init__(self) -> None:
        # Keyed by the objects themselves, which keeps them alive: an id could come back for another object.
        self._values: dict[ir.Value, ValueView] = {}
        self._nodes: dict[ir.Node, NodeView] = {}
        self._graphs: dict[ir.Graph, GraphView] = {}

    def value(self, value: ir.Value | None) -> ValueView | None:
        """View of a value; None for one that is left out. An input's default is no constant: it may be overridden."""
        if value is None or value.name == "":
            return None
        view = self._values.get(value)
        if view is None:
            view = self._values[value] = _value_view(value)
        return view

    def node(self, node: ir.Node) -> NodeView:
        """View of a node, its bodies included."""
        view = self._nodes.get(node)
        if view is None:
            view = self._nodes[node] = NodeView(
                op_type=node.op_type,
                inputs=tuple(self.value(value) for value in node.inputs),
                outputs=tuple(self.value(value) for value in node.outputs),
                attrs={name: self._attribute(attr) for name, attr in node.attributes.data.items()},
                domain=node.domain,
                name=node.name or "",
                version=node.version or 0,
            )
        return view

    def graph(self, graph: ir.Graph) -> GraphView:
        """View of a whole graph."""
        view = self._graphs.get(graph)
        if view is None:
            constants = [value for value in graph.initializers.values() if not value.is_graph_input()]
            view = self._graphs[graph] = GraphView(
                nodes=tuple(self.node(node) for node in graph),
                inputs=tuple(self._there(value) for value in graph.inputs),
                outputs=tuple(self._there(value) for value in graph.outputs),
                initializers={view.name: view for view in map(self._there, constants)},
                name=graph.name or "",
            )
        return view

    def _there(self, value: ir.Value) -> ValueView:
        view = self.value(value)
        assert view is not None, "inputs, outputs and initializers of a loaded graph have names"
        return view

    def _attribute(self, attr: ir.Attr) -> Any:
        kind = attr.type
        match kind:
            case ir.AttributeType.GRAPH:
                return self.graph(attr.as_graph())
            case ir.AttributeType.GRAPHS:
                return tuple(self.graph(graph) for graph in attr.as_graphs())
            case ir.AttributeType.TENSOR:
                return array_of(attr.as_tensor())
            case ir.AttributeType.TENSORS:
                return tuple(array_of(tensor) for tensor in attr.as_tensors())
            case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
                return tuple(attr.value)
            case ir.AttributeType.TYPE_PROTO:
                return type_string(attr.value.type)
            case ir.AttributeType.TYPE_PROTOS:
                return tuple(type_string(item.type) for item in attr.value)
        return attr.value


def graph_view(graph: ir.Graph) -> GraphView:
    """View of a graph by itself; use one :class:`Views` where views of several graphs or nodes must share values."""
    return Views().graph(graph)


def node_view(node: ir.Node) -> NodeView:
    """View of a node by itself."""
    return Views().node(node)


def array_of(tensor: ir.TensorProtocol) -> np.ndarray:
    """Content of a tensor without a copy; strings as an object array of str."""
    if tensor.dtype == ir.DataType.STRING:
        raw = tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().reshape(-1).tolist()
        out = np.empty(len(raw), dtype=object)
        out[:] = [item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item) for item in raw]
        return out.reshape(tensor.shape.numpy())
    return np.asarray(tensor.numpy())


def type_string(kind: ir.TypeProtocol | None) -> str:
    """ONNX type string of an onnx-ir type; an empty string where there is none."""
    match kind:
        case ir.TensorType():
            return f"tensor({_element(kind)})"
        case ir.SparseTensorType():
            return f"sparse_tensor({_element(kind)})"
        case ir.SequenceType():
            return f"seq({type_string(kind.elem_type)})"
        case ir.OptionalType():
            return f"optional({type_string(kind.elem_type)})"
    return ""


def _element(kind: ir.TensorType | ir.SparseTensorType) -> str:
    return dtypes.onnx_name(dtypes.from_onnx(int(kind.dtype)))


def _value_view(value: ir.Value) -> ValueView:
    const = None
    if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
        const = array_of(value.const_value)
        return ValueView(value.name or "", const.dtype, const.shape, const)
    if not isinstance(value.type, ir.TensorType):
        return ValueView(value.name or "")  # of a sequence, onnx-ir gives the dtype and shape of the elements
    return ValueView(value.name or "", _dtype(value.type), _shape(value.shape))


def _dtype(kind: ir.TensorType) -> np.dtype | None:
    return None if kind.dtype == ir.DataType.UNDEFINED else dtypes.from_onnx(int(kind.dtype))


def _shape(shape: ir.Shape | None) -> Shape | None:
    if shape is None:
        return None
    return tuple(_dim(dim) for dim in shape)


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None  # some exporters write -1 for "any"
    return dim.value
