"""Tensors that come from a few numbers: OneHot, EyeLike, ConstantOfShape, Range."""

from __future__ import annotations

import math

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.movement import BITS, launch_rows
from gpurt.device.scalars import i64, scalar
from gpurt.device.table import ANY, COMPUTED, NUMERIC, STORED, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axis as front
from gpurt.provider import Refused

# The depth is the row where it is the last axis (WIDE); else a row is one value of the depth over the axes after it.
_ONE_HOT = """
ROW_KERNEL one_hot(INPUT(I, indices), INPUT(T, values), TENSOR(T, y), const i64 depth, ROW_PARAMS) {
  OPEN_IN(I, indices);
  OPEN_IN(T, values);
  OPEN(T, y);
  const T off = values[0], on = values[1];
  EACH_ROW(row) {
    GLOBAL T *q = y + (i64)row * inner;
#if WIDE
    i64 k = (i64)LD_I(indices, row);
    k = k < 0 ? k + depth : k;
    EACH(i) q[i] = i == k ? on : off;
#else
    const i64 outer = (i64)row / depth, d = (i64)row - outer * depth;
    EACH(i) {
      const i64 k = (i64)LD_I(indices, outer * inner + i);
      q[i] = k == d || k + depth == d ? on : off;
    }
#endif
  }
}
"""

_EYE = """
ROW_KERNEL eye(TENSOR(T, y), const i64 k, ROW_PARAMS) {
  OPEN(T, y);
  EACH_ROW(row) {
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) ST_T(q, i, (T_ACC)(i == row + k));
  }
}
"""

_FILL = """
ROW_KERNEL fill(TENSOR(T, y), const T value, ROW_PARAMS) {
  OPEN(T, y);
  EACH_ROW(row) {
    EACH(i) y[row + i] = value; /* one row only */
  }
}
"""

_RANGE = """
ROW_KERNEL range(TENSOR(T, y), const T_ACC start, const T_ACC delta, ROW_PARAMS) {
  OPEN(T, y);
  EACH_ROW(row) {
    EACH(i) ST_T(y, row + i, start + (T_ACC)i * delta); /* one row only */
  }
}
"""


@op("OneHot", types={None: STORED, 0: NUMERIC}, host=(1,))
def one_hot(c: Lowering) -> None:
    """OneHot-28. An index outside of [-depth, depth) gives the off value all over."""
    indices, y = c.input(0), c.output()
    if c.input(2).size != 2:
        raise Refused(f"OneHot: {c.input(2).size} values instead of off and on")
    at = front(c.node.attr("axis", -1), len(y.shape))
    depth, after = y.shape[at], math.prod(indices.shape[at:])
    before = math.prod(indices.shape[:at])
    rows, inner = (before, depth) if after == 1 else (before * depth, after)
    launch_rows(
        c,
        _ONE_HOT,
        "one_hot",
        [indices, c.input(2), y, i64(depth)],
        rows,
        inner,
        types={"T": BITS[y.dtype.itemsize], "I": indices.dtype},
        defines={"WIDE": int(after == 1)},
    )


def _check_eye(node: NodeView, _: DeviceInfo) -> str | None:
    dtype = node.outputs[0].dtype if node.outputs[0] is not None else None
    return None if dtype is None or dtype in COMPUTED else f"EyeLike of {dtype}"


@op("EyeLike", types=ANY, check=_check_eye)
def eye_like(c: Lowering) -> None:
    """EyeLike-22: the input says only the shape and the type."""
    y = c.output()
    rows, columns = y.shape
    launch_rows(c, _EYE, "eye", [y, i64(c.node.attr("k", 0))], rows, columns, types={"T": y.dtype})


@op("ConstantOfShape", types=ANY, host=(0,))
def constant_of_shape(c: Lowering) -> None:
    """ConstantOfShape-25: zeros of float32 where the attribute is left out."""
    y = c.output()
    given = c.node.attr("value")
    value = np.zeros(1, y.dtype) if given is None else np.ascontiguousarray(given).reshape(-1)[:1]
    bits = BITS[y.dtype.itemsize]
    launch_rows(c, _FILL, "fill", [y, value.view(bits)[0]], 1, y.size, types={"T": bits})


def _check_range(node: NodeView, _: DeviceInfo) -> str | None:
    # The inputs are read on the host, whatever their type is.
    dtype = node.outputs[0].dtype if node.outputs[0] is not None else None
    return None if dtype is None or dtype in COMPUTED else f"no Range kernel for {dtype}"


@op("Range", types=NUMERIC, host=(0, 1, 2), check=_check_range)
def range_(c: Lowering) -> None:
    """Range-27: start + i * delta."""
    y = c.output()
    start, _, delta = (c.number(i) for i in range(3))
    small = y.dtype.itemsize < 4
    acc = np.dtype(np.float32 if y.dtype.kind == "f" else np.int32) if small else y.dtype
    launch_rows(c, _RANGE, "range", [y, scalar(acc, start), scalar(acc, delta)], 1, y.size, types={"T": y.dtype})
