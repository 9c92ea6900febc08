"""Moving elements without computing: shapes, order, joining, cutting and padding. Indexing by data is in scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import axis_in, continued, ints, scalar
from gpurt_cpu.ops.table import Array, op


@op("Identity")
def identity(x: Any) -> Any:
    return x


@op("Reshape")
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    sizes = list(ints(shape))
    if not allowzero:
        if any(s == 0 and i >= x.ndim for i, s in enumerate(sizes)):
            raise InvalidArgument(f"shape {sizes} copies an axis that {x.shape} does not have", remedy="Set allowzero")
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    if -1 in sizes and x.size == 0:
        known = math.prod(s for s in sizes if s != -1)
        sizes = [(0 if known else 1) if s == -1 else s for s in sizes]
    try:
        return x.reshape(sizes)
    except ValueError:
        raise InvalidArgument(
            f"cannot reshape {x.shape} to {tuple(ints(shape))}", remedy="Both need the same number of elements"
        ) from None


@op("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    if axes is None:
        return x.reshape([d for d in x.shape if d != 1])
    where = {axis_in(a, x.ndim) for a in ints(axes)}
    if any(x.shape[a] != 1 for a in where):
        raise InvalidArgument(f"cannot squeeze axes {sorted(where)} of {x.shape}", remedy="Only axes of size 1 can go")
    return x.reshape([d for i, d in enumerate(x.shape) if i not in where])


@op("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    rank = x.ndim + axes.size
    where = {axis_in(a, rank) for a in ints(axes)}
    if len(where) != axes.size:
        raise InvalidArgument(f"axes {ints(axes)} name an axis twice")
    rest = iter(x.shape)
    return x.reshape([1 if i in where else next(rest) for i in range(rank)])


@op("Transpose")
def transpose(x: Array, *, perm: tuple[int, ...] | None = None) -> Array:
    return np.ascontiguousarray(x.transpose(perm or None)).reshape(
        [x.shape[p] for p in perm] if perm else x.shape[::-1]
    )


@op("Concat")
def concat(*arrays: Array, axis: int) -> Array:
    return np.concatenate(arrays, axis=axis_in(axis, arrays[0].ndim))


def split_sizes(length: int, split: Array | None, parts: int | None) -> list[int]:
    """Sizes that an axis is cut into: those given, or equal ones of which the last may be smaller."""
    if split is not None:
        sizes = list(ints(split))
        if sum(sizes) != length or min(sizes, default=0) < 0:
            raise InvalidArgument(f"split {sizes} does not add up to {length}", remedy="Give sizes that fill the axis")
        return sizes
    count = parts or 1
    size = -(-length // count)
    return [max(min(size, length - i * size), 0) for i in range(count)]


def cut(x: Array, sizes: Sequence[int], axis: int) -> list[Array]:
    """Views of consecutive pieces along an axis."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(x[(slice(None),) * axis + (slice(start, start + size),)])
        start += size
    return pieces


@op("Split", wants_outputs=True)
def split(
    x: Array,
    split: Array | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: tuple[bool, ...] = (),
) -> tuple[Array, ...]:
    axis = axis_in(axis, x.ndim)
    return tuple(cut(x, split_sizes(x.shape[axis], split, num_outputs or len(outputs)), axis))


@op("Slice")
def slice_op(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    index = [slice(None)] * x.ndim
    which = range(starts.size) if axes is None else ints(axes)
    strides = (1,) * starts.size if steps is None else ints(steps)
    for axis, start, end, step in zip(which, ints(starts), ints(ends), strides, strict=True):
        axis = axis_in(axis, x.ndim)
        if step == 0:
            raise InvalidArgument("Slice has a step of 0", remedy="Use a positive or a negative step")
        length = x.shape[axis]
        if step < 0 and length:
            # Unlike Python's, a start before the first element is moved onto it.
            stop = end + length if end < 0 else end
            index[axis] = slice(max(start, -length), None if stop < 0 else stop, step)
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


@op("Expand")
def expand(x: Array, shape: Array) -> Array:
    try:
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape)))
    except ValueError:
        raise InvalidArgument(f"cannot expand {x.shape} to {ints(shape)}", remedy="The shapes must broadcast") from None


@op("Tile")
def tile(x: Array, repeats: Array) -> Array:
    return np.tile(x, ints(repeats)) if x.ndim else x.copy()


@op("Pad")
def pad(
    x: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    where = list(range(x.ndim)) if axes is None else [axis_in(a, x.ndim) for a in ints(axes)]
    amounts = ints(pads)
    if len(amounts) != 2 * len(where):
        raise InvalidArgument(f"pads has {len(amounts)} values", remedy=f"Give {2 * len(where)}")
    for i, axis in enumerate(where):
        before, after = amounts[i], amounts[i + len(where)]
        if before < 0 or after < 0:
            stop = x.shape[axis] + min(after, 0)
            x = x[(slice(None),) * axis + (slice(max(-before, 0), max(stop, 0)),)]
    wide = {axis: (max(amounts[i], 0), max(amounts[i + len(where)], 0)) for i, axis in enumerate(where)}
    if mode == "constant":
        return _pad_constant(x, wide, constant_value)
    places = {"edge": _edge, "reflect": _reflect, "wrap": _wrap}.get(mode)
    if places is None:
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'constant', 'edge', 'reflect' or 'wrap'")
    for axis, (before, after) in wide.items():
        if before or after:
            length = x.shape[axis]
            x = np.take(x, places(np.arange(-before, length + after), length), axis=axis)
    return x


def _pad_constant(x: Array, wide: dict[int, tuple[int, int]], constant_value: Array | None) -> Array:
    fill: Any = np.zeros((), x.dtype) if x.dtype != object else ""
    if constant_value is not None and constant_value.size:
        fill = constant_value.reshape(-1)[0]
    out = np.full([d + sum(wide.get(i, (0, 0))) for i, d in enumerate(x.shape)], fill, x.dtype)
    out[tuple(slice(wide.get(i, (0, 0))[0], wide.get(i, (0, 0))[0] + d) for i, d in enumerate(x.shape))] = x
    return out


def _edge(i: Array, length: int) -> Array:
    return np.clip(i, 0, length - 1)


def _reflect(i: Array, length: int) -> Array:
    if length == 1:
        return np.zeros_like(i)
    around = np.mod(i, 2 * (length - 1))
    return np.asarray(np.minimum(around, 2 * (length - 1) - around))


def _wrap(i: Array, length: int) -> Array:
    return np.mod(i, length)


@op("CenterCropPad")
def center_crop_pad(x: Array, shape: Array, *, axes: tuple[int, ...] | None = None) -> Array:
    where = range(x.ndim) if axes is None else [axis_in(a, x.ndim) for a in axes]
    for axis, size in zip(where, ints(shape), strict=True):
        length = x.shape[axis]
        if size < length:
            start = (length - size) // 2
            x = x[(slice(None),) * axis + (slice(start, start + size),)]
        elif size > length:
            before = (size - length) // 2
            x = _pad_constant(x, {axis: (before, size - length - before)}, None)
    return x


@op("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        y = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        y = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'DCR' or 'CRD'")
    return y.reshape(n, depth, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    n, c, h, w = x.shape
    b = blocksize
    if mode not in ("DCR", "CRD"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'DCR' or 'CRD'")
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    y = blocks.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return y.reshape(n, c * b * b, h // b, w // b)


@op("ReverseSequence")
def reverse_sequence(x: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    length = x.shape[time_axis]
    step = np.arange(length)[:, None]
    lens = sequence_lens.astype(np.int64)[None, :]
    place = np.where(step < lens, lens - 1 - step, step)
    place = place if time_axis == 0 else place.T
    index = [1] * x.ndim
    index[time_axis], index[batch_axis] = place.shape[0 if time_axis == 0 else 1], lens.size
    return np.take_along_axis(x, place.reshape(index), axis=time_axis)


@op("TensorScatter", continues={0: 0})
def tensor_scatter(
    past: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
    into: tuple[Array | None, ...] = (None,),
) -> Array:
    axis = axis_in(axis, past.ndim)
    length, limit = update.shape[axis], past.shape[axis]
    starts = (0,) * past.shape[0] if write_indices is None else ints(write_indices)
    for start in starts if mode != "circular" else ():
        if start < 0 or start + length > limit:
            raise InvalidArgument(
                f"writing {length} positions at {start} leaves a cache of {limit}", remedy="Use mode 'circular'"
            )
    out = continued(past, into[0])
    for batch, start in enumerate(starts):
        places = np.arange(start, start + length)
        if mode == "circular":
            places %= limit
        out[batch][(slice(None),) * (axis - 1) + (places,)] = update[batch]
    return out


@op("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    if axis is None:
        return x.reshape(-1)[: condition.size][condition[: x.size]]
    axis = axis_in(axis, x.ndim)
    keep = np.flatnonzero(condition[: x.shape[axis]])
    return np.take(x, keep, axis=axis)


@op("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    size = int(scalar(depth))
    axis = axis_in(axis, indices.ndim + 1)
    whole = np.trunc(indices).astype(np.int64) if indices.dtype.kind == "f" else indices.astype(np.int64)
    whole = np.where(whole < 0, whole + size, whole)
    lanes = np.arange(size).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return np.asarray(np.where(np.expand_dims(whole, axis) == lanes, values[1], values[0]))
