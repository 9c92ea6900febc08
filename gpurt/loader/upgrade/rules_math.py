"""Upgrades of arithmetic, comparison, activation and normalisation: broadcasting of old, Clip, Softmax, Cast."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from gpurt.errors import InvalidGraph
from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import Site


@upgrade("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Less", "Greater", "Equal", upto=6, types=True)
def axis_broadcast(at: Site) -> None:
    """``Add(A, B; broadcast, axis) -> Add(A, Reshape(B))``: B stood at ``axis`` of A, today it stands at the end."""
    broadcast, axis = at.pop("broadcast", 0), at.pop("axis")
    if broadcast and axis is not None:
        at.set_inputs(at.need(0), _align(at, at.need(0), at.need(1), axis))


def _align(at: Site, a: ir.Value, b: ir.Value, axis: int) -> ir.Value:
    rank, inner = at.rank(a), at.rank(b)
    if rank is not None and inner is not None:
        start = axis + rank if axis < 0 else axis
        missing = rank - start - inner
        if missing < 0 or start < 0:
            raise InvalidGraph(
                f"axis {axis} does not fit ranks {rank} and {inner}", node=at.node.name, op=at.node.op_type
            )
        if missing == 0:
            return b
        return at.op("Unsqueeze", [b, at.ints(list(range(inner, inner + missing)), "axes")])
    # rank(A) - axis - rank(B) ones behind B's own dimensions; a negative axis counts from A's end
    behind = at.op("Shape", [at.op("Shape", [a])])
    behind = at.ints([-axis], "behind") if axis < 0 else at.op("Sub", [behind, at.ints([axis], "axis")])
    shape = at.op("Shape", [b])
    ones = at.op("Expand", [at.ints([1], "one"), at.op("Sub", [behind, at.op("Shape", [shape])])])
    return at.op("Reshape", [b, at.op("Concat", [shape, ones], axis=0)])


@upgrade("PRelu", upto=6, types=True)
def prelu(at: Site) -> None:
    """``PRelu(X, slope[C]) -> PRelu(X, slope[C, 1, ...])``: a slope per channel had no trailing ones."""
    x, slope = at.need(0), at.need(1)
    rank, inner = at.rank(x), at.rank(slope)
    if inner is not None and inner != 1:
        return
    if slope.shape is not None and slope.shape[0] == 1:
        return
    if rank is not None:
        if rank > 2:
            at.set_inputs(x, at.op("Reshape", [slope, at.ints([-1] + [1] * (rank - 2), "shape")]))
        return
    ones = at.op(
        "Expand", [at.ints([1], "one"), at.op("Sub", [at.op("Shape", [at.op("Shape", [x])]), at.ints([2], "two")])]
    )
    at.set_inputs(x, at.op("Reshape", [slope, at.op("Concat", [at.ints([-1], "channels"), ones], axis=0)]))


@upgrade("Gemm", upto=6)
def gemm(at: Site) -> None:
    """``Gemm(A, B, C; broadcast) -> Gemm(A, B, C)``: C broadcasts by itself today."""
    at.pop("broadcast")


@upgrade("Cast", upto=5)
def cast(at: Site) -> None:
    """``Cast(x; to="FLOAT") -> Cast(x; to=1)``."""
    to = at.attr("to")
    if isinstance(to, str):
        if to.upper() not in onnx.TensorProto.DataType.keys():  # noqa: SIM118 - the enum wrapper is no dict
            raise InvalidGraph(f"{to!r} is no element type", node=at.node.name, op="Cast")
        at.set(to=int(onnx.TensorProto.DataType.Value(to.upper())))


@upgrade("Clip", upto=10, types=True)
def clip(at: Site) -> None:
    """``Clip(x; min, max) -> Clip(x, min, max)``; left out, they were the limits of float32."""
    x = at.need(0)
    low, high = at.pop("min"), at.pop("max")
    at.set_inputs(
        x,
        None if low is None else at.scalar_like(low, "min", x),
        None if high is None else at.scalar_like(high, "max", x),
    )


@upgrade("Softmax", "LogSoftmax", "Hardmax", upto=12, types=True)
def softmax(at: Site) -> None:
    """``Softmax-11(x; axis) -> Reshape(Softmax(Flatten(x)), Shape(x))``: all from ``axis`` on was one dimension."""
    x, axis = at.need(0), at.pop("axis", 1)
    rank = at.rank(x)
    at.set(axis=-1)
    if axis == -1 or (rank is not None and axis % max(rank, 1) == rank - 1):
        return
    name = at.node.op_type
    flat = at.op("Flatten", [x], axis=axis)
    done = at.op(name, [flat], axis=-1)
    at.replace(at.op("Reshape", [done, at.op("Shape", [x])]))


@upgrade("Dropout", upto=11)
def dropout(at: Site) -> None:
    """``Dropout(x; ratio) -> Dropout(x, ratio)``: nothing is dropped in inference; old masks were no booleans."""
    at.pop("is_test")
    x = at.need(0)
    at.set_inputs(x, at.const(at.pop("ratio", 0.5), "ratio", np.float32))
    if at.opset < 10 and at.wanted(1):
        y, mask = at.ops("Dropout", list(at.node.inputs), 2)
        at.replace(y, at.op("CastLike", [mask, x]))


@upgrade("BatchNormalization", upto=13)
def batch_normalization(at: Site) -> None:
    """Inference form with one output; ``spatial=0``, with statistics for every position, is spelled out."""
    at.pop("is_test")
    spatial = at.pop("spatial", 1)
    at.drop_outputs(1, "which only training has")
    if at.opset < 9 and not spatial:
        x, scale, bias, mean, var = (at.need(index) for index in range(5))
        deviation = at.op("Sqrt", [at.op("Add", [var, at.scalar_like(at.attr("epsilon", 1e-5), "epsilon", x)])])
        normal = at.op("Div", [at.op("Sub", [x, mean]), deviation])
        at.replace(at.op("Add", [at.op("Mul", [normal, scale]), bias]))


@upgrade("MeanVarianceNormalization", upto=8, legacy=True)
def mean_variance_normalization(at: Site) -> None:
    """``across_channels`` and ``normalize_variance`` of the experimental form become axes, or a plain subtraction."""
    across, variance = at.pop("across_channels"), at.pop("normalize_variance", 1)
    if across is not None or not variance:
        axes = [0, 1, 2, 3] if across else [0, 2, 3]
        if not variance:
            mean = at.op("ReduceMean", [at.need(0), at.ints(axes, "axes")], keepdims=1)
            at.replace(at.op("Sub", [at.need(0), mean]))
        else:
            at.set(axes=axes)
