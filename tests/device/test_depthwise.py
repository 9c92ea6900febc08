"""Depthwise convolutions: every filter sees one channel."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt

# So that no rate of this machine decides, and the model's layout stays.
GREEDY = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="extended")

RNG = np.random.default_rng(9)


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# channels, filters to a channel, height, width, images, kernel, stride, pad: planes wider and narrower than a vector
SHAPES = [
    (6, 1, 16, 16, 1, 3, 1, 1), (32, 2, 14, 14, 2, 5, 1, 2), (5, 1, 29, 31, 1, 3, 2, 1), (64, 1, 7, 7, 3, 3, 1, 1),
    (3, 1, 5, 40, 1, 5, 2, 0), (4, 1, 9, 6, 1, 3, 1, 1), (4, 3, 3, 3, 2, 3, 1, 1), (2, 1, 40, 33, 1, 7, 1, 3),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("followed", [False, True], ids=["alone", "followed"])
def test_values(provider, shape, followed):
    channels, multiplier, height, width, images, kernel, stride, pad = shape
    filters = channels * multiplier
    constants = {"w": f(filters, 1, kernel, kernel), "b": f(filters), "s": f(filters, 1, 1)}
    attributes = {"pads": [pad] * 4, "group": channels, "strides": [stride, stride]}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c" if followed else "y"], **attributes)]
    if followed:
        nodes += [helper.make_node("Mul", ["c", "s"], ["d"]), helper.make_node("HardSwish", ["d"], ["y"])]
    x = f(images, channels, height, width)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, k) for k, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = gpurt.InferenceSession(
        proto, GREEDY, providers=[("opencl", {"kernel_class": provider.info.kernel_class})]
    )
    want = gpurt.InferenceSession(proto, providers=["cpu"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-5)
    (plan,) = session._runner.plans()
    kernels = [k for step in plan._draft.steps if hasattr(step, "plan") for k in step.plan.kernels]
    assert ("depthwise" in kernels) == (provider.info.kernel_class == "cpu")
    assert not [k for k in kernels if k.startswith("ew_")]
