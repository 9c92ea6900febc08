"""Shape arithmetic: which nodes belong on the host whoever could run them, and which values decide shapes.

What a shape is computed from, and the predicate of a branch, must be known before a device can be told what to do, so
these nodes stay on the host. The analysis is on names and dtypes; it needs no shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gpurt.graph.view import NodeView, ValueView

SHAPE_INPUTS: Final[Mapping[str, tuple[int, ...]]] = {
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    },
}
"""Operator -> positions of the inputs whose content decides shapes or branches."""

_ARITHMETIC: Final = frozenset(
    [
        "Shape",
        "Size",
        "Gather",
        "Slice",
        "Concat",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Flatten",
        "Split",
        "Identity",
        "Cast",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Neg",
        "Abs",
        "Min",
        "Max",
        "Floor",
        "Ceil",
        "Round",
        "Sqrt",
        "Pow",
        "Sign",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "And",
        "Or",
        "Not",
        "Xor",
        "Where",
        "ReduceProd",
        "ReduceSum",
        "ReduceMin",
        "ReduceMax",
        "CumSum",
    ]
)
# These make tensors of any size, so they are shape arithmetic only where a shape is what they make.
_MAKERS: Final = frozenset({"ConstantOfShape", "Range", "Expand", "Tile", "Reciprocal", "GatherElements", "Transpose"})


def shape_operands(node: NodeView) -> list[ValueView]:
    """Inputs of a node whose content decides shapes or branches."""
    positions = SHAPE_INPUTS.get(node.op_type, ()) if node.domain == "" else ()
    return [v for i in positions if i < len(node.inputs) and (v := node.inputs[i]) is not None]


def host_nodes(nodes: Sequence[NodeView], outputs: Iterable[ValueView], known: Iterable[str]) -> set[str]:
    """Names of the nodes that are shape arithmetic.

    Args:
        nodes: a graph level in topological order.
        outputs: values outside of the nodes that decide shapes or branches (a loop body's condition).
        known: values that are known from shapes alone: constants, and what outer graphs know.
    """
    return _forward(nodes, set(known))[0] | _backward(nodes, outputs)


def shape_known(nodes: Sequence[NodeView], known: Iterable[str]) -> set[str]:
    """Names of values that follow from shapes and constants alone; a plan has them as constants."""
    return _forward(nodes, set(known))[1]


def _forward(nodes: Sequence[NodeView], known: set[str]) -> tuple[set[str], set[str]]:
    chosen: set[str] = set()
    derived: set[str] = set()
    for node in nodes:
        if node.domain or node.op_type not in _ARITHMETIC | _MAKERS:
            continue
        inputs = [v.name for v in node.inputs if v is not None]
        if node.op_type in ("Shape", "Size") or (inputs and all(n in known or n in derived for n in inputs)):
            derived.update(v.name for v in node.outputs if v is not None)
            if node.op_type in _ARITHMETIC:
                chosen.add(node.name)
    return chosen, derived


def _backward(nodes: Sequence[NodeView], outputs: Iterable[ValueView]) -> set[str]:
    wanted = {v.name for v in outputs}
    chosen: set[str] = set()
    for node in reversed(nodes):
        operands = {v.name for v in shape_operands(node)}
        if any(v is not None and v.name in wanted for v in node.outputs) and _small_integers(node):
            chosen.add(node.name)
            operands = {v.name for v in node.inputs if v is not None}
            if node.op_type in ("Shape", "Size"):
                operands = set()
        wanted |= operands
    return chosen


def _small_integers(node: NodeView) -> bool:
    if node.domain or node.op_type not in _ARITHMETIC | _MAKERS:
        return False
    if any(v is None or v.dtype is None or v.dtype.kind not in "iub" or (v.rank or 0) > 1 for v in node.outputs):
        return False
    # An integer computed from large data belongs where the data is: only what is small or a shape is looked at.
    return node.op_type in ("Shape", "Size") or all(
        v is None or v.const is not None or (v.dtype is not None and v.dtype.kind in "iub" and (v.rank or 0) <= 1)
        for v in node.inputs
    )


def deciding(nodes: Sequence[NodeView], wanted: Iterable[str]) -> set[str]:
    """Names whose content decides shapes or branches of this level, through shape arithmetic: a plan's key has them."""
    found = set(wanted)
    followed = (_ARITHMETIC | _MAKERS) - {"Shape", "Size"}
    for node in reversed(nodes):
        found.update(v.name for v in shape_operands(node))
        decides = any(v is not None and v.name in found for v in node.outputs)
        if decides and not node.domain and node.op_type in followed:
            found.update(v.name for v in node.inputs if v is not None)
    return found
