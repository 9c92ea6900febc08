"""intra_op_num_threads on OpenCL devices that are CPUs."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import gpurt
from gpurt.provider import Unavailable

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")


def cpu_device():
    from gpurt_opencl import discovery

    try:
        found = [(i, d) for i, (kind, d) in enumerate(discovery.devices()) if kind == "cpu"]
    except Unavailable as e:
        pytest.skip(e.reason)
    if not found or found[0][1].max_compute_units < 2:
        pytest.skip("no OpenCL device that is a CPU with two compute units")
    return found[0]


def model():
    x, y = (helper.make_tensor_value_info(v, TensorProto.FLOAT, [64, 64]) for v in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def units(session):
    """Compute units of the device whose queue the session's runs use."""
    return session._providers[0].stream().device.max_compute_units


@pytest.mark.parametrize("threads", [0, 1])
def test_a_session_uses_as_many_cores_as_it_was_given(threads):
    number, device = cpu_device()
    options = gpurt.SessionOptions(partitioning="greedy", intra_op_num_threads=threads)
    session = gpurt.InferenceSession(model(), options, providers=[f"opencl:{number}", "cpu"])
    assert units(session) == (threads or device.max_compute_units)
    x = np.eye(64, dtype=np.float32) * 3
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ x)


def test_the_providers_own_option_comes_first():
    number, device = cpu_device()
    options = gpurt.SessionOptions(partitioning="greedy", intra_op_num_threads=1)
    everything = ("opencl:" + str(number), {"intra_op_num_threads": device.max_compute_units})
    assert units(gpurt.InferenceSession(model(), options, providers=[everything])) == device.max_compute_units


def test_a_senseless_number_is_refused():
    number, _ = cpu_device()
    with pytest.raises(gpurt.InvalidArgument, match="intra_op_num_threads"):
        gpurt.InferenceSession(model(), GREEDY, providers=[(f"opencl:{number}", {"intra_op_num_threads": -2})])
