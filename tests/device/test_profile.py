"""Profiles on a device: its own times, on its own lanes, and in the host's order."""

import json
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.session.summary import summarize

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node


def chain() -> onnx.ModelProto:
    """Products that take a few milliseconds, with a step of several kernels and one on the host."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((512, 512)).astype(np.float32) / 32 for i in range(6)}
    nodes = [n("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], f"product{i}") for i in range(6)]
    nodes += [n("Tanh", ["h6"], ["t"], "tanh"), n("NonZero", ["t"], ["y"], "nonzero")]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", 512])],
        [
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 512]),
            helper.make_tensor_value_info("y", TensorProto.INT64, [2, None]),
        ],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> tuple[list[dict], np.ndarray]:
    options = gpurt.SessionOptions(
        enable_profiling=True, partitioning="greedy", profile_file_prefix=str(tmp_path_factory.mktemp("profile") / "p")
    )
    if "opencl" not in gpurt.get_available_providers():
        pytest.skip("no OpenCL device")
    s = gpurt.InferenceSession(chain(), options, providers=[("opencl", {"zero_copy": False}), "cpu"])
    x = np.random.default_rng(1).standard_normal((512, 512)).astype(np.float32)
    for _ in range(6):
        s.run(None, {"h0": x})
    return json.loads(Path(s.end_profiling()).read_text()), x


def test_device_queue_and_copies_have_lanes(traced) -> None:
    events, _ = traced
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    by_lane = {name: [e for e in events if e["tid"] == tid and e["ph"] == "X"] for tid, name in lanes.items()}
    assert set(by_lane) == {"host thread 0", "opencl:0 queue 0", "opencl:0 copies 0"}
    queue = by_lane["opencl:0 queue 0"]
    assert {e["cat"] for e in queue} == {"Kernel"}
    for a, b in pairwise(queue):
        assert a["ts"] + a["dur"] <= b["ts"] + 2  # whole microseconds, in the order of an in-order queue
    product = next(e for e in queue if e["args"]["node"] == "product0")
    assert product["args"]["op_name"] == "MatMul"
    assert product["args"]["provider"] == "OpenCLExecutionProvider"
    assert product["args"]["grid_x"] >= 1
    assert {e["args"]["bytes"] for e in by_lane["opencl:0 copies 0"]} == {str(512 * 512 * 4)}
    assert {e["args"]["value"] for e in by_lane["opencl:0 copies 0"]} == {"h0", "t"}


def test_device_times_lie_on_the_hosts_clock(traced) -> None:
    events, _ = traced
    run: list[dict] = []
    runs = 0
    for event in events:
        if event["name"] == "model_run":
            start, end = event["ts"], event["ts"] + event["dur"]
            launches = {e["name"]: e["ts"] for e in run if e["cat"] == "Node"}
            for kernel in (e for e in run if e["cat"] == "Kernel" and "node" in e["args"]):
                launched = launches[f"{kernel['args']['node']}_kernel_time"]
                assert launched - 500 <= kernel["ts"]  # half a millisecond: what aligning two clocks may cost
                assert kernel["ts"] + kernel["dur"] <= end + 500
                assert start - 500 <= kernel["ts"]
            runs += 1
            run = []
        run.append(event)
    assert runs == 6


def test_kernels_are_no_longer_than_the_run_that_they_explain(traced) -> None:
    events, _ = traced
    summary = summarize(events, skip=1)
    assert summary.runs == 5
    explained = summary.kernel_us + summary.copy_us + summary.host_us
    assert 0 < explained <= 1.02 * sum(summary.run_us)  # how much of it is the machine's business, which may be busy
    assert sum(r.calls for r in summary.operators if r.key.startswith("MatMul")) == 30  # the last one with Tanh, or not


def test_onnx_runtimes_own_tool_reads_it(traced) -> None:
    tool = pytest.importorskip("onnxruntime.transformers.profile_result_processor", reason="needs onnxruntime's tools")
    lines = tool.parse_kernel_results(traced[0])
    assert any("MatMul" in line for line in lines)
    assert any("OpenCL" in line for line in tool.group_node_results(traced[0]))


def test_a_device_that_is_a_part_of_another_is_timed(tmp_path) -> None:
    options = gpurt.SessionOptions(
        intra_op_num_threads=1, enable_profiling=True, partitioning="greedy", profile_file_prefix=str(tmp_path / "p")
    )
    s = gpurt.InferenceSession(chain(), options, providers=["opencl", "cpu"])
    s.run(None, {"h0": np.zeros((4, 512), np.float32)})
    events = json.loads(Path(s.end_profiling()).read_text())
    assert sum(e["cat"] == "Kernel" for e in events) >= 6


def test_terminate_acts_between_kernels(traced) -> None:
    _, x = traced
    s = gpurt.InferenceSession(chain(), GREEDY, providers=["opencl", "cpu"])
    want = s.run(None, {"h0": x})[0]
    options = gpurt.RunOptions(terminate=True)
    before = s._providers[0].arena.stats()["in_use"]
    with pytest.raises(gpurt.Terminated):
        s.run(None, {"h0": x}, options)
    assert s._providers[0].arena.stats()["in_use"] == before
    options.terminate = False
    np.testing.assert_array_equal(s.run(None, {"h0": x}, options)[0], want)


def test_every_devices_clock_is_brought_to_the_hosts() -> None:
    discovery = pytest.importorskip("gpurt_opencl.discovery", reason="no OpenCL")
    import pyopencl as cl

    from gpurt_opencl.timer import OpenCLTimer

    if not discovery.devices():
        pytest.skip("no OpenCL device")
    for _, device in discovery.devices():
        context = cl.Context([device])
        timer = OpenCLTimer(context, device)
        timer.align()
        buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE, 1 << 20)
        before = perf_counter_ns()
        token = timer.time(lambda queue, b=buffer: cl.enqueue_fill_buffer(queue, b, np.uint8(1), 0, b.size))
        timer.stream.finish()
        after = perf_counter_ns()
        start, end = timer.span(token)
        assert before - 500_000 <= start <= end <= after + 500_000, device.platform.name  # what aligning may cost
