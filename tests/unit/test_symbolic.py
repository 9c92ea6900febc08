"""Symbolic sizes: expressions give what numbers would wherever the guards hold, and unaware code only narrows them."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from optimizing import Writer

import gpurt
from gpurt.symbolic import Expressions, Guards, Size

STEPS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda a, b: a // max(b, 1),
    "up": lambda a, b: -(-a // max(b, 1)),
    "mod": lambda a, b: a % max(b, 1),
    "min": min,
    "max": max,
    "less": lambda a, b: int(a < b),
    "where": lambda a, b: a if a == b else b,
    "bits": lambda a, _: abs(a).bit_length(),
    "range": lambda a, _: len(range(abs(a) % 100)),
    "int32": lambda a, _: int(np.int32(abs(a) % 1000)),
    "text": lambda a, _: len(f"{a}"),
}


@st.composite
def programs(draw):
    names = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
    return [(name, draw(st.integers(0, i + 3)), draw(st.integers(0, i + 3))) for i, name in enumerate(names)]


def computed(steps, s, t):
    values = [s, t, 7, 64]
    for name, a, b in steps:
        values.append(STEPS[name](values[a], values[b]))
    return values[4:]


@settings(max_examples=300, deadline=None)
@given(programs(), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70))
def test_where_the_guards_hold_expressions_give_what_numbers_would(steps, s, t, other_s, other_t):
    guards = Guards(2)
    found = computed(steps, Size.symbol(guards, 0, s), Size.symbol(guards, 1, t))
    for value, expected in zip(found, computed(steps, s, t), strict=True):
        assert (value.value if isinstance(value, Size) else value) == expected
    expressions = Expressions(guards)
    where = [expressions.index(v) if isinstance(v, Size) else None for v in found]
    holds = expressions.compile([])
    assert holds(s, t)
    if holds(other_s, other_t):
        values = expressions.values((other_s, other_t))
        expected = computed(steps, other_s, other_t)
        assert [v if i is None else values[i] for i, v in zip(where, found, strict=True)] == expected


@pytest.mark.parametrize(
    "use",
    [
        int,
        hash,
        float,
        range,
        str,
        np.int32,
        np.zeros,
        math.sqrt,
        lambda s: {s: 1},
        lambda s: f"{s:3}",
        lambda s: [0] * s,
        lambda s: s / 2,
        lambda s: s**2,
        lambda s: np.asarray([s, 3], np.int64),
    ],
)
def test_code_that_takes_the_number_binds_the_walk_to_it(use):
    guards = Guards(1)
    use(Size.symbol(guards, 0, 33))
    holds = Expressions(guards).compile([])
    assert holds(33)
    assert not holds(34)


def test_arithmetic_and_comparisons_leave_a_window():
    guards = Guards(1)
    s = Size.symbol(guards, 0, 33)
    assert (s * 64 + 64) // (s + 1) == 64
    assert (s * 64) % 64 == 0
    assert -(-s // 8) == 5
    assert max(s, 16) < 64
    holds = Expressions(guards).compile([(s * 4, 160)])
    assert [n for n in range(1, 80) if holds(n)] == list(range(33, 41))


def test_a_size_cannot_decide_after_the_walk():
    guards = Guards(1)
    s = Size.symbol(guards, 0, 33)
    guards.close()
    with pytest.raises(RuntimeError, match="after the plan was made"):
        int(s)
    with pytest.raises(RuntimeError, match="after the plan was made"):
        bool(s > 3)


def test_where_picks_among_sizes():
    """As torch writes expand(batch, -1): a size where the target is none is 1."""
    w = Writer()
    shape = w.Concat(w.size("x", 0), [-1], w.size("x", 2), axis=0)
    w.Expand(w.Relu("x"), w.Where([False, True, False], [1, 1, 1], shape), _out="y")
    model = w.model({"x": (TensorProto.FLOAT, ["batch", 1, "length"])})
    session = gpurt.InferenceSession(
        model, gpurt.SessionOptions(graph_optimization_level="disable_all"), providers=["cpu"]
    )
    for length in (4, 5, 7, 6):
        x = np.ones((2, 1, length), np.float32)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
