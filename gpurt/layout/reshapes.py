"""Reshapes and what is made of them: flattening before a product, shuffled channels, pixels out of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from gpurt.graph.channels_last import to_last
from gpurt.layout.turn import Data, Made, Operand, Step, Turn, idle_axes, rank_of, rule
from gpurt.optimizer import facts

_WEIGHTS: Final = 32 << 20  # bytes of a matrix whose rows are put into another order; a larger one costs start-up time
_I64: Final = np.dtype(np.int64)

Groups = Sequence[Sequence[int]]


@rule("Flatten")
def flatten(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    if x is None or not rank or facts.attr(node, "axis", 1) != 1:
        return None
    step = Step("Flatten", [Data(x)], like=node)
    if idle_axes(x):
        return Turn([step], exit=True)
    fixes = _before_product(node, x)
    return None if fixes is None else Turn([step], exit=True, fixes=fixes)


@rule("Reshape")
def reshape(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    found = _shuffled(node)
    if found is not None or x is None or not rank or _empties(node):
        return found
    target = facts.ints(node.inputs[1])
    if target is not None and all(t != 0 or i == 0 for i, t in enumerate(target)):
        step = Step("Reshape", [Data(x), node.inputs[1]], like=node)
        if idle_axes(x):
            return Turn([step], exit=True)
        fixes = _before_product(node, x)
        if fixes is not None:
            return Turn([step], exit=True, fixes=fixes)
    return _spatial(node, x)


def _empties(node: ir.Node) -> bool:
    """Whether a 0 in a Reshape's target may stand for an empty axis."""
    return bool(facts.attr(node, "allowzero", 0)) and 0 in (facts.ints(node.inputs[1]) or [0])


def _before_product(node: ir.Node, x: ir.Value) -> list[tuple[ir.Node, int, Callable[[], np.ndarray]]] | None:
    """The weights of the product that alone reads a flattened image, with their rows in the turned image's order."""
    y, dims = node.outputs[0], facts.dims(x)
    uses = list(y.uses())
    if len(uses) != 1 or y.is_graph_output() or dims is None or None in dims[1:]:
        return None
    (reader, position), shape = uses[0], facts.dims(y)
    image = [d for d in dims[1:] if d is not None]
    if reader.op_type not in ("Gemm", "MatMul") or reader.domain or position != 0 or facts.attr(reader, "transA", 0):
        return None
    weights = facts.array(reader.inputs[1])
    if weights is None or weights.ndim != 2 or weights.nbytes > _WEIGHTS or reader.graph is not node.graph:
        return None
    if shape is None or len(shape) != 2 or shape[1] != math.prod(image):
        return None
    columns = bool(facts.attr(reader, "transB", 0)) if reader.op_type == "Gemm" else False
    axes = [a - 1 for a in to_last(len(dims))[1:]]

    def permuted() -> np.ndarray:
        order = np.arange(math.prod(image)).reshape(image).transpose(axes).reshape(-1)
        return np.ascontiguousarray(weights[:, order] if columns else weights[order])

    return [(reader, 1, permuted)]


def _spatial(node: ir.Node, x: ir.Value) -> Turn | None:
    """Batch and channels stay as they are, only the places between them are counted in another way."""
    ins, outs = facts.symbols(x), facts.symbols(node.outputs[0])
    if ins is None or outs is None or len(outs) < 3 or ins[1] != outs[1] or not isinstance(ins[1], int):
        return None
    target = facts.ints(node.inputs[1])
    same_batch = (ins[0] == outs[0] and ins[0] is not None) or (target is not None and target[0] == 0)
    if not same_batch or 0 in ins:
        return None
    sizes = [s if isinstance(s, int) else -1 for s in outs[2:]]
    if sizes.count(-1) > 1:
        return None
    turned = np.array([ins[0] if isinstance(ins[0], int) else 0, *sizes, ins[1]], _I64)
    return Turn([Step("Reshape", [Data(x), turned], {"allowzero": None}, like=node)])


@rule("DepthToSpace", "SpaceToDepth")
def blocks(node: ir.Node) -> Turn | None:
    x, b = node.inputs[0], facts.attr(node, "blocksize")
    dims = tokens(x)
    if x is None or rank_of(x) != 4 or dims is None or not isinstance(dims[1], int):
        return None
    n, c, h, w = dims
    if node.op_type == "SpaceToDepth":
        if not isinstance(h, int) or not isinstance(w, int):
            return None
        ins: Groups = ([0], [1], [2, 3], [4, 5])
        return rearranged(Data(x), [n, c, h // b, b, w // b, b], ins, ([0], [3, 5, 1], [2], [4]))
    depth = c // (b * b)
    ins = ([0], [1, 2, 3], [4], [5])
    if facts.attr(node, "mode", "DCR") == "DCR":
        return rearranged(Data(x), [n, b, b, depth, h, w], ins, ([0], [3], [4, 1], [5, 2]))
    return rearranged(Data(x), [n, depth, b, b, h, w], ins, ([0], [1], [4, 2], [5, 3]))


def _shuffled(last: ir.Node) -> Turn | None:
    """Reshape, Transpose and Reshape that split axes, permute the parts and join them again, as ShuffleNet does."""
    middle = _only_maker(last, "Transpose")
    first = None if middle is None else _only_maker(middle, "Reshape")
    if middle is None or first is None:
        return None
    x = first.inputs[0]
    ins, outs = tokens(x), tokens(last.outputs[0])
    if x is None or ins is None or outs is None or not rank_of(x) or len(outs) < 3:
        return None
    parts = _parts(first, ins)
    in_groups = None if parts is None else _grouped(ins, parts)
    if parts is None or in_groups is None:
        return None
    perm = facts.attr(middle, "perm") or list(range(len(parts)))[::-1]
    permuted = _grouped(_declared(last, outs, [parts[p] for p in perm]), [parts[p] for p in perm])
    if permuted is None:
        return None
    out_groups = [[perm[i] for i in group] for group in permuted]
    found = rearranged(Data(x), parts, in_groups, out_groups)
    return None if found is None else Turn(found.steps, absorbed=(first, middle))


def _only_maker(node: ir.Node, op_type: str) -> ir.Node | None:
    value = node.inputs[0]
    made = None if value is None else value.producer()
    if value is None or made is None or made.op_type != op_type or made.domain or made.graph is not node.graph:
        return None
    return made if len(value.uses()) == 1 and not value.is_graph_output() else None


Token = int | str | tuple[str, int]


def tokens(value: ir.Value | None) -> list[Token] | None:
    """Sizes of a value; what is not known has a name of its own."""
    found = facts.symbols(value)
    return None if found is None else [("?", i) if d is None else d for i, d in enumerate(found)]


def _parts(node: ir.Node, ins: Sequence[Token]) -> list[Token] | None:
    """Sizes of a Reshape's result, as far as they can be told apart; None where a -1 cannot be worked out."""
    target, known = facts.ints(node.inputs[1]), facts.symbols(node.outputs[0])
    if target is None:
        return None if known is None or None in known else [k for k in known if k is not None]
    if _empties(node) or any(t == 0 and i >= len(ins) for i, t in enumerate(target)):
        return None
    found: list[Token] = [ins[i] if t == 0 else t for i, t in enumerate(target)]
    if -1 in found:
        at = found.index(-1)
        left = list(ins)
        for token in (t for i, t in enumerate(found) if i != at and not isinstance(t, int)):
            if token not in left:
                return None
            left.remove(token)
        symbols = [t for t in left if not isinstance(t, int)]
        total = math.prod(t for t in left if isinstance(t, int))
        others = math.prod(t for i, t in enumerate(found) if i != at and isinstance(t, int))
        if not others or (total != others if symbols else total % others) or len(symbols) > 1:
            return None
        found[at] = symbols[0] if symbols else total // others
    return found


def _declared(node: ir.Node, outs: Sequence[Token], parts: Sequence[Token]) -> list[Token]:
    """Sizes of the last Reshape's result, in the names of the parts as far as its target copies or leaves them."""
    made = _parts(node, parts)
    return list(outs) if made is None else made


def _grouped(whole: Sequence[Token], parts: Sequence[Token]) -> list[list[int]] | None:
    """For each size the positions of the consecutive parts whose product it is; None where they do not match."""
    groups: list[list[int]] = []
    at = 0
    for size in whole:
        group: list[int] = []
        product = 1
        while at < len(parts):
            part = parts[at]
            if part == size and not group:
                group.append(at)
                at += 1
                product = -1
                break
            if not isinstance(size, int) or not isinstance(part, int) or product == size:
                break
            group.append(at)
            product *= part
            at += 1
        if product not in (-1, size) or not group:
            return None
        groups.append(group)
    return groups if at == len(parts) else None


def rearranged(
    x: Data | Made, parts: Sequence[Token], in_groups: Groups, out_groups: Groups, first: Sequence[Step] = ()
) -> Turn | None:
    """Split the axes of a turned value into parts, permute these and join them to the axes of a turned result.

    Args:
        x: the value.
        parts: their sizes.
        in_groups: for each axis of x, in the model's layout, its parts in order.
        out_groups: the same for the result.
        first: steps that come before.
    """
    before = [in_groups[a] for a in to_last(len(in_groups))]
    after = [out_groups[a] for a in to_last(len(out_groups))]
    split, joined = [p for g in before for p in g], [p for g in after for p in g]
    sizes = _target([[p] for p in split], before, parts)
    steps = [*first, Step("Reshape", [x, np.array(sizes, _I64)], rank=len(parts))]
    if sizes.count(-1) > 1:
        return None
    perm = [split.index(p) for p in joined]
    if perm != sorted(perm):
        steps.append(Step("Transpose", [Made(len(first))], {"perm": perm}, rank=len(parts)))
    source, sizes = len(steps) - 1, _target(after, [[p] for p in joined], parts)
    target: Operand = np.array(sizes, _I64)
    if sizes.count(-1) > 1:
        computed = _computed(x, before, after, parts, len(steps))
        if computed is None:
            return None
        steps += computed
        target = Made(len(steps) - 1)
    return Turn([*steps, Step("Reshape", [Made(source), target])])


def _target(groups: Groups, given: Groups, parts: Sequence[Token]) -> list[int]:
    """Sizes of groups of parts for a Reshape of what has the groups `given`: 0 copies a size, -1 is what is left."""
    found = []
    for i, group in enumerate(groups):
        sizes = [parts[p] for p in group]
        known = [s for s in sizes if isinstance(s, int)]
        same = i < len(given) and list(given[i]) == list(group)
        found.append(math.prod(known) if len(known) == len(sizes) else 0 if same else -1)
    return found


def _computed(x: Data | Made, before: Groups, after: Groups, parts: Sequence[Token], first: int) -> list[Step] | None:
    """Steps that compute the sizes of the result from those of x, where each has at most one that is not known."""
    picks, factors, offsets = [], [], []
    for group in after:
        sizes = [parts[p] for p in group]
        open_ = [p for p in group if not isinstance(parts[p], int)]
        known = math.prod(s for s in sizes if isinstance(s, int))
        axis = next((i for i, g in enumerate(before) if list(g) == open_), None)
        if open_ and axis is None:
            return None
        picks.append(axis or 0)
        factors.append(known if open_ else 0)
        offsets.append(0 if open_ else known)
    arrays = [np.array(a, _I64) for a in (picks, factors, offsets)]
    return [
        Step("Shape", [x], rank=1, dtype=_I64, host=True),
        Step("Gather", [Made(first), arrays[0]], {"axis": 0}, rank=1, dtype=_I64, host=True),
        Step("Mul", [Made(first + 1), arrays[1]], rank=1, dtype=_I64, host=True),
        Step("Add", [Made(first + 2), arrays[2]], rank=1, dtype=_I64, host=True),
    ]
