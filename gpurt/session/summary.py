"""Where the time of a profile went: by operator, by kernel, by provider. Reads ONNX Runtime's profiles too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NESTING = frozenset({"If", "Loop", "Scan"})  # their time is that of what runs in them


@dataclass(slots=True)
class Row:
    """What events with one key took together.

    Attributes:
        key: operator, kernel or provider.
        device: where they ran.
        calls: number of events.
        device_us, host_us: microseconds on the device, and of the host for launching or computing.
        nbytes: bytes that were read and written.
    """

    key: str
    device: str
    calls: int = 0
    device_us: int = 0
    host_us: int = 0
    nbytes: int = 0

    @property
    def total_us(self) -> int:
        """Microseconds on the device; for what ran on the host, there."""
        return self.device_us or self.host_us


@dataclass(frozen=True, slots=True)
class Summary:
    """A profile in numbers.

    Attributes:
        runs: number of runs that were counted.
        run_us: microseconds of each of them.
        kernel_us: microseconds of all kernels, copies not included, on all devices.
        copy_us: microseconds of all copies.
        host_us: microseconds of all steps that the host computed.
        operators, kernels, providers: rows, the one with the most time first.
    """

    runs: int
    run_us: Sequence[int]
    kernel_us: int
    copy_us: int
    host_us: int
    operators: Sequence[Row]
    kernels: Sequence[Row]
    providers: Sequence[Row]


def summarize(events: Iterable[Mapping[str, Any]], *, skip: int = 0) -> Summary:
    """Add up a profile's events; the first `skip` runs, which make plans, are left out."""
    runs: list[int] = []
    kept: list[Mapping[str, Any]] = []
    part: list[Mapping[str, Any]] = []
    seen = 0
    for event in events:
        part.append(event)
        if event["cat"] == "Session" and event["name"] == "model_run":
            seen += 1
            if seen > skip:
                runs.append(event["dur"])
                kept.extend(part)
            part = []
    tables: tuple[dict[Any, Row], ...] = ({}, {}, {})
    kernel_us = copy_us = host_us = 0
    for event in kept:
        args = event.get("args", {})
        op = args.get("op_name")
        if event["cat"] not in ("Node", "Kernel") or not op or op in _NESTING:
            continue
        provider = str(args.get("provider", "")).replace("ExecutionProvider", "")
        device, dur = args.get("device", provider), event["dur"]
        kernel = event["cat"] == "Kernel"
        on_host = not kernel and provider == "CPU"
        copy = op.startswith("Memcpy")
        kernel_us += dur if kernel and not copy else 0
        copy_us += dur if copy and kernel else 0
        host_us += dur if on_host else 0
        keys = [op, event["name"] if kernel else f"{op} (NumPy)" if on_host else None, provider]
        for table, key in zip(tables, keys, strict=True):
            if key is None:
                continue
            row = table.setdefault((key, device), Row(key, device))
            row.device_us += dur if kernel else 0
            row.host_us += 0 if kernel else dur
            # A step of several kernels counts once, by its Node event; which bytes each of them moves is not told.
            by_kernel = table is tables[1]
            row.calls += by_kernel or not kernel or copy
            row.nbytes += _bytes(args) if copy or not kernel else 0
    ordered = [sorted(table.values(), key=lambda r: -r.total_us) for table in tables]
    return Summary(len(runs), runs, kernel_us, copy_us, host_us, *ordered)


def _bytes(args: Mapping[str, Any]) -> int:
    if "bytes" in args:
        return int(args["bytes"])
    return sum(int(args.get(name, 0)) for name in ("parameter_size", "activation_size", "output_size"))
