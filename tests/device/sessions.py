"""Small models in a session on a kernel class: which kernels ran, once the results equal the CPU provider's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
RNG = np.random.default_rng(5)


def f(*shape: int) -> np.ndarray:
    """Normal numbers in float32."""
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 21,
) -> ModelProto:
    """A model whose graph inputs and initializers are like these."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(a, k) for k, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def kernels(
    provider: DeviceProvider, proto: ModelProto, inputs: Mapping[str, np.ndarray], *, rtol: float = 2e-5
) -> list[str]:
    """Names of the kernels that ran; their results are equal to the CPU provider's."""
    options = {"kernel_class": provider.info.kernel_class}
    session = gpurt.InferenceSession(proto, GREEDY, providers=[("opencl", options), "cpu"])
    want = gpurt.InferenceSession(proto, providers=["cpu"]).run(None, inputs)
    for got, expected in zip(session.run(None, inputs), want, strict=True):
        top = np.abs(expected).max() if expected.size else 1
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * top)
    (plan,) = session._runner.plans()
    return [k for step in plan._draft.steps if hasattr(step, "plan") for k in step.plan.kernels]
