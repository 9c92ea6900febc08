"""Dimensions by name: which dimension of an output is the same as one of an input, whatever its size in a run.

onnx's inference loses a name at the first Reshape to ``[-1, 197, 384]``; here it is found again by counting elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from gpurt.optimizer import facts

Dims = list[int | str | None]


def name_outputs(node: ir.Node) -> None:
    """Fill in dimensions of a node's outputs that follow from its inputs; what is known already stays."""
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is None or all(v.shape is not None and v.shape.is_static() for v in node.outputs):
        return
    found = rule(node, [None if facts.absent(v) else facts.symbols(v) for v in node.inputs])
    if found is not None:
        for value in node.outputs:
            refine(value, found)


def refine(value: ir.Value, found: Sequence[int | str | None]) -> None:
    """Fill in dimensions of one value, unless its rank is known to be another."""
    known = facts.symbols(value)
    if known is None or len(known) == len(found):
        value.shape = ir.Shape(
            [f if k is None else k for k, f in zip(known or [None] * len(found), found, strict=True)]
        )


def broadcast(shapes: Sequence[Dims | None]) -> Dims | None:
    """Shape of what several shapes broadcast to."""
    given = [s for s in shapes if s is not None]
    if len(given) < len(shapes) or not given:
        return None
    rank = max(map(len, given))
    padded: list[Dims] = [[*(1 for _ in range(rank - len(s))), *s] for s in given]
    return [_one({s[i] for s in padded}) for i in range(rank)]


def _one(sizes: set[int | str | None]) -> int | str | None:
    sizes = sizes - {1}
    numbers = [s for s in sizes if isinstance(s, int)]
    if numbers:
        return numbers[0]
    return 1 if not sizes else sizes.pop() if len(sizes) == 1 else None


def _first(_: ir.Node, ins: list[Dims | None]) -> Dims | None:
    return ins[0]


def _broadcast(_: ir.Node, ins: list[Dims | None]) -> Dims | None:
    return broadcast(ins)


def _transpose(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    perm = facts.attr(node, "perm")
    return None if ins[0] is None else [ins[0][i] for i in perm] if perm is not None else ins[0][::-1]


def _matmul(_: ir.Node, ins: list[Dims | None]) -> Dims | None:
    a, b = ins
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = broadcast([a[:-2], b[:-2]])
    return None if batch is None else [*batch, a[-2], b[-1]]


def _reshape(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    data, target = ins[0], facts.ints(node.inputs[1])
    if data is None or target is None or (0 in target and facts.attr(node, "allowzero", 0)):
        return None
    out: Dims = [data[i] if t == 0 and i < len(data) else None if t <= 0 else t for i, t in enumerate(target)]
    if None in data or target.count(-1) != 1:
        return out
    # What is left of the elements of x when those of all other dimensions are divided out.
    names = [d for d in data if isinstance(d, str)]
    for position, size in enumerate(out):
        if isinstance(size, str) and size in names:
            names.remove(size)
        elif isinstance(size, str) or (size is None and target[position] != -1):
            return out
    total, others = (math.prod(d for d in dims if isinstance(d, int)) for dims in (data, out))
    if others and total == others and len(names) == 1:
        out[target.index(-1)] = names[0]
    elif others and total and not names and not total % others:
        out[target.index(-1)] = total // others
    return out


def _squeeze(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    axes = facts.ints(facts.given(node, 1))
    if ins[0] is None or axes is None:
        return None
    gone = {a % len(ins[0]) for a in axes}
    return [d for i, d in enumerate(ins[0]) if i not in gone]


def _unsqueeze(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    axes = facts.ints(facts.given(node, 1))
    if ins[0] is None or axes is None:
        return None
    rank = len(ins[0]) + len(axes)
    new, old = {a % rank for a in axes}, iter(ins[0])
    return [1 if i in new else next(old) for i in range(rank)]


def _concat(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    given = [i for i in ins if i is not None]
    if not given or len({len(i) for i in given}) > 1:
        return None
    axis = facts.attr(node, "axis") % len(given[0])
    # All inputs have the same sizes beside the axis, so that one which is known is known of all.
    out: Dims = [next((d for d in dims if d is not None), None) for dims in zip(*given, strict=True)]
    sizes = [i[axis] for i in given]
    whole = len(given) == len(ins) and all(isinstance(s, int) for s in sizes)
    out[axis] = sum(s for s in sizes if isinstance(s, int)) if whole else None
    return out


def _slice(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    starts, axes = facts.ints(node.inputs[1]), facts.given(node, 3)
    where = facts.ints(axes) if axes is not None else list(range(len(starts or ())))
    if ins[0] is None or where is None or (axes is None and starts is None):
        return None
    cut = {a % len(ins[0]) for a in where}
    return [None if i in cut else d for i, d in enumerate(ins[0])]


def _split(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    if ins[0] is None:
        return None
    axis = facts.attr(node, "axis", 0) % len(ins[0])
    return [None if i == axis else d for i, d in enumerate(ins[0])]


def _gather(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    data, where = ins
    if data is None or where is None:
        return None
    axis = facts.attr(node, "axis", 0) % len(data)
    return [*data[:axis], *where, *data[axis + 1 :]]


_KEEP: Final = (
    "Abs", "Cast", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LayerNormalization", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "RMSNormalization", "Sigmoid",
    "Sin", "Softmax", "Softplus", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_ALIGN: Final = (
    "Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_RULES: Final[dict[str, Callable[[ir.Node, list[Dims | None]], Dims | None]]] = {
    **dict.fromkeys(_KEEP, _first),
    **dict.fromkeys(_ALIGN, _broadcast),
    "Concat": _concat,
    "Gather": _gather,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
