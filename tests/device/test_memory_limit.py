"""A device whose memory is short: what the error says, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider

WIDTH = 64
LIMIT = 1 << 20


@pytest.fixture
def session(provider: DeviceProvider) -> gpurt.InferenceSession:
    """Products of any batch, on a device with one megabyte."""
    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8, f"w{i}") for i in (0, 1)
    ]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], f"product{i}") for i in (0, 1)]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("h2", TensorProto.FLOAT, ["batch", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = {"kernel_class": provider.info.kernel_class, "memory_limit": LIMIT}
    return gpurt.InferenceSession(
        model, gpurt.SessionOptions(partitioning="greedy"), providers=[("opencl", options), "cpu"]
    )


def feed(batch: int) -> dict[str, np.ndarray]:
    return {"h0": np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)}


def test_a_batch_too_large_is_named_and_the_session_goes_on(session: gpurt.InferenceSession) -> None:
    want = session.run(None, feed(8))[0]
    before = session.memory()
    for _ in range(2):
        with pytest.raises(
            gpurt.OutOfMemory, match=r"bytes asked for, \d+ held.*limit 1048576.*batch = 65536"
        ) as caught:
            session.run(None, feed(65536))
        assert "memory_limit" in str(caught.value.remedy)
        np.testing.assert_array_equal(session.run(None, feed(8))[0], want)
    after = session.memory()
    (device,) = after
    assert after[device]["weights"] == before[device]["weights"]
    assert after[device]["held"] <= before[device]["held"]


def test_outputs_wanted_on_the_device_are_refused_as_well(session: gpurt.InferenceSession) -> None:
    binding = session.io_binding()
    binding.bind_output("h2", "opencl:0")
    binding.bind_cpu_input("h0", feed(65536)["h0"])
    with pytest.raises(gpurt.OutOfMemory, match="batch = 65536"):
        session.run_with_iobinding(binding)
    binding.bind_cpu_input("h0", feed(4)["h0"])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(None, feed(4))[0])
