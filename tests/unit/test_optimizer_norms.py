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
