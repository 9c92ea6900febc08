"""Folding after partitioning, and that shapes stated in a file are not believed."""

import numpy as np
from conftest import make_model
from onnx import TensorProto, helper

import gpurt

n = helper.make_node
F32 = TensorProto.FLOAT


def test_static_shapes_leave_no_shape_arithmetic():
    shape, product = n("Shape", ["x"], ["s"], "shape"), n("ReduceProd", ["s"], ["p"], "prod")
    nodes = [shape, product, n("Reshape", ["x", "p"], ["y"], "r")]
    model = make_model(nodes, {"x": (F32, [2, 3])}, ["y"])
    s = gpurt.InferenceSession(model, providers=["cpu"])
    assert [r["name"] for r in s.explain().to_dict()["nodes"]] == ["r"]
    assert {r["name"] for r in s.explain().to_dict()["removed"]} == {"shape", "prod"}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(s.run(None, {"x": x})[0], np.ones(6))


def test_a_wrong_shape_in_the_file_does_no_harm():
    model = make_model(
        [n("Relu", ["x"], ["r"]), n("Shape", ["r"], ["s"]), n("Expand", ["one", "s"], ["y"])],
        {"x": (F32, ["batch", 2])}, ["y"], {"one": np.ones(1, np.float32)},
    )  # fmt: skip
    model.graph.value_info.append(helper.make_tensor_value_info("r", F32, [1, 2]))
    s = gpurt.InferenceSession(model, providers=["cpu"])
    assert s.run(None, {"x": np.ones((5, 2), np.float32)})[0].shape == (5, 2)


def test_nothing_is_folded_when_optimization_is_off():
    model = make_model([n("Shape", ["x"], ["y"], "shape")], {"x": (F32, [2, 3])}, ["y"])
    options = gpurt.SessionOptions(graph_optimization_level="disable_all")
    s = gpurt.InferenceSession(model, options, providers=["cpu"])
    assert [r["name"] for r in s.explain().to_dict()["nodes"]] == ["shape"]
    np.testing.assert_array_equal(s.run(None, {"x": np.ones((2, 3), np.float32)})[0], [2, 3])
