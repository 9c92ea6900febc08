"""Whole models on the host and on OpenCL in both kernel classes: right values, and nearly all of it on the device."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import gpurt
from gpurt import registry

sys.path.insert(0, str(Path(__file__).parent))
from builders import ALL

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

LISTS = {
    "cpu": ["cpu"],
    "opencl": ["opencl", "cpu"],
    "opencl-gpu-class": [("opencl", {"kernel_class": "gpu"}), "cpu"],
}


@pytest.fixture(params=LISTS)
def providers(request):
    if request.param != "cpu" and not registry.status("opencl").usable:
        pytest.skip(f"no OpenCL device: {registry.status('opencl').reason}")
    return LISTS[request.param]


def reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, feeds)


def on_device(session: gpurt.InferenceSession) -> float:
    """Share of the nodes, shape arithmetic aside, that do not run on the host."""
    nodes = session.explain().to_dict()["nodes"]
    data = [n for n in nodes if not any("shape arithmetic" in why for why in n["refused"].values())]
    return sum(n["provider"] != "cpu" for n in data) / len(data)


@pytest.mark.parametrize("name", ALL)
def test_model(name, providers):
    model, all_feeds = ALL[name]()
    session = gpurt.InferenceSession(model, GREEDY, providers=providers)
    for _ in range(2):
        for feeds in all_feeds:
            for got, want in zip(session.run(None, feeds), reference(model, feeds), strict=True):
                assert got.dtype == want.dtype
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= 1e-4 * max(np.abs(want).max(), 1e-3)
    if providers != ["cpu"]:
        assert on_device(session) >= 0.9


def test_two_sessions_on_two_classes_at_once():
    if not registry.status("opencl").usable:
        pytest.skip(f"no OpenCL device: {registry.status('opencl').reason}")
    model, all_feeds = ALL["residual_cnn"]()
    first = gpurt.InferenceSession(model, GREEDY, providers=LISTS["opencl"])
    second = gpurt.InferenceSession(model, GREEDY, providers=LISTS["opencl-gpu-class"])
    want = reference(model, all_feeds[0])[0]
    for _ in range(3):
        for session in (first, second):
            np.testing.assert_allclose(session.run(None, all_feeds[0])[0], want, rtol=1e-3, atol=1e-5)


def test_a_result_never_takes_memory_that_a_part_of_is_still_read():
    if not registry.status("opencl").usable:
        pytest.skip(f"no OpenCL device: {registry.status('opencl').reason}")
    n = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [n("Mul", ["x", "x"], ["a"]), n("Slice", ["a", "zero", "one"], ["part"]), n("Add", ["a", "part"], ["y"])],
        "alias",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4096])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([v]), k) for k, v in (("zero", 0), ("one", 1))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.arange(1, 4097, dtype=np.float32)
    for providers in LISTS.values():
        (y,) = gpurt.InferenceSession(model, GREEDY, providers=providers).run(None, {"x": x})
        np.testing.assert_array_equal(y, x * x + 1)
