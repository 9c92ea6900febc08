"""Convolutions and pools over data with the channels last: the kernels for channels first, over transposed views.

No session places them here by preference. They serve where a device that asked for the layout refuses a node later on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.graph.channels_last import DOMAIN
from gpurt_cpu.ops.common import lifted
from gpurt_cpu.ops.conv import conv, conv_transpose
from gpurt_cpu.ops.norm import group_normalization, instance_normalization, lrn
from gpurt_cpu.ops.pool import average_pool, lp_pool, max_pool
from gpurt_cpu.ops.table import Array, op


def _turned(fn: Callable[..., Any]) -> Callable[..., Array]:
    """A kernel for channels first as one for channels last."""

    def run(x: Array, *rest: Array | None, **attributes: Any) -> Array:
        made = fn(np.moveaxis(x, -1, 1), *rest, **attributes)
        return np.ascontiguousarray(np.moveaxis(made, 1, -1))

    return run


@op("Conv", domain=DOMAIN, wants_constants=(1,))
@lifted
def conv_channels_last(x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Array:
    plain = math.prod(w.shape[2:]) == 1 and attributes.get("group", 1) == 1
    moves = any(attributes.get(name) and max(attributes[name]) != one for name, one in (("strides", 1), ("pads", 0)))
    if not plain or moves or x.shape[-1] != w.shape[1]:
        return _turned(conv)(x, w, b, **attributes)
    y = np.matmul(x.reshape(-1, x.shape[-1]), w.reshape(w.shape[:2]).T)
    if b is not None:
        y += b
    return np.asarray(y).reshape(*x.shape[:-1], w.shape[0])


op("ConvTranspose", domain=DOMAIN)(_turned(conv_transpose))
op("MaxPool", domain=DOMAIN)(_turned(max_pool))
op("AveragePool", domain=DOMAIN)(_turned(average_pool))
op("LpPool", domain=DOMAIN)(_turned(lp_pool))
op("LRN", domain=DOMAIN)(_turned(lrn))
op("InstanceNormalization", domain=DOMAIN)(_turned(instance_normalization))
op("GroupNormalization", domain=DOMAIN)(_turned(group_normalization))
