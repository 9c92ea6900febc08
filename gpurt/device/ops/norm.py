"""Normalisations: layer (17), RMS (23), instance (22), group (21), batch (15), Lp (22), mean-variance and LRN (13)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import gpurt_kernels
from gpurt.device.chains import chains
from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS, Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.elementwise import step_for
from gpurt.device.ops.lanes import (
    F32,
    F64,
    Args,
    accumulator,
    collapse,
    flat_group,
    lanes,
    measured_group,
    measured_share,
    share,
)
from gpurt.device.ops.reduce import KINDS, Reduction, lp_norm, reduce
from gpurt.device.prologue import FED, STORING, Prologue
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.infer import shapes
from gpurt.provider import Refused

PIECE = 4096


def _widest(*refs: Ref | None) -> np.dtype:
    return F64 if any(r is not None and r.dtype == F64 for r in refs) else F32


def normalize_rows(
    c: Lowering,
    x: Ref,
    y: Ref,
    rows: int,
    r: int,
    epsilon: float,
    *,
    scale: Ref | None = None,
    bias: Ref | None = None,
    channels: tuple[int, int, int] | None = None,
    mean: Ref | None = None,
    deviation: Ref | None = None,
    rms: bool = False,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    """Emit the normalisation of rows of r elements; y may be the memory of x.

    Args:
        c: where to emit.
        x: data, rows * r elements.
        y: result.
        rows: number of rows.
        r: elements of a row.
        epsilon: added to the variance.
        scale: factor for each element of a row, or for each channel.
        bias: summand likewise, of the scale's dtype.
        channels: (rows of an image, channels of a row, elements of a channel) where scale and bias are by channel.
        mean: where to store the rows' means.
        deviation: where to store the inverse deviations.
        rms: normalise by the root of the mean square, around no mean.
        prologue: what computes x, if it can do so where x is read; y keeps the values meanwhile, or x if it is wanted.
        epilogue: what is computed of y, if it can be where y is stored.
    """
    if r >= 2**31:
        raise Refused(f"{c.node.op}: a row of {r} elements is too long")
    acc = _widest(x, scale, y)
    if prologue is not None and (acc != accumulator(x.dtype) or not (prologue.wanted or x.dtype == y.dtype)):
        prologue = None
    types = {"T": x.dtype, "U": y.dtype, "A": acc}
    side_by_side = channels[2] if channels else r
    around = chains(x, r, 1, prologue, epilogue if acc == F32 else None, side_by_side)
    args: Args = around.data
    defines: dict[str, int | float | str] = {} if channels else {"ELEMENT": ""}
    if prologue is not None and prologue.used and prologue.wanted:
        args.append(x)
        defines["PROLOGUE_OUT"] = ""
    if rms:
        defines["RMS"] = ""
    for name, ref in (("SCALE", scale), ("BIAS", bias)):
        if ref is not None:
            args.append(ref)
            defines[name] = ""
            types["S"] = ref.dtype
    args += [y, *around.results]
    for name, ref in (("MEAN", mean), ("DEVIATION", deviation)):
        if ref is not None:
            args.append(ref)
            defines[name] = ""
            types["M"] = ref.dtype
    groups, in_row, spatial = channels or (1, 1, max(r, 1))
    geometry = [i32(r), i32(groups), i32(in_row), i32(spatial), np.float32(epsilon)]
    body = around.text + gpurt_kernels.text("norm.cl")
    kind = f"{x.dtype}{around.kind}"
    if c.cpu_class:
        items, per = measured_share(c, "norm", kind, rows, 2 * r)
        args += [i64(rows), per, *geometry]
        c.launch(lanes(acc, types) + body, "normalize_rows", args, [items], types=types, defines=defines)
        return
    if r >= 32:
        defines["SHARED_ROW"] = ""
        block, grid = measured_group(c, "norm", kind, rows, r), rows
    else:
        block = flat_group(c)
        grid = -(-rows // block)
    defines["BLOCK"] = block
    args += [i64(rows), i64(1), *geometry]
    c.launch(body, "normalize_rows", args, [grid], [block], types=types, defines=defines)


def _trailing(c: Lowering, x: Ref, position: int, axis: int) -> str | None:
    """How a scale or bias lies on the rows: "element" for each, "one" for all; None where it really broadcasts."""
    if not c.has(position):
        return "any"
    shape = c.input(position).shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    if not shape:
        return "one"
    row = x.shape[axis:]
    while row and row[0] == 1:
        row = row[1:]
    return "element" if shape == row else None


def _layer(
    c: Lowering,
    x: Ref,
    epsilon: float,
    axis: int,
    *,
    scale: int,
    bias: int | None = None,
    mean: int | None = None,
    deviation: int | None = None,
    rms: bool,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    # scale and bias are positions of inputs, mean and deviation of outputs
    y = c.output()
    axis = shapes.axis(axis, len(x.shape)) if x.shape else 0
    rows, r = math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    modes = {_trailing(c, x, p, axis) for p in (scale, bias) if p is not None} - {"any"}
    if r == 1:
        modes = {"one"} if modes <= {"one", "element"} else modes
    factor = c.input(scale) if c.has(scale) else None
    shift = c.input(bias) if bias is not None and c.has(bias) else None
    center = c.output(mean) if mean is not None and c.wants(mean) else None
    inverse = c.output(deviation) if deviation is not None and c.wants(deviation) else None
    if len(modes) > 1 or None in modes:
        # Scales that broadcast over rows are rare: normalise, then multiply and add like anybody else.
        plain = c.temp(y.dtype, x.shape)
        normalize_rows(c, x, plain, rows, r, epsilon, rms=rms, mean=center, deviation=inverse, prologue=prologue)
        if shift is None:
            c.emit("Mul", [plain, factor], out=y)
        else:
            scaled = c.emit("Mul", [plain, factor])[0]
            c.emit("Add", [scaled, shift], out=y)
        return
    channels = (1, 1, max(r, 1)) if modes == {"one"} else None
    normalize_rows(
        c, x, y, rows, r, epsilon, scale=factor, bias=shift, channels=channels, mean=center, deviation=inverse, rms=rms,
        prologue=prologue, epilogue=epilogue,
    )  # fmt: skip


@op("LayerNormalization", types=FLOATS)
def layer_normalization(c: Lowering) -> None:
    """Over all axes from `axis` on; statistics in float or double, whatever stash_type says."""
    _layer(
        c, c.input(0), c.node.attr("epsilon", 1e-5), c.node.attr("axis", -1), scale=1, bias=2, mean=1, deviation=2,
        rms=False, prologue=c.prologue, epilogue=c.epilogue,
    )  # fmt: skip


@op("RMSNormalization", types=FLOATS)
def rms_normalization(c: Lowering) -> None:
    """Division by the root of the mean square; data and scale may differ in type."""
    _layer(
        c,
        c.input(0),
        c.node.attr("epsilon", 1e-5),
        c.node.attr("axis", -1),
        scale=1,
        rms=True,
        prologue=c.prologue,
        epilogue=c.epilogue,
    )


@op("SimplifiedLayerNormalization", types=FLOATS)
@op("SimplifiedLayerNormalization", types=FLOATS, domain="com.microsoft")
def simplified_layer_normalization(c: Lowering) -> None:
    """ONNX Runtime's name for RMSNormalization; it can give the inverse deviation."""
    _layer(
        c, c.input(0), c.node.attr("epsilon", 1e-5), c.node.attr("axis", -1), scale=1, deviation=1, rms=True,
        prologue=c.prologue, epilogue=c.epilogue,
    )  # fmt: skip


@op("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", types=FLOATS, domain="com.microsoft")
def skip_layer_normalization(c: Lowering) -> None:
    """Layer or RMS normalisation of input + skip + bias; the sum is an output of its own."""
    x, skip = c.input(0), c.input(1)
    rms = c.node.op_type == "SkipSimplifiedLayerNormalization"
    beta, bias = (None, 3) if rms else (3, 4)
    trailing = skip.shape
    while trailing and trailing[0] == 1:
        trailing = trailing[1:]
    if trailing != x.shape[len(x.shape) - len(trailing) :] or not x.shape:
        raise Refused(f"{c.node.op}: skip {shapes.text(skip.shape)} repeats within {shapes.text(x.shape)}")
    r = x.shape[-1]
    if skip.size % max(r, 1):
        raise Refused(f"{c.node.op}: skip {shapes.text(skip.shape)} is shorter than a row")
    total = c.output(3) if c.wants(3) else c.temp(x.dtype, x.shape)
    step = step_for(NodeView("Add", (), ()), [x, skip], total.spec)
    if c.has(bias):
        step = step_for(NodeView("Add", (), ()), [step, c.input(bias)], total.spec)
    prologue, start = Prologue(c, step, total, wanted=c.wants(3)), len(c.emitted.launches)
    # ONNX Runtime's default for this operator differs from LayerNormalization's.
    epsilon = c.node.attr("epsilon", 1e-12)
    _layer(
        c, total, epsilon, -1, scale=2, bias=beta, mean=None if rms else 1, deviation=2, rms=rms, prologue=prologue,
        epilogue=c.epilogue,
    )  # fmt: skip
    prologue.settle(c, start)


@op("InstanceNormalization", types=FLOATS)
def instance_normalization(c: Lowering) -> None:
    """Each channel of each image on its own."""
    x = c.input(0)
    n, channels, spatial = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    epsilon = c.node.attr("epsilon", 1e-5)
    normalize_rows(
        c, x, c.output(), n * channels, spatial, epsilon, scale=c.input(1), bias=c.input(2),
        channels=(max(channels, 1), 1, max(spatial, 1)), prologue=c.prologue, epilogue=c.epilogue,
    )  # fmt: skip


@op("GroupNormalization", types=FLOATS)
def group_normalization(c: Lowering) -> None:
    """Groups of channels of each image, scale and bias by channel."""
    x, groups = c.input(0), int(c.node.attr("num_groups", 1))
    n, channels, spatial = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if groups <= 0 or channels % groups:
        raise Refused(f"GroupNormalization: {channels} channels do not divide into {groups} groups")
    each = channels // groups
    normalize_rows(
        c, x, c.output(), n * groups, each * spatial, c.node.attr("epsilon", 1e-5), scale=c.input(1), bias=c.input(2),
        channels=(groups, each, max(spatial, 1)), prologue=c.prologue, epilogue=c.epilogue,
    )  # fmt: skip


_ROWS = (
    layer_normalization, rms_normalization, simplified_layer_normalization, instance_normalization, group_normalization
)  # fmt: skip
FED.update(_ROWS)
STORING.update(_ROWS)
HEADS.update((*_ROWS, skip_layer_normalization))


def _no_training(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    if node.attr("training_mode", 0) or any(v is not None for v in node.outputs[1:]):
        return "BatchNormalization is for inference only: it does not update its statistics"
    return None


def _by_channel(x: Ref) -> tuple[int, int, int]:
    return (x.shape[0] if x.shape else 1, x.shape[1] if len(x.shape) > 1 else 1, math.prod(x.shape[2:]))


def _launch_planes(
    c: Lowering,
    entry: str,
    tensors: Sequence[Ref],
    sizes: tuple[int, int, int],
    scalars: Sequence[np.generic],
    types: dict[str, np.dtype],
    macro: str,
) -> None:
    n, channels, spatial = sizes
    total = n * channels * spatial
    if total == 0:
        return
    body = gpurt_kernels.text("channels.cl")
    defines: dict[str, int | float | str] = {macro: "", "BLOCK": 1, "PIECE": PIECE}
    if c.cpu_class:
        tasks = n * channels * -(-spatial // PIECE)
        grid, per = share(tasks, min(spatial, PIECE))
        body = lanes(types["A"], types) + body
    else:
        tasks = total
        defines["BLOCK"] = block = flat_group(c)
        grid, per = -(-tasks // block), i64(1)
    args: Args = [*tensors, i64(tasks), per, i64(channels), i64(spatial), *scalars]
    c.launch(body, entry, args, [grid], [int(defines["BLOCK"])], types=types, defines=defines)


@op("BatchNormalization", types=FLOATS, check=_no_training)
def batch_normalization(c: Lowering) -> None:
    """By channel: (x - mean) * scale / sqrt(variance + epsilon) + bias."""
    x, scale, bias, mean, variance = (c.input(i) for i in range(5))
    types = {"T": x.dtype, "P": scale.dtype, "M": mean.dtype, "A": _widest(x, scale, mean)}
    epsilon = np.float32(c.node.attr("epsilon", 1e-5))
    tensors = [x, scale, bias, mean, variance, c.output()]
    _launch_planes(c, "batch_norm", tensors, _by_channel(x), [epsilon], types, "BATCH_NORM")


@op("LRN", types=FLOATS)
def lrn(c: Lowering) -> None:
    """Division by a power of the squares in neighbouring channels."""
    x, size = c.input(0), int(c.node.attr("size", 1))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    alpha = np.float32(c.node.attr("alpha", 1e-4) / size)
    scalars: list[np.generic] = [i64(before), i64(after), alpha, np.float32(c.node.attr("beta", 0.75))]
    scalars.append(np.float32(c.node.attr("bias", 1.0)))
    types = {"T": x.dtype, "A": accumulator(x.dtype)}
    _launch_planes(c, "lrn", [x, c.output()], _by_channel(x), scalars, types, "LRN")


def _apply(c: Lowering, x: Ref, statistics: Ref, y: Ref, axes: Sequence[int], expression: str) -> None:
    """Emit y = expression(v, s), s being the statistic over the axes that belongs to the element v."""
    runs = collapse(x.shape, axes)
    strides, stride = [], 1
    for size, reduced in reversed(runs):
        strides.append(0 if reduced else stride)
        stride *= 1 if reduced else size
    padding = 8 - len(runs)
    sizes = [1] * padding + [size for size, _ in runs]
    steps = [0] * padding + strides[::-1]
    chunk, block = (4096, 1) if c.cpu_class else (1, flat_group(c))
    c.launch(
        "channels.cl",
        "apply",
        [x, statistics, y, i64(x.size), *(i64(v) for v in (*sizes[1:], *steps))],
        [-(-x.size // (chunk * block))],
        [block],
        types={"T": x.dtype, "A": statistics.dtype, "U": y.dtype},
        defines={"APPLY(v, s)": expression, "CHUNK": chunk, "BLOCK": block},
    )


def _statistics(c: Lowering, x: Ref, axes: Sequence[int], kind: Reduction, acc: np.dtype) -> Ref:
    kept = [size for i, size in enumerate(x.shape) if i not in axes]
    result = c.temp(acc, kept)
    reduce(c, x, result, axes, kind, acc)
    return result


def _few_runs(c: Lowering, x: Ref) -> None:
    if len(x.shape) > 8:
        raise Refused(f"{c.node.op} of {len(x.shape)} axes")


@op("LpNormalization", types=FLOATS)
def lp_normalization(c: Lowering) -> None:
    """Division by the p-norm along an axis; where that is zero, the result is zero."""
    x = c.input(0)
    _few_runs(c, x)
    axes = [shapes.axis(c.node.attr("axis", -1), len(x.shape))] if x.shape else []
    acc = accumulator(x.dtype)
    norms = _statistics(c, x, axes, lp_norm(int(c.node.attr("p", 2)), acc), acc)
    _apply(c, x, norms, c.output(), axes, "((s) == 0 ? (A)0 : (v) / (s))")


@op("MeanVarianceNormalization", types=FLOATS)
def mean_variance_normalization(c: Lowering) -> None:
    """(x - mean) / (deviation + 1e-9) over any axes, the variance taken around the mean."""
    x = c.input(0)
    _few_runs(c, x)
    axes = shapes.axes(c.node.attr("axes", (0, 2, 3)), len(x.shape))
    acc = accumulator(x.dtype)
    centered = c.temp(acc, x.shape)
    _apply(c, x, _statistics(c, x, axes, KINDS["ReduceMean"], acc), centered, axes, "((v) - (s))")
    mean_square = Reduction("0", "((a) + (b))", pre="((v) * (v))", post="((s) / (A)n)")
    variances = _statistics(c, centered, axes, mean_square, acc)
    small = "1e-9" if acc == F64 else "1e-9f"
    _apply(c, centered, variances, c.output(), axes, f"((v) / (sqrt(s) + {small}))")
