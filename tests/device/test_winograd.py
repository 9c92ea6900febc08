"""Convolutions by Winograd's minimal filtering in the CPU class, against NumPy's direct sums."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.ops.winograd import filters_of

# So that no rate of this machine decides, and the model's layout stays.
GREEDY = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="extended")

n = helper.make_node
RNG = np.random.default_rng(7)


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(provider, nodes, inputs, constants):
    """Result of y and the kernels that ran; the result of NumPy beside it."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, k) for k, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = gpurt.InferenceSession(
        proto, GREEDY, providers=[("opencl", {"kernel_class": provider.info.kernel_class})]
    )
    got = session.run(None, inputs)[0]
    want = gpurt.InferenceSession(proto, providers=["cpu"]).run(None, inputs)[0]
    (plan,) = session._runner.plans()
    return got, want, [k for step in plan._draft.steps if hasattr(step, "plan") for k in step.plan.kernels]


@pytest.mark.parametrize("shape", [(1, 32, 16, 16), (2, 33, 14, 14), (1, 48, 29, 31), (3, 40, 21, 18)])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [2, 1, 2, 3]])
def test_values(provider, shape, pads):
    x, w, b = f(*shape), f(37, shape[1], 3, 3), f(37)
    got, want, kernels = run(provider, [n("Conv", ["x", "w", "b"], ["y"], pads=pads)], {"x": x}, {"w": w, "b": b})
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    assert ("winograd_out" in kernels) == (provider.info.kernel_class == "cpu")


def test_what_follows_is_done_before_the_store(provider):
    x, r, w = f(2, 32, 19, 23), f(2, 64, 19, 23), f(64, 32, 3, 3)
    nodes = [n("Conv", ["x", "w"], ["c"], pads=[1] * 4), n("Add", ["c", "r"], ["d"]), n("HardSwish", ["d"], ["y"])]
    got, want, kernels = run(provider, nodes, {"x": x, "r": r}, {"w": w})
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max())
    assert not [k for k in kernels if k.startswith("ew_")]


@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 2]}, {"dilations": [2, 2]}, {"group": 2}], ids=["strides", "dilations", "group"]
)
def test_other_convolutions_are_summed_directly(provider, attributes):
    x, w = f(1, 64, 30, 30), f(64, 64 // attributes.get("group", 1), 3, 3)
    got, want, kernels = run(provider, [n("Conv", ["x", "w"], ["y"], **attributes)], {"x": x}, {"w": w})
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert not [k for k in kernels if k.startswith("winograd")]


def test_filters_that_are_fed_are_not_transformed(provider):
    inputs = {"x": f(1, 32, 16, 16), "w": f(32, 32, 3, 3)}
    got, want, kernels = run(provider, [n("Conv", ["x", "w"], ["y"])], inputs, {})
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert not [k for k in kernels if k.startswith("winograd")]


def test_the_transform_of_filters_keeps_their_sum():
    w = f(5, 4, 3, 3)
    # On a tile of ones every pixel is the sum of the filter's weights.
    ones = np.ones((6, 6))
    b = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                  [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
    a = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
    products = filters_of(w).reshape(6, 6, 5, 4) * (b @ ones @ b.T)[..., None, None]
    pixels = np.einsum("ia,abfc,jb->ijfc", a, products, a)
    np.testing.assert_allclose(pixels, np.broadcast_to(w.sum((2, 3)), pixels.shape), atol=1e-4)
