"""GroupQueryAttention on a device, against the cpu provider, which is tested against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.graph.view import GraphView
from gpurt.testing.kernels import node_for, run_op
from gpurt_cpu.ops.contrib_gqa import group_query_attention

OP, MS = "GroupQueryAttention", "com.microsoft"
HEADS, KV, SIZE = 6, 2, 16


def case(
    length: int, pasts: list[int], *, room: int = 0, packed: bool = False, rotary: int = -1, dtype: str = "float32"
) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    """Inputs of one step: sequences that hold so much of the past, and a cache with so many free rows."""
    rng = np.random.default_rng(length + room)
    batch = len(pasts)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    parts: list[np.ndarray | None] = [normal(batch, length, n * SIZE) for n in (HEADS, KV, KV)]
    if packed:
        parts = [np.concatenate([p for p in parts if p is not None], axis=2), None, None]
    totals = np.array(pasts) + length
    held = max(pasts) + (length + room if room else 0)
    cache = [normal(batch, KV, held, SIZE) if held else None for _ in "kv"]
    inputs = [*parts, *cache, (totals - 1).astype(np.int32), np.array(totals.max(), np.int32)]
    attrs: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV}
    if rotary >= 0:
        angles = rng.uniform(0, 6, (40, SIZE // 2))
        inputs += [np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)]
        attrs |= {"do_rotary": 1, "rotary_interleaved": rotary}
    return inputs, attrs


def check(provider: DeviceProvider, inputs: list[np.ndarray | None], attrs: dict[str, Any]) -> None:
    """Compare outputs and caches; of a padded sequence only what is its own means anything."""
    given = [None if x is None else x.copy() for x in inputs]
    wanted = group_query_attention(*given, **attrs, outputs=(True, True, True))
    got = run_op(provider, OP, inputs, attrs, domain=MS, outputs=3)
    half = inputs[0].dtype == np.float16  # type: ignore[union-attr]
    ends = inputs[5]
    assert ends is not None
    for b, total in enumerate(ends + 1):
        own = min(got[0].shape[1], int(total))
        tolerance = 4e-3 if half else 2e-5
        np.testing.assert_allclose(got[0][b, :own], wanted[0][b, :own], rtol=tolerance, atol=tolerance)
        for y, cache in zip(got[1:], wanted[1:3], strict=True):
            assert y.shape == cache.shape
            np.testing.assert_allclose(y[b, :, :total], cache[b, :, :total], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotary", [-1, 0, 1])
@pytest.mark.parametrize(("length", "pasts", "room"), [(5, [0, 0], 0), (1, [7, 3], 0), (1, [7, 3], 4), (3, [4], 0)])
def test_steps(
    provider: DeviceProvider, length: int, pasts: list[int], room: int, rotary: int, packed: bool, dtype: str
) -> None:
    check(provider, *case(length, pasts, room=room, packed=packed, rotary=rotary, dtype=dtype))


@pytest.mark.parametrize(
    "attrs", [{"local_window_size": 3}, {"softcap": 0.7}, {"scale": 0.3}, {"causal": 0}], ids=lambda a: next(iter(a))
)
def test_variants(provider: DeviceProvider, attrs: dict[str, Any]) -> None:
    for length, pasts in ((6, [0, 0]), (1, [5, 2])):
        inputs, own = case(length, pasts)
        check(provider, inputs, own | attrs)


def test_prompts_of_different_lengths(provider: DeviceProvider) -> None:
    inputs, attrs = case(5, [0, 0, 0], rotary=0)
    inputs[5] = np.array([4, 1, 2], np.int32)
    check(provider, inputs, attrs)


def test_bias_and_positions(provider: DeviceProvider) -> None:
    rng = np.random.default_rng(1)
    inputs, attrs = case(1, [4, 4], rotary=0)
    inputs += [rng.integers(0, 40, (2, 1)), rng.normal(size=(1, HEADS, 1, 5)).astype(np.float32)]
    check(provider, inputs, attrs)
    inputs, attrs = case(5, [0, 0], rotary=0)
    check(provider, [*inputs, np.tile(np.arange(3, 8), (2, 1))], attrs)


@pytest.mark.parametrize(
    ("attrs", "more", "outputs", "reason"),
    [
        ({"smooth_softmax": 1}, 0, 3, "sinks"),
        ({}, 1, 3, "sinks"),
        ({"qk_output": 1}, 0, 4, "stores its scores"),
        ({"do_rotary": 1}, 0, 3, "no cosines"),
    ],
)
def test_what_is_handed_on(
    provider: DeviceProvider, attrs: dict[str, Any], more: int, outputs: int, reason: str
) -> None:
    inputs, own = case(1, [3])
    sinks: list[np.ndarray | None] = [None] * 4 + [np.zeros(HEADS, np.float32)] if more else []
    node = node_for(OP, [*inputs, *sinks], own | attrs, domain=MS, outputs=outputs)
    graph = GraphView((node,), tuple(v for v in node.inputs if v), tuple(v for v in node.outputs if v))
    capability = provider.get_capability(graph)
    assert not capability.claims
    assert reason in str(capability.refused)
