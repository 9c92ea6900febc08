"""Recurrent layers: RNN, GRU and LSTM. One product for the whole input, then one for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import sigmoid, softplus
from gpurt_cpu.ops.common import lifted
from gpurt_cpu.ops.table import Array, op

Activation = Callable[[Array], Any]

# Name -> (function of x, alpha and beta; default alpha; default beta; how many of the two it takes).
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], float, float, int]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0, 2),
    "elu": (lambda x, a, _: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), 1.0, 0.0, 1),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5, 2),
    "leakyrelu": (lambda x, a, _: np.where(x < 0, a * x, x), 0.01, 0.0, 1),
    "relu": (lambda x, *_: np.maximum(x, 0), 0.0, 0.0, 0),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0, 2),
    "sigmoid": (lambda x, *_: sigmoid(x), 0.0, 0.0, 0),
    "softplus": (lambda x, *_: softplus(x), 0.0, 0.0, 0),
    "softsign": (lambda x, *_: x / (1 + np.abs(x)), 0.0, 0.0, 0),
    "tanh": (lambda x, *_: np.tanh(x), 0.0, 0.0, 0),
    "thresholdedrelu": (lambda x, a, _: np.where(x > a, x, 0), 1.0, 0.0, 1),
}


def _activations(
    names: tuple[str, ...], alpha: tuple[float, ...] | None, beta: tuple[float, ...] | None
) -> list[Activation]:
    """The functions named, with their parameters taken in order from the two lists."""
    alphas, betas = list(alpha or ()), list(beta or ())
    out: list[Activation] = []
    for name in names:
        known = _ACTIVATIONS.get(name.lower())
        if known is None:
            raise InvalidArgument(f"unknown activation {name!r}", remedy=f"Use one of {', '.join(_ACTIVATIONS)}")
        fn, a, b, takes = known
        if takes > 0 and alphas:
            a = alphas.pop(0)
        if takes > 1 and betas:
            b = betas.pop(0)
        if takes == 0:
            out.append(fn)
        else:
            out.append(lambda x, fn=fn, a=a, b=b: fn(x, a, b))  # type: ignore[misc]
    return out


class _Layer:
    """What the three layers share: directions, layout, sequence lengths, clipping and the walk over the steps."""

    def __init__(
        self, x: Array, w: Array, r: Array, b: Array | None, lens: Array | None, gates: int, **given: Any
    ) -> None:
        self.layout = given["layout"]
        self.x = np.swapaxes(x, 0, 1) if self.layout else x
        self.w, self.r, self.gates = w, r, gates
        self.hidden = r.shape[2]
        self.steps, self.batch = self.x.shape[:2]
        self.directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(
            given["direction"], ()
        )
        if len(self.directions) != w.shape[0]:
            raise InvalidArgument(
                f"direction {given['direction']!r} does not fit weights for {w.shape[0]} direction(s)",
                remedy="Use 'forward' or 'reverse' for one, 'bidirectional' for two",
            )
        self.bias = np.zeros((w.shape[0], 2 * gates * self.hidden), x.dtype) if b is None else b
        self.lens = None if lens is None or np.all(lens == self.steps) else lens.astype(np.int64)
        self.clip = given["clip"]
        names = given["activations"] or given["defaults"] * len(self.directions)
        self.functions = _activations(names, given["activation_alpha"], given["activation_beta"])
        count = len(given["defaults"])
        if len(self.functions) != count * len(self.directions):
            raise InvalidArgument(f"{len(self.functions)} activations given", remedy=f"Give {count} for each direction")

    def plain(self, names: tuple[str, ...], defaults: tuple[str, ...]) -> bool:
        """Whether the cell is the default one, over sequences of one length."""
        default = tuple(n.lower() for n in names) in ((), defaults * len(self.directions))
        return default and self.lens is None and not self.clip

    def start(self, state: Array | None, direction: int) -> Array:
        """Initial state (batch, hidden) of a direction, in the input's own layout."""
        if state is None:
            return np.zeros((self.batch, self.hidden), self.x.dtype)
        return state[:, direction] if self.layout else state[direction]

    def ordered(self, x: Array, reverse: bool) -> Array:
        """Steps in the order that a direction visits them: each sequence is reversed within its own length."""
        if not reverse:
            return x
        if self.lens is None:
            return x[::-1]
        step = np.arange(self.steps)[:, None]
        place = np.where(step < self.lens, self.lens - 1 - step, step)
        return np.take_along_axis(x, place.reshape(self.steps, self.batch, *(1,) * (x.ndim - 2)), axis=0)

    def clipped(self, x: Array) -> Array:
        return np.clip(x, -self.clip, self.clip, out=x) if self.clip else x

    def run(self, cell: Callable[..., tuple[Array, ...]], states: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Walk all directions. The cell maps (direction, input part, states) to the states after a step."""
        every = np.empty((self.steps, len(self.directions), self.batch, self.hidden), self.x.dtype)
        last: list[list[Array]] = [[] for _ in states]
        for d, reverse in enumerate(self.directions):
            x = self.ordered(self.x, reverse)
            width = self.gates * self.hidden
            part = np.matmul(x.reshape(-1, x.shape[2]), self.w[d].T)
            part += self.bias[d, :width]
            part = part.reshape(self.steps, self.batch, width)
            now = tuple(self.start(s, d) for s in states)
            out = np.empty((self.steps, self.batch, self.hidden), self.x.dtype)
            for t in range(self.steps):
                new = cell(d, part[t], *now)
                out[t] = new[0]
                if self.lens is not None:
                    alive = (t < self.lens)[:, None]
                    new = tuple(np.where(alive, n, o) for n, o in zip(new, now, strict=True))
                    out[t] *= alive
                now = new
            every[:, d] = self.ordered(out, reverse)
            for kept, state in zip(last, now, strict=True):
                kept.append(state)
        ends = tuple(np.stack(kept, axis=1 if self.layout else 0) for kept in last)
        return (np.ascontiguousarray(every.transpose(2, 0, 1, 3)) if self.layout else every, *ends)


@op("RNN")
@lifted
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,  # noqa: ARG001 - the weights say it
    layout: int = 0,
) -> tuple[Array, ...]:
    if direction != "bidirectional":
        activations = activations[:1]  # the schema's default names two
    layer = _Layer(x, w, r, b, sequence_lens, 1, activation_alpha=activation_alpha, activation_beta=activation_beta,
                   activations=activations, defaults=("Tanh",), clip=clip, direction=direction,
                   layout=layout)  # fmt: skip
    weights = np.ascontiguousarray(np.swapaxes(r, 1, 2))
    bias = layer.bias[:, layer.hidden :]

    def cell(d: int, part: Array, h: Array) -> tuple[Array, ...]:
        z = np.matmul(h, weights[d])
        z += part
        z += bias[d]
        return (layer.functions[d](layer.clipped(z)),)

    return layer.run(cell, (initial_h,))


@op("GRU")
@lifted
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,  # noqa: ARG001 - the weights say it
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, ...]:
    layer = _Layer(x, w, r, b, sequence_lens, 3, activation_alpha=activation_alpha, activation_beta=activation_beta,
                   activations=activations, defaults=("Sigmoid", "Tanh"), clip=clip, direction=direction,
                   layout=layout)  # fmt: skip
    n = layer.hidden
    weights = np.ascontiguousarray(np.swapaxes(r, 1, 2))  # columns: update, reset, hidden
    early, late = weights[:, :, : 2 * n].copy(), weights[:, :, 2 * n :].copy()
    bias = layer.bias[:, 3 * n :]

    def cell(d: int, part: Array, h: Array) -> tuple[Array, ...]:
        gate, hidden = layer.functions[2 * d], layer.functions[2 * d + 1]
        if linear_before_reset:
            product = np.matmul(h, weights[d])
            product += bias[d]
            gates = gate(layer.clipped(part[:, : 2 * n] + product[:, : 2 * n]))
            z = part[:, 2 * n :] + gates[:, n:] * product[:, 2 * n :]
        else:
            product = np.matmul(h, early[d])
            product += part[:, : 2 * n]
            product += bias[d, : 2 * n]
            gates = gate(layer.clipped(product))
            z = np.matmul(gates[:, n:] * h, late[d])
            z += part[:, 2 * n :]
            z += bias[d, 2 * n :]
        new = hidden(layer.clipped(z))
        return (new + gates[:, :n] * (h - new),)

    return layer.run(cell, (initial_h,))


def _plain_lstm(
    layer: _Layer, b: Array | None, states: tuple[Array | None, Array | None], prepared: dict[int, Array] | None
) -> tuple[Array, ...]:
    """LSTM with its default activations, over memory that is allocated once.

    The logistic function of x is ``tanh(x / 2) / 2 + 1 / 2``, so with the halves in the weights one tanh does for all
    gates of a step.
    """
    n, dtype = layer.hidden, layer.x.dtype
    half = np.ones(4 * n, dtype)
    half[: 3 * n] = 0.5
    every = np.empty((layer.steps, len(layer.directions), layer.batch, n), dtype)
    ends: list[list[Array]] = [[], []]
    z = np.empty((layer.batch, 4 * n), dtype)
    gates, inner = z[:, : 3 * n], z[:, 3 * n :]
    opened, output, kept = (z[:, k * n : (k + 1) * n] for k in range(3))
    fresh = np.empty((layer.batch, n), dtype)
    for d, reverse in enumerate(layer.directions):
        weights = None if prepared is None else prepared.get(d)
        if weights is None:
            weights = np.concatenate([layer.w[d], layer.r[d]], axis=1).T * half
            if prepared is not None:
                prepared[d] = weights
        split = layer.x.shape[2]
        part = np.matmul(layer.x.reshape(-1, split), weights[:split])
        if b is not None:
            part += (b[d, : 4 * n] + b[d, 4 * n :]) * half
        part = part.reshape(layer.steps, layer.batch, 4 * n)
        h, c = (layer.start(s, d).copy() for s in states)
        recurrent = weights[split:]
        for t in range(layer.steps - 1, -1, -1) if reverse else range(layer.steps):
            np.matmul(h, recurrent, out=z)
            np.add(z, part[t], out=z)
            np.tanh(z, out=z)
            np.multiply(gates, half[0], out=gates)
            np.add(gates, half[0], out=gates)
            np.multiply(c, kept, out=c)
            np.multiply(opened, inner, out=fresh)
            np.add(c, fresh, out=c)
            np.tanh(c, out=fresh)
            h = every[t, d]
            np.multiply(output, fresh, out=h)
        ends[0].append(h)
        ends[1].append(c)
    last = tuple(np.stack(e, axis=1 if layer.layout else 0) for e in ends)
    return (np.ascontiguousarray(every.transpose(2, 0, 1, 3)) if layer.layout else every, *last)


@op("LSTM", wants_constants=(1, 2))
@lifted
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,  # noqa: ARG001 - the weights say it
    input_forget: int = 0,
    layout: int = 0,
    prepared: dict[int, Array] | None = None,
) -> tuple[Array, ...]:
    layer = _Layer(x, w, r, b, sequence_lens, 4, activation_alpha=activation_alpha, activation_beta=activation_beta,
                   activations=activations, defaults=("Sigmoid", "Tanh", "Tanh"), clip=clip, direction=direction,
                   layout=layout)  # fmt: skip
    if layer.plain(activations, ("sigmoid", "tanh", "tanh")) and p is None and not input_forget:
        return _plain_lstm(layer, b, (initial_h, initial_c), prepared)
    n = layer.hidden
    weights = np.ascontiguousarray(np.swapaxes(r, 1, 2))  # columns: input, output, forget, cell
    bias = layer.bias[:, 4 * n :]

    def cell(d: int, part: Array, h: Array, c: Array) -> tuple[Array, ...]:
        gate, inner, outer = layer.functions[3 * d : 3 * d + 3]
        z = np.matmul(h, weights[d])
        z += part
        z += bias[d]
        i, o, f, u = (z[:, k * n : (k + 1) * n] for k in range(4))
        if p is not None:
            i += p[d, :n] * c
            f += p[d, 2 * n :] * c
        if p is None and not input_forget:
            gates = gate(layer.clipped(z[:, : 3 * n]))
            opened, output, kept = (gates[:, k * n : (k + 1) * n] for k in range(3))
        else:
            opened = gate(layer.clipped(i))
            kept = 1 - opened if input_forget else gate(layer.clipped(f))
        new = kept * c
        new += opened * inner(layer.clipped(u))
        if p is not None:
            o += p[d, n : 2 * n] * new
        if p is not None or input_forget:
            output = gate(layer.clipped(o))
        return output * outer(new), new

    return layer.run(cell, (initial_h, initial_c))
