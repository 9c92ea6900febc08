"""Shape arithmetic: what integers are made of a tensor's dimensions, element by element, where some are known.

A graph with a dynamic batch writes ``Reshape(x, Concat(Shape(x)[0], 512, 49))``. As a whole nothing of it is constant;
element by element only the first is unknown, and -1 says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.fold import replace_by_constant
from gpurt.optimizer.symbols import (
    Dims,
    at_most,
    broadcast,
    forget_made,
    minus,
    name_outputs,
    name_rest,
    plus,
    refine,
    reshaped,
)
from gpurt.optimizer.transformer import Result, Tools

_ELEMENTS: Final = 64  # no tensor has more dimensions
_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension that only the run will tell: the same wherever it has the same name, or of one value and axis."""

    source: ir.Value | str
    axis: int = 0


def _dim(value: ir.Value, axis: int) -> Dim:
    assert value.shape is not None, "only ranks that are known have dimensions"
    name = facts.symbol(value.shape[axis])
    return Dim(value, axis) if name is None else Dim(name)


Content = np.ndarray  # of int, Dim, or None for what is not even a dimension; of rank 0 or 1


class ShapeArithmetic:
    """Integers made of shapes -> constants, and shapes of Reshape with one unknown dimension -> -1."""

    name = "ShapeArithmetic"

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model."""
        result = Result()
        known: dict[ir.Value, Content] = {}
        # Outer graphs first: bodies read what is outside. The order in which graphs are edited does not matter here.
        for graph in reversed(list(facts.all_graphs(model.graph))):
            for node in list(graph):
                for value in node.outputs:
                    forget_made(value)
                name_outputs(node)
                _name_dimensions(node, known)
                name_rest(node)
                if node.domain or node.op_type not in _RULES or node.graph is not graph:
                    self._reshape(graph, node, known, tools, result)
                    _keep_number(node, known)
                    continue
                content = _compute(node, known)
                if content is None:
                    continue
                known[node.outputs[0]] = content
                if content.size and all(isinstance(e, int) for e in content.flat):
                    dtype = facts.dtype(node.outputs[0])
                    if dtype is None:
                        continue
                    new = replace_by_constant(graph, node.outputs[0], content.astype(dtype.numpy()))
                    known[new] = content
                    result.remove(node, "shape arithmetic over dimensions that are known")
        return result

    @staticmethod
    def _reshape(graph: ir.Graph, node: ir.Node, known: dict[ir.Value, Content], tools: Tools, result: Result) -> None:
        """Reshape(x, [Shape(x)[0], 512]) -> Reshape(x, [0, 512]); a dimension of another tensor becomes -1."""
        if node.domain or node.op_type != "Reshape" or facts.attr(node, "allowzero", 0):
            return
        target, data = node.inputs[1], node.inputs[0]
        content = known.get(target) if target is not None and facts.array(target) is None else None
        if target is None or content is None or content.ndim != 1 or not content.size:
            return
        rank = facts.rank(data) or 0
        shape = [
            0 if isinstance(e, Dim) and data is not None and i < rank and e in (Dim(data, i), _dim(data, i)) else e
            for i, e in enumerate(content.tolist())
        ]
        unknown = [i for i, e in enumerate(shape) if not isinstance(e, int)]
        fixed = [e for i, e in enumerate(shape) if isinstance(e, int) and e != 0]
        if len(unknown) > 1 or (unknown and any(e < 0 for e in fixed)) or any(shape[i] is None for i in unknown):
            return
        if any(e == 0 for e in content.flat if isinstance(e, int)):
            return  # a zero that was there already copies, or is a size: -1 beside it would not be the same
        if unknown and len(fixed) < len(shape) - 1:
            return  # a copied dimension may turn out to be 0, and then -1 could be anything
        dims = np.asarray([-1 if i in unknown else e for i, e in enumerate(shape)], np.int64)
        new = facts.constant(dims, tools.names.value(f"{target.name}_known"))
        graph.register_initializer(new)
        node.replace_input_with(1, new)
        result.changes += 1


def _keep_number(node: ir.Node, known: dict[ir.Value, Content]) -> None:
    """A size that torch's newer exporter makes a list of one by Reshape is still that size."""
    if node.domain or node.op_type != "Reshape" or facts.ints(node.inputs[1]) not in ([-1], [1]):
        return
    content = _content(node.inputs[0], known)
    if content is not None and content.size == 1:
        known[node.outputs[0]] = content.reshape(1)


def _name_dimensions(node: ir.Node, known: dict[ir.Value, Content]) -> None:
    """Give the outputs of a node the dimensions that the content of its inputs says."""
    rule = _SIZED.get(node.op_type) if not node.domain else None
    if rule is None:
        return
    found = rule(node, [None if facts.absent(v) else _sizes(_content(v, known)) for v in node.inputs])
    if found is not None:
        refine(node.outputs[0], found)


def _sizes(content: Content | None) -> Dims | None:
    """Elements as sizes: numbers, and names of dimensions."""
    if content is None:
        return None
    return [e.source if isinstance(e, Dim) and isinstance(e.source, str) else _number(e) for e in content.flat]


def _number(element: Any) -> int | None:
    return element if isinstance(element, int) else None


def _sized_reshape(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    zero = bool(facts.attr(node, "allowzero", 0))
    return None if ins[1] is None else reshaped(facts.symbols(node.inputs[0]), ins[1], zero=zero)


def _sized_expand(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    if ins[1] is None:
        return None
    sizes: Dims = [None if isinstance(s, int) and s < 1 else s for s in ins[1]]
    return broadcast([facts.symbols(node.inputs[0]), sizes])


def _sized_range(_: ir.Node, ins: list[Dims | None]) -> Dims | None:
    first, last, step = (i[0] if i is not None and len(i) == 1 else None for i in ins)
    size = minus(last, first) if step == 1 else None
    return None if size is None or (isinstance(size, int) and size < 0) else [size]


def _sized_slice(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    """The first n elements along each axis; other slices are left alone."""
    out = facts.symbols(node.inputs[0])
    starts, ends = ins[1], ins[2]
    if out is None or starts is None or ends is None or any(s != 0 for s in starts):
        return None
    axes = ins[3] if facts.given(node, 3) is not None else list(range(len(starts)))
    steps = ins[4] if facts.given(node, 4) is not None else [1] * len(starts)
    if axes is None or steps is None or any(s != 1 for s in steps) or not all(isinstance(a, int) for a in axes):
        return None
    for axis, end in zip(axes, ends, strict=True):
        at = int(axis or 0) % len(out)
        out[at] = None if isinstance(end, int) and end < 0 else at_most(out[at], end)
    return out


_SIZED: Final[dict[str, Callable[[ir.Node, list[Dims | None]], Dims | None]]] = {
    "Expand": _sized_expand,
    "Range": _sized_range,
    "Reshape": _sized_reshape,
    "Slice": _sized_slice,
}


def _compute(node: ir.Node, known: dict[ir.Value, Content]) -> Content | None:
    ins = [None if facts.absent(v) else _content(v, known) for v in node.inputs]
    try:
        out = _RULES[node.op_type](node, ins)
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return None  # what is wrong with the node is said when it runs
    if out is None or out.ndim > 1 or out.size > _ELEMENTS:
        return None
    if any(isinstance(e, int) and abs(e) > _LARGEST for e in out.flat):
        return None  # the integers of a model wrap, those of Python do not
    return out if any(e is not None for e in out.flat) else None


def _content(value: ir.Value | None, known: dict[ir.Value, Content]) -> Content | None:
    if value is None or value in known:
        return known.get(value) if value is not None else None
    content = facts.array(value)
    if content is None or content.dtype.kind not in "iu" or content.ndim > 1 or content.size > _ELEMENTS:
        return None
    known[value] = _objects([int(e) for e in content.reshape(-1)], content.shape)
    return known[value]


def _objects(items: list[Any], shape: tuple[int, ...] | None = None) -> Content:
    out = np.empty(len(items), object)
    out[:] = items
    return out if shape is None else out.reshape(shape)


def _numbers(content: Content | None) -> list[int] | None:
    """Elements that are all known: axes, indices."""
    if content is None or not all(isinstance(e, int) for e in content.flat):
        return None
    return [int(e) for e in content.flat]


def _shape(node: ir.Node, _: list[Content | None]) -> Content | None:
    source = node.inputs[0]
    dims = facts.dims(source)
    if dims is None or source is None:
        return None
    items = [_dim(source, i) if d is None else d for i, d in enumerate(dims)]
    return _objects(items[facts.attr(node, "start", 0) : facts.attr(node, "end", len(items))])


def _gather(_: ir.Node, ins: list[Content | None]) -> Content | None:
    data, where = ins[0], ins[1]
    picked = _numbers(where)
    if data is None or where is None or picked is None or data.ndim != 1:
        return None
    return _objects([data[i] for i in picked], where.shape)


def _slice(_: ir.Node, ins: list[Content | None]) -> Content | None:
    limits = [_numbers(i) for i in ins[1:]]
    if ins[0] is None or ins[0].ndim != 1 or any(limit is None or len(limit) != 1 for limit in limits):
        return None
    first, last, *more = [limit[0] for limit in limits if limit is not None]
    step = more[1] if len(more) > 1 else 1
    if step < 0:
        return None
    return ins[0][first:last:step]


def _concat(node: ir.Node, ins: list[Content | None]) -> Content | None:
    parts: list[Content] = []
    for value, content in zip(node.inputs, ins, strict=True):
        size = facts.shape(value)
        if content is None and (size is None or len(size) != 1 or size[0] > _ELEMENTS):
            return None
        parts.append(content if content is not None else _objects([None] * (size or (0,))[0]))
    return np.concatenate(parts)


def _reranked(rank: int) -> Callable[[ir.Node, list[Content | None]], Content | None]:
    def rule(_: ir.Node, ins: list[Content | None]) -> Content | None:
        if ins[0] is None or (rank == 0 and ins[0].size != 1):
            return None
        if rank == 1 and (ins[0].ndim != 0 or ins[1] is None or ins[1].size != 1):
            return None
        return ins[0].reshape((1,) * rank)

    return rule


def _same(node: ir.Node, ins: list[Content | None]) -> Content | None:
    if node.op_type == "Cast" and facts.attr(node, "to") not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return ins[0]


def _arithmetic(
    fn: Callable[[int, int], int], neutral: int, named: Callable[[Any, Any], int | str | None] | None = None
) -> Callable[[ir.Node, list[Content | None]], Content | None]:
    def element(a: Any, b: Any) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return fn(a, b)
        if b == neutral and isinstance(b, int):
            return a
        names = [e.source if isinstance(e, Dim) else e for e in (a, b)]
        if named is None or not all(isinstance(n, int | str) for n in names):
            return None
        made = named(*names)
        return Dim(made) if isinstance(made, str) else made

    def rule(_: ir.Node, ins: list[Content | None]) -> Content | None:
        if ins[0] is None or ins[1] is None:
            return None
        one, two = np.broadcast_arrays(ins[0], ins[1])
        return _objects([element(a, b) for a, b in zip(one.flat, two.flat, strict=True)], one.shape)

    return rule


def _equal(_: ir.Node, ins: list[Content | None]) -> Content | None:
    """No dimension is negative, so that it is not -1, whatever it is."""
    if ins[0] is None or ins[1] is None:
        return None
    one, two = np.broadcast_arrays(ins[0], ins[1])
    return _objects([_same_size(a, b) for a, b in zip(one.flat, two.flat, strict=True)], one.shape)


def _same_size(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, Dim) == isinstance(b, Dim):
        return True if a == b else None if isinstance(a, Dim) else False
    return False if (b if isinstance(a, Dim) else a) < 0 else None


def _where(_: ir.Node, ins: list[Content | None]) -> Content | None:
    if any(i is None for i in ins):
        return None
    chosen, one, two = np.broadcast_arrays(*(i for i in ins if i is not None))
    items = [None if c is None else a if c else b for c, a, b in zip(chosen.flat, one.flat, two.flat, strict=True)]
    return _objects(items, chosen.shape)


def _divided(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)  # ONNX rounds towards zero
    return quotient if (a < 0) == (b < 0) else -quotient


_RULES: Final[dict[str, Callable[[ir.Node, list[Content | None]], Content | None]]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _reranked(0),
    "Unsqueeze": _reranked(1),
    "Cast": _same,
    "Identity": _same,
    "Add": _arithmetic(lambda a, b: a + b, 0, plus),
    "Equal": _equal,
    "Where": _where,
    "Sub": _arithmetic(lambda a, b: a - b, 0, minus),
    "Mul": _arithmetic(lambda a, b: a * b, 1),
    "Div": _arithmetic(_divided, 1),
}
