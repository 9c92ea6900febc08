"""The table of gradient rules, and what a rule sees of the node it differentiates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.autodiff.build import Build, dims, known
from gpurt.errors import Unsupported


@dataclass(slots=True)
class Step:
    """One node on the way back from y to xs.

    Attributes:
        node: the node, or its twin on the values that the Gradient node is given.
        build: makes the nodes of the gradient.
        grads: gradient of y by each output; None where y does not depend on it.
        wanted: positions of the inputs whose gradient somebody needs.
    """

    node: ir.Node
    build: Build
    grads: Sequence[ir.Value | None]
    wanted: frozenset[int]

    def x(self, index: int = 0) -> ir.Value:
        """Input at a position, which is there."""
        value = self.maybe(index)
        assert value is not None, f"input {index} of {self.node.op_type} is there"
        return value

    def maybe(self, index: int) -> ir.Value | None:
        """Input at a position, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    @property
    def g(self) -> ir.Value:
        """Gradient of y by the first output."""
        value = self.grads[0]
        return self.build.filled(0, self.y) if value is None else value

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attr = self.node.attributes.get(name)
        return default if attr is None or attr.value is None else attr.value

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node of ai.onnx with one output."""
        return self.build.op(op_type, *inputs, **attributes)

    def ints(self, *values: int) -> ir.Value:
        """A list of int64."""
        return self.build.ints(*values)

    def scalar(self, number: float) -> ir.Value:
        """A scalar of the element type of the first input."""
        return self.build.scalar(number, self.x())

    def over(self, index: int, g: ir.Value) -> ir.Value:
        """A gradient of the output's shape, as one of an input that was broadcast to it."""
        return self.build.unbroadcast(g, self.x(index), self.y)

    def known(self, index: int) -> np.ndarray | None:
        """Content of a constant input."""
        return known(self.maybe(index))

    def rank(self, index: int = 0) -> int:
        """Rank of an input, which the rule must know."""
        found = dims(self.x(index))
        if found is None:
            self.refuse(f"the rank of {self.x(index).name!r} is not known")
        return len(found or ())

    def refuse(self, why: str) -> None:
        """Raise NotImplemented: the rule does not cover this form of the operator."""
        raise Unsupported(
            f"the gradient of {op_name(self.node)} is not implemented: {why}",
            node=self.node.name,
            op=op_name(self.node),
            remedy="Compute this part of the gradient in the model itself",
        )


Rule = Callable[[Step], Sequence[ir.Value | None]]
"""Gradients by the inputs, in their order; None, or nothing at the end, where the output does not vary with one."""

RULES: Final[dict[tuple[str, str], Rule]] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Decorator that registers the gradient of operators."""

    def register(fn: Rule) -> Rule:
        for op_type in op_types:
            RULES[domain, op_type] = fn
        return fn

    return register


def op_name(node: ir.Node) -> str:
    """Operator with its domain."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
