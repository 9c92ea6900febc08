"""Claims of several nodes: whatever decides about the placement, they are compiled as one or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, plugin
from onnx import TensorProto, helper

import gpurt
from gpurt import registry
from gpurt.errors import InvalidArgument
from gpurt.infer import infer
from gpurt.partitioner import rates as measured
from gpurt.provider import Capability, Operand, Rates, UnitPlan

F16 = TensorProto.FLOAT16
SIZE = 256
n = helper.make_node

FAST = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e12, 1e-7, 0.0, 1e-5, 1e10, 1e10)
# Quick at products, hopeless at elementwise work; copies cost next to nothing.
LOPSIDED = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e6, 1e-7, 0.0, 1e-9, 1e13, 1e13)


class Chain:
    """A unit of several nodes whose values between are nobody's business."""

    host_inputs: frozenset[int] = frozenset()

    def __init__(self, nodes, kernels):
        self.nodes = nodes
        made = {v.name for node in nodes for v in node.outputs}
        read = {v.name for node in nodes for v in node.inputs}
        self.inputs = list(dict.fromkeys(v.name for node in nodes for v in node.inputs if v.name not in made))
        self.outputs = [v.name for v in nodes[-1].outputs]
        assert not (made - set(self.outputs)) - read
        self._kernels = kernels

    def plan(self, inputs):
        known = dict(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            known.update(zip((v.name for v in node.outputs), infer(node, [known[v.name] for v in node.inputs]),
                             strict=True))  # fmt: skip
        operands = [*(Operand("in", i) for i in range(len(self.inputs))), Operand("out", 0)]
        specs = [*inputs, known[self.outputs[0]]]

        def run(views):
            values = dict(zip(self.inputs, views, strict=False))
            for node in self.nodes:
                values[node.outputs[0].name] = self._kernels[node.op_type](*(values[v.name] for v in node.inputs))
            views[-1][...] = values[self.outputs[0]]

        return UnitPlan(specs[-1:], operands, bind=lambda refs: Bound(run, specs, refs))


class Bound:
    def __init__(self, run, specs, refs):
        self._refs = list(refs)

        def step(stream):
            views = [r.buffer[r.offset : r.offset + s.nbytes].view(s.dtype).reshape(s.shape)
                     for r, s in zip(self._refs, specs, strict=True)]  # fmt: skip
            stream.append(lambda: run(views))

        self.steps = [step]

    def rebind(self, operand, ref):
        self._refs[operand] = ref


def chains(nodes, pattern):
    """Names of the nodes of each chain of these operators in which each feeds the next one."""
    makers = {v.name: node for node in nodes for v in node.outputs}
    for node in nodes:
        found = [node]
        while len(found) < len(pattern):
            makes = [makers[v.name] for v in found[0].inputs if v.name in makers]
            if not makes:
                break
            found.insert(0, makes[0])
        if [f.op_type for f in found] == list(pattern):
            yield tuple(f.name for f in found)


@pytest.fixture
def fused(monkeypatch):
    """Devices that run chains of nodes and nothing else: `fuser` MatMul, Neg, Relu; `other` Relu, MatMul."""
    sim = plugin()
    monkeypatch.setattr(measured, "measure", lambda provider, defaults: Rates(1e9, 1e9, 1e9, 1e9, 1e9, 1e11, 1e-6, 0.0))
    monkeypatch.setattr(measured, "_KNOWN", {})
    compiled = []

    def make(label, pattern):
        class Fuser(sim.SimProvider):
            name = label
            said = FAST

            def rates(self):
                return self.said

            def get_capability(self, graph):
                claims = list(chains(graph.nodes, pattern))
                taken = {name for claim in claims for name in claim}
                return Capability(claims, {v.name: "no chain" for v in graph.nodes if v.name not in taken})

            def compile(self, partition):
                compiled.append((label, tuple(v.name for v in partition.nodes)))
                assert [v.op_type for v in partition.nodes] == list(pattern), "a claim was cut"
                return [Chain(partition.nodes, sim.KERNELS)]

        return Fuser

    made = [make("fuser", ("MatMul", "Neg", "Relu")), make("other", ("Relu", "MatMul"))]
    for provider in made:
        registry.register(provider)
    yield made, compiled
    for provider in made:
        registry.unregister(provider.name)


def model(*tail):
    nodes = [
        n("MatMul", ["x", "x"], ["a"], "product"),
        n("Neg", ["a"], ["b"], "negative"),
        n("Relu", ["b"], ["c" if tail else "y"], "positive"),
        *tail,
    ]
    return make_model(nodes, {"x": (F16, [SIZE, SIZE])}, ["y"])


def session(graph, providers=("fuser", "cpu"), **options):
    options = {"cache_dir": False, "partitioning": "cost", "graph_optimization_level": 0} | options
    return gpurt.InferenceSession(graph, gpurt.SessionOptions(**options), providers=list(providers))


def where(opened):
    return {r["name"]: r["device"] for r in opened.explain().to_dict()["nodes"]}


def right(opened, graph):
    x = (np.random.default_rng(0).integers(-2, 3, (SIZE, SIZE)) / 8).astype(np.float16)
    plain = gpurt.SessionOptions(graph_optimization_level=0)
    want = gpurt.InferenceSession(graph, plain, providers=["cpu"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(opened.run(None, {"x": x})[0].astype(np.float32), want.astype(np.float32), atol=0.02)


def test_a_claim_is_compiled_as_one(fused):
    _, compiled = fused
    opened = session(model())
    assert set(where(opened).values()) == {"fuser:0"}
    assert compiled == [("fuser", ("product", "negative", "positive"))]
    right(opened, model())


@pytest.mark.parametrize("seconds", [1e-9, 1e-5, 1e-3])
def test_cost_does_not_cut_where_a_part_would_be_cheaper_elsewhere(fused, seconds):
    (fuser, _), compiled = fused
    fuser.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e6, 1e-7, 0.0, seconds, 1e13, 1e13)
    opened = session(model())
    # The product alone is 1000 times as fast there, the rest a million times as slow: so all of it is the host's.
    assert set(where(opened).values()) == {"cpu"}
    assert compiled == []
    fuser.said = Rates(1e13, 1e13, 1e13, 1e12, 1e12, 1e9, 1e-7, 0.0, seconds, 1e13, 1e13)
    opened = session(model())
    assert set(where(opened).values()) == {"fuser:0"}  # here the product makes up for the rest
    right(opened, model())


def test_a_pin_moves_the_whole_claim(fused):
    _, compiled = fused
    opened = session(model(), pins={"negative": "cpu"})
    assert where(opened)["negative"] == "cpu"
    assert "fuser:0" not in where(opened).values()
    assert compiled == []
    right(opened, model())


@pytest.mark.parametrize("partitioning", ["cost", "greedy"])
def test_pins_that_pull_a_claim_apart_are_refused(fused, partitioning):
    with pytest.raises(InvalidArgument, match=r"the pin 'product' cannot be kept.*fuser:0"):
        session(model(), pins={"product": "fuser", "negative": "cpu"}, partitioning=partitioning)


@pytest.mark.parametrize("partitioning", ["cost", "greedy"])
def test_a_memory_limit_takes_the_whole_claim_away(fused, partitioning):
    _, compiled = fused
    graph = model(n("MatMul", ["c", "c"], ["y"], "last"))
    # Room for the product, but not for all values of the chain.
    opened = session(graph, [("fuser", {"memory_limit": SIZE * SIZE * 2 * 2}), "cpu"], partitioning=partitioning)
    assert set(where(opened).values()) == {"cpu"}
    assert compiled == []
    right(opened, graph)


@pytest.mark.parametrize(("first", "second"), [("fuser", "other"), ("other", "fuser")])
def test_of_claims_that_overlap_one_is_kept_whole(fused, first, second):
    _, compiled = fused
    graph = model(n("MatMul", ["c", "c"], ["y"], "last"))
    for partitioning in ("cost", "greedy"):
        compiled.clear()
        opened = session(graph, [first, second, "cpu"], partitioning=partitioning)
        whole = {"fuser": ("product", "negative", "positive"), "other": ("positive", "last")}
        assert compiled
        assert all(nodes == whole[label] for label, nodes in compiled)
        right(opened, graph)


def test_the_better_of_two_claims_that_overlap_is_taken(fused):
    (_, other), compiled = fused
    graph = model(n("MatMul", ["c", "c"], ["y"], "last"))
    other.said = LOPSIDED
    session(graph, ["other", "fuser", "cpu"])
    assert compiled == [("fuser", ("product", "negative", "positive"))]
