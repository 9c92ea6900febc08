"""Device time of single kernels beside the peak of the same machine, measured in the same run.

    python ci/bench/kernels.py [--providers opencl:0] [--rounds 7] [--json FILE] [-k WORD]

The peak is what NumPy's sgemm reaches with 256 to 1,024 rows and columns (OpenBLAS or what NumPy is linked with).
Beside it stands what a kernel of multiplications and additions in registers alone reaches on the device. Products are
those of BERT-base (128 tokens) and of ResNet-50's 1x1 convolutions, all with 64 rows and more; convolutions are
ResNet-50's.
A line is a model of one node: its time is the sum of its kernels' times by the device's own clock, packing and padding
included, the least of all rounds; operations are the direct algorithm's, so that Winograd's can be more than the peak.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import click
import numpy as np
from machine import busy, describe
from rich.console import Console
from rich.table import Table

import gpurt
from gpurt import registry
from gpurt.device import DeviceProvider, TensorArg
from gpurt.device.source import program_text
from gpurt.device.tuning.bench import Bench
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import GraphView
from gpurt.provider import BufferRef, DeviceUnit
from gpurt.session.opening import open_providers
from gpurt.spec import Spec
from gpurt.testing.kernels import node_for

BERT = [(128, 768, 768), (128, 3072, 768), (128, 768, 3072), (128, 2304, 768), (384, 768, 768), (384, 3072, 768)]
"""M, N and K of BERT-base's products: 128 and 384 tokens."""

RESNET = [
    (3, 64, 224, 7, 2), (64, 64, 56, 1, 1), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (256, 64, 56, 1, 1),
    (256, 128, 56, 1, 1), (128, 128, 56, 3, 2), (128, 512, 28, 1, 1), (512, 128, 28, 1, 1), (128, 128, 28, 3, 1),
    (256, 512, 56, 1, 2), (512, 256, 28, 1, 1), (256, 256, 28, 3, 2), (256, 1024, 14, 1, 1), (1024, 256, 14, 1, 1),
    (256, 256, 14, 3, 1), (512, 1024, 28, 1, 2), (1024, 512, 14, 1, 1), (512, 512, 14, 3, 2), (512, 2048, 7, 1, 1),
    (2048, 512, 7, 1, 1), (512, 512, 7, 3, 1), (1024, 2048, 14, 1, 2),
]  # fmt: skip
"""Channels, filters, size of the square input, kernel and stride: every convolution of ResNet-50 once."""

ROUNDS_OF_FMA = 20000
PEAK = """
#if GP_CPU_CLASS
#define LANES float16
#define CHAINS 10
#else
#define LANES float
#define CHAINS 16
#endif
KFN(GROUP_ITEMS, 1, 1) peak(TENSOR(float, y), const i32 rounds, const float a, const float b) {
  OPEN(float, y);
  LANES c[CHAINS];
#pragma unroll
  for (i32 i = 0; i < CHAINS; i++) c[i] = (LANES)(b) * (float)(i + 1);
  for (i32 r = 0; r < rounds; r++)
#pragma unroll
    for (i32 i = 0; i < CHAINS; i++) c[i] = (LANES)(b) + c[i] * (LANES)(a);
  LANES sum = c[0];
#pragma unroll
  for (i32 i = 1; i < CHAINS; i++) sum += c[i];
#if GP_CPU_CLASS
  const float8 half_sum = sum.lo + sum.hi;
  const float4 quarter = half_sum.lo + half_sum.hi;
  y[GROUP(0)] = quarter.s0 + quarter.s1 + quarter.s2 + quarter.s3;
#else
  y[GROUP(0) * GROUP_ITEMS + ITEM(0)] = sum;
#endif
}
"""


class Case(NamedTuple):
    """One node with its inputs; inputs from the second on are weights."""

    name: str
    kind: str
    op: str
    inputs: tuple[tuple[int, ...], ...]
    attrs: dict[str, Any]
    domain: str
    operations: float


def cases() -> Iterator[Case]:
    for m, n, k in BERT:
        yield Case(f"BERT {m} x {n} x {k}", "product", "MatMul", ((m, k), (k, n)), {}, "", 2.0 * m * n * k)
    for channels, filters, size, kernel, stride in RESNET:
        out = -(-size // stride)
        attrs = {"pads": (kernel // 2,) * 4, "strides": (stride, stride), "kernel_shape": (kernel, kernel)}
        operations = 2.0 * filters * channels * kernel**2 * out**2
        weights = (filters, channels, kernel, kernel)
        name = f"ResNet-50 {channels} to {filters}, {size} x {size}, {kernel} x {kernel} / {stride}"
        kind = "3 x 3, stride 1" if (kernel, stride) == (3, 1) else "convolution"
        for domain, shape in (("", (1, channels, size, size)), (DOMAIN, (1, size, size, channels))):
            yield Case(name, kind, "Conv", (shape, weights), attrs, domain, operations)


@contextmanager
def bound(provider: DeviceProvider, case: Case) -> Iterator[tuple[Bench, Sequence[str]]]:
    """A case's unit, ready to be timed, and the names of its kernels."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in case.inputs]
    node = node_for(case.op, arrays, case.attrs, domain=case.domain)
    graph = GraphView((node,), tuple(v for v in node.inputs if v), tuple(v for v in node.outputs if v))
    refused = provider.get_capability(graph).refused
    if refused:
        raise click.ClickException(f"{provider.device} does not take {case.name}: {refused}")
    unit = cast("DeviceUnit", provider.compile(graph)[0])
    specs = [Spec(a.dtype, a.shape, a if i else None) for i, a in enumerate(arrays)]
    plan = unit.plan(specs)
    bench = Bench(provider, plan, specs)
    try:
        yield bench, plan.kernels
    finally:
        bench.close()


def sgemm(rounds: int) -> float:
    """Operations a second of NumPy's product of square matrices, the best of three sizes."""
    best = 0.0
    for n in (256, 512, 1024):
        a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
        for _ in range(10 * rounds):
            start = time.perf_counter()
            a @ a
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def registers(provider: DeviceProvider, rounds: int) -> float:
    """Operations a second of multiplications and additions in registers, by the device's clock."""
    cpu = provider.info.kernel_class == "cpu"
    items, groups = (1, 4 * provider.info.compute_units) if cpu else (256, 64 * provider.info.compute_units)
    text = program_text(provider.info, PEAK, {}, {"GROUP_ITEMS": items})
    driver, timer = provider.driver, provider.timer()
    if timer is None:
        raise click.ClickException(f"{provider.device} does not tell times of kernels")
    ref = BufferRef(driver.alloc(4 * items * groups), 0, 4 * items * groups)
    args = [TensorArg(ref, 4), np.int32(ROUNDS_OF_FMA), np.float32(0.999), np.float32(0.01)]
    launch = driver.prepare(driver.build(text, "peak"), "peak", args, (groups, 1, 1), (items, 1, 1))
    best = float("inf")
    for _ in range(20 * rounds):
        token = timer.time(launch)
        driver.synchronize(timer.stream)
        begin, end = timer.span(token)
        best = min(best, (end - begin) / 1e9)
    del launch
    driver.free(ref.buffer)
    chains = 10 * 16 if cpu else 16
    return 2.0 * ROUNDS_OF_FMA * chains * items * groups / best


@click.command(help=__doc__)
@click.option("--providers", "devices", default="opencl", show_default=True, help="NAME, NAME:INDEX or NAME@PLATFORM.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("-k", "word", default="", help="Only cases with this in their name.")
@click.option("--json", "file", type=click.Path(path_type=pathlib.Path))
def main(devices: str, rounds: int, word: str, file: pathlib.Path | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    result: dict[str, Any] = {
        "version": 1, "date": time.strftime("%Y-%m-%d %H:%M"), "machine": describe(), "gpurt": gpurt.__version__,
        "devices": {},
    }  # fmt: skip
    for device in devices.split(","):
        name, _, where = device.partition("@")
        asked: list[Any] = [(name, {"platform": where}) if where else name]
        provider = open_providers(registry.parse(asked, None), asked=True, strict=True)[0]
        if not isinstance(provider, DeviceProvider):
            raise click.ClickException(f"{device} has no kernels to time")
        before = busy()
        found = measure(provider, [c for c in cases() if word in c.name], rounds)
        found["others_busy"] = before.others(busy())
        result["devices"][device] = found
        show(console, found)
        if file is not None:
            file.write_text(json.dumps(result, indent=1) + "\n")


def measure(provider: DeviceProvider, chosen: Sequence[Case], rounds: int) -> dict[str, Any]:
    """Peaks, and for each case operations a second; the peaks are measured before and after."""
    peaks = {"sgemm": sgemm(rounds), "registers": registers(provider, rounds)}
    lines = []
    for case in chosen:
        with bound(provider, case) as (bench, kernels):
            seconds = min(bench.seconds() for _ in range(rounds))
        layout = {"": "channels first", DOMAIN: "channels last"}[case.domain] if case.op == "Conv" else ""
        speed = case.operations / seconds
        lines.append(
            {"name": case.name, "kind": case.kind, "layout": layout, "ms": 1e3 * seconds, "kernels": list(kernels),
             "gflops": speed / 1e9}
        )  # fmt: skip
    again = {"sgemm": sgemm(rounds), "registers": registers(provider, rounds)}
    peaks = {name: max(peak, again[name]) for name, peak in peaks.items()}
    for line in lines:
        line["share"] = 1e9 * line["gflops"] / peaks["sgemm"]
        line["of_registers"] = 1e9 * line["gflops"] / peaks["registers"]
    return {"device": provider.info.name, "driver": provider.info.driver, "peaks": peaks, "cases": lines}


def show(console: Console, found: dict[str, Any]) -> None:
    peaks = ", ".join(f"{n} {v / 1e9:.0f}" for n, v in found["peaks"].items())
    console.print(f"{found['device']}, driver {found['driver']}; GFLOP/s: {peaks}", highlight=False)
    table = Table("case", "layout", "kernels", box=None, pad_edge=False)
    for column in ("ms", "GFLOP/s", "of sgemm", "of registers"):
        table.add_column(column, justify="right")
    for c in found["cases"]:
        kernels = ", ".join(c["kernels"])
        shares = (f"{100 * c[of]:.0f} %" for of in ("share", "of_registers"))
        table.add_row(c["name"], c["layout"], kernels, f"{c['ms']:.3f}", f"{c['gflops']:.0f}", *shares)
    console.print(table)
    for kind in dict.fromkeys(c["kind"] for c in found["cases"]):
        best: dict[str, float] = {}
        for c in found["cases"]:
            if c["kind"] == kind:
                best[c["name"]] = max(best.get(c["name"], 0.0), c["share"])
        mean, least = sum(best.values()) / len(best), min(best.values())
        about = f"{100 * mean:.0f} % of sgemm's peak on average, {100 * least:.0f} % at least"
        console.print(f"{kind}: {about}, better layout of each", highlight=False)
    console.print(f"other processes took {100 * found['others_busy']:.0f} % of the machine", highlight=False)


if __name__ == "__main__":
    main()
