"""How a rule reads its inputs: the required, the optional, and those whose content decides a shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gpurt.dtypes import from_onnx
from gpurt.graph.view import NodeView
from gpurt.spec import SizedSpec, Spec, Unknown

Inputs = Sequence[Spec | None]

F32 = np.dtype(np.float32)
I32 = np.dtype(np.int32)
I64 = np.dtype(np.int64)
U8 = np.dtype(np.uint8)
BOOL = np.dtype(np.bool_)
STRING = np.dtype(object)


def optional(inputs: Inputs, index: int) -> Spec | None:
    """The input at a formal position, or None where it is left out; trailing ones need not be listed."""
    return inputs[index] if index < len(inputs) else None


def need(node: NodeView, inputs: Inputs, index: int) -> Spec:
    """A required tensor input. Raises Unknown where it is none: then nothing can be said of the outputs."""
    spec = optional(inputs, index)
    if spec is None:
        raise Unknown(f"{node.op} needs input {index} as a tensor")
    return spec


def content(node: NodeView, inputs: Inputs, index: int, name: str) -> np.ndarray:
    """Content of a required input. Raises Unknown where it is not known when the plan is made."""
    spec = need(node, inputs, index)
    if spec.const is None:
        raise Unknown(f"{node.op} needs the content of input {name}")
    return spec.const


def ints(node: NodeView, inputs: Inputs, index: int, name: str) -> tuple[int, ...]:
    """Content of a required integer input as a flat tuple. Raises Unknown as :func:`content` does."""
    spec = need(node, inputs, index)
    if spec.size == 0:  # an empty list has no content to wait for
        return ()
    if isinstance(spec, SizedSpec):
        return tuple(spec.sizes.reshape(-1))
    return tuple(int(v) for v in content(node, inputs, index, name).reshape(-1))


def integer(node: NodeView, inputs: Inputs, index: int, name: str) -> int:
    """Content of a required input of one integer. Raises Unknown as :func:`content` does."""
    values = ints(node, inputs, index, name)
    if len(values) != 1:
        raise ValueError(f"{node.op}: input {name} has {len(values)} elements, one is expected")
    return values[0]


def number(node: NodeView, inputs: Inputs, index: int, name: str) -> float:
    """Content of a required input of one number, which may be a symbolic size. Raises Unknown as :func:`content`."""
    spec = need(node, inputs, index)
    if isinstance(spec, SizedSpec):
        size: float = spec.sizes.item()
        return size
    return content(node, inputs, index, name).reshape(()).item()  # type: ignore[no-any-return]


def like(spec: Spec, shape: Iterable[int] | None = None, dtype: np.dtype | None = None) -> Spec:
    """A Spec of unknown content with the given spec's dtype and shape, where not said otherwise."""
    return Spec(spec.dtype if dtype is None else dtype, spec.shape if shape is None else tuple(shape))


def attr_dtype(node: NodeView, name: str, default: np.dtype) -> np.dtype:
    """Dtype that an attribute holds as an ONNX code; the default where it is unset or 0."""
    code = node.attr(name, 0)
    return from_onnx(int(code)) if code else default
