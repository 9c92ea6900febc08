"""Cost partitioning, pins, memory limits and dry runs, on simulated devices with rates of their own."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from conftest import make_model, plugin
from onnx import TensorProto, helper

import gpurt
from gpurt import caches, registry
from gpurt.partitioner import rates as measured
from gpurt.partitioner.estimate import BATCH, IMAGE, OPEN, Estimate
from gpurt.provider import Device, Rates

F16, I64, BOOL = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
FAST = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e12, 1e-7, 0.0, 1e-5, 1e10, 1e10)
n = helper.make_node


@pytest.fixture
def fast():
    """A simulated accelerator that says it is fast, next to a host that says it is slow."""
    SimProvider = plugin().SimProvider

    class Fast(SimProvider):
        name = "fast"
        said = FAST

        @classmethod
        def probe(cls):
            return [Device(f"fast:{i}", "simulated", "accelerator") for i in (0, 1)]

        def rates(self):
            return self.said

    registry.register(Fast)
    yield Fast
    registry.unregister("fast")


@pytest.fixture(autouse=True)
def host_rates(monkeypatch):
    """The host's rates as numbers, not as this machine's."""
    slow = Rates(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e-6, 0.0)
    monkeypatch.setattr(measured, "measure", lambda provider, defaults: slow)
    monkeypatch.setattr(measured, "_KNOWN", {})


def session(model, providers=("fast", "cpu"), expected=None, **options):
    options.setdefault("cache_dir", False)
    options.setdefault("partitioning", "cost")
    return gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=list(providers),
                                  expected_shapes=expected)  # fmt: skip


def where(s):
    return {r["name"]: r["device"] for r in s.explain().to_dict()["nodes"]}


def pair(size):
    """Two heavy nodes on data of size x size."""
    nodes = [n("MatMul", ["x", "x"], ["a"], "first"), n("MatMul", ["a", "a"], ["y"], "second")]
    return make_model(nodes, {"x": (F16, [size, size])}, ["y"])


def test_large_work_goes_to_the_device_and_small_work_stays(fast):
    assert set(where(session(pair(512))).values()) == {"fast:0"}
    assert set(where(session(pair(2))).values()) == {"cpu"}
    assert set(where(session(pair(2), partitioning="greedy")).values()) == {"fast:0"}
    reasons = session(pair(2)).explain().to_dict()["nodes"][0]["refused"]
    assert "cost less elsewhere" in reasons["fast:0"]


def test_a_small_island_stays_where_its_data_is(fast):
    nodes = [
        n("MatMul", ["x", "x"], ["a"], "m1"),
        n("Neg", ["a"], ["b"], "island"),
        n("MatMul", ["b", "b"], ["y"], "m2"),
    ]
    model = make_model(nodes, {"x": (F16, [512, 512])}, ["y"])
    fast.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 4e8, 1e-7, 0.0, 1e-3, 1e9, 1e9)  # poor at elementwise work
    assert where(session(model))["island"] == "fast:0"
    fast.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e7, 1e-7, 0.0, 1e-5, 1e10, 1e10)
    assert where(session(model)) == {"m1": "fast:0", "island": "cpu", "m2": "fast:0"}


def loop(size):
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            n("Identity", ["c"], ["c2"], "keep"),
            n("MatMul", ["v", "w"], ["t"], "heavy"),
            n("Neg", ["t"], ["v2"], "light"),
        ],
        "body",
        [info("i", I64, []), info("c", BOOL, []), info("v", F16, [size, size])],
        [info("c2", BOOL, []), info("v2", F16, [size, size])],
    )
    nodes = [n("Relu", ["x"], ["w"], "before"), n("Loop", ["trips", "", "x"], ["y"], "loop", body=body)]
    constants = {"trips": np.array(20, np.int64)}
    return make_model(nodes, {"x": (F16, [size, size])}, ["y"], constants)


def test_a_loop_does_not_throw_its_values_to_and_fro(fast):
    s = session(loop(256))
    placed = where(s)
    assert placed["heavy"] == placed["light"] == "fast:0"
    x = np.eye(256, dtype=np.float16)
    want = session(loop(256), ["cpu"]).run(None, {"x": x})[0]
    np.testing.assert_array_equal(s.run(None, {"x": x})[0], want)


def test_a_loop_that_runs_often_is_worth_what_one_pass_is_not(fast):
    once, often = loop(24), loop(24)
    once.graph.initializer[0].CopyFrom(helper.make_tensor("trips", I64, [], [1]))
    often.graph.initializer[0].CopyFrom(helper.make_tensor("trips", I64, [], [500]))
    fast.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e12, 1e-7, 0.0, 1e-3, 1e10, 1e10)
    assert where(session(once))["heavy"] == "cpu"
    assert where(session(often))["heavy"] == "fast:0"


def test_a_branch_stays_with_what_it_captures(fast):
    info = helper.make_tensor_value_info

    def branch(name, op):
        return helper.make_graph([n(op, ["a"], [f"{name}_y"], name)], name, [], [info(f"{name}_y", F16, [512, 512])])

    nodes = [n("MatMul", ["x", "x"], ["a"], "heavy"),
             n("If", ["c"], ["b"], then_branch=branch("then", "Neg"), else_branch=branch("other", "Relu")),
             n("MatMul", ["b", "b"], ["y"], "again")]  # fmt: skip
    model = make_model(nodes, {"x": (F16, [512, 512]), "c": (BOOL, [])}, ["y"])
    placed = where(session(model))
    assert {placed[k] for k in ("heavy", "then", "other", "again")} == {"fast:0"}


def test_shape_arithmetic_stays_on_the_host(fast):
    nodes = [n("Shape", ["x"], ["s"], "shape"), n("MatMul", ["x", "x"], ["y"], "m")]
    placed = where(session(make_model(nodes, {"x": (F16, ["n", "n"])}, ["y", "s"]), expected={"x": (512, 512)}))
    assert placed == {"shape": "cpu", "m": "fast:0"}


def test_pins_by_name_metadata_pattern_and_operator(fast):
    nodes = [n("MatMul", ["x", "x"], ["a"], "block/one"), n("MatMul", ["a", "a"], ["b"], "block/two"),
             n("Neg", ["b"], ["y"], "tail")]  # fmt: skip
    nodes[1].metadata_props.add(key="stage", value="2")
    model = make_model(nodes, {"x": (F16, [4, 4])}, ["y"])
    assert set(where(session(model)).values()) == {"cpu"}
    assert where(session(model, pins={"op:Neg": "fast"}))["tail"] == "fast:0"
    placed = where(session(model, pins={"op:MatMul": "fast:0", "block/*": "cpu", "meta:stage=2": "fast:0"}))
    assert placed == {"block/one": "cpu", "block/two": "fast:0", "tail": "fast:0"}  # the tail stays with its data
    placed = where(session(model, partitioning="greedy", pins={"block/*": "cpu", "block/one": "fast:0"}))
    assert placed == {"block/one": "fast:0", "block/two": "cpu", "tail": "fast:0"}
    x = np.eye(4, dtype=np.float16)
    np.testing.assert_array_equal(session(model, pins={"op:Neg": "fast"}).run(None, {"x": x})[0], -x)


def test_pins_that_cannot_be_kept_say_why(fast):
    model = make_model([n("Sin", ["x"], ["y"], "s")], {"x": (F16, [4])}, ["y"])
    with pytest.raises(gpurt.InvalidArgument, match="sim has no Sin"):
        session(model, pins={"s": "fast:0"})
    with pytest.raises(gpurt.InvalidArgument, match=r"'gpu:0', which is not in the session's list"):
        session(model, pins={"s": "gpu:0"})
    with pytest.raises(gpurt.InvalidArgument, match="names no value"):
        session(model, pins={"meta:stage": "cpu"})
    with pytest.raises(gpurt.InvalidArgument, match="pins is"):
        gpurt.SessionOptions(pins=["s"])
    with pytest.raises(gpurt.InvalidArgument, match="shape arithmetic"):
        session(make_model([n("Shape", ["x"], ["y"], "s")], {"x": (F16, ["n"])}, ["y"]), pins={"s": "fast:0"})


def test_two_devices_of_one_provider(fast):
    model = pair(8)
    s = session(model, ["fast:0", "fast:1", "cpu"], pins={"first": "fast:0", "second": "fast:1"})
    assert where(s) == {"first": "fast:0", "second": "fast:1"}
    x = np.eye(8, dtype=np.float16) * 2
    np.testing.assert_array_equal(s.run(None, {"x": x})[0], np.eye(8) * 16)
    copies = Counter((c["from"], c["to"]) for c in s.explain().to_dict()["copies"])
    assert copies == {("cpu", "fast:0"): 1, ("fast:0", "fast:1"): 1, ("fast:1", "cpu"): 1}


def layers(count, size):
    nodes = [n("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"], f"layer{i}") for i in range(count)]
    weights = {f"w{i}": np.eye(size, dtype=np.float16) * np.float16(0.5 + i % 2) for i in range(count)}
    return make_model(nodes, {"v0": (F16, [4, size])}, [f"v{count}"], weights)


@pytest.mark.parametrize("partitioning", ["greedy", "cost"])
def test_layers_beyond_the_memory_limit_run_on_the_next_provider(fast, partitioning):
    model, size = layers(8, 128), 128 * 128 * 2
    fast.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e12, 1e-8, 0.0, 1e-8, 1e13, 1e13)
    options = gpurt.SessionOptions(partitioning=partitioning, cache_dir=False)
    limited = ("fast", {"memory_limit": 4 * size + 8192})
    s = gpurt.InferenceSession(model, options, providers=[limited, "cpu"])
    placed = where(s)
    assert [placed[f"layer{i}"] for i in range(8)] == ["fast:0"] * 4 + ["cpu"] * 4
    x = np.ones((4, 128), np.float16)
    np.testing.assert_array_equal(s.run(None, {"v0": x})[0], session(model, ["cpu"]).run(None, {"v0": x})[0])
    reasons = [r["refused"] for r in s.explain().to_dict()["nodes"] if r["name"] == "layer7"]
    assert "memory_limit" in reasons[0]["fast:0"]


def test_sizes_beyond_the_assumed_ones_are_refused_with_numbers(fast):
    model = make_model(
        [n("MatMul", ["x", "w"], ["a"], "first"), n("MatMul", ["a", "w"], ["y"], "second")],
        {"x": (F16, ["rows", 64])}, ["y"], {"w": np.eye(64, dtype=np.float16)},
    )  # fmt: skip
    providers, pins = [("fast", {"memory_limit": 64 << 10}), "cpu"], {"op:MatMul": "fast"}
    small, large = (np.ones((rows, 64), np.float16) for rows in (8, 4096))
    s = session(model, providers, pins=pins)
    assert set(where(s).values()) == {"fast:0"}
    for _ in range(2):
        np.testing.assert_array_equal(s.run(None, {"x": small})[0], small)
        told = r"\d+ bytes asked for, .*limit 65536; in this run rows = 4096 \('x' is \[4096, 64\]\).*expected_shapes"
        with pytest.raises(gpurt.OutOfMemory, match=told):
            s.run(None, {"x": large})
    # The sizes that the message asks for let the same list of providers run it.
    s = session(model, providers, expected={"x": [4096, 64]})
    assert set(where(s).values()) == {"cpu"}
    np.testing.assert_array_equal(s.run(None, {"x": large})[0], large)


def test_casts_run_where_the_widened_node_runs(fast, monkeypatch):
    from gpurt_sim import DTYPES

    bf16 = TensorProto.BFLOAT16
    take = fast.get_capability

    def capable(self, graph):
        """Casts of all types, MatMul of float16 and float32, nothing of bfloat16."""
        answer = take(self, graph)
        claims, refused = list(answer.claims), dict(answer.refused)
        for node in graph.nodes:
            types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
            if node.op_type == "Cast" or (node.op_type == "MatMul" and types == {np.dtype(np.float32)}):
                refused.pop(node.name, None)
                claims.append((node.name,))
        return type(answer)(claims, refused)

    assert np.dtype(np.float32) not in DTYPES
    monkeypatch.setattr(fast, "get_capability", capable)
    nodes = [n("MatMul", ["x", "x"], ["a"], "one"), n("MatMul", ["a", "a"], ["y"], "two")]
    model = make_model(nodes, {"x": (bf16, [512, 512])}, ["y"])
    options = gpurt.SessionOptions(partitioning="cost", cache_dir=False)
    dry = gpurt.InferenceSession(model, options, providers=["fast:0", "fast:1", "cpu"], dry_run=True)
    report = dry.explain().to_dict()
    assert {r["device"] for r in report["nodes"]} == {"fast:0"}
    assert len(report["casts"]) == 4
    assert {c["value"] for c in report["copies"]} == {"x", "y"}


def test_a_dry_run_decides_and_does_not_run(fast):
    model = pair(512)
    dry = gpurt.InferenceSession(model, gpurt.SessionOptions(partitioning="cost", cache_dir=False),
                                 providers=["fast", "cpu"], dry_run=True)  # fmt: skip
    wet = session(model)
    report = dry.explain().to_dict()
    assert where(dry) == where(wet)
    wet.run(None, {"x": np.ones((512, 512), np.float16)})
    ends = {(c["value"], c["from"], c["to"], c["bytes"]) for c in report["copies"]}
    assert ends == {(c["value"], c["from"], c["to"], c["bytes"]) for c in wet.explain().to_dict()["copies"]}
    predicted = report["predicted"]
    assert predicted["devices"]["fast:0"]["nodes"] == 2
    assert predicted["seconds"] > predicted["copies_seconds"] > 0
    assert predicted["devices"]["fast:0"]["peak"] >= 2 * 512 * 512 * 2
    assert "predicted for x [512, 512]" in str(dry.explain())
    json.dumps(report)
    with pytest.raises(gpurt.Fail, match="dry run"):
        dry.run(None, {"x": np.ones((512, 512), np.float16)})
    with pytest.raises(gpurt.Fail, match="dry run"):
        dry.memory()
    assert dry.get_inputs()[0].name == "x"


def test_a_dry_run_reckons_with_given_shapes(fast):
    model = make_model([n("MatMul", ["x", "x"], ["y"], "m")], {"x": (F16, ["n", "n"])}, ["y"])
    options = gpurt.SessionOptions(partitioning="cost", cache_dir=False)

    def dry(**shapes):
        return gpurt.InferenceSession(model, options, providers=["fast", "cpu"], dry_run=True, expected_shapes=shapes)

    assert where(dry(x=(1024, 1024)))["m"] == "fast:0"
    assert where(dry(x=(2, 2)))["m"] == "cpu"
    with pytest.raises(gpurt.InvalidArgument, match="no input 'z'"):
        dry(z=(1,))
    with pytest.raises(gpurt.InvalidArgument, match="does not fit"):
        dry(x=(1, 2, 3))


def test_open_dimensions_are_assumed():
    from gpurt.loader import Views, load

    nodes = [n("Relu", ["x"], ["r"]), n("Shape", ["t"], ["s"]), n("Expand", ["one", "s"], ["e"])]
    model = make_model(nodes, {"x": (TensorProto.FLOAT, ["n", 3, "h", "w"]), "t": (I64, ["n", "length"])}, ["r", "e"],
                       {"one": np.ones(1, np.float32)})  # fmt: skip
    graph = Views().graph(load(model).model.graph)
    host = registry.open_provider(registry.Request("cpu", None, {}))

    def evaluate(node, inputs):
        from gpurt.partitioner.assign import part

        return host.compile(part([node]))[0].call(inputs)

    specs = Estimate(graph, {}, evaluate).specs
    assert specs["r"].shape == (BATCH, 3, IMAGE, IMAGE)
    assert specs["e"].shape == (BATCH, OPEN)
    specs = Estimate(graph, {"t": (5, 7)}, evaluate).specs
    assert specs["r"].shape[0] == 5
    assert specs["e"].shape == (5, 7)


def test_rates_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(measured, "_KNOWN", {})
    host = registry.open_provider(registry.Request("cpu", None, {}))
    first = measured.rates(host, tmp_path)
    assert first.gemm > 0
    assert first.data > 0
    assert len(list(tmp_path.glob("rates-*.json"))) == 1
    monkeypatch.setattr(measured, "_KNOWN", {})
    monkeypatch.setattr(measured, "measure", lambda *_: pytest.fail("measured again"))
    assert measured.rates(host, tmp_path) == first
    for file in tmp_path.glob("rates-*.json"):
        file.write_text("{")
    monkeypatch.setattr(measured, "_KNOWN", {})
    monkeypatch.setattr(measured, "measure", lambda *_: measured.DEFAULTS["host"])
    assert measured.rates(host, tmp_path) == measured.DEFAULTS["host"]


def test_a_simulated_device_has_the_rates_of_its_kind(sim, monkeypatch):
    monkeypatch.undo()
    provider = registry.open_provider(registry.Request(sim, None, {}))
    found = measured.measure(provider, measured.DEFAULTS["accelerator"])
    assert found.gemm == measured.DEFAULTS["accelerator"].gemm


def test_the_cache_folder(monkeypatch, tmp_path):
    assert caches.folder(False) is None
    assert caches.folder(tmp_path) == tmp_path
    monkeypatch.setenv("GPURT_CACHE_DIR", str(tmp_path / "env"))
    assert caches.folder(None) == tmp_path / "env"
    monkeypatch.setenv("GPURT_CACHE_DIR", "")
    assert caches.folder(None) is None
