"""How fast devices are: said by their provider, else measured once on small nodes through its own run path, and kept.

Where nothing can be measured (a simulated device, an operator or a dtype that it lacks) defaults by the device's kind
stand in; a measured rate replaces its default alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from gpurt import caches, logs
from gpurt.errors import GpurtError
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.infer import infer
from gpurt.partitioner.cost import work
from gpurt.provider import (
    HOST,
    BufferRef,
    DeviceMemory,
    DeviceUnit,
    HostUnit,
    Operand,
    Provider,
    Rates,
    Refused,
    Unavailable,
)
from gpurt.spec import Spec, Unknown

logger = logs.get(__name__)

VERSION: Final = 1  # of the probes and of the file's form
_BUDGET: Final = 0.3  # seconds of measuring, kernel builds not counted
_BATCH: Final = 8  # launches between waits, which are taken off
_F32: Final = np.dtype(np.float32)

DEFAULTS: Final = {
    "host": Rates(2e10, 8e9, 1e9, 2e8, 1.5e8, 6e9, 4e-6, 1.5e-6, calls=True),
    "cpu": Rates(5e10, 5e10, 1e10, 1e9, 1e9, 8e9, 1e-5, 1e-6, 5e-5, 6e9, 6e9),
    "gpu": Rates(5e12, 3e12, 5e11, 5e10, 5e10, 2e11, 6e-6, 5e-7, 2e-5, 1e10, 1e10),
    "accelerator": Rates(1e12, 1e12, 1e11, 2e10, 2e10, 5e10, 1e-5, 1e-6, 5e-5, 5e9, 5e9),
    "emulator": Rates(1e7, 1e7, 1e7, 1e7, 1e7, 1e8, 1e-3, 1e-5, 1e-3, 1e9, 1e9),
}
"""By device kind, on the careful side of what is common; "host" is NumPy."""


@dataclass(frozen=True, slots=True)
class _Probe:
    rate: str
    node: NodeView
    shapes: Sequence[tuple[int, ...]]


def rates(provider: Provider, folder: Path | None) -> Rates:
    """Rates of a provider's device: its own, or those kept in memory or in the folder, or measured now."""
    said = provider.rates()
    if said is not None:
        return said
    kind = "host" if provider.memory_space == HOST else kind_of(provider)
    if kind == "emulator":
        return DEFAULTS[kind]
    facts = f"{VERSION} {provider.name} {provider.identity()} {kind} {np.__version__} {platform.machine()}"
    key = hashlib.blake2b(f"{facts} {os.cpu_count()}".encode(), digest_size=12).hexdigest()
    with _LOCK:
        if key not in _KNOWN:
            found = None if folder is None else _load(folder / f"rates-{key}.json")
            if found is None:
                found = measure(provider, DEFAULTS[kind])
                if folder is not None:
                    _store(folder / f"rates-{key}.json", facts, found)
            _KNOWN[key] = found
        return _KNOWN[key]


_KNOWN: dict[str, Rates] = {}
_LOCK = threading.Lock()


def measure(provider: Provider, defaults: Rates) -> Rates:
    """Time small nodes on a device; what it cannot run keeps its default."""
    found = defaults
    clock = _Clock(provider)
    start = time.perf_counter()
    try:
        if isinstance(provider, DeviceMemory):
            found = _transfers(provider, found)
        for probe in _probes():
            if time.perf_counter() - start - clock.building > _BUDGET:
                break
            seconds = clock.seconds(probe, found.sync)
            if seconds is None:
                continue
            if probe.rate in ("launch", "view"):
                found = _with(found, **{probe.rate: seconds})
                continue
            specs = [Spec(_F32, s) for s in probe.shapes]
            job = work(probe.node, specs, infer(probe.node, specs))
            net = max(seconds - found.launch, seconds / 4)  # a launch takes part of small ones, but never most
            found = _with(found, **{probe.rate: (job.nbytes if probe.rate == "data" else job.amount) / net})
    except (GpurtError, MemoryError) as e:
        logger.info("%s: its rates cannot be measured: %s", provider.device, e)
    logger.info("%s: measured %s in %.0f ms", provider.device, found, 1e3 * (time.perf_counter() - start))
    return found


def _probes() -> list[_Probe]:
    def probe(rate: str, op: str, *shapes: tuple[int, ...], **attrs: Any) -> _Probe:
        ins = tuple(ValueView(f"rate_{rate}{i}", _F32, s) for i, s in enumerate(shapes))
        out = (ValueView(f"rate_{rate}_out", _F32, None),)
        return _Probe(rate, NodeView(op, ins, out, attrs, name=f"rate_{rate}", version=_SINCE[op]), shapes)

    return [
        probe("launch", "Add", (16,), (16,)),
        probe("view", "Identity", (16,)),
        probe("data", "Add", (1, 64, 112, 112), (1, 64, 112, 112)),
        probe("conv", "Conv", (1, 64, 56, 56), (64, 64, 3, 3), pads=(1, 1, 1, 1), kernel_shape=(3, 3)),
        probe("gemm", "MatMul", (128, 512), (512, 512)),
        probe("math", "Tanh", (256, 1024)),
        probe("window", "MaxPool", (1, 64, 56, 56), kernel_shape=(3, 3), strides=(2, 2)),
        probe("depthwise", "Conv", (1, 64, 56, 56), (64, 1, 3, 3), pads=(1, 1, 1, 1), kernel_shape=(3, 3), group=64),
    ]


_SINCE: Final = {"Add": 14, "Identity": 25, "Conv": 22, "MatMul": 13, "Tanh": 13, "MaxPool": 22}


class _Clock:
    """Times nodes on one device."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.building = 0.0  # seconds spent on making units ready

    def seconds(self, probe: _Probe, sync: float) -> float | None:
        """Seconds of a run of the node, the best of a few, without the wait; None where the device does not take it."""
        provider, node = self._provider, probe.node
        start = time.perf_counter()
        constants = {v.name: v for v in node.inputs if v is not None}
        view = GraphView((node,), tuple(constants.values()), tuple(v for v in node.outputs if v is not None))
        try:
            if not provider.get_capability(view).takes(node):
                return None
            (unit,) = provider.compile(view)
            arrays = [np.ones(s, _F32) for s in probe.shapes]
            if isinstance(provider, DeviceMemory):
                with self._on_device(provider, cast("DeviceUnit", unit), arrays) as run:
                    run(1)
                    self.building += time.perf_counter() - start
                    return max(_best(run, _BATCH) - sync / _BATCH, 1e-8)
            call = _calling(cast("HostUnit", unit), arrays)
            call(1)
            return _best(call)
        except (Refused, Unknown, ValueError) as e:
            logger.debug("%s: no rate %s: %s", provider.device, probe.rate, e)
            return None

    @contextlib.contextmanager
    def _on_device(
        self, memory: DeviceMemory, unit: DeviceUnit, arrays: Sequence[np.ndarray]
    ) -> Iterator[Callable[[int], None]]:
        plan = unit.plan([Spec(a.dtype, a.shape) for a in arrays])
        stream = memory.stream()
        taken: list[BufferRef] = []
        kept: list[Any] = []

        def ref(operand: Operand) -> BufferRef:
            if operand.kind == "const":
                assert operand.array is not None, "a constant operand without content"
                return memory.constant(operand.array)
            sizes = {"in": [a.nbytes for a in arrays], "out": [s.nbytes for s in plan.outputs]}.get(operand.kind)
            made = memory.arena.alloc(operand.nbytes if sizes is None else sizes[operand.index])
            taken.append(made)
            if operand.kind == "in":
                kept.append(memory.write(made, arrays[operand.index], stream))
            return made

        refs = [ref(o) for o in plan.operands]
        held = [plan.bind(refs)] if plan.bind is not None and plan.operands else []
        memory.synchronize(stream)

        def call(times: int) -> None:
            for _ in range(times):
                for bound in held:
                    for step in bound.steps:
                        step(stream)
            memory.synchronize(stream)

        try:
            yield call
        finally:
            memory.synchronize(stream)
            held.clear()  # buffers that are still bound to a kernel must outlive it
            for made in taken:
                memory.arena.free(made)


def _calling(unit: HostUnit, arrays: Sequence[np.ndarray]) -> Callable[[int], None]:
    def call(times: int) -> None:
        for _ in range(times):
            unit.call(arrays)

    return call


def _best(call: Callable[[int], None], batch: int = 1) -> float:
    """Seconds of one call, the best of several batches within a twentieth of a second."""
    best, start = float("inf"), time.perf_counter()
    for _ in range(8):
        before = time.perf_counter()
        call(batch)
        after = time.perf_counter()
        best = min(best, (after - before) / batch)
        if after - start > _BUDGET / 10:
            break
    return best


def _transfers(memory: DeviceMemory, found: Rates) -> Rates:
    """Rates of copies and of waiting for a queue."""
    array = np.ones(1 << 20, np.uint8)
    stream = memory.stream()
    ref = memory.arena.alloc(array.nbytes)

    def write(times: int) -> None:
        for _ in range(times):
            kept = memory.write(ref, array, stream)
            memory.synchronize(stream)
            del kept

    def read(target: np.ndarray, times: int) -> None:
        for _ in range(times):
            kept = memory.read(target, ref, stream)
            memory.synchronize(stream)
            del kept

    jobs: dict[str, Callable[[int], None]] = {
        "write": write,
        "read": partial(read, array),
        "sync": partial(read, np.ones(64, np.uint8)),
    }
    best = {}
    for name, job in jobs.items():
        job(1)
        best[name] = _best(job)
    memory.arena.free(ref)
    sync = best["sync"]
    copy = {n: array.nbytes / max(best[n] - sync, best[n] / 4) for n in ("read", "write")}
    return _with(found, sync=sync, **copy)


def _with(found: Rates, **changed: Any) -> Rates:
    return replace(found, **changed)


def kind_of(provider: Provider) -> str:
    """The kind of a provider's device, see gpurt.provider.Device."""
    with contextlib.suppress(Unavailable):
        for device in type(provider).probe():
            if device.name == provider.device and device.kind in DEFAULTS:
                return device.kind
    return "accelerator"


def _load(path: Path) -> Rates | None:
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            return None
        kept: dict[str, Any] = content["rates"]
        return Rates(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or of another form: it is measured and written again


def _store(path: Path, facts: str, found: Rates) -> None:
    try:
        text = json.dumps({"version": VERSION, "device": facts, "rates": asdict(found)}, indent=1)
        caches.write(path, text.encode())
    except OSError as e:
        logger.info("measured rates cannot be kept in %s: %s", path.parent, e)
