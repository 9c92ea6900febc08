"""Branches on several queues of one device: right however far one queue is ahead of another."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, plugin
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from side_by_side import model_of

import gpurt
from gpurt import registry
from gpurt.memory.offsets import Lifetime, assign
from gpurt.partitioner.rates import DEFAULTS
from gpurt.plan import branches as branches_module
from gpurt.plan import plan as plan_module
from gpurt.plan import schedule as schedule_module
from gpurt.plan.branches import branching
from gpurt.plan.lanes import Lanes, space_of
from gpurt.plan.steps import DeviceStep, FollowStep, HostStep, WriteStep
from gpurt.provider import Capability, Rates

n = helper.make_node
F16, BOOL, I64 = TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64
BUSY = Rates(1e6, 1e6, 1e6, 1e6, 1e6, 1e9, 1e-2)  # every kernel takes 10 ms, most of it without filling the device


class Queue(list):
    """Work that is done some time between its turn and the wait for it, by chance."""

    def __init__(self, queues, rng):
        super().__init__()
        self.queues, self.rng = queues, rng
        queues.append(self)

    def append(self, work):
        super().append(work)
        for _ in range(self.rng.choice((0, 0, 0, 1, 3, 20))):
            self.rng.choice(self.queues).advance()

    def advance(self):
        if not self or (isinstance(self[0], Wait) and not self[0].done):
            return False
        self.pop(0)()
        return True


class Wait:
    """What a queue does at the place where it waits for another one."""

    def __init__(self):
        self.done = False

    def __call__(self):
        pass

    def reached(self):
        self.done = True


@pytest.fixture(scope="module")
def device():
    """A simulated device with several queues; operators may work in place. It leaves nodes with an h to the host."""
    SimProvider = plugin().SimProvider

    class Many(SimProvider):
        name = "many"
        branches = 4
        rng = random.Random(0)

        def __init__(self, index, limit):
            super().__init__(index, limit)
            self.queues = []

        def rates(self):
            return BUSY

        def get_capability(self, graph):
            answer = super().get_capability(graph)
            mine = [c for c in answer.claims if not c[0].endswith("h")]
            return Capability(mine, {**answer.refused, **{c[0]: "an h" for c in answer.claims if c not in mine}})

        def compile(self, partition):
            units = super().compile(partition)
            for unit in units:
                unit.plan = self.in_place(unit.plan)
            return units

        def in_place(self, plan):
            def planned(inputs):
                made = plan(inputs)
                made.inplace = {0: tuple(range(len(made.operands) - 1))}
                return made

            return planned

        def stream(self):
            return Queue(self.queues, self.rng)

        def follow(self, stream, leader):
            wait = Wait()
            leader.append(wait.reached)
            stream.append(wait)

        def synchronize(self, stream):
            while stream:
                if not stream.advance():
                    self.rng.choice(self.queues).advance()

    registry.register(Many)
    yield Many
    registry.unregister("many")


@pytest.fixture
def divided(monkeypatch, device):
    """Queues and lanes by chance in place of estimates; yields the generator that decides."""

    def divide(steps, space, _):
        for step in steps:
            if isinstance(step, (DeviceStep, WriteStep)) and space_of(step) == space:
                step.queue = device.rng.randrange(4)

    def schedule(steps, _):
        for step in steps:
            if isinstance(step, HostStep):
                step.lane = device.rng.randrange(3)
        return Lanes(3, dict.fromkeys({space_of(s) for s in steps} - {0}, device.rng.randrange(3)))

    monkeypatch.setattr(schedule_module, "divide", divide)
    monkeypatch.setattr(schedule_module, "schedule", schedule)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: DEFAULTS["gpu"])
    return device.rng


def options(**given):
    wanted = {"partitioning": "greedy", "graph_optimization_level": "disable_all", "inter_op_num_threads": 3}
    return gpurt.SessionOptions(**{**wanted, "execution_mode": "parallel", **given})


@st.composite
def graphs(draw):
    values, nodes = ["x0", "x1"], []
    for k in range(draw(st.integers(3, 18))):
        kind = draw(st.sampled_from(["Neg", "Add", "Mul", "Sub", "Relu", "Transpose"]))
        place = draw(st.sampled_from("ddddh"))
        recent = values[-5:] if draw(st.booleans()) else values
        ins = [draw(st.sampled_from(recent)) for _ in range(2 if kind in ("Add", "Mul", "Sub") else 1)]
        nodes.append(n(kind, ins, [f"v{k}"], f"n{k}{place}"))
        values.append(f"v{k}")
    outputs = sorted({values[-1], *draw(st.lists(st.sampled_from(values[2:]), max_size=3))})
    return nodes, outputs


def check(graph, seed, turns=3):
    model, rng = model_of(*graph), np.random.default_rng(seed)
    together = gpurt.InferenceSession(model, options(), providers=["many", "cpu"])
    alone = gpurt.InferenceSession(model, options(execution_mode="sequential"), providers=["cpu"])
    for turn in range(turns):
        feeds = {name: (rng.integers(-2, 3, (3, 3)) / 2).astype(np.float16) for name in ("x0", "x1")}
        want = alone.run(None, feeds)
        if turn == turns - 1:  # outputs stay on the device, in memory of their own
            got = [t.numpy() for t in together.run_with_ort_values(None, feeds, device="many:0")]
        else:
            got = together.run(None, feeds, gpurt.RunOptions() if turn else None)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    memory = together.memory()["many:0"]
    assert memory["planned_peak"] >= memory["lower_bound"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs(), st.integers(0, 2**31))
def test_any_queues_give_the_values_of_one(divided, graph, seed):
    divided.seed(seed)
    check(graph, seed)


def chains():
    """Two chains with many short-lived values, whose memory would be the same one after the other."""
    nodes = []
    for branch in "ab":
        value = "x0"
        for k in range(5):
            nodes.append(n("Neg" if k % 2 else "Mul", [value] * (2 - k % 2), [f"{branch}{k}"], f"{branch}{k}d"))
            value = f"{branch}{k}"
    return [*nodes, n("Sub", ["a4", "b4"], ["y"], "join_d")], ["y"]


@pytest.mark.parametrize("missing", ["conflicts", "follows"])
def test_the_check_finds_what_is_missing(divided, monkeypatch, missing):
    if missing == "conflicts":
        monkeypatch.setattr(plan_module, "conflicts", lambda draft, space, slots: None)
    else:
        monkeypatch.setattr(branches_module, "needs", lambda steps, space: [set() for _ in steps])

    def spoilt(example):
        divided.seed(example[1])
        try:
            check(*example)
        except AssertionError:
            return True
        return False

    without_shrinking = settings(max_examples=3000, deadline=None, phases=[Phase.generate], database=None)
    assert find(st.tuples(graphs(), st.integers(0, 2**31)), spoilt, settings=without_shrinking)


def test_bodies_and_shapes(divided):
    body = helper.make_graph(
        [n("Add", ["c", "x"], ["d"], "d_d"), n("Neg", ["c"], ["e"], "e_d"), n("Sub", ["d", "e"], ["c2"], "f_d"),
         n("Identity", ["t"], ["t2"], "t_h")],
        "body",
        [helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("t", BOOL, []),
         helper.make_tensor_value_info("c", F16, ["n", 2])],
        [helper.make_tensor_value_info("t2", BOOL, []), helper.make_tensor_value_info("c2", F16, ["n", 2])],
    )  # fmt: skip
    nodes = [n("Neg", ["x"], ["x2"], "b_d"), n("Loop", ["k", "", "x"], ["z"], "loop", body=body),
             n("Add", ["z", "x2"], ["y"], "s_d")]  # fmt: skip
    model = make_model(nodes, {"x": (F16, ["n", 2]), "k": (I64, [])}, ["y"])
    session = gpurt.InferenceSession(model, options(), providers=["many", "cpu"])
    alone = gpurt.InferenceSession(model, providers=["cpu"])
    for rows, trips in ((2, 0), (3, 1), (5, 3), (7, 2), (2, 4), (2, 5)):
        feeds = {"x": np.full((rows, 2), 0.25, np.float16), "k": np.array(trips)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], alone.run(None, feeds)[0])


# --- estimates


def plan_of(device, model, **given):
    session = gpurt.InferenceSession(model, options(**given), providers=["many", "cpu"])
    x = np.full((3, 3), 0.5, np.float16)
    session.run(None, {"x0": x, "x1": x})
    (plan,) = session._runner.plans()
    return session, plan


def test_branches_get_queues_by_estimates_and_a_profile_shows_them(device, tmp_path):
    session, plan = plan_of(device, model_of(*chains()), enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    steps = plan._draft.steps
    launches = {s.unit.nodes[0].name: s.queue for s in steps if isinstance(s, DeviceStep)}
    assert len({launches[f"a{k}d"] for k in range(5)}) == 1
    assert {launches["a0d"], launches["b0d"]} == {0, 1}
    follows = [s for s in steps if isinstance(s, FollowStep)]
    # The beginning, the feed, the sum, and what is read.
    assert [(s.queue, s.leader) for s in follows] == [(1, 0), (1, 0), (1, 0), (0, 1)]
    assert launches["join_d"] == 1
    events = json.loads(Path(session.end_profiling()).read_text())
    assert sum(e.get("cat") == "Node" for e in events) == 11


def test_chains_busy_devices_and_sequential_runs_have_one_queue(device, monkeypatch):
    nodes = [n("Neg", ["x0"], ["a"], "a_d"), n("Add", ["a", "x1"], ["b"], "b_d"), n("Neg", ["b"], ["y"], "c_d")]
    _, plan = plan_of(device, model_of(nodes, ["y"]))
    assert not branching(plan._draft.steps)
    _, plan = plan_of(device, model_of(*chains()), execution_mode="sequential")
    assert not branching(plan._draft.steps)
    full = Rates(1e3, 1e3, 1e3, 1e3, 1e3, 1e3, 1e-6)  # kernels that fill the device
    monkeypatch.setattr(device, "rates", lambda self: full)
    _, plan = plan_of(device, model_of(*chains()))
    assert not branching(plan._draft.steps)


def test_chains_beside_one_another_use_their_memory_again(device):
    """Each branch's values share memory among themselves; only the branches are apart."""
    _, plan = plan_of(device, model_of(*chains()))
    assert branching(plan._draft.steps)
    assert plan.sizes[1] <= 6 * 256  # ten values and an input would be eleven


# --- layout under conflicts


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 12), st.integers(0, 6)), max_size=14), st.integers())
def test_values_in_conflict_lie_apart(values, seed):
    lives = [Lifetime(size, first, first + length) for size, first, length in values]
    rng = random.Random(seed)
    pairs = [
        (i, k)
        for i, one in enumerate(lives)
        for k, other in enumerate(lives[:i])
        if rng.random() < 0.3 or (one.first <= other.last and other.first <= one.last)
    ]
    unlike = [frozenset(sum(p) - i for p in pairs if i in p) for i in range(len(lives))]
    layout = assign(lives, 64, 1500, unlike)
    for i, k in pairs:
        (block, at), (other, begin) = layout.places[i], layout.places[k]
        assert block != other or at + lives[i].nbytes <= begin or begin + lives[k].nbytes <= at
    for life, (block, at) in zip(lives, layout.places, strict=True):
        assert at % 64 == 0
        assert at + life.nbytes <= layout.blocks[block]
