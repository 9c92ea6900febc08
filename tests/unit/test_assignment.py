"""Placement as a problem of its own: against exhaustive search on random graphs, and fast on large ones."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from gpurt.partitioner.assignment import Net, Problem, solve
from gpurt.partitioner.maxflow import FlowGraph

INF = math.inf


def random_problem(rng: random.Random, vertices: int, labels: int) -> Problem:
    """Vertex 0 is the host's; some vertices are impossible on some devices, some values have several readers."""
    spaces = list(range(labels))
    rng.shuffle(spaces)
    host = spaces.index(0)
    rows = [[0.0 if label == host else INF for label in range(labels)]]
    for _ in range(vertices):
        scale = rng.choice((0.2, 1.0, 3.0))
        row = [scale * rng.random() if rng.random() < 0.85 else INF for _ in range(labels)]
        rows.append(row if min(row) < INF else [1.0 if label == host else INF for label in range(labels)])
    nets = []
    for source in range(vertices + 1):
        later = range(source + 1, vertices + 1)
        sinks = {rng.choice(later) for _ in range(rng.choice((1, 1, 2, 3)))} if later else set()
        if source and rng.random() < 0.2:
            sinks.add(0)
        if sinks:
            read = [0.0] + [rng.random() for _ in range(labels - 1)]
            write = [0.0] + [rng.random() for _ in range(labels - 1)]
            nets.append(Net(source, sorted(sinks), read, write))
    return Problem(rows, nets, spaces)


def optimum(problem: Problem) -> float:
    allowed = [[i for i, c in enumerate(row) if c < INF] for row in problem.unary]
    return min(problem.cost(labels) for labels in itertools.product(*allowed))


@pytest.mark.parametrize(("labels", "most"), [(2, 12), (3, 8), (4, 6)])
def test_cost_is_near_the_optimum_of_random_graphs(labels, most):
    ratios = []
    for seed in range(60):
        rng = random.Random(1000 * labels + seed)
        problem = random_problem(rng, rng.randint(2, most), labels)
        best = optimum(problem)
        ratios.append(problem.cost(solve(problem)) / best if best else 1.0)
    assert max(ratios) <= (1 + 1e-9 if labels == 2 else 1.25)
    assert sum(ratios) / len(ratios) <= 1.05


def test_three_labels_on_twelve_vertices():
    ratios = []
    for seed in range(4):
        problem = random_problem(random.Random(seed), 12, 3)
        ratios.append(problem.cost(solve(problem)) / optimum(problem))
    assert max(ratios) <= 1.25
    assert sum(ratios) / len(ratios) <= 1.05


def chain(gains: list[tuple[float, float]], copy: float) -> Problem:
    """Host -> v1 -> v2 ... -> host; costs on (host, device)."""
    last = len(gains)
    nets = [Net(i, [i + 1 if i < last else 0], [0, copy], [0, copy]) for i in range(last + 1)]
    return Problem([[0.0, INF], *([a, b] for a, b in gains)], nets, [0, 1])


@pytest.mark.parametrize(
    ("gains", "copy", "best"),
    [
        ([(5, 1), (5, 1)], 1, [1, 1]),
        ([(5, 1), (5, 1)], 5, [0, 0]),  # the gain of eight is less than two copies
        ([(9, 1), (1, 2), (9, 1)], 1, [1, 1, 1]),  # a small island stays where its data is
        ([(9, 1), (1, 9), (9, 1)], 1, [1, 0, 1]),
        ([(9, 1), (1, INF), (9, 1)], 3, [1, 0, 1]),
        ([(9, 1), (1, INF), (9, 1)], 7, [0, 0, 0]),
    ],
)
def test_known_best_chains(gains, copy, best):
    assert solve(chain(gains, copy))[1:] == best


def test_readers_share_a_copy():
    # Alone, no reader is worth a copy of 3; all four together are.
    rows = [[0.0, INF], *([2.0, 1.0] for _ in range(4))]
    shared = Problem(rows, [Net(0, [1, 2, 3, 4], [0, 0], [0, 3])], [0, 1])
    own = Problem(rows, [Net(0, [i], [0, 0], [0, 3]) for i in (1, 2, 3, 4)], [0, 1])
    assert solve(shared) == [0, 1, 1, 1, 1]
    assert solve(own) == [0, 0, 0, 0, 0]


def test_labels_of_one_memory_space_need_no_copies():
    problem = Problem([[0.0, INF], [5.0, 1.0], [1.0, 5.0]], [Net(0, [1], [0], [0]), Net(1, [2], [0], [0])], [0, 0])
    assert solve(problem) == [0, 1, 0]


def test_a_value_goes_from_device_to_device_through_the_host():
    net = Net(1, [2], [0, 2, 30], [0, 10, 4])
    problem = Problem([[0, INF, INF], [INF, 1, INF], [INF, INF, 1]], [net], [0, 1, 2])
    assert problem.cost([0, 1, 2]) == 1 + 1 + 2 + 4


@pytest.mark.parametrize("kind", ["chain", "wide"])
def test_ten_thousand_nodes_in_seconds(kind):
    rng, count = random.Random(1), 10_000
    rows = [[0.0, INF], *([3e-5 * rng.random(), 3e-5 * rng.random()] for _ in range(count))]
    nets = []
    for source in range(count):
        ahead = [1] if kind == "chain" else [1, *(1 + int(rng.expovariate(0.3)) for _ in range(rng.choice((0, 1, 2))))]
        nets.append(Net(source, sorted({min(source + a, count) for a in ahead}), [0, 1e-5], [0, 1e-5]))
    problem = Problem(rows, nets, [0, 1])
    start = time.perf_counter()
    labels = solve(problem)
    assert time.perf_counter() - start < 10  # about one on an idle machine
    assert problem.cost(labels) < problem.cost([0] * (count + 1))


def test_a_cut_that_takes_too_long_is_given_up():
    graph = FlowGraph()
    a, b = graph.vertex(), graph.vertex()
    graph.arc(0, a, 1.0)
    graph.arc(a, b, 2.0)
    graph.arc(b, 1, 0.5)
    assert graph.cut(0) is None
