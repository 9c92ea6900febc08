"""Any graph with convolutions: with channels last it gives what it gives as it is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from conftest import make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laying_out import LastProvider, same_values
from onnx import TensorProto
from test_optimizer_random import Graph, binary, clip, conv, reshape, transpose, unary, with_constant

from gpurt import registry
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import NodeView

F32 = TensorProto.FLOAT


@pytest.fixture(autouse=True, scope="module")
def last() -> Iterator[None]:
    registry.register(LastProvider)
    yield
    registry.unregister("last")


def of_rank_4(g: Graph) -> tuple[str, tuple[int, ...]] | None:
    x = g.value(4)
    return None if x is None else (x, g.shapes[x])


def pool(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None and min(found[1][2:]) > 1:
        x, shape = found
        op = g.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        g.add(op, [x], (*shape[:2], *(d // 2 for d in shape[2:])), kernel_shape=[2, 2], strides=[2, 2])


def whole(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None:
        g.add("GlobalAveragePool", [found[0]], (*found[1][:2], 1, 1))


def concat(g: Graph) -> None:
    found = of_rank_4(g)
    if found is None:
        return
    x, shape = found
    axis = g.draw(st.integers(0, 3))
    fitting = [v for v, s in g.shapes.items() if len(s) == 4 and all(s[i] == shape[i] for i in range(4) if i != axis)]
    other = g.draw(st.sampled_from(fitting))
    size = shape[axis] + g.shapes[other][axis]
    if size <= 16:
        g.add("Concat", [x, other], (*shape[:axis], size, *shape[axis + 1 :]), axis=axis - 4)


def cut(g: Graph) -> None:
    found = of_rank_4(g)
    if found is None:
        return
    x, shape = found
    axis = g.draw(st.integers(0, 3))
    start = g.draw(st.integers(0, shape[axis] - 1))
    limits = [g.constant([v], np.int64) for v in (start, shape[axis], axis - 4)]
    g.add("Slice", [x, *limits], (*shape[:axis], shape[axis] - start, *shape[axis + 1 :]))


def pad(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None and max(found[1]) < 8:
        x, shape = found
        pads = [g.draw(st.integers(0, 1)) for _ in range(8)]
        sizes = tuple(d + pads[i] + pads[4 + i] for i, d in enumerate(shape))
        g.add("Pad", [x, g.constant(pads, np.int64)], sizes)


def resize(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None and max(found[1][2:]) <= 4:
        x, shape = found
        g.add("Resize", [x, "", g.constant([1, 1, 2, 2])], (*shape[:2], *(2 * d for d in shape[2:])))


def reduce(g: Graph) -> None:
    found = of_rank_4(g)
    if found is None:
        return
    x, shape = found
    axes = sorted(g.draw(st.sets(st.integers(0, 3), min_size=1, max_size=3)))
    keep = g.draw(st.booleans())
    sizes = tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)
    g.add("ReduceMean", [x, g.constant(axes, np.int64)], sizes, keepdims=int(keep))


def softmax(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None:
        g.add("Softmax", [found[0]], found[1], axis=g.draw(st.integers(-4, 3)))


def blocks(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None and found[1][1] % 4 == 0 and max(found[1][2:]) <= 4:
        x, (n, c, h, w) = found
        mode = g.draw(st.sampled_from(["DCR", "CRD"]))
        g.add("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=mode)


def shuffle(g: Graph) -> None:
    found = of_rank_4(g)
    if found is None or found[1][1] % 2:
        return
    x, (n, c, h, w) = found
    split = g.add("Reshape", [x, g.constant([0, 2, c // 2, h, w], np.int64)], (n, 2, c // 2, h, w))
    turned = g.add("Transpose", [split], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
    g.add("Reshape", [turned, g.constant([0, c, h, w], np.int64)], (n, c, h, w))


def places(g: Graph) -> None:
    """[N, C, H, W] -> [N, C, HW], now and then transposed."""
    found = of_rank_4(g)
    if found is None:
        return
    x, (n, c, h, w) = found
    flat = g.add("Reshape", [x, g.constant([0, c, -1], np.int64)], (n, c, h * w))
    if g.draw(st.booleans()):
        g.add("Transpose", [flat], (n, h * w, c), perm=[0, 2, 1])


def product(g: Graph) -> None:
    found = of_rank_4(g)
    if found is None:
        return
    x, shape = found
    size = int(np.prod(shape[1:]))
    flat = g.add("Flatten", [x], (shape[0], size))
    g.add("MatMul", [flat, g.constant(g.rng.uniform(-1, 1, (size, 3)))], (shape[0], 3))


def strided(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None:
        x, (n, c, h, w) = found
        filters = g.constant(g.rng.uniform(-1, 1, (2 * c, 1, 1, 1)))
        sizes = (n, 2 * c, -(-h // 2), -(-w // 2))
        if 2 * c <= 16:
            g.add("Conv", [x, filters], sizes, strides=[2, 2], group=c)


def transposed(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None and max(found[1][2:]) <= 4:
        x, (n, c, h, w) = found
        filters = g.constant(g.rng.uniform(-1, 1, (c, 4, 2, 2)))
        g.add("ConvTranspose", [x, filters, g.numbers(4)], (n, 4, 2 * h, 2 * w), strides=[2, 2])


def signal(g: Graph) -> None:
    x = g.value(3)
    if x is not None and g.shapes[x][2] >= 3:
        n, c, length = g.shapes[x]
        g.add("Conv", [x, g.constant(g.rng.uniform(-1, 1, (4, c, 3)))], (n, 4, length - 2))


def local(g: Graph) -> None:
    found = of_rank_4(g)
    if found is not None:
        g.add("LRN", [found[0]], found[1], size=3)


STEPS = (
    *(conv, conv, conv, strided, unary, clip, with_constant, binary, transpose, reshape, pool, whole, concat, cut, pad),
    *(resize, reduce, softmax, blocks, shuffle, places, product, transposed, signal, local),
)


@st.composite
def models(draw: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    g = Graph(draw)
    inputs = {"x": (2, 4, 4, 4), "u": (2, 4, 1, 1)}
    g.shapes.update(inputs)
    conv(g)
    for _ in range(draw(st.integers(1, 14))):
        draw(st.sampled_from(STEPS))(g)
    made = [v for v in g.shapes if v not in inputs]
    outputs = sorted({made[-1], *draw(st.lists(st.sampled_from(made), max_size=2))})
    # A batch or an image of open size: what is known of shapes decides which nodes can be turned.
    opened = draw(st.sampled_from(["nothing", "batch", "image"]))
    sizes: dict[str, list[Any]] = {k: list(s) for k, s in inputs.items()}
    for k, s in sizes.items():
        s[0] = s[0] if opened == "nothing" else f"{k}0"
    if opened == "image":
        sizes["x"][2:] = ["h", "w"]
    model = make_model(g.nodes, {k: (F32, s) for k, s in sizes.items()}, outputs, g.constants)
    return model, {k: g.rng.uniform(-2, 2, s).astype(np.float32) for k, s in inputs.items()}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_values_stay(case: Any) -> None:
    model, feeds = case
    same_values(model, feeds, tolerance=1e-4)


class ChoosyProvider(LastProvider):
    """It would rather have some nodes so, of any kind, and others not, by their names."""

    lacks: ClassVar[frozenset[str]] = frozenset({f"{DOMAIN}.ConvTranspose", f"{DOMAIN}.LRN"})

    def channels_last(self, node: NodeView) -> float:
        return [-1000.0, -0.5, 0.0, 0.5, 1000.0][zlib.crc32(node.name.encode()) % 5]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_values_stay_where_only_a_part_is_turned(case: Any) -> None:
    model, feeds = case
    registry.register(ChoosyProvider)
    try:
        same_values(model, feeds, tolerance=1e-4)
    finally:
        registry.register(LastProvider)
