"""Attention as exporters write it, with dynamic batches and lengths: which spellings become one node, and which not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from optimizing import Writer, optimized, same_values

F, B = TensorProto.FLOAT, TensorProto.BOOL
HEADS, SIZE = 3, 4
HIDDEN = HEADS * SIZE


def project(w: Writer, x: str, heads: int = HEADS) -> str:
    """(batch, length, hidden) -> (batch, length, heads, size), by a Reshape to dimensions that torch looks up."""
    y = w.MatMul(x, w.weight(HIDDEN, heads * SIZE))
    return w.Reshape(y, w.Concat(w.size(x, 0), w.size(x, 1), [-1], [SIZE], axis=0))


def heads_first(w: Writer, x: str) -> str:
    return w.Transpose(x, perm=[0, 2, 1, 3])


def joined(w: Writer, x: str, like: str) -> str:
    """Heads side by side again."""
    shape = w.Concat(w.size(like, 0), w.size(like, 1), [HIDDEN], axis=0)
    return w.Reshape(heads_first(w, x), shape, _out="y")


def scaled_scores(w: Writer, q: str, k: str, scaling: str) -> str:
    """The product of queries and keys, with k as (batch, length, heads, size)."""
    turned = w.Transpose(k, perm=[0, 2, 3, 1])
    match scaling:
        case "Mul" | "Div":
            return getattr(w, scaling)(w.MatMul(q, turned), 0.5 if scaling == "Mul" else 2.0)
        case "q Div":
            return w.MatMul(w.Div(q, 2.0), turned)
        case "halves":
            half = w.constant(0.5**0.5)
            return w.MatMul(w.Mul(q, half), w.Mul(turned, half))
    return w.MatMul(q, turned)


def self_attention(scaling: str = "halves", masking: str = "bias", *, guard: bool = False, axis: int = -1) -> Writer:
    """torch's scaled_dot_product_attention of x, with a mask of (batch, 1, 1, length) where there is one."""
    w = Writer()
    q, v = heads_first(w, project(w, "x")), heads_first(w, project(w, "x"))
    scores = scaled_scores(w, q, project(w, "x"), scaling)
    match masking:
        case "bias":
            scores = w.Add(scores, w.Where("m", 0.0, -np.inf))
        case "masked_fill":
            scores = w.Where(w.Not("m"), -3.4028234663852886e38, scores)
        case "keep":
            scores = w.Where("m", scores, -np.inf)
    weights = w.Softmax(scores, axis=axis)
    if guard:
        weights = w.Where(w.IsNaN(weights), 0.0, weights)
    joined(w, w.MatMul(weights, v), "x")
    return w


def inputs_of(masking: str) -> dict[str, Any]:
    mask = {} if masking == "none" else {"m": (B, ["batch", 1, 1, "length"])}
    return {"x": (F, ["batch", "length", HIDDEN]), **mask}


def feeds_of(masking: str, batch: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    mask = rng.random((batch, 1, 1, length)) < 0.7
    mask[..., 0] = True
    x = rng.standard_normal((batch, length, HIDDEN)).astype(np.float32)
    return {"x": x} if masking == "none" else {"x": x, "m": mask}


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("masking", ["none", "bias", "masked_fill", "keep"])
@pytest.mark.parametrize("scaling", ["none", "Mul", "Div", "q Div", "halves"])
def test_every_spelling_becomes_an_attention(scaling, masking, guard):
    model = self_attention(scaling, masking, guard=guard).model(inputs_of(masking))
    ops, _, _ = optimized(model)
    assert "Softmax" not in ops
    assert ops.count("Attention") == 1
    same_values(model, feeds_of(masking))
    same_values(model, feeds_of(masking, 1, 1))


def test_rows_without_any_key_stay_zero():
    model = self_attention("halves", "bias", guard=True).model(inputs_of("bias"))
    feeds = feeds_of("bias")
    feeds["m"][1] = False
    same_values(model, feeds)


def test_finite_fills_weigh_hidden_keys_alike():
    model = self_attention("Div", "masked_fill").model(inputs_of("masked_fill"))
    feeds = feeds_of("masked_fill")
    feeds["m"][1] = False
    same_values(model, feeds)


def test_torchs_newer_exporter_flattens_batch_and_heads():
    w = Writer()
    shape = w.Concat(w.Shape("x", start=0, end=1), w.Shape("x", start=1, end=2), [-1], [SIZE], axis=0)
    q, k, v = (heads_first(w, w.Reshape(w.MatMul("x", w.weight(HIDDEN, HIDDEN)), shape, allowzero=1)) for _ in "qkv")
    dims = w.Shape(k, start=0)
    length, outer = w.Slice(dims, [-2], [-1]), w.Slice(dims, [-(2**63)], [-2])
    flat = w.Transpose(w.Reshape(k, w.Concat([-1], length, [SIZE], axis=0), allowzero=0), perm=[0, 2, 1])
    turned = w.Reshape(flat, w.Concat(outer, [SIZE], length, axis=0), allowzero=0)
    half = w.constant(0.5**0.5)
    weights = w.Softmax(w.Add(w.MatMul(w.Mul(q, half), w.Mul(turned, half)), w.Where("m", 0.0, -np.inf)), axis=-1)
    joined(w, w.MatMul(w.Where(w.IsNaN(weights), 0.0, weights), v), "x")
    model = w.model(inputs_of("bias"))
    ops, _, _ = optimized(model)
    assert [o for o in ops if o in ("Attention", "Softmax", "Mul", "IsNaN")] == ["Attention"]
    same_values(model, feeds_of("bias"))


def decoder(causal: str = "Range") -> Writer:
    """GPT-2's attention of torch: keys and values of the past before those of x, and a causal mask."""
    w = Writer()
    q, k, v = w.Split(w.MatMul("x", w.weight(HIDDEN, 3 * HIDDEN)), [HIDDEN] * 3, axis=2, _outputs=3)
    shape = w.Concat(w.size("x", 0), w.size("x", 1), [HEADS], [SIZE], axis=0)
    q, k, v = (heads_first(w, w.Reshape(t, shape)) for t in (q, k, v))
    k, v = w.Concat("past_k", k, axis=2, _out="present_k"), w.Concat("past_v", v, axis=2, _out="present_v")
    scores = w.Mul(w.MatMul(q, w.Transpose(k, perm=[0, 1, 3, 2])), 0.5)
    past = w.Gather(w.Shape("past_k"), np.array(2), axis=0)
    total = w.Add(past, w.Gather(w.Shape("x"), np.array(1), axis=0))
    rows, columns = w.Range(past, total, np.array(1)), w.Range(np.array(0), total, np.array(1))
    seen = w.LessOrEqual(w.Unsqueeze(columns, [0]), w.Unsqueeze(rows, [1]))
    weights = w.Softmax(w.Add(scores, w.Where(seen, 0.0, -1e9)), axis=-1)
    joined(w, w.MatMul(weights, v), "x")
    return w


PAST = {
    "x": (F, ["batch", "length", HIDDEN]),
    **{f"past_{t}": (F, ["batch", HEADS, "past", SIZE]) for t in "kv"},
}


@pytest.mark.parametrize(("past", "length"), [(0, 4), (3, 1), (2, 3)])
def test_attention_with_a_cache(past, length):
    model = decoder().model(PAST, ["y", "present_k", "present_v"])
    ops, _, _ = optimized(model)
    assert ops.count("Attention") == 1
    assert "Softmax" not in ops
    rng = np.random.default_rng(4)
    sizes = {"x": (2, length, HIDDEN), "past_k": (2, HEADS, past, SIZE), "past_v": (2, HEADS, past, SIZE)}
    same_values(model, {k: rng.standard_normal(s).astype(np.float32) for k, s in sizes.items()})


def refused(model: Any, rule: str = "AttentionFusion") -> list[str]:
    ops, report, _ = optimized(model)
    assert "Attention" not in ops
    return [m.reason for m in report.misses if m.rule == rule]


def test_a_fill_near_the_scores_is_no_mask():
    w = self_attention("Mul", "masked_fill")
    low = next(k for k, v in w.constants.items() if v.dtype == np.float32 and v.ndim == 0 and v < -1)
    w.constants[low] = np.float32(-5)
    model = w.model(inputs_of("masked_fill"))
    assert any("far below" in r for r in refused(model))
    same_values(model, feeds_of("masked_fill"))


def test_a_softmax_over_other_axes_is_none():
    assert any(
        "not over the keys" in r for r in refused(self_attention("Mul", "none", axis=2).model(inputs_of("none")))
    )


@pytest.mark.parametrize("masking", ["bias", "keep"])
def test_a_mask_of_another_length_is_expanded(masking):
    model = self_attention("Mul", masking).model({**inputs_of("bias"), "m": (B, ["batch", 1, 1, "other"])})
    ops, _, _ = optimized(model)
    assert "Attention" in ops
    assert "Expand" in ops
    feeds = feeds_of("bias")
    same_values(model, feeds)
    same_values(model, {**feeds, "m": feeds["m"][..., :1]})


def test_a_mask_of_other_queries_may_broadcast():
    model = self_attention("Mul", "bias").model({**inputs_of("bias"), "m": (B, ["batch", 1, "other", "length"])})
    assert any("may broadcast the scores" in r for r in refused(model))
    same_values(model, feeds_of("bias"))


def test_weights_that_are_an_output_stay():
    w = self_attention("Mul", "none")
    w.Identity(next(node.output[0] for node in w.nodes if node.op_type == "Softmax"), _out="z")
    assert any("graph output" in r or "also read" in r for r in refused(w.model(inputs_of("none"), ["y", "z"])))


def test_what_takes_the_place_of_nan_must_be_zero():
    w = self_attention("Mul", "none", guard=True)
    zero = w.nodes[[node.op_type for node in w.nodes].index("IsNaN") + 1].input[1]
    w.constants[zero] = np.float32(1)
    assert any("not zero" in r for r in refused(w.model(inputs_of("none"))))


@pytest.mark.parametrize("bias", [False, True])
def test_projections_of_one_value_are_one_product(bias):
    w = Writer()
    parts = []
    for _ in "qkv":
        y = w.MatMul("x", w.weight(HIDDEN, HIDDEN))
        y = w.Add(w.weight(HIDDEN), y) if bias else y
        parts.append(heads_first(w, w.Reshape(y, [0, 0, HEADS, SIZE])))
    scores = w.Mul(w.MatMul(parts[0], w.Transpose(parts[1], perm=[0, 1, 3, 2])), 0.5)
    joined(w, w.MatMul(w.Softmax(scores, axis=-1), parts[2]), "x")
    model = w.model(inputs_of("none"))
    ops, report, _ = optimized(model)
    assert [o for o in ops if o in ("MatMul", "Add", "Split", "Attention")] == [
        "MatMul", *(["Add"] if bias else []), "Split", "Attention"
    ]  # fmt: skip
    assert optimized(model, disabled=["PackedProjections"])[0].count("MatMul") == 3
    same_values(model, feeds_of("none"))
    many = w.model({"x": (F, [2, 9, HIDDEN])})
    ops, report, _ = optimized(many)
    assert ops.count("MatMul") == 3
    assert any("keep each product busy" in m.reason for m in report.misses if m.rule == "PackedProjections")


def test_projections_of_several_values_stay():
    w = Writer()
    q, k, v = (heads_first(w, project(w, x)) for x in ("x", "other", "other"))
    w.MatMul(w.Softmax(w.MatMul(q, w.Transpose(k, perm=[0, 1, 3, 2])), axis=-1), v, _out="y")
    dims = ["batch", "length", HIDDEN]
    ops, report, _ = optimized(w.model({"x": (F, dims), "other": (F, dims)}))
    assert ops.count("MatMul") == 3
    assert any("from one value" in m.reason for m in report.misses if m.rule == "PackedProjections")
