"""Streamed weights on a real device: the values, the limit, and the order that a profile shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider

n = helper.make_node
LAYERS, WIDTH = 12, 384


@pytest.fixture(scope="module")
def model():
    """Layers of a product and an activation: 590 KB of weights each."""
    rng = np.random.default_rng(2)
    weights = {f"w{i}": (rng.standard_normal((WIDTH, WIDTH)) / 20).astype(np.float32) for i in range(LAYERS)}
    nodes = []
    for i in range(LAYERS):
        nodes += [n("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], f"product{i}"), n("Tanh", [f"m{i}"], [f"h{i + 1}"])]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


LIMIT = LAYERS * WIDTH * WIDTH * 4 // 2


def rows(count: int) -> dict[str, np.ndarray]:
    return {"h0": np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)}


def options(provider: DeviceProvider, over_budget: str) -> tuple[str, dict]:
    about = {"kernel_class": provider.info.kernel_class, "memory_limit": LIMIT, "over_budget": over_budget}
    return "opencl", about


@pytest.mark.parametrize("over_budget", ["layers", "stream"])
def test_a_model_runs_under_half_of_its_weights(provider: DeviceProvider, model, over_budget: str) -> None:
    given = gpurt.SessionOptions(partitioning="greedy")
    s = gpurt.InferenceSession(model, given, providers=[options(provider, over_budget), "cpu"])
    reference = gpurt.InferenceSession(model, providers=["cpu"])
    for count in (16, 16, 16, 40, 3, 16):
        (want,) = reference.run(None, rows(count))
        np.testing.assert_allclose(s.run(None, rows(count))[0], want, atol=1e-5)
        (memory,) = s.memory().values()
        assert memory["held"] + memory["weights"] <= LIMIT
    used = {node["provider"] for node in s.explain().to_dict()["nodes"]}
    assert used == ({"opencl"} if over_budget == "stream" else {"opencl", "cpu"})
    s.run(None, rows(16))
    (memory,) = s.memory().values()
    assert memory["allocations_last_run"] == 0


def test_a_template_streams_weights_for_other_numbers_of_rows(provider: DeviceProvider, model) -> None:
    given = gpurt.SessionOptions(partitioning="greedy")
    s = gpurt.InferenceSession(model, given, providers=[options(provider, "stream"), "cpu"])
    reference = gpurt.InferenceSession(model, providers=["cpu"])
    made = []
    for count in (17, 18, 19, 20, 25, 31, 22):
        (want,) = reference.run(None, rows(count))
        np.testing.assert_allclose(s.run(None, rows(count))[0], want, atol=1e-5)
        (memory,) = s.memory().values()
        assert memory["held"] + memory["weights"] <= LIMIT
        assert memory["streamed"] > LIMIT // 2
        made.append(len(s._runner.plans()))
    assert made == [1, 2, 2, 2, 2, 2, 2]


def test_where_a_template_s_memory_is_over_the_limit_each_size_has_a_plan(provider: DeviceProvider, model) -> None:
    """Values of 2,000 rows fit beside the weights of one step, those of 4,096 rows do not."""
    kernel_class = provider.info.kernel_class
    limit = 2 * (2100 * WIDTH * 4) + 2 * WIDTH * WIDTH * 4
    about = {"kernel_class": kernel_class, "memory_limit": limit, "over_budget": "stream", "zero_copy": False}
    s = gpurt.InferenceSession(model, gpurt.SessionOptions(partitioning="greedy"), providers=[("opencl", about), "cpu"])
    reference = gpurt.InferenceSession(model, providers=["cpu"])
    for count in (2050, 2060, 2070):
        (want,) = reference.run(None, rows(count))
        np.testing.assert_allclose(s.run(None, rows(count))[0], want, atol=1e-5)
    assert s._runner._templates == [[]] * len(s._runner._templates)


def test_copies_have_a_queue_of_their_own(provider: DeviceProvider, model, tmp_path: Path) -> None:
    given = gpurt.SessionOptions(partitioning="greedy", enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    s = gpurt.InferenceSession(model, given, providers=[options(provider, "stream"), "cpu"])
    for _ in range(3):
        s.run(None, rows(64))
    events = json.loads(Path(s.end_profiling()).read_text())
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    events = [e for e in events if e["ph"] == "X"]
    copies = [e for e in events if lanes.get(e["tid"], "").startswith("opencl:0 copy queue")]
    kernels = [e for e in events if lanes.get(e["tid"], "").startswith("opencl:0 queue")]
    assert {e["name"] for e in copies} == {"MemcpyFromHost"}
    (plan,) = s._runner.plans()
    (streamed,) = plan.streamed.values()
    assert sum(int(e["args"]["bytes"]) for e in copies) == 3 * streamed.copied
    assert streamed.copied > LIMIT // 2
    assert kernels


@pytest.mark.parametrize("over_budget", ["layers", "stream"])
def test_a_loop_and_what_is_around_it_share_the_limit(provider: DeviceProvider, over_budget: str) -> None:
    """Each plan's weights fit alone."""
    rng = np.random.default_rng(4)
    kind = [16, WIDTH]

    def weights(prefix: str) -> list[TensorProto]:
        drawn = (rng.standard_normal((6, WIDTH, WIDTH)) / 30).astype(np.float32)
        return [numpy_helper.from_array(a, f"{prefix}w{i}") for i, a in enumerate(drawn)]

    def value(name: str, dtype: int = TensorProto.FLOAT, shape: list[int] = kind) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    def layers(prefix: str) -> list[onnx.NodeProto]:
        names = [(f"{prefix}{i}", f"{prefix}w{i}", f"{prefix}m{i}", f"{prefix}{i + 1}") for i in range(6)]
        return [node for h, w, m, y in names for node in (n("MatMul", [h, w], [m]), n("Tanh", [m], [y]))]

    on = [value("turn", TensorProto.INT64, []), value("on", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [*layers("c"), n("Identity", ["on"], ["still"])],
        "body",
        [*on, value("c0")],
        [value("still", TensorProto.BOOL, []), value("c6")],
        weights("c"),
    )
    nodes = [*layers("h"), n("Loop", ["turns", "", "h6"], ["k"], body=body), n("Mul", ["k", "h6"], ["y"])]
    turns = numpy_helper.from_array(np.asarray(3, np.int64), "turns")
    graph = helper.make_graph(nodes, "around", [value("h0")], [value("y")], [*weights("h"), turns])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"h0": rng.standard_normal(kind).astype(np.float32)}
    limit = 8 * WIDTH * WIDTH * 4
    about = {"kernel_class": provider.info.kernel_class, "memory_limit": limit, "over_budget": over_budget}
    given = gpurt.SessionOptions(partitioning="greedy")
    s = gpurt.InferenceSession(model, given, providers=[("opencl", about), "cpu"])
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, feed)
    for _ in range(3):
        np.testing.assert_allclose(s.run(None, feed)[0], want, atol=1e-5)
        (memory,) = s.memory().values()
        assert memory["held"] + memory["weights"] <= limit
    assert memory["allocations_last_run"] == 0
    products = {x["provider"] for x in s.explain().to_dict()["nodes"] if x["op_type"] in ("MatMul", "Tanh")}
    assert products == ({"opencl"} if over_budget == "stream" else {"opencl", "cpu"})


def test_a_wrong_word_is_refused(provider: DeviceProvider, model) -> None:
    with pytest.raises(gpurt.InvalidArgument, match="over_budget is 'strem'"):
        gpurt.InferenceSession(model, providers=[options(provider, "strem"), "cpu"])


def test_a_late_feed_is_copied_beside_the_kernels(tmp_path: Path) -> None:
    """Lanes and order in a trace, where host and device share no memory; no times are compared."""
    rng = np.random.default_rng(3)
    nodes = []
    for i in range(6):
        nodes += [n("MatMul", [f"h{i}", "w"], [f"m{i}"], f"product{i}"), n("Tanh", [f"m{i}"], [f"h{i + 1}"])]
    nodes.append(n("MatMul", ["h6", "late"], ["y"], "last"))
    kind = [WIDTH, WIDTH]
    graph = helper.make_graph(
        nodes,
        "late",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, kind) for name in ("h0", "late")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, kind)],
        [numpy_helper.from_array((rng.standard_normal(kind) / 20).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = gpurt.SessionOptions(partitioning="greedy", enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    s = gpurt.InferenceSession(model, given, providers=[("opencl", {"zero_copy": False}), "cpu"])
    feed = {name: rng.standard_normal(kind).astype(np.float32) for name in ("h0", "late")}
    (want,) = gpurt.InferenceSession(model, providers=["cpu"]).run(None, feed)
    for _ in range(2):
        np.testing.assert_allclose(s.run(None, feed)[0], want, atol=1e-3)
    events = json.loads(Path(s.end_profiling()).read_text())
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    events = [e for e in events if e["ph"] == "X"]
    copies = [e for e in events if lanes.get(e["tid"], "").startswith("opencl:0 copy queue")]
    assert [e["args"]["value"] for e in copies] == ["late", "late"]
    kernels = [e for e in events if lanes.get(e["tid"], "").startswith("opencl:0 queue")]
    readers = [e for e in kernels if e["args"]["node"] == "last"]
    assert readers
    for copy, reader in zip(copies, readers[-2:], strict=True):
        assert copy["ts"] + copy["dur"] <= reader["ts"] + 2  # whole microseconds: its reader has waited for it
