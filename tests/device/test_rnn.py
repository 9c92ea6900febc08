"""LSTM, GRU and RNN against a step-by-step evaluation in double precision."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import node_for, run_op

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS: dict[str, Any] = {
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: np.where(x < 0, a * (np.exp(x) - 1), x),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.log1p(np.exp(x)),
}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def reference(op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any]) -> list[np.ndarray]:
    x, w, r, bias, lengths, h0, *rest = (*inputs, *[None] * 8)[:8]
    assert x is not None
    assert w is not None
    assert r is not None
    c0, peephole = rest
    steps, rows, _ = x.shape
    directions, _, hidden = r.shape
    gates = GATES[op]
    names = attrs.get("activations") or DEFAULTS[op] * directions
    alphas, betas = attrs.get("activation_alpha", [0] * 6), attrs.get("activation_beta", [0] * 6)
    limit = attrs.get("clip", np.inf)
    y = np.zeros((steps, directions, rows, hidden))
    last_h, last_c = np.zeros((directions, rows, hidden)), np.zeros((directions, rows, hidden))
    for d in range(directions):
        count = len(DEFAULTS[op])

        def act(i: int, v: np.ndarray, d: int = d, count: int = count) -> np.ndarray:
            return FUNCTIONS[names[d * count + i]](v, alphas[i], betas[i])

        wb, rb = np.zeros((2, gates * hidden)) if bias is None else bias[d].reshape(2, -1)
        p = np.zeros((3, hidden)) if peephole is None else peephole[d].reshape(3, hidden)
        for row in range(rows):
            h = np.zeros(hidden) if h0 is None else h0[d, row].astype("d")
            c = np.zeros(hidden) if c0 is None else c0[d, row].astype("d")
            length = steps if lengths is None else int(lengths[row])
            backward = d == 1 or attrs["direction"] == "reverse"
            for t in reversed(range(length)) if backward else range(length):
                fx = (x[t, row] @ w[d].T + wb).reshape(gates, hidden)
                fh = (h @ r[d].T + rb).reshape(gates, hidden)
                g = fx + fh

                def clip(v: np.ndarray) -> np.ndarray:
                    return np.clip(v, -limit, limit)

                if op == "LSTM":
                    i = act(0, clip(g[0] + p[0] * c))
                    f = 1 - i if attrs.get("input_forget") else act(0, clip(g[2] + p[2] * c))
                    c = f * c + i * act(1, clip(g[3]))
                    h = act(0, clip(g[1] + p[1] * c)) * act(2, c)
                elif op == "GRU":
                    z, reset = act(0, clip(g[0])), act(0, clip(g[1]))
                    if attrs.get("linear_before_reset"):
                        inner = fx[2] + reset * fh[2]
                    else:
                        inner = fx[2] + (reset * h) @ r[d, 2 * hidden :].T + rb[2 * hidden :]
                    h = (1 - z) * act(1, clip(inner)) + z * h
                else:
                    h = act(0, clip(g[0]))
                y[t, d, row] = h
            last_h[d, row], last_c[d, row] = h, c
    return [y, last_h, last_c] if op == "LSTM" else [y, last_h]


def layer(
    op: str, steps: int, rows: int, features: int, hidden: int, *, direction: str = "forward", bias: bool = True,
    lengths: list[int] | None = None, states: bool = False, peephole: bool = False, **attrs: Any,
) -> tuple[str, list[np.ndarray | None], dict[str, Any]]:  # fmt: skip
    rng = np.random.default_rng(0)
    directions, gates = (2 if direction == "bidirectional" else 1), GATES[op]

    def array(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float16).astype(np.float32)

    inputs: list[np.ndarray | None] = [
        array(steps, rows, features),
        array(directions, gates * hidden, features, scale=0.5),
        array(directions, gates * hidden, hidden, scale=0.7 / hidden**0.5),
        array(directions, 2 * gates * hidden) if bias else None,
        None if lengths is None else np.array(lengths, np.int32),
        array(directions, rows, hidden) if states else None,
    ]
    if op == "LSTM":
        inputs += [array(directions, rows, hidden) if states else None]
        inputs += [array(directions, 3 * hidden) if peephole else None]
    return op, inputs, {"hidden_size": hidden, "direction": direction, **attrs}


_THREE = ["Softsign", "ScaledTanh", "HardSigmoid"]
LAYERS = [
    *(
        made
        for op in GATES
        for made in (
            layer(op, 5, 1, 3, 4, bias=False),
            layer(op, 4, 3, 7, 18, states=True),
            layer(op, 5, 5, 7, 33, direction="bidirectional", states=True, peephole=True),
            layer(op, 4, 2, 3, 16, direction="reverse"),
            layer(op, 6, 3, 2, 5, direction="bidirectional", lengths=[6, 3, 1], states=True),
            layer(op, 3, 3, 4, 290),
            layer(op, 4, 2, 3, 8, clip=0.7, peephole=True, states=True),
        )
    ),
    layer("LSTM", 4, 2, 3, 8, input_forget=1, states=True),
    layer("GRU", 4, 3, 3, 20, direction="bidirectional", linear_before_reset=1, states=True),
    layer("GRU", 4, 3, 3, 20, linear_before_reset=1, bias=False),
    layer("RNN", 4, 2, 3, 8, direction="bidirectional", activations=["Relu", "Sigmoid"]),
    layer("LSTM", 4, 2, 3, 8, activations=_THREE, activation_alpha=[0.3, 0.7], activation_beta=[0.4, 1.3]),
    layer("GRU", 4, 2, 3, 8, activations=["Affine", "Elu"], activation_alpha=[0.3, 0.7], activation_beta=[0.4]),
    layer("RNN", 4, 2, 3, 8, activations=["LeakyRelu"], activation_alpha=[0.3]),
    layer("RNN", 4, 2, 3, 8, activations=["ThresholdedRelu"], activation_alpha=[0.3]),
    layer("RNN", 4, 2, 3, 8, activations=["Softplus"]),
]


@pytest.mark.parametrize(("op", "inputs", "attrs"), LAYERS, ids=[f"{op}-{i}" for i, (op, _, _) in enumerate(LAYERS)])
def test_layer(provider: DeviceProvider, op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any]) -> None:
    aligned = dict(attrs)
    if "activations" in attrs:
        # The lists hold values only for functions that take one; the reference wants one for each.
        takes_a = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
        takes_b = {"Affine", "ScaledTanh", "HardSigmoid"}
        alphas, betas = list(attrs.get("activation_alpha", ())), list(attrs.get("activation_beta", ()))
        aligned["activation_alpha"] = [alphas.pop(0) if n in takes_a else 0 for n in attrs["activations"]]
        aligned["activation_beta"] = [betas.pop(0) if n in takes_b else 0 for n in attrs["activations"]]
    expected = reference(op, inputs, aligned)
    for kind, tolerance in (("f", 1e-5), ("e", 1e-2)):
        given = [a if a is None or a.dtype.kind == "i" else a.astype(kind) for a in inputs]
        for constant in ((), (1, 2)):
            results = run_op(provider, op, given, attrs, outputs=len(expected), constant=constant)
            for result, want in zip(results, expected, strict=True):
                assert result.shape == want.shape
                np.testing.assert_allclose(result, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", list(GATES))
def test_batch_first(provider: DeviceProvider, op: str) -> None:
    op, inputs, attrs = layer(op, 4, 3, 5, 7, direction="bidirectional", states=True, lengths=[4, 1, 2])
    y, *states = reference(op, inputs, attrs)
    given = [a.swapaxes(0, 1).copy() if i in (0, 5, 6) and a is not None else a for i, a in enumerate(inputs)]
    results = run_op(provider, op, given, {**attrs, "layout": 1}, outputs=1 + len(states))
    np.testing.assert_allclose(results[0], y.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-5)
    for result, want in zip(results[1:], states, strict=True):
        np.testing.assert_allclose(result, want.swapaxes(0, 1), rtol=1e-5, atol=1e-5)


def test_no_steps(provider: DeviceProvider) -> None:
    op, inputs, attrs = layer("LSTM", 0, 2, 3, 5, states=True)
    y, h, c = run_op(provider, op, inputs, attrs, outputs=3)
    assert y.shape == (0, 1, 2, 5)
    np.testing.assert_array_equal(h, inputs[5])
    np.testing.assert_array_equal(c, inputs[6])


def test_unknown_activation_is_refused(provider: DeviceProvider) -> None:
    op, inputs, attrs = layer("RNN", 2, 1, 2, 2, activations=["Swish"])
    assert "Swish" in (provider.table.refusal(node_for(op, inputs, attrs), provider.info) or "")


@pytest.mark.parametrize("case", list(cases.node_cases(set(GATES))), ids=lambda c: c.name)
def test_node(provider: DeviceProvider, case: cases.Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for result, expected in zip(results, case.expected, strict=True):
        if expected is not None:
            np.testing.assert_allclose(result, expected, rtol=case.rtol, atol=max(case.atol, 1e-6))
