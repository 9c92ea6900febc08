"""Conv and ConvTranspose against a direct evaluation in double precision."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.infer.shapes import conv_geometry, conv_transpose_geometry
from gpurt.testing.kernels import run_op

Shape = tuple[int, ...]


def windows(x: np.ndarray, attrs: dict[str, Any], kernel: Shape, out: Shape, begin: Shape) -> dict[Shape, np.ndarray]:
    """For each tap the input that every output pixel sees there."""
    rank = len(kernel)
    stride, dilation = attrs.get("strides", (1,) * rank), attrs.get("dilations", (1,) * rank)
    views = {}
    for tap in itertools.product(*map(range, kernel)):
        taken = x
        for a in range(rank):
            at = np.arange(out[a]) * stride[a] + tap[a] * dilation[a] - begin[a]
            inside = (at >= 0) & (at < x.shape[2 + a])
            taken = np.take(taken, np.where(inside, at, 0), axis=2 + a)
            taken = taken * inside.reshape((-1,) + (1,) * (rank - 1 - a))
        views[tap] = taken
    return views


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, attrs: dict[str, Any]) -> np.ndarray:
    kernel, group = w.shape[2:], attrs.get("group", 1)
    out, begin, _ = conv_geometry(
        x.shape[2:], kernel, attrs.get("strides"), attrs.get("dilations"), attrs.get("pads"),
        attrs.get("auto_pad", "NOTSET"),
    )  # fmt: skip
    y = np.zeros((x.shape[0], group, w.shape[0] // group, *out))
    for tap, view in windows(x, attrs, kernel, out, begin).items():
        parts = view.reshape(x.shape[0], group, w.shape[1], *out)
        weights = w.reshape(group, -1, *w.shape[1:])[(..., *tap)]
        y += np.einsum("ngc...,gmc->ngm...", parts, weights)
    y = y.reshape(x.shape[0], w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, *(1,) * len(out))


def conv_transpose(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, attrs: dict[str, Any]) -> np.ndarray:
    rank, kernel, group = x.ndim - 2, w.shape[2:], attrs.get("group", 1)
    stride, dilation = attrs.get("strides", (1,) * rank), attrs.get("dilations", (1,) * rank)
    out, begin, _ = conv_transpose_geometry(
        x.shape[2:], kernel, stride, dilation, attrs.get("pads"), attrs.get("output_padding"),
        attrs.get("output_shape"), attrs.get("auto_pad", "NOTSET"),
    )  # fmt: skip
    n, filters = x.shape[0], w.shape[1] * group
    y = np.zeros((n, filters, *out))
    weights = w.reshape(group, -1, *w.shape[1:])
    parts = x.reshape(n, group, w.shape[0] // group, *x.shape[2:])
    for tap in itertools.product(*map(range, kernel)):
        sent = np.einsum("ngc...,gcm->ngm...", parts, weights[(..., *tap)]).reshape(n, filters, *x.shape[2:])
        for pixel in itertools.product(*map(range, x.shape[2:])):
            at = tuple(p * s + t * d - o for p, s, t, d, o in zip(pixel, stride, tap, dilation, begin, strict=True))
            if all(0 <= a < limit for a, limit in zip(at, out, strict=True)):
                y[(..., *at)] += sent[(..., *pixel)]
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


CONVS: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 9), (4, 3, 3), {"pads": (1, 1)}),
    ((1, 2, 50), (3, 2, 7), {"strides": (3,), "dilations": (2,)}),
    ((2, 1, 40), (5, 1, 40), {}),
    ((2, 5, 8, 9), (6, 5, 3, 3), {}),
    ((2, 5, 8, 9), (9, 5, 3, 3), {"pads": (1, 0, 2, 1), "strides": (2, 1)}),
    ((1, 4, 17, 40), (20, 4, 3, 5), {"pads": (1, 2, 1, 2), "strides": (2, 3)}),
    ((1, 6, 30, 30), (12, 2, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
    ((1, 6, 30, 37), (6, 1, 3, 3), {"group": 6, "pads": (1, 1, 1, 1)}),
    ((2, 6, 30, 37), (12, 1, 5, 3), {"group": 6, "strides": (2, 2), "pads": (2, 1, 2, 1)}),
    ((2, 8, 7, 7), (33, 8, 1, 1), {}),
    ((2, 8, 7, 7), (33, 8, 1, 1), {"strides": (2, 2)}),
    ((1, 8, 14, 14), (33, 8, 1, 1), {"pads": (1, 1, 1, 1)}),
    ((2, 8, 7, 7), (5, 8, 7, 7), {}),
    ((2, 8, 1, 1), (5, 8, 1, 1), {}),
    ((1, 3, 10, 13), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": (2, 3)}),
    ((1, 3, 10, 13), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
    ((1, 3, 10, 13), (4, 3, 3, 2), {"auto_pad": "SAME_LOWER"}),
    ((1, 3, 10, 13), (4, 3, 3, 2), {"auto_pad": "VALID"}),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": (1, 1, 1, 0, 1, 1), "strides": (1, 2, 1)}),
    ((2, 4, 5, 6, 17), (4, 2, 2, 2, 2), {"group": 2, "dilations": (2, 1, 3)}),
    ((1, 3, 64, 64), (64, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
    ((1, 1, 4, 4), (1, 1, 3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 3, 3, 3), (2, 3, 3, 3), {"pads": (3, 3, 3, 3), "strides": (4, 4)}),
    ((1, 7, 1, 5), (2, 7, 1, 1), {"strides": (1, 3)}),
    ((0, 3, 5, 5), (2, 3, 3, 3), {}),
]


def check(provider: DeviceProvider, op: str, inputs: list[np.ndarray | None], attrs: Any, expected: np.ndarray) -> None:
    scale = max(1.0, np.abs(expected).max(initial=0))
    for kind, rtol, atol in (("f", 1e-5, 2e-6), ("e", 2e-3, 2e-3)):
        given = [None if a is None else a.astype(kind) for a in inputs]
        for constant in ((), (1,)):
            (result,) = run_op(provider, op, given, attrs, constant=constant)
            assert result.shape == expected.shape
            np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize(("x", "w", "attrs"), CONVS, ids=str)
def test_conv(provider: DeviceProvider, x: Shape, w: Shape, attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    # Values that a half holds, so that one reference serves both types.
    a, b, bias = (rng.normal(size=s).astype("e").astype("d") for s in (x, w, w[:1]))
    check(provider, "Conv", [a, b, bias], attrs, conv(a, b, bias, attrs))
    check(provider, "Conv", [a, b], attrs, conv(a, b, None, attrs))


TRANSPOSED: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 9), (3, 4, 3), {}),
    ((1, 2, 50), (2, 3, 7), {"strides": (3,), "dilations": (2,), "pads": (1, 2)}),
    ((2, 5, 8, 9), (5, 6, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    ((1, 6, 8, 9), (6, 2, 3, 2), {"group": 3, "strides": (2, 3), "dilations": (2, 2)}),
    ((1, 6, 8, 130), (6, 1, 4, 4), {"group": 6, "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((1, 3, 10, 13), (3, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": (2, 3)}),
    ((1, 3, 10, 13), (3, 4, 3, 4), {"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
    ((1, 3, 10, 13), (3, 4, 3, 2), {"auto_pad": "VALID"}),
    ((1, 3, 5, 5), (3, 2, 3, 3), {"output_shape": (10, 8), "strides": (3, 2)}),
    ((1, 3, 5, 5), (3, 2, 3, 3), {"output_shape": (12, 13), "strides": (2, 2), "output_padding": (1, 1)}),
    ((1, 2, 3, 4, 5), (2, 3, 2, 3, 2), {"strides": (1, 2, 2), "pads": (0, 1, 0, 1, 1, 0)}),
    ((1, 2, 1, 600), (2, 1, 1, 5), {}),
    ((1, 2, 3, 3), (2, 1, 1, 1), {"strides": (3, 3)}),
    ((0, 2, 3, 3), (2, 1, 2, 2), {}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), TRANSPOSED, ids=str)
def test_conv_transpose(provider: DeviceProvider, x: Shape, w: Shape, attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    filters = w[1] * attrs.get("group", 1)
    a, b, bias = (rng.normal(size=s).astype("e").astype("d") for s in (x, w, (filters,)))
    check(provider, "ConvTranspose", [a, b, bias], attrs, conv_transpose(a, b, bias, attrs))
    check(provider, "ConvTranspose", [a, b], attrs, conv_transpose(a, b, None, attrs))


@pytest.mark.parametrize("case", list(cases.node_cases({"Conv", "ConvTranspose"})), ids=lambda c: c.name)
def test_node(provider: DeviceProvider, case: cases.Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for result, expected in zip(results, case.expected, strict=True):
        np.testing.assert_allclose(result, expected, rtol=case.rtol, atol=max(case.atol, 1e-5))
