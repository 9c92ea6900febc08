"""Rows of the elementwise operators: which dtypes each takes, and one lowering for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gpurt.device.codegen import emit
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.expressions import EXPRESSIONS
from gpurt.device.scalars import i64
from gpurt.device.steps import Step
from gpurt.device.table import ANY, FLOATS, INTS, NUMERIC, STORED, Check, Lower, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import broadcast
from gpurt.provider import Refused
from gpurt.spec import Spec

_SIGNED: Final = f"{FLOATS} int8 int16 int32 int64"

# Operators that take other dtypes than the floating ones, as the standard's type constraints have them.
_TYPES: Final[Mapping[str, str | Mapping[int | None, str]]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Abs", "Sign", "Max", "Min", "Clip", "Shrink"), NUMERIC),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual"), NUMERIC),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), INTS),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), "bool"),
    **dict.fromkeys(("Neg", "Relu"), _SIGNED),
    "Equal": ANY,
    "Cast": STORED,
    "CastLike": {0: STORED},  # of the second input only the dtype matters
    "Pow": {0: f"{FLOATS} int32 int64", 1: NUMERIC},
    "PRelu": f"{FLOATS} int32 int64 uint32 uint64",
    "Where": {0: "bool", None: ANY},
}


def elementwise(c: Lowering) -> None:
    """Any operator of EXPRESSIONS: one kernel over the broadcast shape."""
    operands = [c.input(i) if c.has(i) else None for i in range(len(c.node.inputs))]
    emit(c, step_for(c.node, operands, c.outs[0]), c.output())


FUSIBLE: Final[set[Lower]] = {elementwise}
"""The lowerings whose nodes may become steps of one kernel."""


def step_for(node: NodeView, operands: Sequence[Ref | Step | None], out: Spec) -> Step:
    """The step of a node. Raises Refused where an operand does not fit."""
    arrange = EXPRESSIONS[node.domain, node.op_type].arrange
    if arrange is not None:
        operands = arrange(node, operands, out)
    for position, x in enumerate(operands):
        if x is None or (node.op_type == "CastLike" and position == 1):
            continue
        if node.op_type == "Clip" and position > 0:
            if x.size != 1:
                raise Refused(f"Clip: bound {position} has {x.size} elements")
        elif broadcast(x.shape, out.shape) != tuple(out.shape):
            raise Refused(f"{node.op}: an operand of shape {list(x.shape)} in a result of shape {list(out.shape)}")
    return Step(node, operands, out.dtype, out.shape)


def _check_gelu(node: NodeView, _: DeviceInfo) -> str | None:
    approximate = node.attr("approximate", "none")
    return None if approximate in ("none", "tanh") else f"approximate is {approximate!r}"


def _check_shift(node: NodeView, _: DeviceInfo) -> str | None:
    direction = node.attr("direction")
    return None if direction in ("LEFT", "RIGHT") else f"direction is {direction!r}"


def _check_real_of_whole(node: NodeView, info: DeviceInfo) -> str | None:
    # Integers are taken through double where the arithmetic is real: float would lose digits.
    dtypes = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
    whole = bool(dtypes) and dtypes[0].kind in "iu"
    mixed = node.op_type == "Shrink" or any(d.kind == "f" for d in dtypes)
    return f"{node.op_type} of integers needs double" if whole and mixed and not info.fp64 else None


def _check_round_mode(node: NodeView, _: DeviceInfo) -> str | None:
    mode = node.attr("round_mode", "up")
    return None if mode in ("up", "down", "nearest") else f"round_mode is {mode!r}"


_CHECKS: Final[Mapping[str, Check]] = {
    "Cast": _check_round_mode,
    "CastLike": _check_round_mode,
    "Gelu": _check_gelu,
    "BitShift": _check_shift,
    "Shrink": _check_real_of_whole,
    "Pow": _check_real_of_whole,
}

for _domain, _name in EXPRESSIONS:
    op(_name, domain=_domain, types=_TYPES.get(_name, FLOATS), check=_CHECKS.get(_name))(elementwise)


_ONES = """
KFN(64, 1, 1) fill_ones(TENSOR(u8, y), const i64 n) {
  OPEN(u8, y);
  const i64 i = INDEX(0);
  if (i < n) y[i] = 1;
}
"""


@op("Dropout", types={0: ANY}, host=(2,))
def dropout(c: Lowering) -> None:
    """Dropout-22 in inference: the data itself, and a mask that is true everywhere."""
    training = c.const(2)
    if training is not None and bool(training.reshape(-1)[0]):
        raise Refused("Dropout in training mode")
    c.alias()
    if c.wants(1):
        mask = c.output(1)
        c.launch(_ONES, "fill_ones", [mask, i64(mask.size)], [-(-mask.size // 64)], [64])
