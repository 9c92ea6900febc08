"""Dimensions by name: which dimension of an output is the same as one of an input, whatever its size in a run.

onnx's inference loses a name at the first Reshape to ``[-1, 197, 384]``; here it is found again by counting elements.
What no rule knows gets a name of its own, so that what is made of it is still seen to be of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from gpurt.optimizer import facts

Dims = list[int | str | None]

_PLUS: Final = " + "
_TIMES: Final = "*"
_MIN: Final = f"{facts.MADE}min("


def name_outputs(node: ir.Node) -> None:
    """Fill in dimensions of a node's outputs that follow from its inputs; what is known already stays."""
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is None or all(v.shape is not None and v.shape.is_static() for v in node.outputs):
        return
    found = rule(node, [None if facts.absent(v) else facts.symbols(v) for v in node.inputs])
    if found is not None:
        for value in node.outputs:
            refine(value, found)


def name_rest(node: ir.Node) -> None:
    """Give each dimension of a node's outputs that is not known a name that no other dimension has."""
    for value in node.outputs:
        dims = facts.symbols(value)
        if dims is not None and None in dims:
            value.shape = ir.Shape([f"{facts.MADE}{value.name}@{i}" if d is None else d for i, d in enumerate(dims)])


def forget_made(value: ir.Value) -> None:
    """Take away the names that are not the model's."""
    if value.shape is not None and not value.shape.is_static():
        value.shape = ir.Shape([d if isinstance(d, int) else facts.symbol(d, made=False) for d in value.shape])


def plus(*sizes: int | str | None) -> int | str | None:
    """Name of a sum of dimensions, the same for each order; a number where all are numbers."""
    terms: list[str] = []
    number = 0
    for size in sizes:
        if size is None:
            return None
        if isinstance(size, int):
            number += size
            continue
        for term in size.removeprefix(facts.MADE).split(_PLUS):
            if term.isdecimal():
                number += int(term)
            else:
                terms.append(term)
    if not terms:
        return number
    terms = sorted(terms) + ([str(number)] if number else [])
    return terms[0] if len(terms) == 1 and "@" not in terms[0] else facts.MADE + _PLUS.join(terms)


def minus(size: int | str | None, part: int | str | None) -> int | str | None:
    """What is left of a sum of dimensions without one of its terms; None where that is not known."""
    if isinstance(size, int) and isinstance(part, int):
        return size - part
    if not isinstance(size, str) or part is None or part == 0:
        return size if part == 0 else None
    left = size.removeprefix(facts.MADE).split(_PLUS)
    for term in str(part).removeprefix(facts.MADE).split(_PLUS):
        if term not in left:
            return None
        left.remove(term)
    return plus(*(int(t) if t.isdecimal() else t if "@" not in t else facts.MADE + t for t in left))


def at_most(limit: int | str | None, size: int | str | None) -> int | str | None:
    """Name of the smaller one of two dimensions."""
    if limit is None or size is None or limit == size:
        return limit
    if isinstance(limit, int) and isinstance(size, int):
        return min(limit, size)
    return f"{facts.MADE}min({limit}, {size})"


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
    # n broadcasts with min(512, n) only where they are equal or the smaller one is 1.
    sizes -= {at_most(limit, size) for size in sizes for limit in _limits(sizes)}
    return 1 if not sizes else sizes.pop() if len(sizes) == 1 else None


def _limits(sizes: set[int | str | None]) -> set[int]:
    made = [s for s in sizes if isinstance(s, str) and s.startswith(_MIN)]
    return {int(limit) for s in made if (limit := s[len(_MIN) :].split(", ")[0]).isdecimal() and int(limit) > 0}


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
    return None if target is None else reshaped(data, target, zero=bool(facts.attr(node, "allowzero", 0)))


def reshaped(data: Dims | None, target: Sequence[int | str | None], *, zero: bool) -> Dims | None:
    """Dimensions of a Reshape of data to target, where zero says that a 0 in the target is a size."""
    if data is None or (0 in target and zero):
        return None
    out: Dims = [
        t if isinstance(t, str) or t is None else data[i] if t == 0 and i < len(data) else None if t <= 0 else t
        for i, t in enumerate(target)
    ]
    if None in data or target.count(-1) != 1:
        return out
    # What is left of the elements of x when those of all other dimensions are divided out.
    names = [f for d in data if isinstance(d, str) for f in _factors(d)]
    rest: Dims = []
    for position, size in enumerate(out):
        factors = _factors(size) if isinstance(size, str) else [size]
        rest += [f for f in factors if f not in names]
        for name in (f for f in factors if isinstance(f, str) and f in names):
            names.remove(name)
        if (size is None and target[position] != -1) or any(isinstance(f, str) and f not in names for f in rest):
            return out
    total = math.prod(d for d in [*names, *data] if isinstance(d, int))
    others = math.prod(d for d in rest if isinstance(d, int))
    if others and total and not total % others:
        out[target.index(-1)] = _times([n for n in names if isinstance(n, str)], total // others)
    return out


def _factors(size: str) -> Dims:
    """The factors of a product that a Reshape made one dimension of."""
    made = size.removeprefix(facts.MADE).split(_TIMES) if _TIMES in size and size.startswith(facts.MADE) else [size]
    return [size] if len(made) == 1 else [int(f) if f.isdecimal() else facts.MADE + f if "@" in f else f for f in made]


def _times(names: list[str], number: int) -> int | str:
    if not names or (len(names) == 1 and number == 1):
        return names[0] if names else number
    factors = sorted(n.removeprefix(facts.MADE) for n in names) + ([str(number)] if number != 1 else [])
    return facts.MADE + _TIMES.join(factors)


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
    out[axis] = plus(*(i[axis] for i in given)) if len(given) == len(ins) else None
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


def _gather_nd(node: ir.Node, ins: list[Dims | None]) -> Dims | None:
    data, where = ins
    if data is None or where is None or not isinstance(where[-1], int):
        return None
    return [*where[:-1], *data[facts.attr(node, "batch_dims", 0) + where[-1] :]]


_KEEP: Final = (
    "Abs", "Cast", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LayerNormalization", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "RMSNormalization",
    "RotaryEmbedding", "Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_ALIGN: Final = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or",
    "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_RULES: Final[dict[str, Callable[[ir.Node, list[Dims | None]], Dims | None]]] = {
    **dict.fromkeys(_KEEP, _first),
    **dict.fromkeys(_ALIGN, _broadcast),
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
