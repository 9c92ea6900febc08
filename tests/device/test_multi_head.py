"""com.microsoft's MultiHeadAttention and RotaryEmbedding on a device, against the cpu provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op
from gpurt_cpu.ops.contrib_attention import multi_head_attention, rotary_embedding_by_position

MS = "com.microsoft"
BATCH, HEADS, SIZE = 2, 3, 16
HIDDEN = HEADS * SIZE
RNG = np.random.default_rng(9)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def parts(length: int = 5, keys: int = 5) -> list[np.ndarray | None]:
    return [normal(BATCH, length, HIDDEN), normal(BATCH, keys, HIDDEN), normal(BATCH, keys, HIDDEN)]


FORMS: dict[str, tuple[list[np.ndarray | None], dict[str, Any], int]] = {
    "apart": (parts(), {}, 1),
    "other lengths": (parts(5, 9), {"scale": 0.3}, 1),
    "presents": (parts(), {}, 3),
    "bias": ([*parts(), normal(3 * HIDDEN)], {}, 1),
    "packed": ([normal(BATCH, 5, HEADS, 3, SIZE)], {}, 1),
    "packed keys": ([normal(BATCH, 5, HIDDEN), normal(BATCH, 7, HEADS, 2, SIZE)], {}, 1),
    "ready keys": ([normal(BATCH, 5, HIDDEN), *(normal(BATCH, HEADS, 7, SIZE) for _ in "kv")], {}, 1),
    "causal": (parts(), {"unidirectional": 1}, 1),
    "scores bias": ([*parts(), None, None, normal(1, HEADS, 5, 5)], {}, 1),
    "past": ([*parts(1, 1), None, None, None, *(normal(BATCH, HEADS, 4, SIZE) for _ in "kv")], {}, 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_multi_head_attention(provider: DeviceProvider, form: str) -> None:
    inputs, attrs, outputs = FORMS[form]
    attrs = {"num_heads": HEADS, **attrs}
    wanted = multi_head_attention(*inputs, **attrs, outputs=(True,) * outputs)
    got = run_op(provider, "MultiHeadAttention", inputs, attrs, domain=MS, outputs=outputs)
    for y, expected in zip(got, wanted if outputs > 1 else [wanted], strict=False):
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(2, 5, HIDDEN), (2, HEADS, 5, SIZE)])
def test_rotary_embedding(provider: DeviceProvider, shape: tuple[int, ...], interleaved: int) -> None:
    angles = RNG.uniform(0, 6, (20, SIZE // 2)).astype(np.float32)
    inputs = [normal(*shape), RNG.integers(0, 20, (2, 5)), np.cos(angles), np.sin(angles)]
    wanted = rotary_embedding_by_position(*inputs, interleaved=interleaved)
    (got,) = run_op(provider, "RotaryEmbedding", inputs, {"interleaved": interleaved}, domain=MS)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
