"""Shape arithmetic over symbolic sizes: the few operators that compute shapes, over arrays of Size and int."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np

from gpurt.dtypes import from_onnx
from gpurt.graph.view import NodeView
from gpurt.infer.rules.movement import reshape_shape, slice_bounds
from gpurt.infer.shapes import axes
from gpurt.spec import SizedSpec, Spec
from gpurt.symbolic import Expressions, Size

MOST: Final = 64
"""Elements of a tensor of sizes that are followed; what is larger is computed when the model runs."""

Contents = list[np.ndarray | None]


def sized(spec: Spec | None) -> bool:
    """Whether a spec's shape or content has symbolic sizes."""
    return spec is not None and (isinstance(spec, SizedSpec) or any(isinstance(n, Size) for n in spec.shape))


def known_content(spec: Spec | None) -> bool:
    """Whether the content is known, if only as sizes."""
    return isinstance(spec, SizedSpec) or (spec is not None and spec.const is not None)


def fold_sizes(node: NodeView, specs: Sequence[Spec | None]) -> list[Spec] | None:
    """Outputs of a node over symbolic sizes; None where it is none of those that are followed."""
    if node.domain or (any(s is not None and s.dtype.kind not in "iub" for s in specs) and node.op_type not in _SHAPES):
        return None
    if node.op_type in _SHAPES:
        return _SHAPES[node.op_type](node, specs)
    rule = _RULES.get(node.op_type)
    if rule is None or any(s is not None and (sized(s) and not isinstance(s, SizedSpec)) for s in specs):
        return None
    contents = [None if s is None else _objects(s) for s in specs]
    if any(s is not None and (c is None or c.size > MOST) for s, c in zip(specs, contents, strict=True)):
        return None
    # The first input of Where is its condition.
    first = next(s for s in specs[node.op_type == "Where" :] if s is not None)
    result = rule(node, contents)
    return None if result is None else [_spec(result, _dtype(node, first.dtype))]


def _objects(spec: Spec) -> np.ndarray | None:
    if isinstance(spec, SizedSpec):
        return spec.sizes
    return None if spec.const is None else _array([v.item() for v in spec.const.reshape(-1)], spec.shape)


def _array(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def _spec(values: np.ndarray, dtype: np.dtype) -> Spec:
    if any(isinstance(v, Size) for v in values.reshape(-1)):
        return SizedSpec(dtype, values)
    return Spec.of(np.array(values.tolist(), dtype).reshape(values.shape))


def _dtype(node: NodeView, dtype: np.dtype) -> np.dtype:
    if node.op_type == "Cast":
        return from_onnx(int(node.attr("to")))
    return np.dtype(np.bool_) if node.op_type in _COMPARISONS else dtype


def _shape(node: NodeView, specs: Sequence[Spec | None]) -> list[Spec] | None:
    if specs[0] is None:
        return None
    dims = specs[0].shape[slice(node.attr("start", 0), node.attr("end"))]
    return [_spec(_array(dims, (len(dims),)), np.dtype(np.int64))]


def _size(_: NodeView, specs: Sequence[Spec | None]) -> list[Spec] | None:
    return None if specs[0] is None else [_spec(_array([specs[0].size], ()), np.dtype(np.int64))]


_SHAPES: Final[dict[str, Callable[[NodeView, Sequence[Spec | None]], list[Spec] | None]]] = {
    "Shape": _shape,
    "Size": _size,
}


def _ints(content: np.ndarray | None) -> list[Any] | None:
    return None if content is None else list(content.reshape(-1))


def _at(contents: Contents, position: int) -> list[Any] | None:
    return _ints(contents[position]) if position < len(contents) else None


def _apply(function: Callable[..., Any], *arrays: Any) -> np.ndarray:
    arrays = tuple(np.broadcast_arrays(*arrays))
    shape = arrays[0].shape
    return _array([function(*values) for values in zip(*(a.reshape(-1) for a in arrays), strict=True)], shape)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[NodeView, Contents], np.ndarray]:
    return lambda _, contents: reduce(lambda a, b: _apply(function, a, b), contents)  # type: ignore[arg-type]


def _divide(a: Any, b: Any) -> Any:
    # ONNX rounds towards zero.
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _concat(node: NodeView, contents: Contents) -> np.ndarray:
    return np.concatenate([c for c in contents if c is not None], axis=node.attr("axis"))


def _gather(node: NodeView, contents: Contents) -> np.ndarray | None:
    data, indices = contents
    assert data is not None
    assert indices is not None
    if any(isinstance(i, Size) for i in indices.reshape(-1)):
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), axis=node.attr("axis", 0)), dtype=object)


def _slice(_: NodeView, contents: Contents) -> np.ndarray | None:
    (data, *_rest), starts, ends = contents, _at(contents, 1), _at(contents, 2)
    assert data is not None
    assert starts is not None
    assert ends is not None
    along = axes(_at(contents, 3) or range(len(starts)), data.ndim)
    cut = [slice(None)] * data.ndim
    for a, start, end, step in zip(along, starts, ends, _at(contents, 4) or [1] * len(starts), strict=True):
        if any(isinstance(n, Size) for n in (start, end, step)):
            return None
        slice_bounds(start, end, step, data.shape[a])  # a step of 0 is an error
        cut[a] = slice(start, end, step)
    return data[tuple(cut)]


def _unsqueeze(_: NodeView, contents: Contents) -> np.ndarray:
    data, along = contents[0], _at(contents, 1)
    assert data is not None
    assert along is not None
    return np.expand_dims(data, axes(along, data.ndim + len(along)))


def _squeeze(_: NodeView, contents: Contents) -> np.ndarray:
    data, along = contents[0], _at(contents, 1)
    assert data is not None
    return np.squeeze(data, None if along is None else axes(along, data.ndim))


def _reshape(node: NodeView, contents: Contents) -> np.ndarray | None:
    data, shape = contents[0], _at(contents, 1)
    assert data is not None
    assert shape is not None
    if any(isinstance(n, Size) for n in shape):
        return None
    return data.reshape(reshape_shape(data.shape, tuple(shape), bool(node.attr("allowzero", 0))))


def _cast(node: NodeView, contents: Contents) -> np.ndarray | None:
    # Sizes are far from the ends of 32 bits, or the tensors they belong to would not fit; others do not survive.
    return contents[0] if from_onnx(int(node.attr("to"))) in (np.dtype(np.int64), np.dtype(np.int32)) else None


def _range(_: NodeView, contents: Contents) -> np.ndarray | None:
    start, limit, delta = (c.reshape(())[()] for c in contents if c is not None)
    count: Any = -((start - limit) // delta)
    if isinstance(count, Size) or count > MOST:
        return None
    values = [start + i * delta for i in range(count)]
    return _array(values, (len(values),))


def _where(_: NodeView, contents: Contents) -> np.ndarray:
    return _apply(lambda c, a, b: a if c else b, *contents)


def _reduce(function: Callable[[Any, Any], Any], empty: int) -> Callable[[NodeView, Contents], np.ndarray | None]:
    def rule(node: NodeView, contents: Contents) -> np.ndarray | None:
        data = contents[0]
        if data is None or data.ndim != 1:
            return None
        value = reduce(function, data.tolist(), empty)
        return _array([value], (1,) if node.attr("keepdims", 1) else ())

    return rule


_COMPARISONS: Final = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_RULES: Final[dict[str, Callable[[NodeView, Contents], np.ndarray | None]]] = {
    "Identity": lambda _, contents: contents[0],
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Range": _range,
    "Where": _where,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_divide),
    "Min": _binary(min),
    "Max": _binary(max),
    "Neg": lambda _, contents: _apply(operator.neg, contents[0]),
    "Equal": _binary(operator.eq),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "ReduceProd": _reduce(operator.mul, 1),
    "ReduceSum": _reduce(operator.add, 0),
}


class Sizing:
    """The values that a template's symbols give all sizes of its plan."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions

    def where(self, sizes: Sequence[Size]) -> list[int]:
        """Positions of sizes among the values."""
        return [self.expressions.index(s) for s in sizes]

    def spec(self, spec: Spec, values: Sequence[int]) -> Spec:
        """A spec with numbers in place of its sizes."""
        if not any(isinstance(n, Size) for n in spec.shape):
            return spec
        return Spec(spec.dtype, tuple(self.number(n, values) for n in spec.shape))

    def content(self, spec: SizedSpec, values: Sequence[int]) -> np.ndarray:
        """The content of a tensor of sizes."""
        numbers = [self.number(n, values) for n in spec.sizes.reshape(-1)]
        return np.array(numbers, spec.dtype).reshape(spec.shape)

    def number(self, n: Any, values: Sequence[int]) -> int:
        """The number that a size is; numbers are themselves."""
        return values[self.expressions.index(n)] if isinstance(n, Size) else int(n)
