"""Plan templates: whatever the sizes, the values of the cpu provider; where only sizes change, nothing is built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider
from gpurt.plan.runner import GraphRunner
from gpurt.plan.values import aligned_empty
from gpurt.spec import Spec

WIDTH = 8


class Maker:
    """A graph over a value x of shape [2, n, WIDTH] and the cache y of shape [2, m, WIDTH]."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, value: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"n{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def size(self, value: str, axis: int) -> str:
        return self.op("Gather", self.op("Shape", value), self.ints(axis))

    def weight(self, *shape: int) -> str:
        return self.constant(np.random.default_rng(len(self.weights)).standard_normal(shape).astype(np.float32))


# Each takes a value [2, k, WIDTH] and another one, and gives such a value again, k possibly another.
def _reshape(g: Maker, a: str, _: str) -> str:
    flat = g.op("Reshape", a, g.ints(0, -1, WIDTH // 2))
    return g.op("Reshape", g.op("Tanh", flat), g.op("Concat", g.ints(2), g.size(a, 1), g.ints(WIDTH), axis=0))


def _attention(g: Maker, a: str, b: str) -> str:
    scores = g.op("MatMul", a, g.op("Transpose", b, perm=[0, 2, 1]))
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), b)


def _masked(g: Maker, a: str, b: str) -> str:
    zero, one = g.constant(np.int64(0)), g.constant(np.int64(1))
    rows, columns = (g.op("Range", zero, g.op("Squeeze", g.size(v, 1)), one) for v in (a, b))
    seen = g.op("LessOrEqual", g.op("Unsqueeze", columns, g.ints(0)), g.op("Unsqueeze", rows, g.ints(1)))
    mask = g.op("Where", seen, g.constant(np.float32(0)), g.constant(np.float32(-3)))
    scores = g.op("Add", g.op("MatMul", a, g.op("Transpose", b, perm=[0, 2, 1])), mask)
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), b)


def _halves(g: Maker, a: str, _: str) -> str:
    middle = g.op("Div", g.size(a, 1), g.ints(2))
    front = g.op("Slice", a, g.ints(0), middle, g.ints(1))
    back = g.op("Slice", a, middle, g.ints(2**62), g.ints(1))
    return g.op("Concat", back, front, axis=1)


def _expand(g: Maker, a: str, _: str) -> str:
    mean = g.op("ReduceMean", a, g.ints(1), keepdims=1)
    return g.op("Add", a, g.op("Relu", g.op("Expand", mean, g.op("Shape", a))))


def _split(g: Maker, a: str, _: str) -> str:
    left, right = g.op("Split", a, g.ints(3, WIDTH - 3), outputs=2, axis=-1)
    return g.op("Concat", g.op("Sigmoid", right), left, axis=-1)


BLOCKS = [
    _reshape,
    _attention,
    _masked,
    _halves,
    _expand,
    _split,
    lambda g, a, b: g.op("Concat", a, b, axis=1),
    lambda g, a, _: g.op("MatMul", a, g.weight(WIDTH, WIDTH)),
    lambda g, a, _: g.op("Add", g.op("Gelu", a), g.weight(WIDTH)),
    lambda g, a, _: g.op("Mul", a, g.op("ReduceMax", a, g.ints(-1), keepdims=1)),
    lambda g, a, _: g.op("LayerNormalization", a, g.weight(WIDTH), g.weight(WIDTH)),
    lambda g, a, _: g.op("Pad", a, g.ints(0, 1, 0, 0, 2, 0)),
    lambda g, a, _: g.op("Gather", a, g.ints(-1, 0, 1), axis=1),
    lambda g, a, _: g.op("Tile", a, g.ints(1, 2, 1)),
    lambda g, a, _: g.op("CumSum", a, g.constant(np.int64(1))),
]


def model(blocks: list[tuple[int, int]]) -> bytes:
    g = Maker()
    values = ["x", "y"]
    for block, other in blocks:
        values.append(BLOCKS[block](g, values[-1], values[other % len(values)]))
    shape = [2, None, WIDTH]
    graph = helper.make_graph(
        g.nodes,
        "g",
        [
            helper.make_tensor_value_info("x", 1, [2, "n", WIDTH]),
            helper.make_tensor_value_info("y", 1, [2, "m", WIDTH]),
        ],
        [helper.make_tensor_value_info(v, TensorProto.FLOAT, shape) for v in dict.fromkeys(values[-2:])],
        g.weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    made.ir_version = 10
    return made.SerializeToString()


def feed(n: int, m: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n * 1000 + m)
    return {k: rng.standard_normal((2, s, WIDTH)).astype(np.float32) for k, s in (("x", n), ("y", m))}


def sessions(made: bytes, provider: DeviceProvider) -> tuple[Any, Any]:
    options = {"kernel_class": provider.info.kernel_class}
    return (
        gpurt.InferenceSession(made, providers=["opencl", "cpu"], provider_options=[options, {}]),
        gpurt.InferenceSession(made, providers=["cpu"]),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, len(BLOCKS) - 1), st.integers(0, 9)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=6),
    st.booleans(),
    st.sampled_from(["run", "cpu", "opencl", "memory"]),
)
def test_any_sizes_in_any_order(provider, blocks, sizes, grows, where):
    if grows:
        sizes = [(sizes[0][0], sizes[0][1] + i) for i in range(8)]
    ours, theirs = sessions(model(blocks), provider)
    for n, m in sizes:
        given_ = feed(n, m)
        try:
            expected = theirs.run(None, given_)
        except gpurt.errors.GpurtError:
            continue  # a Gather out of range, for one
        if where == "run":
            found = ours.run(None, given_)
        else:
            names = [o.name for o in ours.get_outputs()]
            places = [memory(e.shape, "opencl") if where == "memory" else where for e in expected]
            found = [t.numpy() for t in bound(ours, given_, dict(zip(names, places, strict=True)))]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("blocks", [[(i, 1)] for i in range(len(BLOCKS))])
def test_every_block_over_a_growing_size(provider, blocks):
    ours, theirs = sessions(model(blocks), provider)
    for m in (5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 3):
        given_ = feed(m, m + 2)
        for a, b in zip(ours.run(None, given_), theirs.run(None, given_), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_a_growing_cache_walks_once_a_window_and_builds_nothing(provider, monkeypatch):
    built: list[str] = []
    walked: list[int] = []
    program, template = DeviceProvider.program, GraphRunner._template

    def counted(self: Any, text: str, name: str, *made: Any) -> Any:
        known = len(self._programs)
        found = program(self, text, name, *made)
        built.extend([name] * (len(self._programs) - known))
        return found

    def attempted(self: Any, *args: Any) -> bool:
        walked.append(1)
        return template(self, *args)

    monkeypatch.setattr(DeviceProvider, "program", counted)
    monkeypatch.setattr(GraphRunner, "_template", attempted)
    ours, theirs = sessions(model([(7, 0), (8, 0), (1, 1), (10, 0)]), provider)
    for m in range(40, 60):
        if m == 42:
            built.clear()
            walked.clear()
        given_ = feed(1, m)
        for a, b in zip(ours.run(None, given_), theirs.run(None, given_), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    assert not built
    assert len(walked) <= 2


class Counts:
    """Plans that templates gave a runner, its walks for templates, and kernels built; since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner: Any = None
        self.reset()
        program, template, served = DeviceProvider.program, GraphRunner._template, GraphRunner._served

        def built(provider: Any, *args: Any) -> Any:
            known = len(provider._programs)
            found = program(provider, *args)
            self.builds += len(provider._programs) - known
            return found

        def walked(runner: Any, *args: Any) -> bool:
            self.walks += runner is self.runner
            return template(runner, *args)

        def found(runner: Any, *args: Any) -> Any:
            plan = served(runner, *args)
            self.hits += runner is self.runner and plan is not None
            return plan

        monkeypatch.setattr(DeviceProvider, "program", built)
        monkeypatch.setattr(GraphRunner, "_template", walked)
        monkeypatch.setattr(GraphRunner, "_served", found)

    def reset(self) -> None:
        self.builds = self.walks = self.hits = 0


def bound(session: Any, feeds: dict[str, Any], outputs: dict[str, Any]) -> list[Any]:
    """Outputs of a run; each is bound to a device by name or to memory."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name, where in outputs.items():
        if isinstance(where, str):
            binding.bind_output(name, where)
        else:
            binding.bind_ortvalue_output(name, where)
    session.run_with_iobinding(binding)
    return binding.get_outputs()


def memory(shape: tuple[int, ...], where: str) -> gpurt.Tensor:
    """Memory for an output; all of it begins where a device that shares the host's memory can write."""
    return gpurt.Tensor.from_numpy(aligned_empty(Spec(np.dtype(np.float32), shape)), where)


def growing() -> bytes:
    """A step of attention over a cache: y [2, m, WIDTH] and x [2, n, WIDTH] -> the cache grown by x, and the read."""
    g = Maker()
    q = g.op("MatMul", "x", g.weight(WIDTH, WIDTH))
    cache = g.op("Concat", "y", q, axis=1)
    read = g.op("Tanh", _masked(g, q, cache))
    graph = helper.make_graph(
        [*g.nodes, helper.make_node("Identity", [cache], ["grown"]), helper.make_node("Identity", [read], ["read"])],
        "g",
        [helper.make_tensor_value_info(v, 1, [2, s, WIDTH]) for v, s in (("x", "n"), ("y", "m"))],
        [helper.make_tensor_value_info(v, 1, [2, None, WIDTH]) for v in ("grown", "read")],
        g.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_a_cache_that_stays_on_the_device_grows_without_walks_and_builds(provider, monkeypatch):
    counts = Counts(monkeypatch)
    ours, theirs = sessions(growing(), provider)
    counts.runner = ours._runner
    cache: Any = feed(1, 33)["y"]
    reference = cache
    for m in range(33, 60):
        if m == 36:
            counts.reset()
        x = feed(1, m)["x"]
        cache, read = bound(ours, {"x": x, "y": cache}, {"grown": "opencl", "read": "cpu"})
        reference, expected = theirs.run(None, {"x": x, "y": reference})
        assert cache.device == "opencl:0"
        np.testing.assert_allclose(read.numpy(), expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(cache.numpy(), reference, rtol=2e-3, atol=2e-3)
    assert (counts.walks, counts.builds, counts.hits) == (0, 0, 24)


@pytest.mark.parametrize("where", ["cpu", "opencl"])
def test_outputs_in_memory_of_the_caller(provider, monkeypatch, where):
    counts = Counts(monkeypatch)
    ours, theirs = sessions(growing(), provider)
    counts.runner = ours._runner
    for m in (40, 41, 42, 43, 50, 37, 45):
        if m == 43:
            counts.reset()
        given_ = feed(2, m)
        wanted = theirs.run(None, given_)
        mine = [memory(w.shape, where) for w in wanted]
        bound(ours, given_, dict(zip(("grown", "read"), mine, strict=True)))
        for a, b in zip(mine, wanted, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=2e-3, atol=2e-3)
        small = memory((2, m, WIDTH), where)
        with pytest.raises(gpurt.InvalidArgument, match="memory bound to output 'grown'"):
            bound(ours, given_, {"grown": small, "read": mine[1]})
    assert (counts.walks, counts.builds) == (0, 0)
    assert counts.hits == 8  # those that are refused are planned, too


def shared() -> bytes:
    """Rows x [n, WIDTH] written at positions [n, 1] of a cache past [128, WIDTH]; and products of them."""
    g = Maker()
    graph = helper.make_graph(
        [
            helper.make_node("Tanh", ["x"], ["new"]),
            helper.make_node("ScatterND", ["past", "at", "new"], ["present"]),
            helper.make_node("MatMul", ["new", g.weight(WIDTH, WIDTH)], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", 1, ["n", WIDTH]),
            helper.make_tensor_value_info("at", TensorProto.INT64, ["n", 1]),
            helper.make_tensor_value_info("past", 1, [128, WIDTH]),
        ],
        [
            helper.make_tensor_value_info("present", 1, [128, WIDTH]),
            helper.make_tensor_value_info("y", 1, ["n", WIDTH]),
        ],
        g.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_a_cache_in_one_buffer_is_written_in_place_whatever_the_number_of_rows(provider, monkeypatch):
    counts = Counts(monkeypatch)
    ours, theirs = sessions(shared(), provider)
    counts.runner = ours._runner
    reference = np.zeros((128, WIDTH), np.float32)
    cache = gpurt.Tensor.from_numpy(reference, "opencl")
    end = 0
    for count in (9, 10, 11, 13, 12, 14):
        if end == 19:
            counts.reset()
        x = feed(count, 1)["x"][0]
        at = gpurt.Tensor.from_numpy(np.arange(end, end + count).reshape(-1, 1), "opencl")
        present, y = bound(ours, {"x": x, "at": at, "past": cache}, {"present": cache, "y": "cpu"})
        reference, wanted = theirs.run(None, {"x": x, "at": at.numpy(), "past": reference})
        assert present.storage is cache.storage
        np.testing.assert_allclose(y.numpy(), wanted, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(cache.numpy(), reference, rtol=2e-3, atol=2e-3)
        end += count
    assert (counts.walks, counts.builds, counts.hits) == (0, 0, 4)
