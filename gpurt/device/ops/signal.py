"""Fourier transforms: DFT and STFT, of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.lanes import F32, F64
from gpurt.device.ops.movement import launch_rows
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axis as front
from gpurt.provider import Refused

_RADIX: Final = 16
"""Most that small factors of a length are multiplied to: a pass costs a radix' products and one trip to memory."""

_FEW: Final = 256
"""Numbers up to which an inverse transform is not worth a launch. The host's, NumPy's, has the standard's rounding."""


def radices(n: int) -> list[int]:
    """Factors of n, one for each pass; prime factors over _RADIX stay alone."""
    primes, p = [], 2
    while p * p <= n:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    if n > 1 or not primes:
        primes.append(n)
    found = [1]
    for p in primes:
        if found[-1] * p <= _RADIX:
            found[-1] *= p
        else:
            found.append(p)
    return [r for r in found if r > 1] or [1]


def roots(n: int, inverse: bool) -> np.ndarray:
    """(n, 2): cosine and sine of the multiples of a turn's n-th part; exact to the last place in any precision."""
    k = np.arange(n, dtype=np.float64)
    turn = (2 if inverse else -2) * np.pi / n * k
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


@dataclass(frozen=True, slots=True)
class _Transform:
    """What is transformed: rows of elements with `parts` numbers each, `across` of them side by side.

    Attributes:
        n: length of the transform.
        given: elements that there are of a row.
        kept: elements that are wanted.
        rows: number of rows.
        across: elements side by side whose axes are transformed each for itself.
        parts: 1 for real, 2 for complex elements.
        frames: rows that overlap in one signal; 1 where they do not.
        lead: numbers from a signal to the next.
        hop: numbers from a frame to the next.
    """

    n: int
    given: int
    kept: int
    rows: int
    across: int
    parts: int
    frames: int
    lead: int
    hop: int


def _transform(
    c: Lowering, x: Ref, y: Ref, f: _Transform, *, inverse: bool, onesided: bool, window: Ref | None = None
) -> None:
    if not 1 <= f.n < 2**30:
        raise Refused(f"{c.node.op}: no transform of length {f.n}")
    acc = F64 if x.dtype == F64 else F32
    table = c.constant(roots(f.n, inverse).astype(acc))
    factor = acc.type(1 / f.n if inverse else 1)
    plan, run, source = radices(f.n), 1, x
    buffers: list[Ref] = []
    for i, radix in enumerate(plan):
        first, last = i == 0, i == len(plan) - 1
        defines: dict[str, int | float | str] = {}
        if first:
            defines |= {"FIRST": 1, "PARTS": f.parts}
            if inverse and onesided:
                defines["HERMITIAN"] = 1
            if window is not None:
                defines["WINDOW"] = 1
        if last:
            defines["LAST"] = 1
            if inverse and onesided:
                defines["REAL"] = 1
            target = y
        else:
            if len(buffers) < 2:
                buffers.append(c.temp(acc, (f.rows, f.n, f.across, 2)))
            target = buffers[i % 2]
        numbers: list[np.generic] = [i32(v) for v in (f.n, radix, run, f.given, f.kept)]
        numbers += [i64(v) for v in (f.across, f.frames, f.lead, f.hop)]
        launch_rows(
            c,
            "signal.cl",
            "dft_pass",
            [source, table, *([window] if first and window is not None else []), target, *numbers, factor],
            f.rows,
            (f.kept if last else f.n) * f.across,
            types={"T": x.dtype, "D": y.dtype, "A": acc},
            defines=defines,
            work=4 * radix,
        )
        source, run = target, run * radix


def _dft_check(node: NodeView, _: DeviceInfo) -> str | None:
    x = node.inputs[0]
    if not node.attr("inverse", 0) or node.attr("onesided", 0) or x is None or x.shape is None:
        return None
    sizes = [d for d in x.shape if isinstance(d, int)]
    if len(sizes) == len(x.shape) and math.prod(sizes) <= _FEW:
        return f"an inverse transform of {math.prod(sizes)} numbers is done on the host while a launch would begin"
    return None


@op("DFT", types=FLOATS, host=(1, 2), check=_dft_check)
def dft(c: Lowering) -> None:
    """DFT-20: forward and inverse, of real, complex and half spectra, cut or filled up with zeros to dft_length."""
    x, y = c.input(0), c.output()
    if x.shape[-1] not in (1, 2):
        raise Refused(f"DFT: elements of {x.shape[-1]} numbers")
    (given_axis,) = c.ints(2) or [-2]
    along = front(given_axis, len(x.shape))
    inverse, onesided = bool(c.node.attr("inverse", 0)), bool(c.node.attr("onesided", 0))
    if y.size == 0:
        return
    length = x.shape[along]
    if c.has(1):
        (length,) = c.ints(1) or [length]
    elif inverse and onesided:
        length = 2 * (length - 1)
    given = min(x.shape[along], length // 2 + 1 if inverse and onesided else length)
    across = math.prod(x.shape[along + 1 : -1])
    f = _Transform(
        length, given, y.shape[along], math.prod(x.shape[:along]), across, x.shape[-1], 1,
        x.shape[along] * across * x.shape[-1], 0,
    )  # fmt: skip
    _transform(c, x, y, f, inverse=inverse, onesided=onesided)


@op("STFT", types=FLOATS, host=(1, 3))
def stft(c: Lowering) -> None:
    """STFT-17: the first pass reads the frames where they are in the signal, with the window's weights."""
    x, y = c.input(0), c.output()
    parts = x.shape[2] if len(x.shape) == 3 else 1
    if parts not in (1, 2):
        raise Refused(f"STFT: elements of {parts} numbers")
    if y.size == 0:
        return
    window = c.input(2) if c.has(2) else None
    (step,) = c.ints(1) or [0]
    if c.has(3):
        (frame,) = c.ints(3) or [0]
    else:
        frame = x.shape[1] if window is None else window.size
    given = frame if window is None else min(frame, window.size)
    f = _Transform(
        frame, given, y.shape[2], y.shape[0] * y.shape[1], 1, parts, y.shape[1], x.shape[1] * parts, step * parts
    )
    _transform(c, x, y, f, inverse=False, onesided=bool(c.node.attr("onesided", 1)), window=window)
