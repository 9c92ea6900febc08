"""Linear attention: a state of keys by values for each head, updated token by token."""

from __future__ import annotations

import math

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.attention import split_heads
from gpurt_cpu.ops.table import Array, op

_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}


@op("LinearAttention")
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,  # noqa: ARG001 - a hint for other machines
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Array, Array]:
    if update_rule not in _RULES:
        raise InvalidArgument(f"update_rule is {update_rule!r}", remedy=f"Use one of {', '.join(_RULES)}")
    gated, corrected = _RULES[update_rule]
    if gated != (decay is not None) or corrected != (beta is not None):
        raise InvalidArgument(
            f"update_rule {update_rule!r} got {'a' if decay is not None else 'no'} decay"
            f" and {'a' if beta is not None else 'no'} beta",
            remedy="The gated rules need decay, the delta rules need beta, the others take neither",
        )
    batch, length, _ = query.shape
    q = split_heads(query.astype(np.float32), q_num_heads)
    k = split_heads(key.astype(np.float32), kv_num_heads)
    v = split_heads(value.astype(np.float32), kv_num_heads)
    size, width = k.shape[3], v.shape[3]
    factor = scale or 1 / math.sqrt(q.shape[3])
    gate = None
    if decay is not None:
        # One rate for each head, or one for each key dimension of each head.
        gate = np.exp(split_heads(decay.astype(np.float32), kv_num_heads))
    rate = None if beta is None else beta.astype(np.float32).transpose(0, 2, 1)[..., None]
    shape = (batch, kv_num_heads, size, width)
    state = np.zeros(shape, np.float32) if past_state is None else past_state.astype(np.float32)
    if state.shape != shape:
        raise InvalidArgument(f"past_state is {state.shape}", remedy=f"It must be {shape}")
    q = q.reshape(batch, kv_num_heads, -1, length, size)
    y = np.empty((batch, kv_num_heads, q.shape[2], length, width), np.float32)
    for t in range(length):
        if gate is not None:
            state = state * gate[:, :, t, :, None]
        key_t, value_t = k[:, :, t], v[:, :, t]
        if rate is not None:
            value_t = rate[:, :, t] * (value_t - np.matmul(key_t[:, :, None], state)[:, :, 0])
        state = state + key_t[..., None] * value_t[:, :, None]
        y[:, :, :, t] = np.matmul(q[:, :, :, t], state) * factor
    out = y.reshape(batch, q_num_heads, length, width).transpose(0, 2, 1, 3).reshape(batch, length, -1)
    return out.astype(query.dtype), state.astype(query.dtype if past_state is None else past_state.dtype)
