"""Signals: Fourier transforms, windows and the mel filter bank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.cast import cast_to
from gpurt_cpu.ops.common import axis_in, dtype_of, lifted, scalar
from gpurt_cpu.ops.table import Array, op


def _complex(x: Array) -> Array:
    """View pairs of the last axis as complex numbers, or drop the axis if it holds only a real part."""
    if x.shape[-1] == 1:
        return x[..., 0]
    if x.shape[-1] != 2:
        raise InvalidArgument(f"the last axis has {x.shape[-1]} elements", remedy="It holds 1 (real) or 2 (complex)")
    return np.ascontiguousarray(x).view(np.complex64 if x.dtype == np.float32 else np.complex128)[..., 0]


def _pairs(x: Array, dtype: np.dtype[Any]) -> Array:
    return np.stack([x.real, x.imag], axis=-1).astype(dtype, copy=False)


@op("DFT")
@lifted
def dft(
    x: Array, dft_length: Array | None = None, axis: Array | None = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    where = axis_in(scalar(axis, -2), x.ndim)
    if where == x.ndim - 1:
        raise InvalidArgument("DFT along the last axis", remedy="That axis holds the real and the imaginary part")
    size = scalar(dft_length)
    signal = _complex(x)
    if inverse and onesided:
        return np.fft.irfft(signal, n=size, axis=where)[..., None].astype(x.dtype)
    if inverse:
        return _pairs(np.fft.ifft(signal, n=size, axis=where), x.dtype)
    if onesided:
        if np.iscomplexobj(signal):
            signal = signal.real
        return _pairs(np.fft.rfft(signal, n=size, axis=where), x.dtype)
    return _pairs(np.fft.fft(signal, n=size, axis=where), x.dtype)


@op("STFT")
@lifted
def stft(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    values = _complex(signal)
    default = values.shape[1] if window is None else window.shape[0]
    size, step = int(scalar(frame_length, default)), int(scalar(frame_step))
    if window is not None and window.shape[0] != size:
        raise InvalidArgument(f"a window of {window.shape[0]} and a frame_length of {size}", remedy="They must agree")
    if size > values.shape[1]:
        raise InvalidArgument(f"a frame of {size} is longer than the signal of {values.shape[1]}")
    frames = np.lib.stride_tricks.sliding_window_view(values, size, axis=1)[:, ::step]
    if window is not None:
        frames = frames * window
    if onesided and not np.iscomplexobj(frames):
        return _pairs(np.fft.rfft(frames, axis=-1), signal.dtype)
    spectrum = np.fft.fft(frames, axis=-1)
    return _pairs(spectrum[..., : size // 2 + 1] if onesided else spectrum, signal.dtype)


def _cosines(size: Array, periodic: int, code: int, *factors: float) -> Array:
    """Alternating sum of cosines of the multiples of the angle around the window."""
    n = int(scalar(size))
    around = n if periodic else max(n - 1, 1)
    angle = np.arange(n) * (2 * math.pi / around) if n else np.zeros(0)
    y = sum(f * (-1) ** k * np.cos(k * angle) for k, f in enumerate(factors))
    return cast_to(np.asarray(y, np.float64), dtype_of(code))


@op("BlackmanWindow")
def blackman_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    return _cosines(size, periodic, output_datatype, 0.42, 0.5, 0.08)


@op("HammingWindow")
def hamming_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    return _cosines(size, periodic, output_datatype, 25 / 46, 21 / 46)


@op("HannWindow")
def hann_window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    return _cosines(size, periodic, output_datatype, 0.5, 0.5)


@op("MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: int = 1,
) -> Array:
    bins, length, rate = (int(scalar(v)) for v in (num_mel_bins, dft_length, sample_rate))
    low, high = (2595 * math.log10(1 + float(scalar(v)) / 700) for v in (lower_edge_hertz, upper_edge_hertz))
    mel = low + np.arange(bins + 2) * ((high - low) / (bins + 2))
    edge = np.floor((length + 1) * (700 * (10 ** (mel / 2595) - 1)) / rate).astype(np.int64)
    left, centre, right = edge[:-2], edge[1:-1], edge[2:]
    line = np.arange(length // 2 + 1)[:, None]
    rise = np.where((line >= left) & (line <= centre), (line - left) / np.maximum(centre - left, 1), 0.0)
    rise = np.where((centre == left) & (line == centre), 1.0, rise)
    fall = (line >= centre) & (line < right)
    y = np.where(fall, (right - line) / np.maximum(right - centre, 1), rise)
    return cast_to(y, dtype_of(output_datatype))
