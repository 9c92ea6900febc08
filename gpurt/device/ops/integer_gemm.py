"""MatMulInteger-10 and ConvInteger-10, and the exact products of quantized tensors that all quantized operators share.

Operands lose their zero points first. Then the GPU class multiplies integers; the CPU class multiplies them as floats,
a stretch of the sum at a time that is short enough to be exact, and adds the stretches up as integers (gemm_cpu.cl).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from gpurt.device.codegen import emit
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv import convolve, panels_of
from gpurt.device.ops.conv_shape import geometry
from gpurt.device.ops.gemm import FLOAT32
from gpurt.device.ops.matmul import product
from gpurt.device.ops.matrices import panels
from gpurt.device.steps import Step
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused
from gpurt.spec import Spec

BYTES: Final = "int8 uint8"
I16: Final = np.dtype(np.int16)
I32: Final = np.dtype(np.int32)
_EXACT: Final = 1 << 24  # integers up to here are floats


def known_zero(zero: Ref | None) -> bool:
    """Whether a zero point is left out or known to be 0."""
    return zero is None or (zero.spec.const is not None and not zero.spec.const.any())


def centred(c: Lowering, x: Ref, zero: Ref | None, at: Sequence[int]) -> Ref:
    """An operand less its zero point, which broadcasts over it under the shape `at`; itself where that is 0."""
    if zero is None or known_zero(zero):
        return x
    dtype = FLOAT32 if c.cpu_class else I16
    less = Step(_node("Cast"), [view_as(zero, at)], dtype, tuple(at))
    data = Step(_node("Cast"), [x], dtype, x.shape)
    y = c.temp(dtype, x.shape)
    emit(c, Step(_node("Sub"), [data, less], dtype, x.shape), y)
    return y


def view_as(x: Ref, shape: Sequence[int]) -> Ref:
    """The same memory under another shape; content that is known stays known."""
    const = x.spec.const
    return replace(x, spec=Spec(x.dtype, tuple(shape), None if const is None else const.reshape(tuple(shape))))


def _node(op_type: str) -> NodeView:
    return NodeView(op_type, (), (), {}, "", op_type)


def stretch(a: Ref, a_zero: Ref | None, b: Ref, b_zero: Ref | None) -> int:
    """How many products of two operands less their zero points add up exactly in float."""
    return _EXACT // (_reach(a, a_zero) * _reach(b, b_zero))


def _reach(x: Ref, zero: Ref | None) -> int:
    return 128 if x.dtype == np.int8 and known_zero(zero) else 255


def constant_operand(
    c: Lowering, position: int, zero: Ref | None, at: Sequence[int], tag: str, pack: Callable[[np.ndarray], np.ndarray]
) -> Ref | None:
    """A constant operand less its zero point in float, rearranged for the CPU class; None if it is not constant."""
    if not c.cpu_class or (zero is not None and zero.spec.const is None):
        return None
    less = np.zeros((), np.float32)
    if zero is not None and zero.spec.const is not None and not known_zero(zero):
        less = zero.spec.const.astype(np.float32).reshape(tuple(at))
        tag += f" less {hashlib.blake2b(less.tobytes(), digest_size=8).hexdigest()}"
    return c.packed(position, f"{tag} of integers", lambda w: pack(w.astype(np.float32) - less))


def matmul_sums(
    c: Lowering, a: Ref, b_position: int, zeros: tuple[Ref | None, Ref | None], y: Ref, *, trans_a: bool = False,
    trans_b: bool = False,
) -> None:  # fmt: skip
    """Emit the int32 product of quantized matrices, or batches of them; B is the input at a position."""
    b = c.input(b_position)
    a_zero, b_zero = zeros
    a_at, b_at = row_shape(a_zero), column_shape(b, b_zero)
    if trans_b and b_at:
        b_at = (b_at[-1], 1)
    exact = stretch(a, a_zero, b, b_zero)
    packed = None
    if b.spec.rank > 1:
        tag = "gemm panels of the transposed" if trans_b else "gemm panels"
        pack = transposed_panels if trans_b else panels
        packed = constant_operand(c, b_position, b_zero, b_at, tag, pack)
    left = centred(c, a, a_zero, a_at)
    right = b if packed is not None else centred(c, b, b_zero, b_at)
    if a.spec.rank == 1:
        left = left.view((1, a.size))
    if b.spec.rank == 1:
        right = right.view((b.size, 1))
    product(c, left, right, y, packed, trans_a=trans_a, trans_b=trans_b, exact=exact)


def transposed_panels(b: np.ndarray) -> np.ndarray:
    """Panels of [..., N, K]."""
    return panels(np.swapaxes(b, -1, -2))


def row_shape(v: Ref | None) -> tuple[int, ...]:
    """Shape under which a scale or zero point of the left matrix broadcasts: one number, or one for each row."""
    if v is None or v.size == 1:
        return ()
    if v.spec.rank == 1:
        return (v.size, 1)
    return v.shape


def column_shape(b: Ref, v: Ref | None) -> tuple[int, ...]:
    """Shape under which a scale or zero point of the right matrix broadcasts: one number, or one for each column."""
    if v is None or v.size == 1:
        return ()
    if b.spec.rank == 1:
        raise Refused(f"a vector on the right with {v.size} zero points")
    return v.shape


def conv_sums(c: Lowering, positions: tuple[int, int], zeros: tuple[Ref | None, Ref | None], y: Ref) -> None:
    """Emit the int32 convolution of a quantized image by quantized filters at these input positions."""
    x, w = c.input(positions[0]), c.input(positions[1])
    x_zero, w_zero = zeros
    if not 3 <= x.spec.rank <= 5:
        raise Refused(f"{c.node.op} with {x.spec.rank - 2} spatial axes")
    for name, zero, most in (("image", x_zero, 1), ("filters", w_zero, w.shape[0])):
        if zero is not None and zero.size not in (1, most):
            raise Refused(f"{c.node.op}: {zero.size} zero points of the {name}")
    at = () if w_zero is None or w_zero.size == 1 else (w_zero.size,) + (1,) * (w.spec.rank - 1)
    exact = stretch(x, x_zero, w, w_zero)
    filters = constant_operand(c, positions[1], w_zero, at, "filters", lambda v: v)

    def dense() -> Ref | None:
        return constant_operand(c, positions[1], w_zero, at, "conv as panels", panels_of)

    convolve(
        c, geometry(c.node, x.shape, w.shape), centred(c, x, x_zero, ()),
        centred(c, w, w_zero, at) if filters is None else filters, y, None, dense, exact,
    )  # fmt: skip


def optional(c: Lowering, position: int) -> Ref | None:
    """An input, or None where it is left out."""
    return c.input(position) if c.has(position) else None


@op("MatMulInteger", types=BYTES)
def matmul_integer(c: Lowering) -> None:
    """MatMulInteger-10: (A - zero point) (B - zero point), for the tensor, by row of A, by column of B."""
    matmul_sums(c, c.input(0), 1, (optional(c, 2), optional(c, 3)), c.output())


def spatial_check(position: int) -> Callable[[NodeView, DeviceInfo], str | None]:
    """Refuses convolutions over more than three axes, and those with channels last."""

    def check(node: NodeView, _: DeviceInfo) -> str | None:
        x = node.inputs[position]
        if x is not None and x.rank is not None and not 3 <= x.rank <= 5:
            return f"{node.op} with {x.rank - 2} spatial axes"
        return f"{node.op} with channels_last" if node.attr("channels_last", 0) else None

    return check


@op("ConvInteger", types=BYTES, check=spatial_check(0))
def conv_integer(c: Lowering) -> None:
    """ConvInteger-10: a convolution of quantized numbers; padding counts as the zero point."""
    conv_sums(c, (0, 1), (optional(c, 2), optional(c, 3)), c.output())
