"""Shape arithmetic that the rules share with the device layer: broadcasting, axes, windows. Plain ints in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Shape = tuple[int, ...]


def text(shape: Sequence[int]) -> str:
    """A shape as messages write it: ``[2,3]``."""
    return "[" + ",".join(str(dim) for dim in shape) + "]"


def broadcast(*shapes: Sequence[int]) -> Shape:
    """Shape that the given shapes broadcast to, by NumPy's rule. Raises ValueError naming them where they do not."""
    rank = max((len(shape) for shape in shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        offset = rank - len(shape)
        for i, dim in enumerate(shape):
            if dim == 1 or dim == result[offset + i]:
                continue
            if result[offset + i] != 1:
                raise ValueError(f"inputs {' and '.join(text(s) for s in shapes)} do not broadcast")
            result[offset + i] = dim
    return tuple(result)


def axis(a: int, rank: int) -> int:
    """An axis counted from the front. Raises ValueError where it is not in [-rank, rank)."""
    if not -rank <= a < rank:
        raise ValueError(f"axis {a} is outside a tensor of rank {rank}")
    return a + rank if a < 0 else a


def axes(values: Iterable[int], rank: int) -> Shape:
    """Axes counted from the front, in the order given. Raises ValueError where one is out of range or named twice."""
    result = tuple(axis(int(a), rank) for a in values)
    if len(set(result)) != len(result):
        raise ValueError(f"axes {text(result)} name an axis twice")
    return result


def _per_axis(values: Sequence[int] | None, rank: int, default: int, name: str) -> Shape:
    if not values:  # unset, and the empty list that some exporters write for "unset"
        return (default,) * rank
    if len(values) != rank:
        raise ValueError(f"{name} {text(values)} has {len(values)} entries, the window has {rank} axes")
    return tuple(int(v) for v in values)


def _same(total: int, auto_pad: str) -> tuple[int, int]:
    # The odd one goes to the end for SAME_UPPER and to the beginning for SAME_LOWER.
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def window_arguments(
    rank: int, strides: Sequence[int] | None, dilations: Sequence[int] | None, pads: Sequence[int] | None
) -> tuple[Shape, Shape, Shape]:
    """Strides, dilations and pads (all begins, then all ends) with ONNX's defaults; ValueError on a wrong length."""
    strides = _per_axis(strides, rank, 1, "strides")
    dilations = _per_axis(dilations, rank, 1, "dilations")
    if min(strides, default=1) < 1 or min(dilations, default=1) < 1:
        raise ValueError(f"strides {text(strides)} and dilations {text(dilations)} must be positive")
    return strides, dilations, _per_axis(pads, 2 * rank, 0, "pads")


def conv_geometry(
    in_spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> tuple[Shape, Shape, Shape]:
    """Output size and the padding in effect for a sliding window (Conv and the pools).

    Args:
        in_spatial: input sizes of the axes that the window moves over.
        kernel: window sizes, before dilation.
        strides: step of each axis; 1 where None.
        dilations: distance of the window's taps; 1 where None.
        pads: all begins, then all ends; 0 where None. Only looked at when auto_pad is NOTSET.
        auto_pad: NOTSET, SAME_UPPER, SAME_LOWER or VALID.
        ceil_mode: keep a last window that reaches past the padded end, unless it would start in the end padding.

    Returns:
        Output sizes, pads at the begin, pads at the end. With ceil_mode the last window may reach past the end pad.

    Raises:
        ValueError: a window is larger than the padded input, or an argument has the wrong length.
    """
    rank = len(in_spatial)
    if len(kernel) != rank:
        raise ValueError(f"kernel {text(kernel)} does not fit {rank} spatial axes {text(in_spatial)}")
    strides, dilations, pads = window_arguments(rank, strides, dilations, pads)
    out, begins, ends = [], [], []
    for i, size in enumerate(in_spatial):
        extent = (kernel[i] - 1) * dilations[i] + 1
        step = strides[i]
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            count = -(-size // step)
            begin, end = _same(max((count - 1) * step + extent - size, 0), auto_pad)
        else:
            begin, end = (0, 0) if auto_pad == "VALID" else (pads[i], pads[rank + i])
            room = size + begin + end - extent
            # ceil_mode counts for VALID too, as in ONNX's shape inference; the text of the standard leaves it out.
            count = (-(-room // step) if ceil_mode else room // step) + 1
            if ceil_mode and (count - 1) * step >= size + begin:
                count -= 1
            # An empty input may give an empty output, but no other input may be too small for a single window.
            if count < 0 or (count == 0 and size):
                raise ValueError(f"window of {extent} is larger than the padded input {size}+{begin}+{end} of axis {i}")
        out.append(count)
        begins.append(begin)
        ends.append(end)
    return tuple(out), tuple(begins), tuple(ends)


def conv_transpose_geometry(
    in_spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> tuple[Shape, Shape, Shape]:
    """Output size and the padding in effect for ConvTranspose.

    Arguments are as for :func:`conv_geometry`; ``output_shape`` holds spatial sizes and wins over the pads.

    Returns:
        Output sizes, pads at the begin (never negative), pads at the end; a negative end pad is a border of the output
        that no input element reaches.

    Raises:
        ValueError: an output size is negative, or an argument has the wrong length.
    """
    rank = len(in_spatial)
    if len(kernel) != rank:
        raise ValueError(f"kernel {text(kernel)} does not fit {rank} spatial axes {text(in_spatial)}")
    strides, dilations, pads = window_arguments(rank, strides, dilations, pads)
    extra = _per_axis(output_padding, rank, 0, "output_padding")
    if output_shape and len(output_shape) != rank:
        output_shape = output_shape[-rank:]  # older exporters write batch and channels too
    out, begins, ends = [], [], []
    for i, size in enumerate(in_spatial):
        full = strides[i] * (size - 1) + (kernel[i] - 1) * dilations[i] + 1 + extra[i]
        if output_shape or auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            count = int(output_shape[i]) if output_shape else size * strides[i]
            begin = max(_same(full - count, auto_pad)[0], 0) if full >= count else 0
            end = full - count - begin
        else:
            begin, end = (0, 0) if auto_pad == "VALID" else (pads[i], pads[rank + i])
            count = full - begin - end
        if count < 0:
            raise ValueError(f"output size {count} of axis {i} is negative: {full} less pads {begin}+{end}")
        out.append(count)
        begins.append(begin)
        ends.append(end)
    return tuple(out), tuple(begins), tuple(ends)
