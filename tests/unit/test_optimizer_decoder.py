"""What decoders write around attention, as torch's exporters do: repeated heads, rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from optimizing import Writer, optimized, same_values

F, I64 = TensorProto.FLOAT, TensorProto.INT64
KV, SHARE, SIZE = 2, 3, 8
HEADS = KV * SHARE


def grouped(form: str = "Expand", order: list[int] | None = None) -> Writer:
    """Llama's attention of queries of 6 heads over keys of 2, which it repeats."""
    w = Writer()

    def repeated(x: str) -> str:
        if form == "Gather":
            return w.Gather(x, order or [h // SHARE for h in range(HEADS)], axis=1)
        sizes = [w.size(x, i) for i in (0, 1, 2, 3)]
        wide = w.Expand(w.Unsqueeze(x, [2]), w.Concat(*sizes[:2], [SHARE], *sizes[2:], axis=0))
        heads = w.Mul(sizes[1], [SHARE])
        return w.Reshape(wide, w.Concat(sizes[0], heads, *sizes[2:], axis=0))

    scores = w.Mul(w.MatMul("q", w.Transpose(repeated("k"), perm=[0, 1, 3, 2])), SIZE**-0.5)
    w.MatMul(w.Softmax(w.Add(scores, "m"), axis=-1), repeated("v"), _out="y")
    return w


GROUPED = {
    "q": (F, ["batch", HEADS, "length", SIZE]),
    "k": (F, ["batch", KV, "total", SIZE]),
    "v": (F, ["batch", KV, "total", SIZE]),
    "m": (F, ["batch", 1, "length", "total"]),
}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("form", ["Expand", "Gather"])
@pytest.mark.parametrize(("length", "total"), [(4, 4), (1, 7)])
def test_repeated_heads_are_shared(form, length, total):
    model = grouped(form).model(GROUPED)
    ops, _, graph = optimized(model)
    assert ops == ["Attention"]
    assert [v.name for v in graph.graph.node(0).inputs] == ["q", "k", "v", "m"]
    sizes = {"q": (2, HEADS, length, SIZE), "k": (2, KV, total, SIZE), "v": (2, KV, total, SIZE)}
    same_values(model, filled({**sizes, "m": (2, 1, length, total)}))


def test_heads_in_another_order_are_not_shared():
    model = grouped("Gather", [0, 1] * SHARE).model(GROUPED)
    ops, report, _ = optimized(model)
    assert "Gather" in ops
    assert any("one after the other" in m.reason for m in report.misses if m.rule == "GroupedHeadsFusion")
    sizes = {"q": (1, HEADS, 2, SIZE), "k": (1, KV, 5, SIZE), "v": (1, KV, 5, SIZE), "m": (1, 1, 2, 5)}
    same_values(model, filled(sizes))


def rotary(form: str = "Slice", *, other: bool = False) -> Writer:
    """The rotary positions of transformers' Llama (halves) or GPT-J (neighbours)."""
    w = Writer()
    half = SIZE // 2
    places = w.Unsqueeze(w.Cast("positions", to=F), [1])
    frequencies = (10000.0 ** (-np.arange(half) / half)).astype(np.float32).reshape(1, half, 1)
    angles = w.Transpose(w.MatMul(frequencies, places), perm=[0, 2, 1])
    if form == "neighbours":
        pairs = w.Unsqueeze(angles, [-1])
        both = w.Reshape(w.Concat(pairs, pairs, axis=-1), [0, 0, SIZE])
    else:
        both = w.Concat(angles, w.Neg(angles) if other else angles, axis=-1)
    cos, sin = (w.Unsqueeze(w.Mul(t, 1.25), [1]) for t in (w.Cos(both), w.Sin(both)))
    if form == "neighbours":
        even, odd = w.Slice("x", [0], [2**63 - 1], [3], [2]), w.Slice("x", [1], [2**63 - 1], [3], [2])
        shape = w.Shape("x")
        turned = w.Reshape(w.Concat(w.Unsqueeze(w.Neg(odd), [-1]), w.Unsqueeze(even, [-1]), axis=-1), shape)
    elif form == "Split":
        first, second = w.Split("x", [half, half], axis=-1, _outputs=2)
        turned = w.Concat(w.Neg(second), first, axis=-1)
    else:
        first, second = w.Slice("x", [0], [half], [3], [1]), w.Slice("x", [half], [2**63 - 1], [3], [1])
        turned = w.Concat(w.Neg(second), first, axis=-1)
    w.Add(w.Mul("x", cos), w.Mul(turned, sin), _out="y")
    return w


ROTARY: dict[str, Any] = {"x": (F, ["batch", HEADS, "length", SIZE]), "positions": (I64, ["batch", "length"])}


def placed(batch: int, length: int) -> dict[str, np.ndarray]:
    positions = np.arange(length)[None] + np.arange(batch)[:, None]
    return {**filled({"x": (batch, HEADS, length, SIZE)}), "positions": positions}


@pytest.mark.parametrize("form", ["Slice", "Split", "neighbours"])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_rotated_halves_and_neighbours(form, batch):
    model = rotary(form).model({**ROTARY, "positions": (I64, [batch, "length"])})
    ops, _, _ = optimized(model)
    assert ops.count("RotaryEmbedding") == 1
    assert "Neg" not in ops
    feeds = placed(3, 5)
    same_values(model, feeds if batch == "batch" else {**feeds, "positions": feeds["positions"][:1]})


def test_angles_that_differ_between_the_halves_stay():
    model = rotary(other=True).model(ROTARY)
    ops, report, _ = optimized(model)
    assert "RotaryEmbedding" not in ops
    assert any("each number twice" in m.reason for m in report.misses if m.rule == "RotaryEmbeddingFusion")
    same_values(model, placed(2, 3))


def test_slices_that_are_no_halves_stay():
    w = rotary()
    ends = [k for k, v in w.constants.items() if v.dtype == np.int64 and v.tolist() == [SIZE // 2]]
    assert ends
    w.constants[ends[0]] = np.array([SIZE // 2 - 1])
    model = w.model(ROTARY)
    _, report, _ = optimized(model)
    assert [m for m in report.misses if m.rule == "RotaryEmbeddingFusion"]
