"""Upgrades of neural-network operators: resizing, pooling, recurrence, normalisation by group, transforms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpurt.errors import InvalidGraph
from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import Site


@upgrade("Upsample", upto=1)
def upsample_scales(at: Site) -> None:
    """``Upsample-1(x; height_scale, width_scale) -> Upsample(x; scales)``."""
    height, width = at.pop("height_scale"), at.pop("width_scale")
    if height is not None and width is not None:
        at.set(scales=[1.0, 1.0, float(height), float(width)])


@upgrade("Upsample", upto=8)
def upsample_input(at: Site) -> None:
    """``Upsample(x; scales) -> Upsample(x, scales)``."""
    scales = at.pop("scales")
    if scales is None:
        raise InvalidGraph("attribute 'scales' is missing", node=at.node.name, op="Upsample")
    at.set_inputs(at.need(0), at.const(list(scales), "scales", np.float32))


@upgrade("Upsample", upto=10_000)
def upsample(at: Site) -> None:
    """``Upsample(x, scales) -> Resize(x, , scales)``; opset 10 withdrew the name, not the use."""
    at.rename("Resize")
    _as_resize(at)


@upgrade("Resize", upto=10)
def resize(at: Site) -> None:
    """``Resize-10(x, scales) -> Resize(x, , scales)`` with the mapping that opset 10 had no word for."""
    _as_resize(at)


def _as_resize(at: Site) -> None:
    mode = at.pop("mode", "nearest")
    at.set_inputs(at.need(0), None, at.need(1))
    at.set(
        mode={"bilinear": "linear"}.get(mode, mode),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@upgrade("Resize", upto=18)
def resize_inputs(at: Site) -> None:
    """Inputs that say nothing are left out: a roi that the mode does not read, and scales or sizes without elements."""
    if at.opset <= 10:
        return
    mode = at.attr("coordinate_transformation_mode", "half_pixel")
    x, roi, scales, sizes = (at.input(index) for index in range(4))
    if mode != "tf_crop_and_resize":
        roi = None
    if sizes is not None and sizes.shape is not None and sizes.shape == (0,):
        sizes = None
    if sizes is not None:
        scales = None
    at.set_inputs(x, roi, scales, sizes)
    if mode == "tf_half_pixel_for_nn":
        # floor(x) of the old mapping is the rounding of x - 0.5, which is half_pixel, with halves upwards
        if at.attr("mode", "nearest") != "nearest" or at.attr("nearest_mode", "round_prefer_floor") != "floor":
            at.refuse("tf_half_pixel_for_nn with another nearest_mode than floor")
        at.set(coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")


@upgrade("RoiAlign", upto=15)
def roi_align(at: Site) -> None:
    """The shift by half a pixel, which is the default today, did not exist."""
    at.set(coordinate_transformation_mode="output_half_pixel")


@upgrade("GridSample", upto=19)
def grid_sample(at: Site) -> None:
    """Modes lost their ``bi``: they are not about two dimensions only."""
    mode = at.attr("mode", "bilinear")
    at.set(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@upgrade("LpPool", "GlobalLpPool", upto=1)
def lp_pool(at: Site) -> None:
    """The exponent was a float."""
    p = at.attr("p", 2.0)
    if p != int(p):
        at.refuse(f"the exponent {p} is no integer")
    at.set(p=int(p))


@upgrade("LSTM", "GRU", "RNN", upto=6)
def recurrence(at: Site) -> None:
    """``output_sequence`` goes: an output that is not wanted is not connected."""
    at.pop("output_sequence")


@upgrade("GroupNormalization", upto=20, types=True)
def group_normalization(at: Site) -> None:
    """Scale and bias of a group become those of its channels: each repeated by the number of channels in a group."""
    x, scale, bias = at.need(0), at.need(1), at.need(2)
    groups = at.attr("num_groups")
    channels = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    if isinstance(channels, int):
        repeats = at.ints([1, channels // groups], "repeats")
    else:
        count = at.op("Shape", [x], start=1, end=2)
        repeats = at.op("Concat", [at.ints([1], "one"), at.op("Div", [count, at.ints([groups], "groups")])], axis=0)

    def spread(name: str, index: int) -> ir.Value:
        known = at.known((x, scale, bias)[index])
        if known is not None and isinstance(channels, int):
            return at.const(np.repeat(known, channels // groups), name)
        column = at.op("Unsqueeze", [(x, scale, bias)[index], at.ints([1], "axis")])
        return at.op("Reshape", [at.op("Tile", [column, repeats]), at.ints([-1], "flat")])

    at.set_inputs(x, spread("scale", 1), spread("bias", 2))


@upgrade("DFT", upto=19)
def dft(at: Site) -> None:
    """``DFT(x, length; axis) -> DFT(x, length, axis)``; the axis was 1 where it was not given."""
    at.set_inputs(at.need(0), at.input(1), at.ints(at.pop("axis", 1), "axis"))
