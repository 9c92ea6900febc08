"""LRN with channels last."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.lowering import Lowering
from gpurt.device.ops.channels_last.conv import check
from gpurt.device.ops.channels_last.depthwise import lanes_of, rows_each
from gpurt.device.ops.gemm import I32_MAX
from gpurt.device.scalars import i32
from gpurt.device.table import op
from gpurt.graph.channels_last import DOMAIN
from gpurt.provider import Refused

_MOST: Final = 4096  # channels and window together: an item keeps so many floats of its own


@op("LRN", domain=DOMAIN, types="float32", check=check)
def lrn(c: Lowering) -> None:
    """LRN (ONNX 13) with channels last: x [N, spatial, C]."""
    x, size = c.input(0), int(c.node.attr("size", 1))
    channels, pixels = x.shape[-1], math.prod(x.shape[:-1])
    if x.size == 0:
        return
    if channels + size > _MOST or pixels > I32_MAX:
        raise Refused(f"LRN with channels last over {channels} channels and a window of {size}")
    per = rows_each(pixels, channels * size, c.info.compute_units)
    beta = c.node.attr("beta", 0.75)
    scalars = [c.node.attr("alpha", 1e-4) / size, beta, c.node.attr("bias", 1.0)]
    c.launch(
        "".join(gpurt_kernels.text(n) for n in ("batch.h", "channels_last.h", "lrn_last.cl")),
        "lrn_last",
        [x, c.output(), i32(pixels), i32(per), *(np.float32(s) for s in scalars)],
        [-(-pixels // per)],
        defines={
            "LANES": lanes_of(int(channels)),
            "CHANNELS": int(channels),
            "SIZE": size,
            "BEFORE": (size - 1) // 2,
            "ROOTS": int(beta == 0.75),
        },
    )
