"""Simulated devices beside one another, and plans whose lanes are given by chance: fixtures for the parallel mode."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from conftest import make_model, plugin, registered
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpurt
from gpurt.partitioner.rates import DEFAULTS
from gpurt.plan import parallel as parallel_module
from gpurt.plan import schedule as schedule_module
from gpurt.plan.lanes import Lanes, space_of
from gpurt.plan.steps import HostStep
from gpurt.provider import Capability, Rates

n = helper.make_node
F16, F32, BOOL, I64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
SLOW = Rates(1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e-2)  # a device on which nothing takes less than 10 ms
SLOW_HOST = Rates(1e3, 1e3, 1e3, 1e3, 1e3, 1e6, 1e-6)  # a host on which Softmax takes long
X = np.arange(6, dtype=np.float16).reshape(2, 3)
WANT = (np.maximum(X, 0) - X).T  # what two_devices computes of X
PATIENCE = 20  # seconds until a test gives up on what must happen


def options(**given):
    return gpurt.SessionOptions(
        **{"partitioning": "greedy", "graph_optimization_level": "disable_all", "execution_mode": "parallel", **given}
    )


def by_letter(answer, letter):
    """Of the claims of one node each, those whose node's name ends in a letter."""
    mine = [c for c in answer.claims if c[0].endswith(letter)]
    rest = {name: "another letter" for c in answer.claims for name in c if not name.endswith(letter)}
    return Capability(mine, {**answer.refused, **rest})


@pytest.fixture(scope="module")
def devices():
    """A simulated device apart from the host and two that share its memory; they claim nodes by their letter."""
    SimProvider = plugin().SimProvider

    class Part(SimProvider):
        at = None  # called with the node's name before a kernel of a device does its work

        def rates(self):
            return SLOW

        def get_capability(self, graph):
            return by_letter(super().get_capability(graph), self.letter)

        def compile(self, partition):
            units = super().compile(partition)
            for unit in units:
                unit.plan = self.announced(unit.plan, unit.nodes[0].name)
            return units

        def announced(self, plan, name):
            def planned(inputs):
                made = plan(inputs)
                bind = made.bind

                def announcing(refs):
                    bound = bind(refs)

                    def announce(stream):
                        if Part.at is not None:
                            stream.append(lambda: Part.at(name))

                    bound.steps = [announce, *bound.steps]
                    return bound

                made.bind = announcing
                return made

            return planned

    parts = [
        type(name, (Part,), {"name": name, "letter": name[0], "shares_host": shares})
        for name, shares in (("left", False), ("right", True), ("shared", True))
    ]
    with registered(*parts):
        yield Part


NAMES = ["left", "right", "shared"]


@pytest.fixture
def at(devices, monkeypatch):
    """Sets what the simulated devices call before each kernel; the host is quick."""
    quick = Rates(1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e-6)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: provider.rates() or quick)

    def set_at(function):
        devices.at = staticmethod(function)

    yield set_at
    devices.at = None


@pytest.fixture
def scattered(monkeypatch):
    """Lanes by chance in place of estimates, with pauses before steps; yields the generator that decides."""
    rng = random.Random(0)

    def schedule(steps, _):
        count = rng.randint(2, 4)
        for step in steps:
            if isinstance(step, HostStep):
                step.lane = rng.randrange(count)
        spaces = sorted({space_of(s) for s in steps} - {0})
        return Lanes(count, {space: rng.randrange(count) for space in spaces})

    plain = parallel_module.plain

    def hesitant(steps, memories):
        def pause(run, registers):
            time.sleep(rng.choice((0, 0, 0, 1e-4, 1e-3)))

        return [op for step in plain(steps, memories) for op in (pause, step)]

    monkeypatch.setattr(schedule_module, "schedule", schedule)
    monkeypatch.setattr(parallel_module, "plain", hesitant)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: DEFAULTS["cpu"])
    return rng


def two_devices(**given):
    """A node on each of two devices whose values the host waits for, then a sum."""
    nodes = [n("Neg", ["x"], ["a"], "n_l"), n("Transpose", ["a"], ["c"], "t_h"), n("Relu", ["x"], ["b"], "r_r"),
             n("Transpose", ["b"], ["d"], "u_h"), n("Add", ["c", "d"], ["y"], "sum_h")]  # fmt: skip
    return gpurt.InferenceSession(
        make_model(nodes, {"x": (F16, ["n", 3])}, ["y"]), options(**given), providers=[*NAMES, "cpu"]
    )


@st.composite
def graphs(draw, places):
    """Nodes whose names end in a letter of `places`, and outputs; on a host some of them yield views of their input."""
    values, nodes = ["x0", "x1"], []
    for k in range(draw(st.integers(2, 16))):
        kind = draw(st.sampled_from(["Neg", "Add", "Mul", "Transpose", "Identity", "Relu"]))
        place = draw(st.sampled_from(places))
        ins = [draw(st.sampled_from(values)) for _ in range(2 if kind in ("Add", "Mul") else 1)]
        nodes.append(n(kind, ins, [f"v{k}"], f"n{k}{place}"))
        values.append(f"v{k}")
    outputs = sorted(set(draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=4))))
    return nodes, outputs


def model_of(nodes, outputs):
    """A model over x0 and x1; all its values are 3 x 3 of half precision."""
    info = {name: helper.make_tensor_value_info(name, F16, [3, 3]) for name in ("x0", "x1", *outputs)}
    return helper.make_model(
        helper.make_graph(nodes, "g", [info["x0"], info["x1"]], [info[o] for o in outputs]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


def lanes_of(session):
    return [p._draft.lanes for p in session._runner.plans()]


def lane_threads():
    return [t for t in threading.enumerate() if t.name.startswith("gpurt lane")]
