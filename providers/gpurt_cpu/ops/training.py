"""One step of an optimiser: Adagrad, Adam and Momentum, for any number of tensors at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import scalar
from gpurt_cpu.ops.table import Array, op

DOMAIN = "ai.onnx.preview.training"


def _each(arrays: tuple[Array, ...], kinds: int, step: Callable[..., tuple[Any, ...]]) -> tuple[Array, ...]:
    """Apply a step to each tensor with its gradient and state; all tensors come first, then all gradients, ..."""
    if len(arrays) % kinds:
        raise InvalidArgument(f"{len(arrays)} tensors given", remedy=f"Give {kinds} for each tensor that is optimised")
    count = len(arrays) // kinds
    results = [step(*arrays[i::count]) for i in range(count)]
    return tuple(np.asarray(r[k]).astype(arrays[0].dtype, copy=False) for k in range(kinds - 1) for r in results)


@op("Adagrad", domain=DOMAIN)
def adagrad(
    rate: Array,
    count: Array,
    *arrays: Array,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Array, ...]:
    speed = float(scalar(rate)) / (1 + int(scalar(count)) * decay_factor)

    def step(x: Array, g: Array, h: Array) -> tuple[Any, ...]:
        g = norm_coefficient * x + g
        h = h + g * g
        return x - speed * g / (np.sqrt(h) + epsilon), h

    return _each(arrays, 3, step)


@op("Adam", domain=DOMAIN)
def adam(
    rate: Array,
    count: Array,
    *arrays: Array,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Array, ...]:
    speed, times = float(scalar(rate)), int(scalar(count))
    if times > 0:
        speed *= (1 - beta**times) ** 0.5 / (1 - alpha**times)

    def step(x: Array, g: Array, v: Array, h: Array) -> tuple[Any, ...]:
        g = norm_coefficient * x + g
        v = alpha * v + (1 - alpha) * g
        h = beta * h + (1 - beta) * (g * g)
        return (1 - norm_coefficient_post) * (x - speed * (v / (np.sqrt(h) + epsilon))), v, h

    return _each(arrays, 4, step)


@op("Momentum", domain=DOMAIN)
def momentum(
    rate: Array, count: Array, *arrays: Array, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> tuple[Array, ...]:
    if mode not in ("standard", "nesterov"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'standard' or 'nesterov'")
    speed = float(scalar(rate))
    share = beta if int(scalar(count)) > 0 else 1.0

    def step(x: Array, g: Array, v: Array) -> tuple[Any, ...]:
        g = norm_coefficient * x + g
        v = alpha * v + share * g
        return x - speed * (g + alpha * v if mode == "nesterov" else v), v

    return _each(arrays, 3, step)
