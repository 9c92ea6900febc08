"""Decode tokens with a growing KV cache: time a token, time of a re-plan, kernels built.

    python ci/bench/decode.py [model.onnx] [--tokens 200] [--providers opencl,cpu] [--check] [--binding]

Without a model a small GPT is built. A model needs ``input_ids`` [1, 1], inputs ``past_<i>_k`` and ``past_<i>_v``
[1, heads, past, width], and the outputs logits, then the presents in the order of the pasts. The cache is on the host
between tokens; with ``--binding`` it stays on the first device, through io_binding. ``--check`` compares every token
with the cpu provider.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.provider import DeviceProvider
from gpurt.plan.plan import PlanState
from gpurt.plan.runner import GraphRunner


def build(layers: int = 4, heads: int = 4, width: int = 32, vocab: int = 1000, longest: int = 512) -> bytes:
    """A decoder of GPT-2's kind: learned positions, causal mask, layers of attention and an MLP."""
    rng = np.random.default_rng(0)
    hidden = heads * width
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(name: str, *shape: int) -> str:
        return constant(name, (rng.standard_normal(shape) * 0.06).astype(np.float32))

    def op(op_type: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"{op_type.lower()}_{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op_type, inputs, names, name=f"n{len(nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def norm(x: str, name: str) -> str:
        scale = constant(f"{name}_scale", np.ones(hidden, np.float32))
        return op("LayerNormalization", x, scale, constant(f"{name}_bias", np.zeros(hidden, np.float32)))

    def length(value: str, at: int) -> str:
        return op("Gather", op("Shape", value), constant(f"at_{len(nodes)}", np.int64(at)))

    one, zero = constant("one", np.int64(1)), constant("zero", np.int64(0))
    past, new = length("past_0_k", 2), length("input_ids", 1)
    total = op("Add", past, new)
    positions = op("Range", past, total, one)
    seen = op(
        "LessOrEqual",
        op("Unsqueeze", op("Range", zero, total, one), constant("first", np.int64([0]))),
        op("Unsqueeze", positions, constant("second", np.int64([1]))),
    )
    mask = op("Where", seen, constant("open", np.float32(0)), constant("closed", np.float32(-1e9)))
    x = op(
        "Add",
        op("Gather", weight("wte", vocab, hidden), "input_ids"),
        op("Gather", weight("wpe", longest, hidden), positions),
    )
    split_heads = constant("split_heads", np.int64([1, -1, heads, width]))
    merge_heads = constant("merge_heads", np.int64([1, -1, hidden]))
    scale = constant("scale", np.float32(width**-0.5))
    presents = []
    for i in range(layers):
        qkv = op(
            "Add",
            op("MatMul", norm(x, f"ln1_{i}"), weight(f"qkv_{i}", hidden, 3 * hidden)),
            weight(f"qkv_b{i}", 3 * hidden),
        )
        q, k, v = (
            op("Transpose", op("Reshape", part, split_heads), perm=[0, 2, 1, 3])
            for part in op("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        )
        k, v = op("Concat", f"past_{i}_k", k, axis=2), op("Concat", f"past_{i}_v", v, axis=2)
        presents += [k, v]
        scores = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), scale)
        read = op("MatMul", op("Softmax", op("Add", scores, mask), axis=-1), v)
        merged = op("Reshape", op("Transpose", read, perm=[0, 2, 1, 3]), merge_heads)
        x = op("Add", x, op("MatMul", merged, weight(f"out_{i}", hidden, hidden)))
        up = op("Gelu", op("MatMul", norm(x, f"ln2_{i}"), weight(f"up_{i}", hidden, 4 * hidden)))
        x = op("Add", x, op("MatMul", up, weight(f"down_{i}", 4 * hidden, hidden)))
    logits = op("MatMul", norm(x, "ln_f"), weight("head", hidden, vocab))

    def value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    pasts = [f"past_{i}_{kind}" for i in range(layers) for kind in "kv"]
    graph = helper.make_graph(
        nodes,
        "gpt",
        [value("input_ids", TensorProto.INT64, [1, "new"]), *(value(p, 1, [1, heads, "past", width]) for p in pasts)],
        [value(logits, 1, [1, "new", vocab]), *(value(p, 1, [1, heads, "total", width]) for p in presents)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()


class Cache:
    """Runs of which the presents stay on a device, as the next run's pasts."""

    def __init__(self, session: gpurt.InferenceSession, feed: Mapping[str, Any], pasts: Sequence[str]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._pasts = pasts
        self._device = session.get_devices()[0]
        self._outputs = [o.name for o in session.get_outputs()]
        self.tensors = [gpurt.Tensor.from_numpy(feed[p], self._device) for p in pasts]

    def run(self, ids: np.ndarray) -> np.ndarray:
        """The logits of one token; the cache grows by it."""
        binding = self._binding
        binding.bind_cpu_input("input_ids", ids)
        for past, tensor in zip(self._pasts, self.tensors, strict=True):
            binding.bind_ortvalue_input(past, tensor)
        binding.bind_output(self._outputs[0])
        for name in self._outputs[1:]:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *self.tensors = binding.get_outputs()
        return logits.numpy()


class Probe:
    """Counts kernels built, and times what a new shape costs: the choice of a plan, and setting what varies again."""

    def __init__(self) -> None:
        self.builds = 0
        self.choosing = 0.0
        program, plan, resize = DeviceProvider.program, GraphRunner._plan, PlanState.resize  # noqa: SLF001
        probe = self

        def counted(provider: DeviceProvider, *args: Any) -> Any:
            before = len(provider._programs)  # noqa: SLF001
            found = program(provider, *args)
            probe.builds += len(provider._programs) - before  # noqa: SLF001
            return found

        def timed(runner: GraphRunner, *args: Any) -> Any:
            start = time.perf_counter()
            found = plan(runner, *args)
            probe.choosing += time.perf_counter() - start
            return found

        def resized(state: PlanState, symbols: tuple[int, ...]) -> None:
            start = time.perf_counter()
            resize(state, symbols)
            probe.choosing += time.perf_counter() - start

        PlanState.resize = resized  # type: ignore[method-assign]
        DeviceProvider.program = counted  # type: ignore[method-assign]
        GraphRunner._plan = timed  # type: ignore[method-assign] # noqa: SLF001


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--past", type=int, default=32)
    parser.add_argument("--providers", default="opencl,cpu")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--binding", action="store_true")
    given = parser.parse_args()
    model = given.model or build()
    probe = Probe()
    session = gpurt.InferenceSession(model, providers=given.providers.split(","))
    other = gpurt.InferenceSession(model, providers=["cpu"]) if given.check else None
    inputs = session.get_inputs()
    pasts = [i for i in inputs if i.name.startswith("past_")]
    rng = np.random.default_rng(1)
    feed: dict[str, Any] = {
        i.name: (rng.standard_normal((1, i.shape[1], given.past, i.shape[3])) * 0.1).astype(np.float32) for i in pasts
    }
    feed["input_ids"] = np.array([[1]], np.int64)
    cache = Cache(session, feed, [p.name for p in pasts]) if given.binding else None
    times, plans, builds, worst = [], [], [], 0.0
    for _ in range(given.tokens):
        probe.builds, probe.choosing = 0, 0.0
        start = time.perf_counter()
        if cache is None:
            logits, *presents = session.run(None, feed)
        else:
            logits, presents = cache.run(feed["input_ids"]), cache.tensors
        times.append(time.perf_counter() - start)
        plans.append(probe.choosing)
        builds.append(probe.builds)
        if other is not None:
            presents = [p.numpy() if isinstance(p, gpurt.Tensor) else p for p in presents]
            expected = other.run(None, feed)
            for a, b in zip([logits, *presents], expected, strict=True):
                worst = max(worst, float(np.abs(a - b).max()))
        feed.update((p.name, present) for p, present in zip(pasts, presents, strict=True))
        feed["input_ids"] = np.array([[int(logits[0, -1].argmax())]], np.int64)
    for name, values in (("token", times), ("plan", plans)):
        ordered = sorted(values[2:] or values)
        print(
            f"{name:6} first {1e3 * values[0]:9.2f} ms, second {1e3 * values[min(1, len(values) - 1)]:9.2f} ms, then "
            f"min {1e3 * ordered[0]:.3f}, median {1e3 * statistics.median(ordered):.3f}, max {1e3 * ordered[-1]:.3f} ms"
        )
    late = [(i, n) for i, n in enumerate(builds) if n and i > 1]
    print(f"builds first {builds[0]}, second {builds[1] if len(builds) > 1 else 0}, later {late or 'none'}")
    if other is not None:
        print(f"largest difference from cpu {worst:.3g}")


if __name__ == "__main__":
    main()
