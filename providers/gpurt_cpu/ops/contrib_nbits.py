"""Weights of two to eight bits in blocks with a scale each: products with them, and rows of embeddings."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import F32, axis_in, widen
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"
_CHUNK = 1 << 19  # weights unpacked at a time: as floats they fit a second-level cache, nearly
# One element of these types holds the floats of all the codes in a byte, so that they are looked up at once.
_HOLDERS: dict[int, np.dtype[Any]] = {4: np.dtype(np.complex64), 2: np.dtype(np.complex128)}
# The values of bitsandbytes' FP4 and NF4 codes.
_FP4 = (0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@functools.cache
def _codes(bits: int) -> Array:
    """For each byte the codes in it, lowest bits first, in one element."""
    parts = [(np.arange(256) >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.ascontiguousarray(np.stack(parts, axis=1).astype(F32)).view(_HOLDERS[bits]).reshape(-1)


@functools.cache
def _bnb4_values(quant_type: int) -> Array:
    """For each byte its two values in one element; the first is in the high bits."""
    table = np.array(_NF4 if quant_type else (*_FP4, *(-v for v in _FP4)), F32)
    every = np.arange(256)
    return np.ascontiguousarray(np.stack([table[every >> 4], table[every & 15]], axis=1)).view(np.complex64).reshape(-1)


def unpacked(packed: Array, bits: int) -> Array:
    """Codes in the bytes of an array as floats: the last axis grows by as many as a byte holds."""
    if bits == 8:
        return packed.astype(F32)
    return np.take(_codes(bits), packed).view(F32)


def _check_bits(bits: int) -> None:
    if bits not in (2, 4, 8):
        raise InvalidArgument(f"bits is {bits}", remedy="Use 2, 4 or 8, whose codes fill a byte")


def _zero_points(given: Array | None, shape: tuple[int, int], bits: int) -> Array:
    """Zero points (rows, blocks), or one for all; bytes are packed like the weights, floats are not."""
    if given is None:
        return np.full((1, 1), 1 << (bits - 1), F32)
    if given.dtype == np.uint8:
        return unpacked(given.reshape(shape[0], -1), bits)[:, : shape[1]]
    return widen(given).reshape(shape)


@op("MatMulNBits", domain=MS)
def matmul_nbits(
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    accuracy_level: int = 0,  # noqa: ARG001 - the least that is asked for; float32 is more than any of them
    bits: int = 4,
    weight_prepacked: int = 0,
) -> Array:
    _check_bits(bits)
    if weight_prepacked:
        raise InvalidArgument(
            f"weight_prepacked is {weight_prepacked}", remedy="Only the portable layout is known: export with 0"
        )
    x = widen(a).reshape(-1, K)
    y = np.zeros((x.shape[0], N), F32)
    if b.size:  # an empty weight stands for a projection that is left out
        blocks = -(-K // block_size)
        packed, scale = b.reshape(N, blocks, -1), widen(scales).reshape(N, blocks)
        zero = np.broadcast_to(_zero_points(zero_points, (N, blocks), bits), (N, blocks))
        group = None if g_idx is None else g_idx[:K]
        step = max(_CHUNK // max(blocks * block_size, 1), 1)
        for start in range(0, N, step):
            rows = slice(start, start + step)
            w = unpacked(packed[rows], bits)
            if group is None:
                w -= zero[rows, :, None]
                w *= scale[rows, :, None]
                w = w.reshape(w.shape[0], -1)[:, :K]
            else:  # each column names its block
                w = w.reshape(w.shape[0], -1)[:, :K]
                w = (w - zero[rows][:, group]) * scale[rows][:, group]
            np.matmul(x, w.T, out=y[:, rows])
    if bias is not None:
        y += widen(bias)
    return y.reshape(*a.shape[:-1], N).astype(a.dtype, copy=False)


@op("MatMulBnb4", domain=MS)
def matmul_bnb4(
    a: Array,
    b: Array,
    absmax: Array,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,  # noqa: ARG001 - what it keeps for the backward pass is no output
    transB: int = 1,
) -> Array:
    if quant_type not in (0, 1):
        raise InvalidArgument(f"quant_type is {quant_type}", remedy="Use 0 for FP4 or 1 for NF4")
    values = np.take(_bnb4_values(quant_type), b.reshape(-1)).view(F32)[: N * K]
    scale = np.repeat(widen(absmax).reshape(-1), block_size)[: N * K]
    w = (values * scale).reshape(N, K)
    return np.asarray(np.matmul(widen(a), w.T if transB else w)).astype(a.dtype, copy=False)


@op("GatherBlockQuantized", domain=MS)
def gather_block_quantized(
    data: Array,
    indices: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Array:
    along, blocked = axis_in(gather_axis, data.ndim), axis_in(quantize_axis, data.ndim)
    packed = data.dtype == np.uint8
    if packed:
        _check_bits(bits)
        if along == data.ndim - 1 and bits < 8:
            raise InvalidArgument("bytes that hold several codes cannot be gathered one by one", remedy="gather_axis 0")
    length = data.shape[along]
    inside = (indices >= -length) & (indices < length)
    place = np.where(inside, np.where(indices < 0, indices + length, indices), 0)
    picked = np.take(data, place, axis=along)
    x = unpacked(picked, bits) if packed else picked.astype(F32)
    size = block_size or math.prod(data.shape[blocked : blocked + 1])

    def spread(v: Array) -> Array:
        """A value for each block, gathered and repeated like the data."""
        if along == blocked:
            return np.take(v, place // size, axis=along)
        v = np.take(v, place if v.shape[along] > 1 else np.zeros_like(place), axis=along)
        axis = blocked if blocked < along else blocked + indices.ndim - 1
        return np.repeat(v, size, axis=axis)[(slice(None),) * axis + (slice(0, x.shape[axis]),)]

    if zero_points is not None:
        x -= spread(unpacked(zero_points, bits)[..., : scales.shape[-1]] if packed else zero_points.astype(F32))
    elif packed:
        x -= np.float32(1 << (bits - 1))
    x *= spread(widen(scales))
    if not inside.all():
        x[(slice(None),) * along + (~inside,)] = 0
    return x.astype(scales.dtype, copy=False)
