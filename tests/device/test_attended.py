"""Attention over views of its inputs: which nodes join it, and what it computes from heads where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_fusion import Builder, reals, run, units

from gpurt.device.provider import DeviceProvider
from gpurt.device.views import reshaped
from gpurt.graph.view import NodeView, ValueView

BATCH, LENGTH, HEADS = 2, 7, 3


class Views(Builder):
    """A graph whose Split has several results, named x0, x1 and so on."""

    def split(self, x: str, axis: int) -> list[str]:
        names = [f"{x}{i}" for i in range(3)]
        outs = tuple(ValueView(n, self.values[x].dtype) for n in names)
        self.values.update(zip(names, outs, strict=True))
        attrs = {"axis": axis, "num_outputs": 3}
        self.nodes.append(NodeView("Split", (self.values[x],), outs, attrs, "", f"{x}_split"))
        return names

    def number(self, name: str, *values: int) -> str:
        self.arrays[name] = np.array(values)
        self.values[name] = ValueView(name, np.dtype(np.int64), (len(values),))
        return name


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of (batch, heads, length, size) in double."""
    scores = q.astype("f8") @ k.astype("f8").swapaxes(2, 3) / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v.astype("f8"))


def check(b: Builder, provider: DeviceProvider, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, joined: bool) -> None:
    got = run(provider, b, "y", constant=[n for n, a in b.arrays.items() if a.dtype == np.int64])["y"]
    wanted = expected(q, k, v)
    np.testing.assert_allclose(got, wanted.swapaxes(1, 2) if joined else wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 16])
def test_projections_of_their_own(provider: DeviceProvider, size: int) -> None:
    """torch's form: Reshape and Transpose of each, and a Transpose behind."""
    x = {n: reals(BATCH, LENGTH, HEADS * size, seed=i) for i, n in enumerate("abc")}
    b = Views(**x)
    b.number("shape", 0, 0, HEADS, size)
    for n in "abc":
        b.add(f"{n}r", "Reshape", n, "shape")
        b.add(f"{n}t", "Transpose", f"{n}r", perm=[0, 2, 1, 3])
    b.add("o", "Attention", "at", "bt", "ct")
    b.add("y", "Transpose", "o", perm=[0, 2, 1, 3])
    assert units(provider, b, "y") == [["ar", "at", "br", "bt", "cr", "ct", "o", "y"]]
    q, k, v = (a.reshape(BATCH, LENGTH, HEADS, size).swapaxes(1, 2) for a in x.values())
    check(b, provider, q, k, v, joined=True)


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("picked", ["Split", "Slice"])
def test_one_projection(provider: DeviceProvider, size: int, picked: str) -> None:
    """timm's form: queries, keys and values are parts of one tensor, of which a Transpose makes them the first axis."""
    x = reals(BATCH, LENGTH, 3 * HEADS * size)
    b = Views(x=x)
    b.number("shape", BATCH, LENGTH, 3, HEADS, size)
    b.number("first", 0)
    b.add("r", "Reshape", "x", "shape")
    b.add("t", "Transpose", "r", perm=[2, 0, 3, 1, 4])
    if picked == "Split":
        parts = [b.add(f"{p}s", "Squeeze", p, "first") for p in b.split("t", 0)]
    else:
        bounds = [b.number(f"n{i}", i) for i in range(4)]
        cuts = [b.add(f"c{i}", "Slice", "t", bounds[i], bounds[i + 1], "first") for i in range(3)]
        parts = [b.add(f"{p}s", "Squeeze", p, "first") for p in cuts]
    b.add("y", "Attention", *parts)
    assert len(units(provider, b, "y")) == 1
    q, k, v = x.reshape(BATCH, LENGTH, 3, HEADS, size).transpose(2, 0, 3, 1, 4)
    check(b, provider, q, k, v, joined=False)


def test_keys_across_memory_are_copied(provider: DeviceProvider) -> None:
    q, k = reals(BATCH, HEADS, LENGTH, 16), reals(BATCH, HEADS, 16, LENGTH, seed=1)
    b = Views(q=q, k=k)
    b.add("t", "Transpose", "k", perm=[0, 1, 3, 2])
    b.add("y", "Attention", "q", "t", "q")
    assert len(units(provider, b, "y")) == 1
    check(b, provider, q, k.swapaxes(2, 3), q, joined=False)


def test_what_others_read_stays_outside(provider: DeviceProvider) -> None:
    q = reals(BATCH, LENGTH, HEADS, 16)
    b = Views(q=q)
    b.add("t", "Transpose", "q", perm=[0, 2, 1, 3])
    b.add("o", "Attention", "t", "t", "t")
    b.add("y", "Transpose", "o", perm=[0, 2, 1, 3])
    b.add("z", "Softmax", "t")
    assert ["t"] in units(provider, b, "y", "z")
    assert ["o"] in units(provider, b, "y", "o")
    x = q.swapaxes(1, 2)
    check(b, provider, x, x, x, joined=True)


RESHAPES: list[tuple[Any, Any, Any, Any]] = [
    ((2, 3, 4), (12, 4, 1), (6, 4), [4, 1]),
    ((2, 3, 4), (12, 4, 1), (2, 1, 12), [12, 12, 1]),
    ((2, 12), (1, 2), (2, 3, 4), [1, 8, 2]),
    ((3, 2), (1, 3), (6,), None),
    ((1, 5), (99, 1), (5, 1), [1, 1]),
    ((4, 6), (12, 1), (8, 3), None),
]


@pytest.mark.parametrize(("shape", "steps", "target", "wanted"), RESHAPES)
def test_views_under_other_shapes(shape: Any, steps: Any, target: Any, wanted: Any) -> None:
    assert reshaped(shape, steps, target) == wanted
    if wanted is not None:
        memory = np.arange(200)
        one = np.lib.stride_tricks.as_strided(memory, shape, [8 * s for s in steps])
        two = np.lib.stride_tricks.as_strided(memory, target, [8 * s for s in wanted])
        np.testing.assert_array_equal(one.reshape(target), two)
