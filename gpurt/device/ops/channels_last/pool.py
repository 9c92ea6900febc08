"""MaxPool and AveragePool with channels last."""

from __future__ import annotations

from gpurt.device.chains import behind, chained_text
from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS
from gpurt.device.lowering import Lowering
from gpurt.device.ops.channels_last.conv import check
from gpurt.device.ops.channels_last.depthwise import lanes_of, rows_each
from gpurt.device.ops.conv_shape import three
from gpurt.device.ops.pool import windowed
from gpurt.device.prologue import FED
from gpurt.device.scalars import i32
from gpurt.device.table import op
from gpurt.device.views import BESIDE, row_of
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_geometry, window_arguments


def _check(node: NodeView, info: DeviceInfo) -> str | None:
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        return "places of the maxima with channels last"
    return check(node, info)


@op("MaxPool", "AveragePool", domain=DOMAIN, types="float32", check=_check)
def pool(c: Lowering) -> None:
    """MaxPool and AveragePool (ONNX 22) with channels last: x [N, spatial, C]."""
    x, y, node = c.input(0), c.output(), c.node
    kernel = tuple(int(k) for k in node.attr("kernel_shape"))
    strides, dilations, _ = window_arguments(len(kernel), node.attr("strides"), node.attr("dilations"), None)
    sizes, begins, ends = conv_geometry(
        x.shape[1:-1], kernel, strides, dilations, node.attr("pads"), node.attr("auto_pad", "NOTSET"),
        bool(node.attr("ceil_mode", 0)),
    )  # fmt: skip
    if y.size == 0:
        return
    size, out = three(x.shape[1:-1], 1), three(sizes, 1)
    limits = three(tuple(n + end for n, end in zip(x.shape[1:-1], ends, strict=True)), 1)
    taps = three(kernel, 1)
    rows, channels = x.shape[0] * out[1], x.shape[-1]
    per = rows_each(rows, out[2] * channels * taps[1] * taps[2], c.info.compute_units)
    numbers = (*size[1:], channels, row_of(y), *out[1:], *taps[1:], *three(strides, 1)[1:], *three(dilations, 1)[1:],
               *three(begins, 0)[1:], *limits[1:], rows, per)  # fmt: skip
    text, data = windowed(c, x, (channels, 1), kernel, strides)
    more, results = behind(c.epilogue, channels)
    c.launch(
        chained_text(text + more, "batch.h", "channels_last.h", "pool_last.cl"),
        "pool_last",
        [*data, y, *results, *(i32(v) for v in numbers)],
        [-(-rows // per)],
        defines={
            "LANES": lanes_of(channels),
            "AVERAGE": int(node.op_type == "AveragePool"),
            "PADDED": int(node.attr("count_include_pad", 0)),
        },
    )


BESIDE.add(pool)
HEADS.add(pool)
FED.add(pool)
