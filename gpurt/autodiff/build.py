"""Builds nodes in canonical form, in no graph until they are inserted: what rules write gradients with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.loader import Names
from gpurt.loader.opsets import since

_SMALL_ONES: Final = 4096  # elements; a larger tensor of ones is made at run time


class Build:
    """Makes nodes and constants for one Gradient node.

    Args:
        graph: the Gradient node's graph.
        before: the Gradient node; what is made goes before it.
        names: the model's names.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, names: Names) -> None:
        self._graph = graph
        self._before = before
        self._names = names
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def const(self, content: Any, dtype: Any = None) -> ir.Value:
        """An initializer, one for each content."""
        array = np.asarray(content, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self._names.value(f"{self._before.name}_const")
            tensor = ir.Tensor(array, dtype=ir.DataType(dtypes.to_onnx(array.dtype)), name=name)
            self._constants[key] = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A list of int64."""
        return self.const(values, np.int64)

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar of the element type of another value."""
        dtype = dtype_of(like)
        if dtype is not None:
            return self.const(np.array(number).astype(dtype))
        return self.op("CastLike", self.const(number, np.float32), like)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node of ai.onnx with one output."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: ir.Value | None, outputs: int, **attributes: Any) -> Sequence[ir.Value]:
        """A node of ai.onnx; attributes that are None are left out."""
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items() if v is not None]
        node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs, version=since(op_type))
        return self.add(node)

    def clone(self, node: ir.Node, inputs: Iterable[ir.Value | None]) -> Sequence[ir.Value]:
        """The same operation on other inputs."""
        attrs = list(node.attributes.values())
        twin = ir.Node(
            node.domain, node.op_type, list(inputs), attrs, num_outputs=len(node.outputs), version=node.version
        )
        made = self.add(twin)
        for old, new in zip(node.outputs, made, strict=True):
            new.type = old.type  # the shape may differ: the inputs are others
            if old.name == "":
                new.name = ""
        return made

    def add(self, node: ir.Node) -> Sequence[ir.Value]:
        """Name a node and keep it; returns its outputs."""
        node.name = self._names.node(f"{self._before.name}_{node.op_type}")
        for value in node.outputs:
            value.name = self._names.value(f"{node.name}_out")
        self._nodes.append(node)
        return node.outputs

    def output(self, node: ir.Node, index: int) -> ir.Value:
        """Output of a node of the model, wanted from now on if it was not."""
        if index >= len(node.outputs):
            node.resize_outputs(index + 1)
        value = node.outputs[index]
        value.name = value.name or self._names.value(f"{node.name}_out")
        return value

    def insert(self, results: Iterable[ir.Value]) -> None:
        """Put what the results need into the graph, and let go of the rest: rules build gradients nobody asked for."""
        needed: set[ir.Node] = set()
        pending = [node for value in results if (node := value.producer()) is not None]
        own = set(self._nodes)
        while pending:
            node = pending.pop()
            if node in own and node not in needed:
                needed.add(node)
                pending += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
        for node in self._nodes:
            if node not in needed:
                node.resize_inputs(0)
        for value in self._constants.values():
            if value.uses():
                self._graph.register_initializer(value)
        self._graph.insert_before(self._before, [n for n in self._nodes if n in needed])

    # what many rules need

    def shape(self, x: ir.Value) -> ir.Value:
        """Shape of a value: a constant where it is static."""
        sizes = static(x)
        return self.op("Shape", x) if sizes is None else self.ints(*sizes)

    def filled(self, number: float, like: ir.Value) -> ir.Value:
        """A tensor of another one's shape and element type with one number everywhere."""
        sizes, dtype = static(like), dtype_of(like)
        if sizes is not None and dtype is not None and int(np.prod(sizes)) <= _SMALL_ONES:
            return self.const(np.full(sizes, number).astype(dtype))
        if dtype is None:
            return self.op("Expand", self.scalar(number, like), self.shape(like))
        value = ir.Tensor(np.array([number]).astype(dtype), dtype=ir.DataType(dtypes.to_onnx(dtype)))
        return self.op("ConstantOfShape", self.shape(like), value=value)

    def unbroadcast(self, g: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """Gradient of a broadcast: g, of the shape of y, summed over the axes along which x was repeated."""
        xs, ys = dims(x), dims(y)
        if xs is not None and ys is not None and xs == ys and None not in xs:
            return g
        if xs is not None and ys is not None and len(ys) >= len(xs):
            lead = len(ys) - len(xs)
            pairs = [(lead + i, a, ys[lead + i]) for i, a in enumerate(xs)]
            if all(isinstance(a, int) or (a is not None and a == b) for _, a, b in pairs):
                axes = [*range(lead), *(i for i, a, b in pairs if a == 1 and b != 1)]
                summed = self.op("ReduceSum", g, self.ints(*axes), keepdims=1) if axes else g
                return self.op("Squeeze", summed, self.ints(*range(lead))) if lead else summed
        # Only the run knows the sizes. Axes where x has one element, or none at all, are summed; others are left alone.
        size = self.op("Shape", x)
        missing = self.op("Sub", self.op("Size", self.op("Shape", y)), self.op("Size", size))
        one = ir.Tensor(np.array([1], np.int64))
        ones = self.op("ConstantOfShape", self.op("Reshape", missing, self.ints(1)), value=one)
        flags = self.op("Equal", self.op("Concat", ones, size, axis=0), self.ints(1))
        axes_value = self.op("Reshape", self.op("NonZero", flags), self.ints(-1))
        summed = self.op("ReduceSum", g, axes_value, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", summed, size)


def dtype_of(value: ir.Value) -> np.dtype[Any] | None:
    """Element type of a value, or None where it is not known or it is no tensor."""
    kind = value.type
    if not isinstance(kind, ir.TensorType) or kind.dtype == ir.DataType.UNDEFINED:
        return None
    return dtypes.from_onnx(int(kind.dtype))


def dims(value: ir.Value) -> list[int | str | None] | None:
    """For each dimension an int, a symbolic name or None; None where the rank is not known."""
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def static(value: ir.Value) -> tuple[int, ...] | None:
    """The shape where all of it is known."""
    found = dims(value)
    if found is None or not all(isinstance(d, int) and d >= 0 for d in found):
        return None
    return tuple(d for d in found if isinstance(d, int))


def known(value: ir.Value | None) -> np.ndarray | None:
    """Content of an initializer that nobody can override."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())
