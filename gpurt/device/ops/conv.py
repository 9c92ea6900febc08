"""Conv (ONNX 22) in one to three dimensions as a product over padded planes; depthwise and grouped too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS, Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv_shape import Geometry, geometry
from gpurt.device.ops.depthwise import depthwise, is_depthwise
from gpurt.device.ops.gemm import FLOAT32, I32_MAX, gemm
from gpurt.device.ops.matrices import Columns, Mat, Panels, panels
from gpurt.device.ops.winograd import TILE, can_winograd, filters_of, tiles_of, winograd
from gpurt.device.ops.winograd import pays as winograd_pays
from gpurt.device.scalars import i32
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

SLACK = 16 * 16  # elements behind the planes that the last tile of columns may read


def _check(node: NodeView, _: DeviceInfo) -> str | None:
    x = node.inputs[0]
    if x is not None and x.rank is not None and not 3 <= x.rank <= 5:
        return f"{node.op} with {x.rank - 2} spatial axes"
    return None


@op("Conv", types="float32 float16", check=_check)
def conv(c: Lowering) -> None:
    """Conv (ONNX 22): groups, strides, dilations, all paddings, optional bias."""
    x, w, y = c.input(0), c.input(1), c.output()
    if not 3 <= x.spec.rank <= 5:
        raise Refused(f"Conv with {x.spec.rank - 2} spatial axes")
    g = geometry(c.node, x.shape, w.shape)
    bias = c.input(2) if c.has(2) else None
    if c.cpu_class and x.dtype == FLOAT32 and y.size and _by_winograd(c, g):
        filters = c.packed(1, "winograd", filters_of)
        if filters is not None:
            _, rows, columns = tiles_of(g)
            first = np.array([[0, -g.begin[1], -g.begin[2]]], np.int32)
            planes = pad_planes(c, g, x, first, (1, TILE * rows + 2, TILE * columns + 2))
            winograd(c, g, planes, filters, y, bias, c.epilogue)
            return
    if c.cpu_class and x.dtype == FLOAT32 and y.size and is_depthwise(g):
        depthwise(c, g, padded_columns(c, g, x), w, y, bias, c.epilogue)
        return
    packed = partial(c.packed, 1, "conv as panels", panels_of) if c.cpu_class else None
    convolve(c, g, x, w, y, bias, packed, epilogue=c.epilogue)


HEADS.add(conv)


def _by_winograd(c: Lowering, g: Geometry) -> bool:
    if not can_winograd(g) or c.specs[1] is None or c.specs[1].const is None:
        return False
    default = "winograd" if winograd_pays(g) else "direct"
    sizes = (g.n, g.channels, g.filters, *g.out[1:])
    kind = "float32" if c.epilogue is None else "float32 epilogue"
    return c.choose("conv.3x3", sizes, ("direct", "winograd"), default, kind) == "winograd"


def convolve(
    c: Lowering, g: Geometry, x: Ref, w: Ref, y: Ref, bias: Ref | None, packed: Callable[[], Ref | None] | None = None,
    exact: int = 0, epilogue: Epilogue | None = None,
) -> None:  # fmt: skip
    """Emit a convolution. `packed` gives the filters as panels, for the case that they are the right operand."""
    if y.size == 0:
        return
    if g.group == 1 and g.kernel == g.size and not any(g.begin) and not any(g.end):
        # The window covers the whole input, so there is one pixel for an image: images are the rows of a product.
        panel = packed() if packed is not None else None
        b: Mat | Panels = Mat(w, 1, g.k) if panel is None else Panels(panel)
        row = None if bias is None else Mat(bias, 0, 1)
        gemm(c, Mat(x, g.k, 1), b, Mat(y, g.filters, 1), (g.n, g.filters, g.k), add=row, exact=exact, epilogue=epilogue)
        return
    rows, pixels = g.filters // g.group, g.pixels
    batch = (g.n, g.group)
    a = Mat(w, g.k, 1, (0, rows * g.k))
    out = Mat(y, pixels, 1, (g.filters * pixels, rows * pixels))
    add = None if bias is None else Mat(bias, 1, 0, (0, rows))
    size = (rows, pixels, g.k)
    plain = all(v == 1 for v in (*g.kernel, *g.stride)) and not any(g.begin) and not any(g.end)
    right: Mat | Columns
    if plain:
        channels = g.channels // g.group
        right = Mat(x, pixels, 1, (g.channels * pixels, channels * pixels))
    else:
        right = padded_columns(c, g, x)
    gemm(c, a, right, out, size, batch, add=add, exact=exact, epilogue=epilogue)


def panels_of(w: np.ndarray) -> np.ndarray:
    """Filters as panels of the right operand."""
    return panels(w.reshape(len(w), math.prod(w.shape[1:])).T)


def padded_columns(c: Lowering, g: Geometry, x: Ref) -> Columns:
    """Emit the copy of x into padded planes, and describe the convolution's columns in them."""
    # Each axis: taps with their phase and shift; only phases that a tap reads are made.
    taps = [[divmod(i * d, s) for i in range(k)] for k, d, s in zip(g.kernel, g.dilation, g.stride, strict=True)]
    phases = [sorted({phase for _, phase in axis}) for axis in taps]
    plane = [o + max(shift for shift, _ in axis) for o, axis in zip(g.out, taps, strict=True)]
    plane_size = math.prod(plane)
    all_phases = list(itertools.product(*phases))
    first = np.array([[p - b for p, b in zip(phase, g.begin, strict=True)] for phase in all_phases], np.int32)
    number = {phase: i for i, phase in enumerate(all_phases)}
    offsets = [
        number[d[1], h[1], w[1]] * plane_size + (d[0] * plane[1] + h[0]) * plane[2] + w[0]
        for d, h, w in itertools.product(*taps)
    ]
    per_channel = len(all_phases) * plane_size
    channels = g.channels // g.group
    if channels * per_channel > I32_MAX or plane_size > I32_MAX:
        raise Refused(f"{c.node.op}: the padded input of a group has more than 2^31 elements")
    table = (np.arange(channels)[:, None] * per_channel + np.array(offsets)[None, :]).astype(np.int32)
    planes = pad_planes(c, g, x, first, plane)
    batch = (g.channels * per_channel, channels * per_channel)
    return Columns(planes, c.constant(table.reshape(-1)), (plane[1], plane[2]), g.out, batch)


def pad_planes(c: Lowering, g: Geometry, x: Ref, first: np.ndarray, plane: Sequence[int]) -> Ref:
    """Emit the copy of x into planes of a size, padded with zeros: one for each channel and phase, see conv_pad.cl.

    Args:
        c: the operator's context.
        g: the convolution's numbers.
        x: its input.
        first: where each phase's first value lies in the input, int32 [phases, 3].
        plane: depth, height and width of a plane.
    """
    phases, images = len(first), g.n * g.channels
    elements = images * phases * math.prod(plane)
    dtype = FLOAT32 if c.cpu_class else x.dtype
    planes = c.temp(dtype, (elements + SLACK,))
    sizes = (images, phases, *g.size, *plane, *g.stride, SLACK)
    c.launch(
        "conv_pad.cl",
        "conv_pad",
        [x, planes, c.constant(first), *(i32(v) for v in sizes)],
        [images * phases if c.cpu_class else -(-elements // 256)],
        [1 if c.cpu_class else 256],
        types={"T": x.dtype, "TP": dtype},
    )
    return planes
