"""The ``op`` of rewrites: operator calls that make nodes, named and typed, and constants out of plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.infer import infer
from gpurt.infer.types import result_dtypes
from gpurt.loader import Names, Views
from gpurt.loader.opsets import CANONICAL_OPSETS, since
from gpurt.optimizer import facts
from gpurt.spec import Spec, Unknown


class Builder:
    """Makes nodes in canonical form; they are in no graph until the rewrite is accepted.

    Every operator is a method: ``op.Conv(x, w, b, strides=[1, 1])``. Inputs are values, None, or arrays and numbers,
    which become constants. Attributes that are None are left out. ``_like=node`` takes over a node's attributes and,
    if that node goes, its name; ``_domain`` and ``_outputs`` are the operator's domain and its number of outputs.
    """

    def __init__(self, names: Names, root: ir.Node) -> None:
        self._names = names
        self._root = root
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.likes: dict[ir.Node, ir.Node] = {}

    def constant(self, content: Any, dtype: Any = None, name: str = "") -> ir.Value:
        """A constant; its name is made from the one given, or from the node that is rewritten."""
        made = facts.constant(np.asarray(content, dtype), self._names.value(name or f"{self._root.name}_const"))
        self.constants.append(made)
        return made

    def __getattr__(self, op_type: str) -> Any:
        def call(*inputs: Any, _like: ir.Node | None = None, _domain: str = "", _outputs: int = 1, **attrs: Any) -> Any:
            values = [v if v is None or isinstance(v, ir.Value) else self.constant(v) for v in inputs]
            while values and values[-1] is None:
                values.pop()
            node = self._node(op_type, _domain, values, attrs, _outputs, _like)
            return node.outputs[0] if _outputs == 1 else tuple(node.outputs)

        return call

    def _node(
        self, op_type: str, domain: str, inputs: list[ir.Value | None], attrs: dict[str, Any], outputs: int,
        like: ir.Node | None,
    ) -> ir.Node:  # fmt: skip
        kept = dict(like.attributes) if like is not None else {}
        for name in attrs:
            kept.pop(name, None)
        given = ir.convenience.convert_attributes({k: v for k, v in attrs.items() if v is not None})
        version = since(op_type, domain) if domain in CANONICAL_OPSETS else (like or self._root).version
        node = ir.Node(domain, op_type, inputs, [*kept.values(), *given], num_outputs=outputs, version=version)
        node.name = self._names.node(f"{(like or self._root).name}_{op_type}")
        node.meta.update((like or self._root).meta)
        for value in node.outputs:
            value.name = self._names.value(f"{node.name}_out")
        annotate(node)
        if like is not None:
            self.likes[node] = like
        self.nodes.append(node)
        return node

    def discard(self) -> None:
        """Let go of the inputs: a node that is not used would go on counting as their user."""
        for node in self.nodes:
            node.resize_inputs(0)


def annotate(node: ir.Node) -> None:
    """Give a node's outputs their dtypes, and their shapes where all input shapes are static."""
    if facts.has_body(node):
        return
    view = Views().node(node)
    found = result_dtypes(view, [None if v is None else v.dtype for v in view.inputs])
    for value, dtype in zip(node.outputs, found, strict=False):
        if value.type is None and dtype is not None and value.name != "":
            value.type = ir.TensorType(ir.DataType(dtypes.to_onnx(np.dtype(dtype))))
    specs = []
    for read, seen in zip(node.inputs, view.inputs, strict=True):
        dims = facts.shape(read)
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
