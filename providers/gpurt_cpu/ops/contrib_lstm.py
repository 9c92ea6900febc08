"""com.microsoft's LSTM with 8-bit weights, whose input and state are quantized as they come."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import F32
from gpurt_cpu.ops.linalg import centred, exact_type
from gpurt_cpu.ops.quantize import dynamic_quantize_linear
from gpurt_cpu.ops.rnn import _Layer
from gpurt_cpu.ops.table import Array, op


def _columns(v: Array, directions: int) -> Array:
    """A scale or zero point, of one value or one for each column, as (directions, 1, columns)."""
    return v.reshape(directions, 1, -1)


@op("DynamicQuantizeLSTM", domain="com.microsoft")
def dynamic_quantize_lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None,
    sequence_lens: Array | None,
    initial_h: Array | None,
    initial_c: Array | None,
    p: Array | None,
    w_scale: Array,
    w_zero: Array,
    r_scale: Array,
    r_zero: Array,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,  # noqa: ARG001 - the weights say it
    input_forget: int = 0,
) -> tuple[Array, ...]:
    """One quantization for the whole input, then one for the states of a batch at each step."""
    count, n, width = r.shape
    if width != 4 * n:
        raise InvalidArgument(f"R {r.shape} is not (directions, hidden, 4 * hidden)", remedy="Transpose LSTM's weights")
    # What lies behind the longest sequence has no say in the range.
    longest = x.shape[0] if sequence_lens is None else int(sequence_lens.max(initial=0))
    codes, x_scale, x_zero = dynamic_quantize_linear(x[:longest])
    steps = np.zeros(x.shape, F32)
    steps[:longest] = centred(codes, x_zero, np.float32)
    # The layer multiplies integers: exact where they are floats of this type, and the scale comes after.
    weights = centred(w, _columns(w_zero, count), exact_type(w.shape[1]))
    layer = _Layer(
        steps,
        np.swapaxes(weights, 1, 2),
        np.swapaxes(r, 1, 2),
        None,
        sequence_lens,
        4,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        defaults=("Sigmoid", "Tanh", "Tanh"),
        clip=clip,
        direction=direction,
        layout=0,
    )
    recurrent = centred(r, _columns(r_zero, count), exact_type(n))
    from_input = np.broadcast_to(x_scale * _columns(w_scale, count), (count, 1, width)).astype(F32)
    from_state = np.broadcast_to(_columns(r_scale, count), (count, 1, width))
    bias = np.zeros((count, width), F32) if b is None else b[:, :width] + b[:, width:]

    def cell(d: int, part: Array, h: Array, c: Array) -> tuple[Array, ...]:
        gate, inner, outer = layer.functions[3 * d : 3 * d + 3]
        states, scale, zero = dynamic_quantize_linear(h)
        product = np.matmul(centred(states, zero, np.float32), recurrent[d])
        z = product.astype(F32, copy=False) * (scale * from_state[d])
        z += part.astype(F32, copy=False) * from_input[d]
        z += bias[d]
        i, o, f, u = (z[:, k * n : (k + 1) * n] for k in range(4))
        if p is not None:
            i += p[d, :n] * c
            f += p[d, 2 * n :] * c
        opened = gate(layer.clipped(i))
        kept = 1 - opened if input_forget else gate(layer.clipped(f))
        new = kept * c + opened * inner(layer.clipped(u))
        if p is not None:
            o += p[d, n : 2 * n] * new
        y: Any = gate(layer.clipped(o)) * outer(new)
        return y, new

    return layer.run(cell, (initial_h, initial_c))
