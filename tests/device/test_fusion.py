"""Groups of elementwise nodes: which nodes join, what the fused kernel computes, and whose memory it may take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gpurt.device.fusion import FusedUnit, groups
from gpurt.device.provider import DeviceProvider
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.infer.types import result_dtypes
from gpurt.provider import BufferRef, UnitPlan
from gpurt.spec import Spec
from gpurt.testing.kernels import run_unit

F32 = np.dtype(np.float32)


class Builder:
    """A graph written node by node."""

    def __init__(self, **inputs: np.ndarray) -> None:
        self.arrays = inputs
        self.values = {name: ValueView(name, a.dtype, a.shape) for name, a in inputs.items()}
        self.nodes: list[NodeView] = []

    def add(self, name: str, op: str, *inputs: str, **attrs: Any) -> str:
        """A node whose result and name are the given name."""
        ins = tuple(self.values[i] if i else None for i in inputs)
        bare = NodeView(op, ins, (ValueView(name),), attrs, "", name)
        (dtype, *_) = result_dtypes(bare, [None if v is None else v.dtype for v in ins])
        self.values[name] = ValueView(name, dtype)
        self.nodes.append(NodeView(op, ins, (self.values[name],), attrs, "", name))
        return name

    def graph(self, *outputs: str) -> GraphView:
        """What has been written so far."""
        ins = tuple(self.values[name] for name in self.arrays)
        return GraphView(tuple(self.nodes), ins, tuple(self.values[o] for o in outputs))


def units(provider: DeviceProvider, b: Builder, *outputs: str) -> list[list[str]]:
    """Names of the nodes of each unit."""
    made = groups(provider, b.graph(*outputs))
    return [[n.name for n in (u if isinstance(u, tuple) else u.nodes)] for u in made]


def run(provider: DeviceProvider, b: Builder, *outputs: str, constant: Sequence[str] = ()) -> Mapping[str, np.ndarray]:
    """Run all units of a graph in order."""
    env = dict(b.arrays)
    for unit in provider.compile(b.graph(*outputs)):
        known = [i for i, name in enumerate(unit.inputs) if name in constant]
        results = run_unit(provider, unit, [env[n] if n else None for n in unit.inputs], known)  # type: ignore[arg-type]
        env.update(zip((o for o in unit.outputs if o), results, strict=True))
    return env


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_chain_and_tree_are_one_kernel(provider: DeviceProvider) -> None:
    x, y, bias = reals(4, 33), reals(4, 33, seed=1), reals(33, seed=2)
    b = Builder(x=x, y=y, bias=bias)
    b.add("s", "Add", "x", "bias")
    b.add("r", "Relu", "s")
    b.add("t", "Tanh", "y")
    b.add("m", "Mul", "r", "t")
    assert units(provider, b, "m") == [["s", "r", "t", "m"]]
    np.testing.assert_allclose(run(provider, b, "m")["m"], np.maximum(x + bias, 0) * np.tanh(y), rtol=2e-6, atol=1e-6)


def test_values_wanted_outside_end_a_group(provider: DeviceProvider) -> None:
    x = reals(3, 9)
    b = Builder(x=x)
    b.add("a", "Exp", "x")
    b.add("c", "Neg", "a")
    b.add("d", "Abs", "c")
    assert units(provider, b, "a", "d") == [["a"], ["c", "d"]]
    env = run(provider, b, "a", "d")
    np.testing.assert_allclose(env["d"], np.exp(x), rtol=2e-6)
    b.add("e", "ReduceSum", "c")
    b.add("f", "Sqrt", "d")
    assert units(provider, b, "e", "f") == [["a", "c"], ["e"], ["d", "f"]]


def test_value_read_twice_inside_a_group_is_computed_once(provider: DeviceProvider) -> None:
    x, bias = reals(5, 40), reals(40, seed=1)
    half, one, root = (np.float32(v).reshape(()) for v in (0.5, 1.0, 2**0.5))
    b = Builder(x=x, bias=bias, half=half, one=one, root=root)
    b.add("s", "Add", "x", "bias")
    b.add("q", "Div", "s", "root")
    b.add("e", "Erf", "q")
    b.add("p", "Add", "e", "one")
    b.add("m", "Mul", "s", "p")
    b.add("g", "Mul", "m", "half")
    assert units(provider, b, "g") == [["s", "q", "e", "p", "m", "g"]]
    s = x + bias
    want = s * (np.vectorize(math.erf)(s / 2**0.5) + 1) * 0.5
    for known in ((), ("half", "one", "root")):
        np.testing.assert_allclose(run(provider, b, "g", constant=known)["g"], want, rtol=1e-5, atol=1e-6)


def test_known_numbers_are_arguments_of_one_program(provider: DeviceProvider) -> None:
    x = reals(7)
    count = []
    for number in (2.0, 3.0):
        b = Builder(x=x, k=np.float32(number).reshape(1))
        b.add("y", "Mul", "x", "k")
        b.add("z", "Exp", "y")
        np.testing.assert_allclose(run(provider, b, "z", constant=["k"])["z"], np.exp(x * number), rtol=3e-6)
        count.append(len(provider._programs))
    assert count[0] == count[1]


def test_costly_small_value_is_stored_when_broadcast(provider: DeviceProvider) -> None:
    x, small, scale = reals(16, 5, 9), reals(5, 1, seed=1), reals(5, 1, seed=2)
    b = Builder(x=x, small=small, scale=scale)
    b.add("e", "Exp", "small")
    b.add("k", "Mul", "e", "scale")
    b.add("y", "Mul", "x", "k")
    assert units(provider, b, "y") == [["e", "k", "y"]]
    (unit,) = provider.compile(b.graph("y"))
    plan: UnitPlan = unit.plan([Spec.of(b.arrays[n]) for n in unit.inputs])  # type: ignore[union-attr,index]
    assert list(plan.kernels) == ["ew_exp", "ew_mul_mul"]
    assert [o.kind for o in plan.operands].count("temp") == 1
    np.testing.assert_allclose(run(provider, b, "y")["y"], x * (np.exp(small) * scale), rtol=2e-6)


def test_types_change_inside_a_group(provider: DeviceProvider) -> None:
    ids, x = np.arange(24).reshape(2, 12) % 5, reals(2, 12)
    b = Builder(ids=ids, x=x, three=np.array(3), low=np.float32(-1e9).reshape(()))
    b.add("m", "Less", "ids", "three")
    b.add("w", "Where", "m", "x", "low")
    b.add("f", "Cast", "m", to=1)
    b.add("y", "Add", "w", "f")
    assert units(provider, b, "y") == [["m", "w", "f", "y"]]
    np.testing.assert_allclose(
        run(provider, b, "y")["y"], np.where(ids < 3, x, np.float32(-1e9)) + (ids < 3), rtol=1e-6
    )
    b.add("n", "Not", "m")
    b.add("h", "Cast", "x", to=10)
    b.add("o", "Cast", "h", to=1)
    b.add("z", "Where", "n", "o", "w")
    half = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run(provider, b, "y", "z")["z"], np.where(ids >= 3, half, np.where(ids < 3, x, -1e9)))


def test_whole_numbers_wrap_between_the_nodes_of_a_group(provider: DeviceProvider) -> None:
    x = np.array([250, 3, 128, 255], np.uint8)
    y = np.array([2**31 - 1, -(2**31), 5, 0], np.int32)
    b = Builder(x=x, y=y, one=np.array(1, np.int32))
    b.add("s", "Add", "x", "x")
    b.add("w", "Cast", "s", to=1)
    b.add("n", "Add", "y", "one")
    b.add("g", "Greater", "n", "y")
    env = run(provider, b, "w", "g")
    np.testing.assert_array_equal(env["w"], (x + x).astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(env["g"], y + np.int32(1) > y)


def test_nodes_that_cannot_be_eight_wide_stay_apart_on_a_cpu(provider: DeviceProvider) -> None:
    b = Builder(x=np.arange(1, 9), k=np.array(3))
    b.add("q", "Div", "x", "k")
    b.add("f", "Cast", "q", to=1)
    b.add("y", "Exp", "f")
    expected = [["q"], ["f", "y"]] if provider.info.kernel_class == "cpu" else [["q", "f", "y"]]
    assert units(provider, b, "y") == expected
    np.testing.assert_allclose(run(provider, b, "y")["y"], np.exp((np.arange(1, 9) // 3).astype(F32)), rtol=2e-6)


def test_groups_keep_to_their_limits(provider: DeviceProvider) -> None:
    b = Builder(**{f"x{i}": np.full(3, i, np.float32) for i in range(40)})
    last = "x0"
    for i in range(1, 40):
        last = b.add(f"s{i}", "Add", last, f"x{i}")
    made = provider.compile(b.graph(last))
    assert all(len(u.nodes) <= 32 and len(u.inputs) <= 16 for u in made)
    assert len(made) == 3
    np.testing.assert_array_equal(run(provider, b, last)[last], np.full(3, sum(range(40)), np.float32))


def test_a_replaced_row_is_not_fused(provider: DeviceProvider) -> None:
    class Other:
        info = provider.info
        table = provider.table.extend()

    @Other.table.op("Neg")
    def negate(c: Any) -> None:
        pytest.fail("groups() lowers nothing")

    b = Builder(x=reals(3))
    b.add("a", "Abs", "x")
    b.add("n", "Neg", "a")
    b.add("e", "Exp", "n")
    made = groups(Other, b.graph("e"))  # type: ignore[arg-type]
    assert [type(u) for u in made] == [FusedUnit, tuple, FusedUnit]


def test_result_may_take_the_memory_of_an_operand_walked_alike(provider: DeviceProvider) -> None:
    x, bias = reals(300, 20), reals(20, seed=1)
    b = Builder(bias=bias, x=x)
    b.add("s", "Add", "bias", "x")
    b.add("y", "Sigmoid", "s")
    (unit,) = provider.compile(b.graph("y"))
    position = list(unit.inputs).index("x")
    plan: UnitPlan = unit.plan([Spec.of(b.arrays[n]) for n in unit.inputs])  # type: ignore[union-attr,index]
    assert plan.inplace == {0: (position,)}
    stream = provider.stream()
    memory: dict[int, BufferRef] = {}
    for i, name in enumerate(unit.inputs):
        array = b.arrays[name or ""]
        memory[i] = BufferRef(provider.driver.alloc(array.nbytes), 0, array.nbytes)
        provider.write(memory[i], array, stream)
    refs = [memory[o.index if o.kind == "in" else position] for o in plan.operands]
    assert plan.bind is not None
    for step in plan.bind(refs).steps:
        step(stream)
    got = np.empty_like(x)
    provider.read(got, memory[position], stream)
    provider.synchronize(stream)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-(x + bias))), rtol=2e-6)


@pytest.mark.parametrize("shape", [(0, 4), (1,), ()])
def test_groups_over_few_elements(provider: DeviceProvider, shape: tuple[int, ...]) -> None:
    x = reals(*shape)
    b = Builder(x=x)
    b.add("a", "Neg", "x")
    b.add("y", "Add", "a", "x")
    np.testing.assert_array_equal(run(provider, b, "y")["y"], np.zeros(shape, F32))
