"""The provider contract: compiling providers, failing compilers, colliding claims, broken and outdated plug-ins."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.errors import EPFail
from gpurt.provider import HOST, Capability, Device, Provider

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F32 = TensorProto.FLOAT
NUMPY = {"Add": np.add, "Mul": np.multiply, "Neg": np.negative, "Sub": np.subtract}


class Compiled:
    """One unit for a whole partition, over host memory."""

    def __init__(self, view):
        self.nodes = view.nodes
        self.inputs = [v.name for v in view.inputs] + list(view.initializers)
        self.outputs = [v.name for v in view.outputs]

    def call(self, inputs):
        values = dict(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            values[node.outputs[0].name] = NUMPY[node.op_type](*(values[v.name] for v in node.inputs))
        return [values[name] for name in self.outputs]


class Whole(Provider):
    """A compiling provider: claims all it can as one group."""

    name = "whole"
    fail = False
    overlapping = False

    def __init__(self):
        self.device, self.memory_space = "whole:0", HOST
        self.compiled = []

    @classmethod
    def probe(cls):
        return [Device("whole:0", "compiles")]

    @classmethod
    def open(cls, index, options):
        return cls()

    def get_capability(self, graph):
        able = tuple(x.name for x in graph.nodes if x.op_type in NUMPY)
        claims = [able] if able else []
        if self.overlapping:
            claims = [able[:2], able[1:]]
        return Capability(claims, {x.name: "no such instruction" for x in graph.nodes if x.op_type not in NUMPY})

    def compile(self, partition):
        if self.fail:
            raise EPFail("the compiler crashed", provider="whole")
        self.compiled.append([x.name for x in partition.nodes])
        return [Compiled(partition)]


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(Whole, "fail", False)
    monkeypatch.setattr(Whole, "overlapping", False)
    registry.register(Whole)
    yield Whole
    registry.unregister("whole")


def diamond():
    """a -> (b on the compiler, c elsewhere) -> d: a claim of a, b and d together would not be convex."""
    return make_model(
        [n("Add", ["x", "w"], ["a"], "a"), n("Mul", ["a", "a"], ["b"], "b"), n("Exp", ["a"], ["c"], "c"),
         n("Sub", ["b", "c"], ["d"], "d"), n("Neg", ["d"], ["y"], "e")],
        {"x": (F32, [3])}, ["y"], {"w": np.ones(3, np.float32)},
    )  # fmt: skip


def expected(x):
    a = x + 1
    return -(a * a - np.exp(a))


X = np.array([0.5, -1, 2], np.float32)


def test_a_compiling_provider_gets_convex_partitions_and_returns_one_unit_each(whole):
    s = gpurt.InferenceSession(diamond(), GREEDY, providers=["whole", "cpu"])
    np.testing.assert_allclose(s.run(None, {"x": X})[0], expected(X), rtol=1e-6)
    assert s._providers[0].compiled == [["a", "b"], ["d", "e"]]
    report = {r["name"]: r for r in s.explain().to_dict()["nodes"]}
    assert report["b"]["fused_from"] == ["a", "b"]
    assert report["c"]["refused"]["whole:0"] == "no such instruction"


def test_of_colliding_claims_one_is_kept_and_the_rest_is_asked_for_again(whole, monkeypatch):
    monkeypatch.setattr(Whole, "overlapping", True)
    s = gpurt.InferenceSession(diamond(), GREEDY, providers=["whole", "cpu"])
    np.testing.assert_allclose(s.run(None, {"x": X})[0], expected(X), rtol=1e-6)
    assert sorted(name for part in s._providers[0].compiled for name in part) == ["a", "b", "d", "e"]


def test_a_partition_that_fails_to_compile_goes_to_the_next_provider_with_the_reason(whole, monkeypatch):
    monkeypatch.setattr(Whole, "fail", True)
    s = gpurt.InferenceSession(diamond(), GREEDY, providers=["whole", "cpu"])
    np.testing.assert_allclose(s.run(None, {"x": X})[0], expected(X), rtol=1e-6)
    report = s.explain().to_dict()["nodes"]
    assert {r["provider"] for r in report} == {"cpu"}
    assert any("the compiler crashed" in r["refused"].get("whole:0", "") for r in report)


def test_strict_refuses_nodes_that_fall_to_an_unlisted_cpu(whole):
    with pytest.raises(gpurt.NotImplemented, match="no such instruction"):
        gpurt.InferenceSession(diamond(), gpurt.SessionOptions(strict=True), providers=["whole"])
    gpurt.InferenceSession(diamond(), gpurt.SessionOptions(strict=True), providers=["whole", "cpu"])


def _pretend_installed(monkeypatch, **entries):
    real = registry._entry_points()
    made = [EntryPoint(name, value, registry.GROUP) for name, value in entries.items()]
    monkeypatch.setattr(registry, "_entry_points", lambda: [*real, *made])


def test_a_broken_plug_in_is_listed_with_its_reason_and_breaks_nothing(monkeypatch):
    _pretend_installed(monkeypatch, broken="no_such_module_of_gpurt:Provider")
    (status,) = (p for p in gpurt.providers() if p.name == "broken")
    assert not status.usable
    assert "no_such_module_of_gpurt" in status.reason
    with pytest.warns(RuntimeWarning, match="broken"):
        s = gpurt.InferenceSession(diamond(), GREEDY, providers=["broken", "cpu"])
    np.testing.assert_allclose(s.run(None, {"x": X})[0], expected(X), rtol=1e-6)


def test_a_plug_in_for_another_contract_is_refused_with_both_versions():
    class Newer(Whole):
        name = "newer"
        api = (2, 0)

    with pytest.raises(gpurt.ProviderError, match=r"version 2\.0.*this gpurt has 1\.1"):
        registry.register(Newer)


def test_unknown_index_and_duplicates():
    with pytest.raises(gpurt.InvalidArgument, match="cpu:3"):
        gpurt.InferenceSession(diamond(), GREEDY, providers=["cpu:3"])
    with pytest.raises(gpurt.InvalidArgument, match="twice"):
        gpurt.InferenceSession(diamond(), providers=["cpu", "cpu"])
