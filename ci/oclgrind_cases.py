"""What ci/oclgrind.py runs: ONNX's backend tests of single nodes, further cases, and kernels with seeded defects."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ci.venv import ROOT

if TYPE_CHECKING:
    import numpy as np

    from gpurt_opencl import OpenCLProvider

MS = "com.microsoft"
LAST = "gpurt.channels_last"  # in the CPU class alone


class Task(NamedTuple):
    """One run of one operator; `constant` are the positions of inputs that are weights."""

    name: str
    domain: str
    op: str
    inputs: list[np.ndarray | None]
    attrs: dict[str, Any]
    outputs: int = 1
    constant: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The operator with its domain."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def elements(self) -> int:
        """How many elements go in."""
        return sum(0 if x is None else x.size for x in self.inputs)


# Backend tests with these are run again with constant weights, which are packed.
PACKED = {
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "MatMulInteger",
    "QLinearConv", "QLinearMatMul", "RNN",
}  # fmt: skip


def further() -> Iterator[Task]:
    """Operators without backend tests, and sizes that those do not reach: full tiles, ragged edges, several groups."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()

    def f(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    def u(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape).astype(np.uint8)

    def i(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    def task(
        op: str, inputs: Sequence[Any], outputs: int = 1, constant: tuple[int, ...] = (), domain: str = "", **attrs: Any
    ) -> Task:
        counts[op] += 1
        return Task(f"further_{op}_{counts[op]}", domain, op, list(inputs), attrs, outputs, constant)

    scale, other, zero = np.float32(0.02), np.float32(0.03), np.uint8(128)
    quantized = (scale, zero)

    for a, b in (((40, 37), (37, 33)), ((65, 17), (17, 66)), ((1, 70), (70, 45)), ((3, 2, 9, 20), (20, 19))):
        yield task("MatMul", [f(*a), f(*b)])
        yield task("MatMul", [f(*a), f(*b)], constant=(1,))
        yield task("MatMul", [f(*a).astype(np.float16), f(*b).astype(np.float16)], constant=(1,))
    yield task("Gemm", [f(21, 35), f(35, 18), f(18)], transA=0, alpha=0.5, beta=2.0)
    yield task("Gemm", [f(35, 21), f(18, 35), f(21, 1)], constant=(1,), transA=1, transB=1)
    for x, w, attrs in (
        ((1, 3, 11, 13), (7, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
        ((1, 5, 9, 9), (8, 5, 1, 1), {}),
        ((2, 6, 8, 9), (6, 1, 3, 3), {"pads": (1, 1, 1, 1), "group": 6}),
        ((1, 8, 9, 9), (6, 4, 3, 3), {"group": 2, "dilations": (2, 2)}),
        ((1, 4, 21), (5, 4, 3), {"strides": (2,), "pads": (1, 1)}),
        ((1, 3, 5, 6, 7), (4, 3, 2, 2, 2), {}),
        ((1, 32, 12, 13), (33, 32, 3, 3), {"pads": (1, 1, 1, 1)}),  # by Winograd's minimal filtering
    ):
        yield task("Conv", [f(*x), f(*w), f(w[0])], constant=(1, 2), **attrs)
        yield task("Conv", [f(*x), f(*w)], **attrs)
    yield task("ConvTranspose", [f(1, 4, 7, 6), f(4, 5, 3, 3), f(5)], constant=(1, 2), strides=(2, 2))
    for x, w, attrs in (
        ((1, 9, 8, 3), (20, 3, 3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 1)}),
        ((2, 5, 6, 7), (33, 7, 1, 1), {}),
        ((1, 6, 7, 12), (18, 4, 3, 3), {"group": 3, "dilations": (1, 2), "pads": (1, 2, 1, 2)}),
        ((1, 7, 9, 21), (21, 1, 3, 5), {"group": 21, "pads": (1, 4, 1, 4)}),
        ((1, 21, 4), (5, 4, 3), {"strides": (2,), "pads": (1, 1)}),
        ((1, 17, 18, 16), (32, 16, 3, 3), {"pads": (1, 1, 1, 1)}),  # by Winograd's minimal filtering
    ):
        yield task("Conv", [f(*x), f(*w), f(w[0])], constant=(1, 2), domain=LAST, **attrs)
        yield task("Conv", [f(*x), f(*w)], constant=(1,), domain=LAST, **attrs)
    for op in ("MaxPool", "AveragePool"):
        yield task(op, [f(1, 9, 8, 19)], domain=LAST, kernel_shape=(3, 2), strides=(2, 2), ceil_mode=1)
        yield task(op, [f(2, 11, 5)], domain=LAST, kernel_shape=(3,), pads=(1, 1))
    padded = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 1, 1, 0), "count_include_pad": 1}
    yield task("AveragePool", [f(1, 8, 9, 21)], domain=LAST, **padded)
    for channels, size in ((37, 5), (16, 4), (3, 7)):
        yield task("LRN", [f(2, 3, 4, channels)], domain=LAST, size=size)
    for op in ("ReduceSum", "ReduceMax", "ReduceLogSumExp"):
        yield task(op, [f(2, 1500), i(1)])
        yield task(op, [f(300, 9), i(0)])
    for op in ("Softmax", "LogSoftmax"):
        yield task(op, [f(3, 1100)])
        yield task(op, [f(2, 70, 19)], axis=1)
    for narrow in (np.float16, ml_dtypes.bfloat16):
        yield task("Softmax", [f(5, 11, 3).astype(narrow)], axis=1)
    yield task("ArgMax", [f(2, 1500)], axis=1)
    yield task("TopK", [f(2, 700), i(11)], 2)
    yield task("CumSum", [f(3, 1200), np.array(1, np.int64)])
    yield task("LayerNormalization", [f(3, 7, 150), f(150), f(150)], 3)
    yield task("InstanceNormalization", [f(2, 3, 19, 20), f(3), f(3)])
    yield task("GroupNormalization", [f(1, 8, 9, 10), f(8), f(8)], num_groups=4)
    yield task("BatchNormalization", [f(2, 5, 9, 7), f(5), f(5), f(5), np.abs(f(5)) + 0.5])
    yield task("Transpose", [f(3, 35, 37)], perm=(0, 2, 1))
    yield task("Add", [f(5, 1, 33), f(7, 1)])
    yield task("ScatterElements", [f(9, 40), rng.integers(0, 9, (20, 40)), f(20, 40)], axis=0, reduction="add")
    yield task("GatherND", [f(6, 7, 8), rng.integers(0, 6, (50, 2))])
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        fixed = [f(1, gates * 10, 6), f(1, gates * 10, 10), f(1, gates * 20)]
        yield task(op, [f(5, 3, 6), *fixed], 2, (1, 2, 3), hidden_size=10)
    for heads, length in ((4, 5), (2, 1)):
        kv = (1, 2, 19, 16)
        yield task("Attention", [f(1, heads, length, 16), f(*kv), f(*kv)], is_causal=1)

    def cached(length: int, past: int, heads: int = 4, size: int = 16) -> list[Any]:
        """Query, key and value of two heads of keys, their past, lengths less one, and the longest."""
        own = [f(2, length, heads * size), f(2, length, 2 * size), f(2, length, 2 * size)]
        last = np.full(2, past + length - 1, np.int32)
        return [*own, f(2, 2, past, size), f(2, 2, past, size), last, np.array(past + length, np.int32)]

    for length, past in ((1, 9), (1, 70)):  # one new token, in one part of the keys and in several
        yield task("GroupQueryAttention", cached(length, past), 3, domain=MS, num_heads=4, kv_num_heads=2)
    prompt = cached(7, 0)
    prompt[3:5] = None, None
    yield task("GroupQueryAttention", prompt, 3, domain=MS, num_heads=4, kv_num_heads=2)
    for length in (1, 11):
        yield task("MultiHeadAttention", [f(2, length, 64), f(2, 19, 64), f(2, 19, 64)], domain=MS, num_heads=4)
    tables = [np.arange(5, dtype=np.int64)[None], f(9, 8), f(9, 8)]
    yield task("RotaryEmbedding", [f(1, 5, 64), *tables], domain=MS, num_heads=4)
    yield task("RotaryEmbedding", [f(1, 4, 5, 16), *tables], domain=MS, interleaved=1)
    yield task("GlobalLpPool", [f(2, 3, 9, 11)])
    rois = np.array([[0, 0, 0, 5, 5], [1, 2, 1, 8, 6]], np.float32)
    yield task("MaxRoiPool", [f(2, 3, 9, 10), rois], pooled_shape=(2, 3))

    for domain in ("", MS):
        yield task("SimplifiedLayerNormalization", [f(3, 5, 70), f(70)], domain=domain)
    x, skip = f(2, 5, 70), f(2, 5, 70)
    yield task("SkipLayerNormalization", [x, skip, f(70), f(70), f(70)], domain=MS)
    yield task("SkipSimplifiedLayerNormalization", [x, skip, f(70), f(70)], domain=MS)
    yield task("Gelu", [f(7, 41)], domain=MS)
    yield task("QuickGelu", [f(7, 41)], domain=MS)
    yield task("FastGelu", [f(7, 41), f(41)], domain=MS)
    yield task("BiasGelu", [f(7, 41), f(41)], domain=MS)
    yield task("FusedMatMul", [f(2, 9, 12), f(2, 15, 9)], domain=MS, transA=1, transB=1, alpha=0.5)

    a, b = u(6, 21), u(21, 13)
    yield task("QuantizeLinear", [f(5, 9), *quantized], domain=MS)
    yield task("DequantizeLinear", [u(5, 9), *quantized], domain=MS)
    yield task("DynamicQuantizeMatMul", [f(6, 21), b, scale, zero, f(13)], domain=MS)
    yield task("MatMulIntegerToFloat", [a, b, scale, other, zero, zero, f(13)], domain=MS)
    bias = rng.integers(-99, 99, 13).astype(np.int32)
    yield task("QGemm", [a, *quantized, b, *quantized, bias, other, zero], domain=MS)
    yield task("QLinearAdd", [u(5, 9), *quantized, u(9), *quantized, other, zero], domain=MS)
    yield task("QLinearMul", [u(5, 9), *quantized, u(5, 1), *quantized, other, zero], domain=MS)
    pool = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    yield task("QLinearAveragePool", [u(1, 3, 9, 9), *quantized, other, zero], domain=MS, **pool)
    yield task("QLinearConcat", [other, zero, u(3, 5), *quantized, u(3, 7), *quantized], domain=MS, axis=1)
    convolved = [u(1, 3, 9, 9), *quantized, u(4, 3, 3, 3), *quantized, other, zero]
    yield task("QLinearConv", convolved, domain=MS, constant=(3,))
    yield task("QLinearGlobalAveragePool", [u(2, 3, 9, 9), *quantized, other, zero], domain=MS)
    yield task("QLinearLeakyRelu", [u(5, 9), *quantized, other, zero], domain=MS, alpha=0.1)
    yield task("QLinearReduceMean", [u(4, 5, 6), *quantized, other, zero], domain=MS, axes=(1,))
    yield task("QLinearSigmoid", [u(5, 9), *quantized, other, zero], domain=MS)
    yield task("QLinearSoftmax", [u(5, 9), *quantized, other, zero], domain=MS, opset=13)
    condition = rng.integers(0, 2, (5, 9)).astype(bool)
    yield task("QLinearWhere", [condition, u(5, 9), *quantized, u(9), *quantized, other, zero], domain=MS)


def cases_of_operators() -> dict[str, list[Task]]:
    """For each operator that has a row, by its title, the cases there are."""
    from gpurt.device import ops
    from gpurt.device.table import TABLE

    ops.load()
    found: dict[str, list[Task]] = {f"{domain}.{op}" if domain else op: [] for domain, op in TABLE.rows}
    for task in (*backend_tests({domain for domain, _ in TABLE.rows}, found), *further()):
        found[task.title].append(task)
    return found


def backend_tests(domains: Collection[str], titles: Collection[str]) -> Iterator[Task]:
    """ONNX's tests of these operators."""
    sys.path.append(str(ROOT / "tests" / "device"))
    from cases import node_cases

    for domain in sorted(domains):
        for case in node_cases({title for title in titles if title.rpartition(".")[0] == domain}):
            task = Task(case.name, domain, case.op, case.inputs, case.attrs, len(case.expected))
            yield task
            if case.op in PACKED:
                weights = tuple(n for n, x in enumerate(case.inputs) if n and x is not None)
                yield task._replace(name=f"{case.name}/weights", constant=weights)


# Each with the kind of finding it must cause. Every kernel is launched twice, with pass 0 and 1, in two groups of 32
# items; a group has 32 elements of x and y for itself.
SEEDED = [
    ("sound", "", "s[i] = x[i]; BARRIER; y[i] = s[31 - i];"),
    ("sound over two launches", "", "if (pass) { if (i < 16) y[i] += y[31 - i]; } else y[i] = x[i];"),
    ("out-of-bounds read", "Invalid read", "y[i] = x[i + 1];"),
    ("read far outside", "Invalid read", "y[i] = x[i - 100000];"),
    ("out-of-bounds write", "Invalid write", "y[i + 1] = x[i];"),
    ("private memory not written", "ninitialized", "float v[2]; v[i & 1] = x[i]; if (v[1] > 2) y[i] = v[0];"),
    ("local memory not written", "ninitialized", "if (i) s[i] = x[i]; BARRIER; y[i] = s[31 - i];"),
    ("result read before written", "ninitialized", "if (!pass) y[i] += x[i];"),
    ("workspace partly written", "ninitialized", "if (pass && i < 16) y[i] += y[31 - i]; if (!pass && i) y[i] = x[i];"),
    ("race in local memory", "data race", "s[i] = x[i]; y[i] = s[31 - i];"),
    ("race in global memory", "data race", "y[i] = x[i]; if (i) y[i - 1] = x[i];"),
    ("race between groups", "data race", "y[i] = x[i]; if (GROUP(0) == 1 && i == 0) y[-32] = 7;"),
    ("divergent barrier", "divergence", "s[i] = x[i]; if (i < 16) BARRIER; y[i] = s[i];"),
]  # fmt: skip


def seeded(provider: OpenCLProvider, number: int) -> None:
    """Launch a kernel with a defect."""
    import numpy as np

    from gpurt.device.driver import TensorArg
    from gpurt.device.source import program_text
    from gpurt.provider import BufferRef

    body = SEEDED[number][2]
    kernel = f"""KFN(32, 1, 1) seeded(TENSOR(const float, x), TENSOR(float, y), const i32 pass) {{
        OPEN(const float, x); OPEN(float, y);
        x += 32 * GROUP(0); y += 32 * GROUP(0);
        SHARED float s[32];
        const i32 i = ITEM(0);
        if (s == 0) return;  /* so that it is used in all of them */
        {body}
    }}\n"""
    stream = provider.stream()
    x, y = (BufferRef(provider.driver.alloc(256), 0, 256) for _ in range(2))
    provider.write(x, np.arange(64, dtype=np.float32), stream)
    program = provider.program(program_text(provider.info, kernel, {}, {}), "seeded")
    for turn in range(2):
        args = [TensorArg(x, 4), TensorArg(y, 4), np.int32(turn)]
        provider.driver.prepare(program, "seeded", args, (2, 1, 1), (32, 1, 1))(stream)
    provider.synchronize(stream)
