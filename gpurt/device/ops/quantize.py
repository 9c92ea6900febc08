"""QuantizeLinear-25, DequantizeLinear-25 and DynamicQuantizeLinear-11, and com.microsoft's elementwise operators on
quantized tensors; all but the dynamic one are expressions, so that they fuse with what stands around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import ml_dtypes
import numpy as np

import gpurt_kernels
from gpurt.device.codegen import emit
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.elementwise import FUSIBLE, elementwise, step_for
from gpurt.device.ops.expressions import EXPRESSIONS, Expression, Site, narrow_is_scalar
from gpurt.device.ops.movement import BITS
from gpurt.device.ops.reduce import KINDS, reduce
from gpurt.device.ops.registers import BF16, F16, F32, NARROW_FLOATS, cast
from gpurt.device.scalars import i32, i64
from gpurt.device.steps import Step
from gpurt.device.table import FLOAT8, SUBBYTE, op
from gpurt.dtypes import from_onnx
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axis
from gpurt.provider import Refused
from gpurt.spec import Spec

U8: Final = np.dtype(np.uint8)
MS: Final = "com.microsoft"
_QUANTIZED: Final = f"int8 uint8 int16 uint16 {SUBBYTE} {FLOAT8}"
_REAL: Final = "float32 float16 bfloat16"


def real(site: Site, position: int, scale: int, zero: int) -> str:
    """A quantized operand as a float: (x - zero point) * scale. An int32 is subtracted from before it is rounded."""
    x, s, source = site.arg(position), site.arg(scale), site.of(position)
    if not _has_zero(site, zero):
        return f"{cast(x, source, F32, site.vector)} * {s}"
    z = site.arg(zero)
    if source.itemsize == 4:
        return f"{cast(f'({x} - {z})', source, F32, site.vector)} * {s}"
    return f"({cast(x, source, F32, site.vector)} - {cast(z, site.of(zero), F32, site.vector)}) * {s}"


def _has_zero(site: Site, zero: int) -> bool:
    return site.has(zero) and site.const(zero) != 0


def quantized(site: Site, text: str, zero: int) -> str:
    """A float, divided by its scale already, as a quantized number: rounded to even, moved, clipped."""
    narrow = site.dtype in NARROW_FLOATS
    if not narrow:
        text = f"rint({text})"
    if _has_zero(site, zero):
        text = f"{text} + {cast(site.arg(zero), site.of(zero), F32, site.vector)}"
    if narrow:
        return cast(f"({text})", F32, site.dtype, site.vector, int(bool(site.node.attr("saturate", 1))))
    limits = ml_dtypes.iinfo(site.dtype)  # type: ignore[no-untyped-call]
    clipped = f"fmin(fmax({text}, {float(limits.min)!r}), {float(limits.max)!r})"
    return cast(clipped, F32, site.dtype, site.vector)


def _quantize(site: Site) -> str:
    ratio = f"{cast(site.arg(0), site.of(0), F32, site.vector)} / {site.arg(1)}"
    precision = site.node.attr("precision", 0)
    rounding = from_onnx(precision) if precision else site.of(1)
    if rounding in (F16, BF16):  # the division is meant to happen in that precision
        ratio = cast(f"({ratio})", F32, rounding, site.vector)
    return quantized(site, ratio, 2)


def _dequantize(site: Site) -> str:
    return cast(real(site, 0, 1, 2), F32, site.dtype, site.vector)


def _binary(sign: str) -> Callable[[Site], str]:
    # A, its scale and zero point, the same of B, scale and zero point of the result.
    def write(site: Site) -> str:
        return quantized(site, f"({real(site, 0, 1, 2)} {sign} {real(site, 3, 4, 5)}) / {site.arg(6)}", 7)

    return write


def _sigmoid(site: Site) -> str:
    one = "1.0"
    return quantized(site, f"{one} / ({one} + exp(-({real(site, 0, 1, 2)}))) / {site.arg(3)}", 4)


def _leaky_relu(site: Site) -> str:
    # The slope stands in the text by its bits, which both dialects read alike.
    alpha = f"AS_F32({int(np.float32(site.node.attr('alpha', 0.01)).view(np.uint32)):#x})"
    x = f"({real(site, 0, 1, 2)})"
    return quantized(site, f"({x} < 0.0 ? {alpha} * {x} : {x}) / {site.arg(3)}", 4)


def along_axis(node: NodeView, operands: Sequence[Ref | Step | None], out: Spec) -> Sequence[Ref | Step | None]:
    """Scale and zero point of a linear operator viewed so that they broadcast over the data."""
    arranged = list(operands)
    for position in range(1, len(operands)):
        x = operands[position]
        if x is None or (x.size == 1 and isinstance(x, Step) and len(x.shape) <= out.rank):
            continue
        shape: tuple[int, ...] = ()
        if x.size != 1:
            shape = (x.size,) + (1,) * (out.rank - 1 - axis(node.attr("axis", 1), out.rank))
        if isinstance(x, Ref):
            # The content stays known: a number that is known is an argument of the kernel.
            const = None if x.spec.const is None else x.spec.const.reshape(shape)
            arranged[position] = replace(x, spec=Spec(x.dtype, shape, const))
        elif tuple(x.shape) != shape:
            raise Refused(f"{node.op}: input {position} is computed in the same kernel")
    return arranged


def lone(node: NodeView, operands: Sequence[Ref | Step | None], out: Spec) -> Sequence[Ref | Step | None]:  # noqa: ARG001
    """Operands of one element, whatever their rank, viewed as scalars."""
    return [
        replace(x, spec=Spec(x.dtype, (), None if x.spec.const is None else x.spec.const.reshape(())))
        if isinstance(x, Ref) and x.size == 1
        else x
        for x in operands
    ]


EXPRESSIONS.update(
    {
        **{
            (domain, f"{name}Linear"): Expression(text, text, scalar=narrow_is_scalar, arrange=along_axis)
            for domain in ("", MS)
            for name, text in (("Quantize", _quantize), ("Dequantize", _dequantize))
        },
        (MS, "QLinearAdd"): Expression(whole=_binary("+"), arrange=lone),
        (MS, "QLinearMul"): Expression(whole=_binary("*"), arrange=lone),
        (MS, "QLinearSigmoid"): Expression(whole=_sigmoid, arrange=lone, costly=True),
        (MS, "QLinearLeakyRelu"): Expression(whole=_leaky_relu, arrange=lone),
    }
)

_BYTES: Final = {**dict.fromkeys((0, 2, 3, 5, 7), "int8 uint8"), **dict.fromkeys((1, 4, 6), "float32")}
for _name in ("QLinearAdd", "QLinearMul"):
    op(_name, domain=MS, types=_BYTES)(elementwise)
for _name in ("QLinearSigmoid", "QLinearLeakyRelu"):
    op(_name, domain=MS, types={0: "int8 uint8", 2: "int8 uint8", 4: "int8 uint8", None: "float32"})(elementwise)


def _check(node: NodeView, _: DeviceInfo) -> str | None:
    precision = node.attr("precision", 0)
    if precision and from_onnx(precision) not in (F32, F16, BF16):
        return f"QuantizeLinear with precision {from_onnx(precision)}"
    return None


_TO: Final = {0: f"{_REAL} int32", 1: _REAL, 2: _QUANTIZED}
_FROM: Final = {0: f"{_QUANTIZED} int32", 1: _REAL, 2: f"{_QUANTIZED} int32"}


@op("QuantizeLinear", types=_TO, check=_check)
@op("QuantizeLinear", types=_TO, check=_check, domain=MS)
@op("DequantizeLinear", types=_FROM)
@op("DequantizeLinear", types=_FROM, domain=MS)
def linear(c: Lowering) -> None:
    """QuantizeLinear-25 and DequantizeLinear-25: for the whole tensor, along an axis, or in blocks along it."""
    scale, x = c.input(1), c.input(0)
    block = c.node.attr("block_size", 0)
    if x.size == 0:
        return
    if not block or scale.spec.rank != x.spec.rank:
        elementwise(c)
        return
    along = axis(c.node.attr("axis", 1), x.spec.rank)
    length = x.shape[along]
    if scale.shape[along] != -(-length // block):
        raise Refused(f"{c.node.op}: {scale.shape[along]} blocks of {block} over an axis of {length}")
    operands = [c.input(i) if c.has(i) else None for i in range(len(c.node.inputs))]
    before, after = x.shape[:along], x.shape[along + 1 :]
    outer, inner = math.prod(before), math.prod(after)

    def spread(v: Ref | None, shape: tuple[int, ...]) -> Ref | None:
        return None if v is None else v.view(shape)

    if length % block == 0:
        blocks = (outer, length // block, 1, inner)
        shape: tuple[int, ...] = (outer, length // block, block, inner)
        parts = [spread(v, shape if i == 0 else blocks) for i, v in enumerate(operands)]
        emit(c, Step(c.node, parts, c.outs[0].dtype, shape), c.output().view(shape))
        return
    # The last block is short: every element gets its scale first.
    full = (outer, length, inner)
    parts = [operands[0], *(None if v is None else _repeated(c, v, full, block) for v in operands[1:])]
    emit(c, Step(c.node, [spread(v, full) for v in parts], c.outs[0].dtype, full), c.output().view(full))


def _repeated(c: Lowering, v: Ref, shape: tuple[int, int, int], block: int) -> Ref:
    _, length, inner = shape
    full = c.temp(v.dtype, shape)
    group = 1 if c.cpu_class else 64
    chunk = 1024 if c.cpu_class else 1
    sizes = [i64(full.size), i64(length), i64(inner), i64(block)]
    c.launch(
        gpurt_kernels.text("quantize.cl"), "repeat_blocks", [v, full, *sizes], [-(-full.size // (group * chunk))],
        [group], types={"T": BITS[v.dtype.itemsize]}, defines={"GROUP_SIZE": group, "CHUNK": chunk},
    )  # fmt: skip
    return full


FUSIBLE.add(linear)


@op("DynamicQuantizeLinear", types="float32")
def dynamic_quantize_linear(c: Lowering) -> None:
    """DynamicQuantizeLinear-11: the range of the data, with 0, decides scale and zero point of an unsigned byte."""
    x, y, scale, zero = c.input(0), c.output(0), c.output(1), c.output(2)
    dynamic_parameters(c, x, scale, zero)
    quantize(c, x, scale, zero, y)


def dynamic_parameters(c: Lowering, x: Ref, scale: Ref, zero: Ref) -> None:
    """Emit scale (float32) and zero point (uint8) of what DynamicQuantizeLinear makes of x."""
    flat = x.view((x.size,))
    ends = c.temp(F32, (2,))
    if x.size:
        reduce(c, flat, ends.at(0, ()), [0], KINDS["ReduceMin"], F32)
        reduce(c, flat, ends.at(1, ()), [0], KINDS["ReduceMax"], F32)
    c.launch(
        gpurt_kernels.text("quantize.cl"), "byte_range", [ends, scale, zero, i32(x.size > 0)], [1], [1],
        types={"T": F32}, defines={"GROUP_SIZE": 1, "CHUNK": 1},
    )  # fmt: skip


def quantize(c: Lowering, x: Ref, scale: Ref, zero: Ref | None, y: Ref) -> None:
    """Emit QuantizeLinear of a whole tensor."""
    if y.size:
        node = NodeView("QuantizeLinear", (), (), {}, "", c.node.name)
        emit(c, step_for(node, [x, scale, zero], Spec(y.dtype, y.shape)), y)
