"""Any graph, with inputs and outputs in any memory, shared ones included: the same values as the host alone."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from conftest import plugin, registered
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpurt
from gpurt.provider import Capability, UnitPlan
from gpurt.tensor import Tensor
from gpurt.tensor.storage import Storage

UNARY, BINARY = ("Relu", "Neg", "Identity"), ("Add", "Mul", "Sub")
INPUTS = ("x0", "x1", "x2")
KIND = TensorProto.FLOAT16


@pytest.fixture(scope="module")
def devices():
    """Two simulated devices, one in the host's memory; with aliases, and kernels that may work in place."""
    SimProvider, SimUnit = plugin().SimProvider, plugin().SimUnit

    class Unit(SimUnit):
        def plan(self, inputs):
            if self.nodes[0].op_type == "Identity":
                return UnitPlan([inputs[0]], aliases={0: (0, 0)})
            plan = super().plan(inputs)
            plan.inplace = {0: tuple(range(len(inputs)))}
            return plan

    def make(letter, shares):
        class Part(SimProvider):
            name = f"sim{letter}"

            @classmethod
            def open(cls, index, options):
                opened = super().open(index, options)
                opened.shares_host = shares
                return opened

            def get_capability(self, graph):
                answer = super().get_capability(graph)
                mine = [(n.name,) for n in graph.nodes if n.op_type in (*UNARY, *BINARY) and n.name.endswith(letter)]
                rest = {n.name: "another letter" for n in graph.nodes if (n.name,) not in mine}
                return Capability(mine, {**answer.refused, **rest})

            def compile(self, partition):
                return [Unit(node) for node in partition.nodes]

        return Part

    parts = [make("a", False), make("b", True)]
    with registered(*parts):
        yield [p.name for p in parts]


@st.composite
def cases(draw):
    values = list(INPUTS)
    nodes = []
    for k in range(draw(st.integers(1, 10))):
        place = draw(st.sampled_from("abh"))
        if draw(st.booleans()):
            op, ins = draw(st.sampled_from(UNARY)), [draw(st.sampled_from(values))]
        else:
            op, ins = draw(st.sampled_from(BINARY)), [draw(st.sampled_from(values)) for _ in range(2)]
        nodes.append(helper.make_node(op, ins, [f"v{k}"], f"n{k}{place}"))
        values.append(f"v{k}")
    outputs = draw(st.lists(st.sampled_from(values[3:]), min_size=1, max_size=4, unique=True))
    sources = {name: draw(st.sampled_from(["odd", "even", "sima", "simb"])) for name in INPUTS}
    free, targets = list(INPUTS), {}
    for name in outputs:
        choice = draw(st.sampled_from(["none", "cpu", "sima", "simb", "odd", "even", "mine a", "mine b", "fed", "fed"]))
        if choice == "fed" and free:
            targets[name] = free.pop(draw(st.integers(0, len(free) - 1)))
        elif choice != "none":
            targets[name] = "cpu" if choice == "fed" else choice
    return nodes, outputs, sources, targets


def place(where, value, session):
    """Memory with some content: of the host, at a 64-byte boundary or not, or of one of the session's devices."""
    if where in ("odd", "even"):
        raw = np.zeros(value.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + (4 if where == "odd" else 0)
        array = raw[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
        array[...] = value
        return Tensor.from_numpy(array)
    memory = session._providers["ab".index(where[-1])]
    storage = Storage.new(memory, value.nbytes)
    storage.write(value)
    return Tensor(value.dtype, value.shape, storage=storage)


# What is copied beside the launches of a device that shares the host's memory, and then seen by the host in place.
VIEWED = (
    [
        helper.make_node("Relu", ["x0"], ["v0"], "n0b"),
        helper.make_node("Identity", ["x1"], ["v1"], "n1b"),
        helper.make_node("Add", ["x0", "v1"], ["v2"], "n2a"),
    ],
    ["v2"],
    dict.fromkeys(INPUTS, "odd"),
    {"v2": "cpu"},
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cases(), st.integers(0, 2**31))
@example(VIEWED, 0)
def test_values(devices, case, seed):
    nodes, outputs, sources, targets = case
    info = [helper.make_tensor_value_info(n, KIND, [2, 3]) for n in INPUTS]
    results = [helper.make_tensor_value_info(n, KIND, [2, 3]) for n in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", info, results), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    rng = np.random.default_rng(seed)
    session = gpurt.InferenceSession(
        model, gpurt.SessionOptions(graph_optimization_level=0, partitioning="greedy"), providers=[*devices, "cpu"]
    )
    alone = gpurt.InferenceSession(model, providers=["cpu"])
    for _ in range(2):  # the second time the plan is there, and its memory has been used
        feeds = {n: (rng.integers(-2, 3, (2, 3)) / 2).astype(np.float16) for n in INPUTS}
        want = dict(zip(outputs, alone.run(None, feeds), strict=True))
        fed = {n: place(where, feeds[n], session) for n, where in sources.items()}
        binding = session.io_binding()
        for name, tensor in fed.items():
            binding.bind_ortvalue_input(name, tensor)
        for name, where in targets.items():
            if where in ("cpu", "sima", "simb"):
                binding.bind_output(name, where)
            else:
                mine = fed[where] if where in fed else place(where, np.full((2, 3), 9, np.float16), session)
                binding.bind_ortvalue_output(name, mine)
        session.run_with_iobinding(binding)
        for name, got in zip(targets, binding.get_outputs(), strict=True):
            np.testing.assert_array_equal(got.numpy(), want[name], err_msg=name)
        for name in set(INPUTS) - set(targets.values()):
            np.testing.assert_array_equal(fed[name].numpy(), feeds[name], err_msg=f"{name} was changed")
    binding = fed = got = mine = tensor = None
    session.trim()
    gc.collect()
    assert all(p.arena.stats()["in_use"] == 0 for p in session._providers[:2])
