"""Pools over regions of interest (RoiAlign, MaxRoiPool), and what puts windows back: MaxUnpool and Col2Im."""

from __future__ import annotations

import math

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.lanes import F32, F64, Args
from gpurt.device.ops.movement import BITS, launch_rows, rank_defines, strides
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, NUMERIC, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_geometry, window_arguments
from gpurt.provider import Refused


def _image(c: Lowering) -> list[np.generic]:
    # Channels, height and width of an input of images.
    x = c.input(0)
    if len(x.shape) != 4:
        raise Refused(f"{c.node.op} is for images, the input has rank {len(x.shape)}")
    if x.size == 0:
        raise Refused(f"{c.node.op} of an empty tensor")
    return [i32(n) for n in x.shape]


def _align_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    if node.attr("mode", "avg") not in ("avg", "max"):
        return f"no RoiAlign kernel for mode {node.attr('mode')!r}"
    if node.attr("coordinate_transformation_mode", "half_pixel") not in ("half_pixel", "output_half_pixel"):
        return f"no RoiAlign kernel for coordinate_transformation_mode {node.attr('coordinate_transformation_mode')!r}"
    return None


@op("RoiAlign", types={None: FLOATS, 2: "int64"}, check=_align_check)
def roi_align(c: Lowering) -> None:
    """RoiAlign-22. The maximum is taken over weighted elements, as by ONNX's reference."""
    x, rois, y, node = c.input(0), c.input(1), c.output(), c.node
    if y.size == 0:
        return
    if rois.shape[1] != 4 or c.input(2).size != rois.shape[0]:
        raise Refused("RoiAlign: regions need four coordinates and an image each")
    image = _image(c)
    acc = F64 if x.dtype == F64 else F32
    half = node.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    block = 8 if c.cpu_class else 2
    defines: dict[str, int | float | str] = {"ROI_ALIGN": 1, "BLOCK_C": block}
    if half:
        defines["HALF_PIXEL"] = 1
    if node.attr("mode", "avg") == "avg":
        defines |= {"START": "(A)0", "COMBINE(a, b)": "((a) + (b))", "END(a, n)": "((a) / (n))"}
    else:
        defines |= {"START": "(A)-INFINITY", "COMBINE(a, b)": "MAX_NAN(a, b)", "END(a, n)": "(a)"}
    numbers: list[np.generic] = [i32(y.shape[3]), i32(node.attr("sampling_ratio", 0))]
    numbers += [acc.type(node.attr("spatial_scale", 1.0)), acc.type(0.5 if half else 0.0)]
    launch_rows(
        c,
        "roi.cl",
        "roi_align",
        [x, rois, c.input(2), y, *image, *numbers],
        y.shape[0] * -(-x.shape[1] // block),
        y.shape[2] * y.shape[3],
        types={"T": x.dtype, "A": acc},
        defines=defines,
        work=16 * block,
    )


@op("MaxRoiPool", types=FLOATS)
def max_roi_pool(c: Lowering) -> None:
    """MaxRoiPool-22: regions of whole elements, bins that overlap by what they have in common (Fast R-CNN)."""
    x, rois, y = c.input(0), c.input(1), c.output()
    if y.size == 0:
        return
    if len(rois.shape) != 2 or rois.shape[1] != 5 or len(y.shape) != 4:
        raise Refused("MaxRoiPool: regions need an image and four coordinates")
    acc = F64 if x.dtype == F64 else F32
    scale = acc.type(c.node.attr("spatial_scale", 1.0))
    launch_rows(
        c,
        "roi.cl",
        "max_roi_pool",
        [x, rois, y, *_image(c), i32(y.shape[3]), scale],
        y.shape[0] * y.shape[1],
        y.shape[2] * y.shape[3],
        types={"T": x.dtype, "A": acc},
        defines={"MAX_ROI_POOL": 1},
        work=16,
    )


@op("MaxUnpool", types={None: FLOATS, 1: "int64"}, host=(2,))
def max_unpool(c: Lowering) -> None:
    """MaxUnpool-22: zeros, and the elements at their indices.

    The indices are those of the output that the windows give; where output_shape asks for more, it is a corner of it.
    """
    x, y, node = c.input(0), c.output(), c.node
    rank = len(x.shape) - 2
    if c.input(1).shape != x.shape or rank < 1:
        raise Refused("MaxUnpool: input and indices differ in shape")
    steps, _, pads = window_arguments(rank, node.attr("strides"), None, node.attr("pads"))
    kernel = node.attr("kernel_shape")
    spatial = [(x.shape[2 + i] - 1) * steps[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank)]
    inner = [*x.shape[:2], *spatial]
    if len(y.shape) != len(inner) or any(n > m for n, m in zip(inner, y.shape, strict=True)):
        raise Refused(f"MaxUnpool: output_shape {list(y.shape)} is less than the {inner} that the windows cover")
    bits = {"T": BITS[x.dtype.itemsize]}
    walk = [(n, s) for n, s in zip(inner, strides(y.shape), strict=True) if n > 1] or [(1, 1)]
    defines: dict[str, int | float | str] = {"MAX_UNPOOL": 1, "RANK": len(walk), **rank_defines("ns", len(walk))}
    launch_rows(c, "roi.cl", "zeros", [y], 1, y.size, types=bits, defines=defines)
    if x.size and y.size:
        args: Args = [x, c.input(1), y, i64(math.prod(inner))]
        launch_rows(
            c, "roi.cl", "max_unpool", args, 1, x.size, types=bits, defines=defines,
            dims=[v for row in walk for v in row], work=4,
        )  # fmt: skip


@op("Col2Im", types=NUMERIC, host=(1, 2))
def col2im(c: Lowering) -> None:
    """Col2Im-18, for any number of axes."""
    x, y, node = c.input(0), c.output(), c.node
    if y.size == 0:
        return
    image, block = c.ints(1) or [], c.ints(2) or []
    rank = len(image)
    steps, dilations, pads = window_arguments(rank, node.attr("strides"), node.attr("dilations"), node.attr("pads"))
    blocks, begins, _ = conv_geometry(image, block, steps, dilations, pads)
    walk = list(zip(image, block, blocks, steps, dilations, begins, strict=True))
    launch_rows(
        c,
        "roi.cl",
        "col2im",
        [x, y, i64(math.prod(block)), i64(math.prod(blocks))],
        y.shape[0] * y.shape[1],
        math.prod(image),
        types={"T": x.dtype},
        defines={"COL2IM": 1, "RANK": rank, **rank_defines("nbmsdp", rank)},
        dims=[v for row in walk for v in row],
        work=4 * math.prod(block),
    )
