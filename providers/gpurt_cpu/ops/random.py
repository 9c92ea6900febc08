"""Random tensors. A seed makes them repeatable here; other runtimes draw other numbers from the same seed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from gpurt_cpu.ops.cast import cast_to
from gpurt_cpu.ops.common import dtype_of, widen
from gpurt_cpu.ops.table import Array, op

_shared = np.random.default_rng()


def _generator(seed: float | None) -> np.random.Generator:
    """Generator of a seed, which ONNX gives as a float; without one, the process's own."""
    return _shared if seed is None else np.random.default_rng(struct.unpack("<Q", struct.pack("<d", seed))[0])


def _normal(shape: tuple[int, ...], dtype: np.dtype[Any], mean: float, scale: float, seed: float | None) -> Array:
    return cast_to(_generator(seed).standard_normal(shape) * scale + mean, dtype)


def _uniform(shape: tuple[int, ...], dtype: np.dtype[Any], low: float, high: float, seed: float | None) -> Array:
    return cast_to(_generator(seed).uniform(low, high, shape), dtype)


def _type(x: Array, dtype: int | None) -> np.dtype[Any]:
    return x.dtype if dtype is None else dtype_of(dtype)


@op("RandomNormal")
def random_normal(
    *, shape: tuple[int, ...], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    return _normal(tuple(shape), dtype_of(dtype), mean, scale, seed)


@op("RandomNormalLike")
def random_normal_like(
    x: Array, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    return _normal(x.shape, _type(x, dtype), mean, scale, seed)


@op("RandomUniform")
def random_uniform(
    *, shape: tuple[int, ...], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Array:
    return _uniform(tuple(shape), dtype_of(dtype), low, high, seed)


@op("RandomUniformLike")
def random_uniform_like(
    x: Array, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Array:
    return _uniform(x.shape, _type(x, dtype), low, high, seed)


@op("Bernoulli")
def bernoulli(x: Array, *, dtype: int | None = None, seed: float | None = None) -> Array:
    return cast_to(_generator(seed).random(x.shape) < widen(x), _type(x, dtype))


@op("Multinomial")
def multinomial(x: Array, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Array:
    """Draw classes from unnormalised log-probabilities (batch, classes)."""
    scores = widen(x).astype(np.float64)
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    edges = np.cumsum(weight, axis=1)
    drawn = _generator(seed).random((x.shape[0], sample_size)) * edges[:, -1:]
    picked = [np.searchsorted(e, d, side="right") for e, d in zip(edges, drawn, strict=True)]
    index: Array = np.minimum(np.array(picked).reshape(x.shape[0], sample_size), x.shape[1] - 1)
    return index.astype(dtype_of(dtype))
