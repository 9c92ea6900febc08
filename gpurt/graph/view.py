"""Read-only views of a graph: what providers, shape rules and plug-ins see. None of them touches onnx-ir's objects.

Names are unique in the whole model, nested graphs included, and every opset is canonical: both are the loader's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class ValueView:
    """A value of the graph.

    Attributes:
        name: unique in the model.
        dtype: element type, or None where it is no tensor or not known.
        shape: for each dimension an int, a symbolic name or None; None when the rank is not known.
        const: content of an initializer, or None.
    """

    name: str
    dtype: np.dtype | None = None
    shape: tuple[int | str | None, ...] | None = None
    const: np.ndarray | None = None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when not known."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class NodeView:
    """A node in canonical form.

    Attributes:
        name: unique in the model.
        op_type: operator name.
        domain: "" for ai.onnx.
        inputs: one entry per formal position; None where an optional input is left out.
        outputs: one entry per formal position; None where an optional output is not wanted.
        attrs: attributes as plain values: int, float, str, tuples of them, NumPy arrays for tensors, GraphView for
            bodies.
        version: since-version of the canonical form the node is in.
    """

    op_type: str
    inputs: tuple[ValueView | None, ...]
    outputs: tuple[ValueView | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    name: str = ""
    version: int = 0

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default where the node does not set it."""
        return self.attrs.get(name, default)

    @property
    def op(self) -> str:
        """Operator with its domain, as messages name it: ``Conv``, ``com.microsoft.Gelu``."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type


@dataclass(frozen=True, slots=True, eq=False)
class GraphView:
    """A graph, or the part of one that a provider is asked about.

    Attributes:
        nodes: in topological order.
        inputs: values that come from outside, in the graph's order.
        outputs: values wanted outside.
        initializers: constants by name.
    """

    nodes: tuple[NodeView, ...]
    inputs: tuple[ValueView, ...]
    outputs: tuple[ValueView, ...]
    initializers: Mapping[str, ValueView] = field(default_factory=dict)
    name: str = ""


def part(nodes: Sequence[NodeView]) -> GraphView:
    """A view of some nodes of a graph: inputs and outputs are what crosses their border."""
    made = {v.name for n in nodes for v in n.outputs if v is not None}
    inputs: dict[str, ValueView] = {}
    constants: dict[str, ValueView] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.name not in made:
                (constants if value.const is not None else inputs)[value.name] = value
    outputs = tuple(v for n in nodes for v in n.outputs if v is not None)
    return GraphView(tuple(nodes), tuple(inputs.values()), outputs, constants)
