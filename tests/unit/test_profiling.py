"""Profiles: the events and fields that ONNX Runtime's tools read, lanes, files, and that nothing is paid without."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_model
from onnx import TensorProto, helper, save

import gpurt
from gpurt.cli import main
from gpurt.session.summary import summarize

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT
X = np.ones((2, 3), np.float16)


def model():
    return make_model(
        [n("Add", ["x", "w"], ["a"], "add"), n("Erf", ["a"], ["b"], "erf"), n("Mul", ["b", "b"], ["y"], "mul")],
        {"x": (F16, ["n", 3])}, ["y"], {"w": np.ones(3, np.float16)},
    )  # fmt: skip


def profiled(tmp_path, providers, runs=2):
    options = gpurt.SessionOptions(
        enable_profiling=True, partitioning="greedy", profile_file_prefix=str(tmp_path / "trace")
    )
    s = gpurt.InferenceSession(model(), options, providers=providers)
    for _ in range(runs):
        s.run(None, {"x": X})
    return s


def test_events_have_the_fields_that_tools_read(tmp_path):
    s = profiled(tmp_path, ["cpu"])
    assert abs(s.get_profiling_start_time_ns() / 1e9 - Path(tmp_path).stat().st_mtime) < 600
    name = s.end_profiling()
    assert Path(name).parent == tmp_path
    assert Path(name).name.startswith("trace_2")
    events = json.loads(Path(name).read_text())
    assert all({"cat", "pid", "tid", "ts", "ph", "name", "args"} <= set(e) for e in events)
    spans = [e for e in events if e["ph"] == "X"]
    assert all(isinstance(e["dur"], int) and e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    session = [e["name"] for e in spans if e["cat"] == "Session"]
    for wanted in ("model_loading_array", "session_initialization", "partition", "plan", "model_run"):
        assert wanted in session
    assert session.count("model_run") == session.count("SequentialExecutor::Execute") == 2
    assert session.count("plan") == 1
    nodes = [e for e in spans if e["cat"] == "Node"]
    assert [e["name"] for e in nodes] == 2 * ["add_kernel_time", "erf_kernel_time", "mul_kernel_time"]
    args = nodes[0]["args"]
    assert args["op_name"] == "Add"
    assert args["provider"] == "CPUExecutionProvider"
    assert (args["node_index"], nodes[2]["args"]["node_index"], nodes[3]["args"]["node_index"]) == ("0", "2", "0")
    assert args["input_type_shape"] == [{"float16": [2, 3]}, {"float16": [3]}]
    assert args["output_type_shape"] == [{"float16": [2, 3]}]
    assert (args["activation_size"], args["parameter_size"], args["output_size"]) == ("12", "6", "12")


def test_onnx_runtimes_own_tool_reads_it(tmp_path):
    tool = pytest.importorskip("onnxruntime.transformers.profile_result_processor", reason="needs onnxruntime's tools")
    events = tool.load_profile_json(profiled(tmp_path, ["cpu"]).end_profiling())
    assert any("erf" in line for line in tool.parse_node_results(events))
    assert any("Erf" in line for line in tool.group_node_results(events))


def test_lanes_of_a_device_without_a_timer_are_the_hosts(tmp_path, sim):
    events = json.loads(Path(profiled(tmp_path, [sim, "cpu"]).end_profiling()).read_text())
    nodes = [e["args"]["device"] for e in events if e["cat"] == "Node"]
    assert nodes == 2 * ["sim:0", "cpu", "sim:0"]
    copies = [e for e in events if e["name"].startswith("Memcpy")]
    assert [(e["name"], e["args"]["value"], e["args"]["bytes"]) for e in copies[:4]] == [
        ("MemcpyFromHost", "x", "12"), ("MemcpyToHost", "a", "12"), ("MemcpyFromHost", "b", "12"),
        ("MemcpyToHost", "y", "12"),
    ]  # fmt: skip
    assert len({e["tid"] for e in events if e["ph"] == "X"}) == 1


def test_threads_have_lanes(tmp_path):
    s = profiled(tmp_path, ["cpu"], runs=0)
    threads = [threading.Thread(target=s.run, args=(None, {"x": X})) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    events = json.loads(Path(s.end_profiling()).read_text())
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    assert {e["tid"] for e in events if e["ph"] == "X"} == named


def test_after_the_end_runs_are_plain_and_nothing_is_written(tmp_path, caplog):
    s = profiled(tmp_path, ["cpu"])
    s.end_profiling()
    s.run(None, {"x": X})
    assert s.end_profiling() == ""
    assert "enable_profiling" in caplog.text
    assert s.get_profiling_start_time_ns() == 0
    del s
    assert len(list(tmp_path.iterdir())) == 1


def test_a_session_that_goes_writes_its_profile(tmp_path):
    s = profiled(tmp_path, ["cpu"])
    del s
    assert len(list(tmp_path.iterdir())) == 1


def test_a_prefix_that_cannot_be_written_is_a_typed_error(tmp_path):
    options = gpurt.SessionOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "no" / "where"))
    s = gpurt.InferenceSession(model(), options, providers=["cpu"])
    with pytest.raises(gpurt.InvalidArgument, match="profile_file_prefix"):
        s.end_profiling()
    np.testing.assert_array_equal(s.run(None, {"x": X})[0].shape, X.shape)


def test_a_profile_that_cannot_be_written_when_the_session_goes_is_a_warning(tmp_path, caplog):
    options = gpurt.SessionOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "no" / "where"))
    s = gpurt.InferenceSession(model(), options, providers=["cpu"])
    del s
    assert "cannot be written" in caplog.text


def test_a_profile_of_one_run(tmp_path):
    s = gpurt.InferenceSession(model(), providers=["cpu"])
    options = gpurt.RunOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "one"), logid="tag")
    s.run(None, {"x": X}, options)
    first = options.profile_file
    s.run(None, {"x": X}, options)
    s.run(None, {"x": X})
    assert {first, options.profile_file} == {str(p) for p in tmp_path.iterdir()}
    events = json.loads(Path(first).read_text())
    assert [e["args"] for e in events if e["name"] == "model_run"] == [{"run_tag": "tag"}]


def test_values_are_those_of_a_plain_run(tmp_path, sim):
    plain = gpurt.InferenceSession(model(), providers=["cpu"]).run(None, {"x": X})[0]
    s = profiled(tmp_path, [sim, "cpu"])
    np.testing.assert_allclose(s.run(None, {"x": X})[0], plain, rtol=1e-3)


def test_a_plain_run_replays_a_list_that_tracing_never_touched(tmp_path, sim):
    s = gpurt.InferenceSession(model(), GREEDY, providers=[sim, "cpu"])
    s.run(None, {"x": X})
    (plan,) = s._runner.plans()
    (state,) = plan._pool
    plain = list(state._ops)
    s.run(
        None,
        {"x": X},
        gpurt.RunOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "p")),
    )
    s.run(None, {"x": X})
    assert plan._pool == [state]
    assert list(state._ops) == plain
    assert not {op for ops in state._variants.values() for op in ops} & set(plain)


def test_summary_by_operator_kernel_and_provider():
    def event(category, name, dur, **args):
        return {"cat": category, "name": name, "dur": dur, "ts": 0, "ph": "X", "args": args}

    def run(scale):
        cl = {"op_name": "Conv", "provider": "OpenCLExecutionProvider", "device": "opencl:0"}
        return [
            event("Node", "c_kernel_time", 1, **cl, activation_size="100", output_size="50"),
            event("Kernel", "pad", 3 * scale, **cl),
            event("Kernel", "gemm", 5 * scale, **cl),
            event("Kernel", "MemcpyToHost", 2, **(cl | {"op_name": "MemcpyToHost", "bytes": "50"})),
            event("Node", "e_kernel_time", 4, op_name="Erf", provider="CPUExecutionProvider"),
            event("Node", "loop_kernel_time", 99, op_name="Loop", provider="CPUExecutionProvider"),
            event("Session", "model_run", 20),
        ]

    found = summarize([*run(1000), *run(1), *run(1)], skip=1)
    assert (found.runs, found.run_us, found.kernel_us, found.copy_us, found.host_us) == (2, [20, 20], 16, 4, 8)
    assert [(r.key, r.device, r.calls, r.total_us, r.nbytes) for r in found.operators] == [
        ("Conv", "opencl:0", 2, 16, 300), ("Erf", "CPU", 2, 8, 0), ("MemcpyToHost", "opencl:0", 2, 4, 100)
    ]  # fmt: skip
    assert [(r.key, r.calls, r.total_us) for r in found.kernels] == [
        ("gemm", 2, 10), ("Erf (NumPy)", 2, 8), ("pad", 2, 6), ("MemcpyToHost", 2, 4)
    ]  # fmt: skip
    assert [(r.key, r.total_us) for r in found.providers] == [("OpenCL", 20), ("CPU", 8)]


def test_command_line(tmp_path):
    save(model(), tmp_path / "m.onnx")
    args = ["profile", str(tmp_path / "m.onnx"), "--providers", "cpu", "--shape", "x=4,3", "--runs", "3"]
    result = CliRunner().invoke(main, [*args, "--output", str(tmp_path / "t"), "--top", "2"])
    assert result.exit_code == 0, result.output
    assert "Erf" in result.output
    assert "... and 1 more" in result.output
    assert "3 runs of" in result.output
    (trace,) = tmp_path.glob("t_*.json")
    assert str(trace) in result.output
    assert summarize(json.loads(trace.read_text())).runs == 4
