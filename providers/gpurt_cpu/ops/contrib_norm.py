"""Normalisations of com.microsoft, with the sums, embeddings and activations that are fused into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import sigmoid
from gpurt_cpu.ops.common import axis_in, widen
from gpurt_cpu.ops.norm import _normalized, _stashed
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"


def _root_mean_square(x: Array, first: int, epsilon: float) -> tuple[Array, Array]:
    """The array over its root mean square along the axes from one on, and the inverse of that."""
    mean_square = np.square(x).mean(axis=tuple(range(first, x.ndim)), keepdims=True)
    inverse = np.asarray(1 / np.sqrt(mean_square + x.dtype.type(epsilon)))
    return x * inverse, inverse


@op("SimplifiedLayerNormalization", wants_outputs=True)  # ONNX Runtime has it in the standard's domain
@op("SimplifiedLayerNormalization", domain=MS, wants_outputs=True)
def simplified_layer_normalization(
    x: Array,
    scale: Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    y, inverse = _root_mean_square(_stashed(x, stash_type), axis_in(axis, x.ndim), epsilon)
    y *= widen(scale)
    y = y.astype(scale.dtype, copy=False)
    return (y, inverse.astype(np.float32, copy=False)) if any(outputs[1:]) else y


@op("SkipSimplifiedLayerNormalization", domain=MS, wants_outputs=True)
def skip_simplified_layer_normalization(
    x: Array,
    skip: Array,
    gamma: Array,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    total = widen(x) + widen(skip)
    if bias is not None:
        total += widen(bias)
    y, inverse = _root_mean_square(total, x.ndim - 1, epsilon)
    y *= widen(gamma)
    y = y.astype(x.dtype, copy=False)
    if not any(outputs[1:]):
        return y
    mean = total.mean(axis=-1, keepdims=True)  # what the schema names, though the result does not depend on it
    return y, mean, inverse, total.astype(x.dtype, copy=False)


@op("EmbedLayerNormalization", domain=MS, wants_outputs=True)
def embed_layer_normalization(
    input_ids: Array,
    segment_ids: Array | None,
    words: Array,
    positions: Array,
    segments: Array | None,
    gamma: Array,
    beta: Array,
    mask: Array | None = None,
    position_ids: Array | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,  # noqa: ARG001 - for inference; a mask index that nobody asked for costs nothing
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    length = input_ids.shape[1]
    for ids, table, what in (
        (input_ids, words, "word"),
        (position_ids, positions, "position"),
        (segment_ids, segments, "segment"),
    ):
        if ids is not None and table is not None and ids.size and not 0 <= ids.min() <= ids.max() < table.shape[0]:
            raise InvalidArgument(f"{what} ids from {ids.min()} to {ids.max()} in a table of {table.shape[0]}")
    total = widen(words)[input_ids]
    total += widen(positions)[:length] if position_ids is None else widen(positions)[position_ids]
    if segment_ids is not None and segments is not None:
        total += widen(segments)[segment_ids]
    y, _, _ = _normalized(total, (2,), epsilon)
    y *= widen(gamma)
    y += widen(beta)
    y = y.astype(words.dtype, copy=False)
    if not any(outputs[1:]):
        return y
    batch = input_ids.shape[0]
    count = np.zeros(batch, np.int32) if mask is None else (mask == 1).sum(axis=1, dtype=np.int32)
    return y, count, total.astype(words.dtype, copy=False)


def _grouped(
    x: Array, gamma: Array, beta: Array, *, activation: int, channels_last: int, epsilon: float, groups: int
) -> Array:
    """Group normalisation of a float array in either layout, and SiLU where it is asked for."""
    if activation not in (0, 1):
        raise InvalidArgument(f"activation is {activation}", remedy="Use 0 for none or 1 for SiLU")
    channels = x.shape[-1] if channels_last else x.shape[1]
    if not groups or channels % groups:
        raise InvalidArgument(
            f"{channels} channels do not divide into {groups} groups", remedy="groups must divide the channels"
        )
    share = (groups, channels // groups)
    shape = (x.shape[0], -1, *share) if channels_last else (x.shape[0], *share, -1)
    y, _, _ = _normalized(x.reshape(shape), (1, 3) if channels_last else (2, 3), epsilon)
    y = y.reshape(x.shape)
    affine = (1,) * (0 if channels_last else x.ndim - 2)
    y *= widen(gamma).reshape(-1, *affine)
    y += widen(beta).reshape(-1, *affine)
    if activation:
        y *= sigmoid(y)
    return y


@op("GroupNorm", domain=MS)
def group_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    activation: int,
    groups: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
) -> Array:
    y = _grouped(
        widen(x), gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups
    )
    return y.astype(x.dtype, copy=False)


@op("SkipGroupNorm", domain=MS, wants_outputs=True)
def skip_group_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    skip: Array,
    bias: Array | None = None,
    *,
    activation: int,
    groups: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    ones = (1,) * (x.ndim - 2)
    if skip.ndim == 2:  # one value for all places
        skip = skip.reshape(skip.shape[0], *ones, -1) if channels_last else skip.reshape(*skip.shape, *ones)
    total = widen(x) + widen(skip)
    if bias is not None:
        total += widen(bias) if channels_last else widen(bias).reshape(-1, *ones)
    y = _grouped(
        total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups
    ).astype(x.dtype, copy=False)
    return (y, total.astype(x.dtype, copy=False)) if any(outputs[1:]) else y
