"""What transformations ask of values and nodes. What is not certain is None, and then nothing is rewritten."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.graph.edit import is_constant
from gpurt.loader.opsets import schema
from gpurt.loader.views import array_of
from gpurt.loader.walk import bodies

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types in which the arithmetic of weights may be done ahead."""

MADE: Final = "~"
"""What the names of dimensions begin with that shape arithmetic gives."""

_PURE_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Dropout", "Multinomial",
     "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout", "Sampling"}
)  # fmt: skip


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all graphs nested in it, inner ones first."""
    for node in graph:
        for body in bodies(node):
            yield from all_graphs(body)
    yield graph


def has_body(node: ir.Node) -> bool:
    """Whether a node has graphs in its attributes."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.data.values())


def deterministic(node: ir.Node) -> bool:
    """Whether a node gives the same for the same inputs; not known of the operators of domains that are not ONNX's."""
    return node.domain in _PURE_DOMAINS and node.op_type not in _RANDOM


def release(node: ir.Node) -> None:
    """Let the bodies of a node that goes stop counting as users of values outside."""
    for body in bodies(node):
        for graph in all_graphs(body):
            for inner in graph:
                inner.resize_inputs(0)


def array(value: ir.Value | None) -> np.ndarray | None:
    """Content of a constant, or None for anything else."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return array_of(value.const_value)


def scalar(value: ir.Value | None) -> Any:
    """The element of a constant that has exactly one, as a Python value; None for anything else."""
    content = array(value)
    return (
        content.reshape(-1)[0].item() if content is not None and content.size == 1 and content.dtype != object else None
    )


def ints(value: ir.Value | None) -> list[int] | None:
    """Elements of a constant of integers: axes, shapes, steps."""
    content = array(value)
    if content is None or content.dtype.kind not in "iu":
        return None
    return [int(i) for i in content.reshape(-1)]


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of a value when every dimension is known."""
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    dims = list(value.shape)
    return tuple(int(d) for d in dims) if all(isinstance(d, int) and d >= 0 for d in dims) else None  # type: ignore[arg-type]


def dims(value: ir.Value | None) -> list[int | None] | None:
    """Dimensions of a value, None for each that is not known; None where the rank is not known."""
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    return [d if isinstance(d, int) and d >= 0 else None for d in value.shape]


def symbol(dim: int | ir.SymbolicDim, *, made: bool = True) -> str | None:
    """Name of a dimension that is not known; None for numbers and names that inference made up.

    A name that begins with ``MADE`` is the optimizer's own; without ``made`` only those that the model gives count.
    """
    if isinstance(dim, int) or dim.value is None or dim.value.startswith("unk__"):
        return None
    return dim.value if made or not dim.value.startswith(MADE) else None


def symbols(value: ir.Value | None) -> list[int | str | None] | None:
    """Dimensions of a value, with the model's names for those that are not known; None where the rank is not known."""
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    return [(d if d >= 0 else None) if isinstance(d, int) else symbol(d) for d in value.shape]


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions of a value, where known."""
    found = dims(value)
    return None if found is None else len(found)


def dtype(value: ir.Value | None) -> ir.DataType | None:
    """Element type of a tensor, where known."""
    if value is None or not isinstance(value.type, ir.TensorType) or value.type.dtype == ir.DataType.UNDEFINED:
        return None
    return value.type.dtype


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of ordinary floating-point numbers."""
    return dtype(value) in FLOATS


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """Value of an attribute as plain Python; the schema's default, then the given one, where the node has none."""
    found = node.attributes.get(name)
    if found is None:
        known = _schema_default(node.op_type, node.domain, name)
        return default if known is None else known
    return list(found.value) if isinstance(found.value, list | tuple) else found.value


@lru_cache(maxsize=4096)
def _schema_default(op_type: str, domain: str, name: str) -> Any:
    known = schema(op_type, domain)
    declared = known.attributes.get(name) if known else None
    if declared is None or not declared.default_value.type:
        return None
    return ir.serde.deserialize_attribute(declared.default_value).value


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input by position; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) and not absent(node.inputs[index]) else None


def absent(value: ir.Value | None) -> bool:
    """Whether an optional input or output is left out."""
    return value is None or value.name == ""


def wanted(value: ir.Value) -> bool:
    """Whether anybody reads an output: a node, a nested graph, the caller."""
    return value.is_graph_output() or bool(value.uses())


def extends(constant: ir.Value | None, value: ir.Value | None) -> bool:
    """Whether broadcasting a constant against a value may give a larger shape than the value's; True when not known."""
    small, large = shape(constant), dims(value)
    if small is not None and math.prod(small) == 1 and large is not None:
        return len(small) > len(large)
    if small is None or large is None or len(small) > len(large):
        return True
    return any(s not in (1, d) for s, d in zip(small, large[len(large) - len(small) :], strict=True))


def tensor(content: np.ndarray, name: str) -> ir.TensorProtocol:
    """An onnx-ir tensor over an array."""
    if content.dtype == object:
        raw = [str(s).encode("utf-8", "surrogateescape") for s in content.ravel()]
        return ir.StringTensor(raw, shape=ir.Shape(content.shape), name=name)
    return ir.Tensor(content, dtype=ir.DataType(dtypes.to_onnx(content.dtype)), name=name)


def constant(content: np.ndarray, name: str) -> ir.Value:
    """A value with this content, to be registered as an initializer."""
    made: Any = tensor(content, name)
    return ir.Value(name=name, type=ir.TensorType(made.dtype), shape=ir.Shape(content.shape), const_value=made)
