"""Given a placement, no plan copies more than it must: compared with a search over all ways to bring values around."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from conftest import make_model, plugin, registered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import gpurt

F16, I64, BOOL = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
SHAPE = (2, 3)
n = helper.make_node

# Of the simulated devices a, b and c the last one computes in the host's memory.


@pytest.fixture(scope="module")
def moved():
    """Three simulated devices, and a counter of what is copied between them and the host: (device, direction)."""
    counts: Counter[tuple[str, str]] = Counter()
    SimProvider = plugin().SimProvider

    def make(letter):
        class Counted(SimProvider):
            name = f"sim{letter}"

            def write(self, dst, src, stream):
                counts[letter, "write"] += not self.shares_host  # within one memory it is no copy between two
                super().write(dst, src, stream)

            def read(self, dst, src, stream):
                counts[letter, "read"] += not self.shares_host
                super().read(dst, src, stream)

        return Counted

    parts = [make(letter) for letter in "abc"]
    with registered(*parts):
        yield counts


PROVIDERS = ["sima", "simb", ("simc", {"shares_host": True}), "cpu"]
DEVICE = {"a": "sima", "b": "simb", "c": "simc", "h": "cpu"}


def opened(model, placement):
    """A session with every node where the placement says, and nothing optimized away."""
    pins = {name: DEVICE[letter] for name, letter in placement.items()}
    options = gpurt.SessionOptions(
        partitioning="greedy", pins=pins, graph_optimization_level="disable_all", cache_dir=False
    )
    session = gpurt.InferenceSession(model, options, providers=PROVIDERS)
    placed = {r["name"]: r["provider"] for r in session.explain().to_dict()["nodes"]}
    assert {name: placed[name] for name in pins} == pins
    return session


def transfers(session, feeds, moved):
    """Copies of a run in the steady state."""
    session.run(None, feeds)
    moved.clear()
    session.run(None, feeds)
    return sum(moved.values())


def least(maker, readers):
    """The fewest copies that bring a value from one memory to all that read it: breadth first over where it is.

    A device exchanges values with the host alone; the memory of c is the host's own.
    """
    own = {"a": "a", "b": "b", "c": "h", "h": "h"}
    goal = frozenset(own[r] for r in readers)
    front, steps = {frozenset(own[maker])}, 0
    while not any(goal <= places for places in front):
        front = {
            places | {to} for places in front for at in places for to in "abh" if to not in places and "h" in (at, to)
        }
        steps += 1
    return steps


@st.composite
def graphs(draw):
    """Nodes over two fed values, constants among their inputs; where each is placed; and what the graph yields."""
    values, nodes, placement = ["x0", "x1"], [], {}
    for k in range(draw(st.integers(1, 8))):
        ins = [draw(st.sampled_from(values))]
        op = draw(st.sampled_from(("Relu", "Neg", "Add", "Mul", "Sub")))
        if op not in ("Relu", "Neg"):
            ins.insert(draw(st.integers(0, 1)), draw(st.sampled_from([*values, "k"])))
        nodes.append(n(op, ins, [f"v{k}"], f"n{k}"))
        placement[f"n{k}"] = draw(st.sampled_from("abch"))
        values.append(f"v{k}")
    outputs = sorted(set(draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=3))))
    return nodes, placement, outputs


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs())
def test_random_graphs_copy_as_little_as_can_be(moved, graph):
    nodes, placement, outputs = graph
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [info(name, F16, SHAPE) for name in ("x0", "x1")],
            [info(name, F16, SHAPE) for name in outputs],
            [numpy_helper.from_array(np.full(SHAPE, 0.5, np.float16), "k")],
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    makers = {"x0": "h", "x1": "h"} | {node.output[0]: placement[node.name] for node in nodes}
    readers: dict[str, set[str]] = {name: set() for name in makers}
    for node in nodes:
        for name in set(node.input) - {"k"}:
            readers[name].add(placement[node.name])
    for name in outputs:
        readers[name].add("h")
    wanted = sum(least(makers[name], read) for name, read in readers.items())
    feeds = {name: np.ones(SHAPE, np.float16) for name in ("x0", "x1")}
    session = opened(model, placement)
    assert transfers(session, feeds, moved) == wanted
    reported = {(c["value"], c["from"], c["to"]) for c in session.explain().to_dict()["copies"]}
    assert all({source, target} - {"simc:0", "cpu"} for _, source, target in reported)


def looped(trips, body_nodes, yields, after=()):
    """x is fed; the body of a Loop over v, which begins as x, reads what is outside; what follows reads y."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [n("Identity", ["c"], ["c2"], "keep"), *body_nodes], "body",
        [info("i", I64, []), info("c", BOOL, []), info("v", F16, SHAPE)],
        [info("c2", BOOL, []), info(yields, F16, SHAPE)],
    )  # fmt: skip
    nodes = [n("Relu", ["x"], ["w"], "before"), n("Loop", ["trips", "", "x"], ["y"], "loop", body=body), *after]
    return make_model(nodes, {"x": (F16, SHAPE)}, ["z" if after else "y"], {"trips": np.array(trips, np.int64)})


FEED = {"x": np.ones(SHAPE, np.float16)}


@pytest.mark.parametrize("trips", [1, 7])
def test_what_a_loop_reads_from_outside_is_copied_once(moved, trips):
    model = looped(trips, [n("Add", ["v", "w"], ["s"], "one"), n("Mul", ["s", "w"], ["v2"], "two")], "v2")
    session = opened(model, {"before": "h", "one": "a", "two": "a"})
    # x and w to the device, y back: no more for seven passes than for one.
    assert transfers(session, FEED, moved) == 3


@pytest.mark.parametrize("trips", [1, 7])
def test_a_loop_leaves_its_state_on_the_device_for_what_follows(moved, trips):
    after = [n("Neg", ["y"], ["z"], "last")]
    model = looped(trips, [n("Add", ["v", "w"], ["v2"], "one")], "v2", after)
    session = opened(model, {"before": "a", "one": "a", "last": "a"})
    assert transfers(session, FEED, moved) == 2  # x there, z back


def test_a_loop_that_changes_devices_copies_what_crosses_and_no_more(moved):
    model = looped(5, [n("Add", ["v", "w"], ["s"], "one"), n("Neg", ["s"], ["v2"], "two")], "v2")
    session = opened(model, {"before": "h", "one": "a", "two": "b"})
    # Each pass s from a to b; v2 from b to a for the next pass or, after the last one, to the host. w and x once.
    assert transfers(session, FEED, moved) == 2 + 5 * 2 + 4 * 2 + 1


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_copies_what_the_one_taken_reads(moved, taken):
    info = helper.make_tensor_value_info

    def branch(name, operand):
        nodes = [n("Add", [operand, operand], [f"{name}_y"], name)]
        return helper.make_graph(nodes, name, [], [info(f"{name}_y", F16, SHAPE)])

    nodes = [
        n("Relu", ["x"], ["p"], "left"),
        n("Neg", ["x"], ["q"], "right"),
        n("If", ["flag"], ["y"], "if", then_branch=branch("yes", "p"), else_branch=branch("no", "q")),
    ]
    model = make_model(nodes, {"x": (F16, SHAPE), "flag": (BOOL, [])}, ["y"])
    session = opened(model, {"left": "a", "right": "b", "yes": "a", "no": "h"})
    feeds = {**FEED, "flag": np.array(taken)}
    # x to both devices; then y from a to the host, or q from b to the host, where y is made.
    assert transfers(session, feeds, moved) == 3


def test_the_search_knows_ways_through_the_host():
    assert least("a", {"b"}) == 2
    assert least("a", {"a"}) == 0
    assert least("a", {"b", "h"}) == 2
    assert least("c", {"h", "a"}) == 1
    assert sum(least(maker, {"a", "b", "h"}) for maker in chain("abch")) == 8
