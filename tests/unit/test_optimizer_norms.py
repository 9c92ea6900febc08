"""Normalizations as exporters write them, with dynamic sizes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from optimizing import Writer, optimized, same_values

F = TensorProto.FLOAT
GROUPS, CHANNELS = 2, 6


def group_norm(*, affine: bool = True, per_row: bool = False) -> Writer:
    """torch.nn.GroupNorm of the script exporter."""
    w = Writer()
    norm = w.InstanceNormalization(
        w.Reshape("x", [0, GROUPS, -1]), np.ones(GROUPS, "f4"), np.zeros(GROUPS, "f4"), epsilon=1e-5
    )
    last = {} if affine else {"_out": "y"}
    y = w.Reshape(norm, w.Shape("x"), **last)
    if affine:
        y = w.Mul(y, w.weight(4, 1) if per_row else w.weight(CHANNELS, 1, 1))
        w.Add(y, w.weight(CHANNELS, 1, 1), _out="y")
    return w


IMAGE = {"x": (F, ["batch", CHANNELS, "rows", "columns"])}


def image(rows: int = 4, columns: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((2, CHANNELS, rows, columns)).astype(np.float32)}


@pytest.mark.parametrize("affine", [True, False])
def test_group_normalization(affine):
    model = group_norm(affine=affine).model(IMAGE)
    ops, _, _ = optimized(model)
    assert ops == ["GroupNormalization"]
    for off in ("GroupNormFusion", "GroupNormAffineFusion"):
        assert optimized(model, disabled=[off])[0] != ops or (off == "GroupNormAffineFusion" and not affine)
    same_values(model, image())


def test_a_factor_for_each_row_stays():
    model = group_norm(per_row=True).model({"x": (F, ["batch", CHANNELS, 4, 5])})
    ops, report, _ = optimized(model)
    assert ops[:2] == ["GroupNormalization", "Mul"]
    assert any("each channel" in m.reason for m in report.misses if m.rule == "GroupNormAffineFusion")
    same_values(model, image())


def test_an_instance_normalization_of_another_shape_stays():
    w = Writer()
    norm = w.InstanceNormalization(w.Reshape("x", [0, 4, -1]), np.ones(4, "f4"), np.zeros(4, "f4"))
    w.Reshape(norm, w.Shape("x"), _out="y")
    model = w.model({"x": (F, ["batch", CHANNELS, 4, 4])})
    ops, report, _ = optimized(model)
    assert "InstanceNormalization" in ops
    assert any("do not divide" in m.reason for m in report.misses if m.rule == "GroupNormFusion")
    same_values(model, image(4, 4))


def embeddings(*, segments: bool = True, places: str = "positions") -> Writer:
    """BERT's embeddings of transformers: words, segments, positions, and a LayerNormalization."""
    w = Writer()
    total = w.Gather(w.weight(20, 8), "ids")
    if segments:
        total = w.Add(total, w.Gather(w.weight(2, 8), "kinds"))
    length = w.Gather(w.Shape("ids"), np.array(1), axis=0)
    positions = w.Slice(np.arange(16)[None], [0], w.Unsqueeze(length, [0]), [1]) if places == "positions" else places
    w.LayerNormalization(w.Add(total, w.Gather(w.weight(16, 8), positions)), w.weight(8), w.weight(8), _out="y")
    return w


IDS = {k: (TensorProto.INT64, ["batch", "length"]) for k in ("ids", "kinds")}


def tokens(length: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"ids": rng.integers(0, 20, (2, length)), "kinds": rng.integers(0, 2, (2, length))}


@pytest.mark.parametrize("segments", [True, False])
def test_embeddings_with_their_normalization(segments):
    inputs = IDS if segments else {"ids": IDS["ids"]}
    model = embeddings(segments=segments).model(inputs)
    ops, _, _ = optimized(model)
    assert ops.count("EmbedLayerNormalization") == 1
    assert not {"Gather", "Add", "LayerNormalization"} & set(ops) - {"Gather"}
    assert "LayerNormalization" in optimized(model, disabled=["EmbedLayerNormFusion"])[0]
    for length in (5, 1):
        same_values(model, {k: v for k, v in tokens(length).items() if k in inputs})


def test_positions_of_another_length_stay():
    model = embeddings(places="places").model({**IDS, "places": (TensorProto.INT64, [1, "other"])})
    ops, report, _ = optimized(model)
    assert "EmbedLayerNormalization" not in ops
    assert any("the same shape" in m.reason for m in report.misses if m.rule == "EmbedLayerNormFusion")
    same_values(model, {**tokens(), "places": np.array([[3]])})
