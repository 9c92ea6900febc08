"""Attention, RotaryEmbedding, LinearAttention and CausalConvWithState."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, node_cases
from onnx.reference.ops.op_attention import _compute_attention

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

RNG = np.random.default_rng(7)
OTHERS = ["RotaryEmbedding", "LinearAttention", "CausalConvWithState"]
CASES = [c for c in (*node_cases(["Attention"], oldest=23), *node_cases(OTHERS)) if "_bf16" not in c.name]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for got, wanted in zip(results, case.expected, strict=True):
        if wanted is not None:
            assert got.dtype == wanted.dtype
            half = got.dtype == np.float16
            np.testing.assert_allclose(got, wanted, rtol=max(case.rtol, 1e-4), atol=3e-3 if half else 1e-5)


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def check(provider: DeviceProvider, inputs: list[np.ndarray | None], attrs: dict[str, Any], outputs: int = 1) -> None:
    names = ("attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    double = [a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in inputs]
    given = {"qk_matmul_output_mode": 0, **attrs}
    if len(double) > 3 and double[3] is not None and double[3].shape[-2:-1] != (inputs[0].shape[-2],):
        # The reference fails where a causal mask is the same for all queries.
        mask = double[3]
        double[3] = np.broadcast_to(mask, (*mask.shape[:-2], inputs[0].shape[-2], mask.shape[-1]))
    wanted = _compute_attention(*double[:3], **dict(zip(names, double[3:], strict=False)), **given)
    got = run_op(provider, "Attention", inputs, attrs, outputs=outputs)
    half = inputs[0].dtype == np.float16
    for y, expected in zip(got, wanted, strict=False):
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-2 if half else 1e-4, atol=4e-3 if half else 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_heads(provider: DeviceProvider, dtype: str, heads: tuple[int, int], queries: int, packed: bool) -> None:
    q, kv = heads
    shapes = [(2, q, queries, 8), (2, kv, 11, 8), (2, kv, 11, 6)]
    attrs: dict[str, Any] = {"scale": 0.4}
    if packed:
        shapes = [(b, n, h * d) for b, h, n, d in shapes]
        attrs |= {"q_num_heads": q, "kv_num_heads": kv}
    check(provider, [normal(*s, dtype=dtype) for s in shapes], attrs)


MASKS = [(5, 19), (19,), (2, 1, 5, 19), (4, 5, 19), (1, 4, 1, 19), (5, 12), (2, 1, 1, 1)]


# Heads of queries and keys, and of values. The CPU class has kernels of their own for whole vectors of 16.
SIZES = [(8, 3), (16, 32), (48, 80)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks(provider: DeviceProvider, boolean: bool, causal: int, sizes: tuple[int, int]) -> None:
    q, k, v = normal(2, 4, 5, sizes[0]), normal(2, 2, 19, sizes[0]), normal(2, 2, 19, sizes[1])
    for shape in MASKS:
        mask = RNG.random(shape) < 0.6 if boolean else normal(*shape)
        if not boolean:
            mask[mask < -1] = -np.inf
        check(provider, [q, k, v, mask], {"is_causal": causal})


@pytest.mark.parametrize("window", [(-1, -1), (3, -1), (-1, 2), (4, 1)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    ("queries", "sizes", "part"),
    [(6, (8, 9), None), (6, (8, 9), 1), (6, (16, 16), None), (2, (16, 48), None)],
)
def test_windows_and_caches(
    provider: DeviceProvider, window: tuple[int, int], causal: int, queries: int, sizes: tuple[int, int],
    part: int | None,
) -> None:  # fmt: skip
    attrs = {"is_causal": causal, "left_window_size": window[0], "right_window_size": window[1], "softcap": 2.0}
    q, k, v = normal(2, 4, queries, sizes[0]), normal(2, 2, 17, sizes[0]), normal(2, 2, 17, sizes[1])
    past = [normal(2, 2, 9, sizes[0]), normal(2, 2, 9, sizes[1])]
    with pytest.MonkeyPatch.context() as patch:
        if part:  # queries in turns
            patch.setattr("gpurt.device.ops.heads.SCORE_BYTES", part)
        check(provider, [q, k, v], attrs)
        check(provider, [q, k, v, None, *past], attrs, outputs=3)
        check(provider, [q, k, v, None, None, None, np.array([17, 4])], attrs)
        check(provider, [q, k, v, None, None, None, np.array([3, 0])], attrs)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_as_output(provider: DeviceProvider, mode: int, dtype: str) -> None:
    q, k, v = (normal(2, n, 2 * 8, dtype=dtype) for n in (5, 9, 9))
    past = [normal(2, 2, 4, 8, dtype=dtype) for _ in range(2)]
    attrs = {"q_num_heads": 2, "kv_num_heads": 2, "qk_matmul_output_mode": mode, "softcap": 3.0, "is_causal": 1}
    if mode == 0:
        attrs["softcap"] = 0.0
    check(provider, [q, k, v, normal(5, 13, dtype=dtype), *past], attrs, outputs=4)


def test_present_without_past(provider: DeviceProvider) -> None:
    check(provider, [normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4)], {}, outputs=3)
    attrs = {"q_num_heads": 2, "kv_num_heads": 1}
    check(provider, [normal(2, 3, 8), normal(2, 5, 4), normal(2, 5, 4)], attrs, outputs=3)


def test_long_rows(provider: DeviceProvider) -> None:
    check(provider, [normal(1, 2, 70, 40), normal(1, 2, 1500, 40), normal(1, 2, 1500, 33)], {"is_causal": 1})
    mask = RNG.random((70, 1500)) < 0.5
    check(provider, [normal(1, 2, 70, 40), normal(1, 2, 1500, 40), normal(1, 2, 1500, 33), mask], {})
    check(provider, [normal(1, 2, 70, 64), normal(1, 2, 1500, 64), normal(1, 2, 1500, 64), mask], {"is_causal": 1})
    check(provider, [normal(2, 70, 96), normal(2, 300, 32), normal(2, 300, 16)], {"q_num_heads": 3, "kv_num_heads": 1})


@pytest.mark.parametrize(("rows", "size"), [(3, 4), (3, 16), (5, 16)])
def test_rows_without_keys_and_nan(provider: DeviceProvider, rows: int, size: int) -> None:
    q, k, v = normal(1, 1, rows, size), normal(1, 1, 9, size), normal(1, 1, 9, size)
    mask = np.ones((rows, 9), bool)
    mask[1] = False
    (y,) = run_op(provider, "Attention", [q, k, v, mask])
    assert (y[0, 0, 1] == 0).all()
    assert (y[0, 0, 0] != 0).any()
    q[0, 0, 2, 0] = np.nan
    (y,) = run_op(provider, "Attention", [q, k, v])
    assert np.isnan(y[0, 0, 2]).all()
    assert not np.isnan(y[0, 0, :2]).any()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rotary_embedding_batches(provider: DeviceProvider, dtype: str) -> None:
    x = normal(3, 2, 5, 6, dtype=dtype)
    angles = RNG.normal(size=(10, 2))
    positions = RNG.integers(0, 10, (3, 5))
    tables = [f(angles).astype(dtype) for f in (np.cos, np.sin)]
    (y,) = run_op(provider, "RotaryEmbedding", [x, *tables, positions], {"rotary_embedding_dim": 4})
    c, s = (t.astype(np.float64)[positions][:, None] for t in tables)
    a, b = x[..., :2].astype(np.float64), x[..., 2:4].astype(np.float64)
    wanted = np.concatenate([c * a - s * b, s * a + c * b, x[..., 4:]], axis=-1)
    rtol, atol = (1e-2, 2e-3) if dtype == "float16" else (1e-5, 1e-6)
    np.testing.assert_allclose(y, wanted, rtol=rtol, atol=atol)


def test_linear_attention_many_columns(provider: DeviceProvider) -> None:
    q, k, v = normal(2, 3, 2 * 5), normal(2, 3, 5), normal(2, 3, 37)
    past = normal(2, 1, 5, 37)
    attrs = {"q_num_heads": 2, "kv_num_heads": 1, "update_rule": "linear", "scale": 1.0}
    y, state = run_op(provider, "LinearAttention", [q, k, v, past], attrs, outputs=2)
    for t in range(3):
        past = past + k[:, t, None, :, None] * v[:, t, None, None, :]
        wanted = np.einsum("bhd,bdm->bhm", q[:, t].reshape(2, 2, 5), past[:, 0]).reshape(2, -1)
        np.testing.assert_allclose(y[:, t], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, past, rtol=1e-5, atol=1e-6)
