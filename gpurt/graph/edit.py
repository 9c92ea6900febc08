"""Questions about onnx-ir's graphs that several passes ask while they edit them."""

from __future__ import annotations

import onnx_ir as ir


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None
