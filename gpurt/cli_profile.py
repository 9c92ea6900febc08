"""`gpurt profile`: a trace of a model's runs, and where the time went."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from gpurt.session.summary import Row, Summary


def report(file: str, skip: int, top: int) -> None:
    """Print the tables of a profile, the first `skip` runs left out, at most `top` rows each."""
    from gpurt.session.summary import summarize

    with Path(file).open(encoding="utf-8") as opened:
        summary = summarize(json.load(opened), skip=skip)
    console = Console(width=None if sys.stdout.isatty() else 160)
    total = sum(summary.run_us)
    for title, rows in (
        ("operator", summary.operators),
        ("kernel", summary.kernels),
        ("provider", summary.providers),
    ):
        console.print(_table(title, rows[:top], summary))
        if len(rows) > top:
            console.print(f"... and {len(rows) - top} more", highlight=False)
        console.print()
    kernels, copies, host = (_part(t, total) for t in (summary.kernel_us, summary.copy_us, summary.host_us))
    console.print(
        f"{summary.runs} runs of {_ms(total / max(summary.runs, 1))} ms; of that {kernels} in device kernels, "
        f"{copies} in copies, {host} in steps on the host",
        highlight=False,
    )
    console.print(f"written: {escape(file)}  (open it at https://ui.perfetto.dev)", highlight=False, soft_wrap=True)


def _table(title: str, rows: Sequence[Row], summary: Summary) -> Table:
    table = Table(title, "device", box=None, pad_edge=False)
    for column in ("calls", "ms", "%", "us a call", "MB a run", "GB/s"):
        table.add_column(column, justify="right")
    runs, whole = max(summary.runs, 1), max(sum(summary.run_us), 1)
    for row in rows:
        table.add_row(
            f"[bold]{escape(row.key)}[/]",
            escape(row.device),
            f"{row.calls / runs:g}",
            _ms(row.total_us / runs),
            f"{100 * row.total_us / whole:.1f}",
            f"{row.total_us / max(row.calls, 1):.1f}",
            f"{row.nbytes / runs / 1e6:.2f}" if row.nbytes else "",
            f"{row.nbytes / row.total_us / 1e3:.1f}" if row.nbytes and row.total_us else "",
        )
    return table


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.3f}"


def _part(some: float, whole: float) -> str:
    return f"{100 * some / max(whole, 1):.1f} %"
