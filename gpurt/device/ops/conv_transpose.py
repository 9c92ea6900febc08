"""ConvTranspose (ONNX 22) in one to three dimensions: a product with every input pixel, then a gather of overlaps."""

from __future__ import annotations

import math

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.conv_shape import three
from gpurt.device.ops.gemm import FLOAT32, I32_MAX, gemm
from gpurt.device.ops.matrices import Mat
from gpurt.device.scalars import i32
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_transpose_geometry, window_arguments
from gpurt.provider import Refused


def _check(node: NodeView, _: DeviceInfo) -> str | None:
    x = node.inputs[0]
    if x is not None and x.rank is not None and not 3 <= x.rank <= 5:
        return f"ConvTranspose with {x.rank - 2} spatial axes"
    return None


@op("ConvTranspose", types="float32 float16", check=_check)
def conv_transpose(c: Lowering) -> None:
    """ConvTranspose: groups, strides, dilations, all paddings, output_padding and output_shape, optional bias."""
    x, w, y = c.input(0), c.input(1), c.output()
    rank = x.spec.rank - 2
    if not 1 <= rank <= 3:
        raise Refused(f"ConvTranspose with {rank} spatial axes")
    node = c.node
    stride, dilation, _ = window_arguments(rank, node.attr("strides"), node.attr("dilations"), None)
    spatial, begins, _ = conv_transpose_geometry(
        x.shape[2:], w.shape[2:], stride, dilation, node.attr("pads"), node.attr("output_padding"),
        node.attr("output_shape"), node.attr("auto_pad", "NOTSET"),
    )  # fmt: skip
    if y.size == 0:
        return
    n, channels = x.shape[:2]
    group, filters = node.attr("group", 1), y.shape[1]
    size, kernel, out = three(x.shape[2:], 1), three(w.shape[2:], 1), three(spatial, 1)
    pixels, taps = math.prod(size), math.prod(kernel)
    if max(pixels, math.prod(out)) > I32_MAX or n * filters > I32_MAX:
        raise Refused("ConvTranspose: a plane has more than 2^31 elements")
    depth, rows = channels // group, filters // group * taps
    cols = c.temp(FLOAT32, (n, filters, taps, pixels))
    gemm(
        c,
        Mat(w, 1, rows, (0, depth * rows)),
        Mat(x, pixels, 1, (channels * pixels, depth * pixels)),
        Mat(cols, pixels, 1, (filters * taps * pixels, rows * pixels)),
        (rows, pixels, depth),
        (n, group),
    )
    bias = [c.input(2)] if c.has(2) else []
    numbers = (n, filters, *size, *out, *kernel, *three(stride, 1), *three(dilation, 1), *three(begins, 0))
    planes = n * filters
    grid = (out[0] * out[1], min(planes, 4096), -(-planes // 4096)) if c.cpu_class else (-(-y.size // 256),)
    c.launch(
        "conv_transpose.cl",
        "conv_transpose",
        [cols, y, *bias, *(i32(v) for v in numbers)],
        grid,
        (1,) if c.cpu_class else (256,),
        types={"T": y.dtype},
        defines={"HAS_BIAS": len(bias)},
    )
