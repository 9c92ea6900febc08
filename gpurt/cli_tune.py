"""`gpurt tune`: what was measured for a model, and files of it for shipping."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from gpurt.device.tuning import Tuning
    from gpurt.session import InferenceSession


def tune_report(session: InferenceSession, output: Path | None) -> None:
    """Print what a session with tuning="online" has measured, and write its devices' choices to a file.

    Raises InvalidArgument where no device of the session has parameters to tune.
    """
    from gpurt.device.tuning import write_tables
    from gpurt.errors import InvalidArgument

    tunings = session.tunings()
    if not tunings:
        raise InvalidArgument("no device of the session can be tuned", remedy="List a provider with kernels: opencl")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for device, tuning in tunings.items():
        _print(console, device, tuning)
    if output is not None:
        write_tables(output, [t.own for t in tunings.values()])
        console.print(f"written: {escape(str(output))}", highlight=False, soft_wrap=True)


def _print(console: Console, device: str, tuning: Tuning) -> None:
    tuner = tuning.tuner
    if tuner is None:
        return
    table = Table(escape(device), "kind", "sizes", "choice", box=None, pad_edge=False)
    for column in ("ms", "times as fast"):
        table.add_column(column, justify="right")
    for c in tuner.made:
        gain = c.default_seconds / c.seconds if c.seconds else 1.0
        sizes = " ".join(map(str, c.key.sizes))
        table.add_row(
            c.key.family, c.key.kind, sizes, escape(str(c.value)), f"{1e3 * c.seconds:.3f}", f"{gain:.2f}"
        )  # fmt: skip
    console.print(table)
    kept = "nowhere" if tuning.path is None else escape(str(tuning.path))
    console.print(
        f"{len(tuner.made)} choices measured in {tuner.spent:.1f} s, {len(tuning.own.choices)} known; kept: {kept}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if tuner.ended:
        console.print("[yellow]the budget ended before all was measured: run it again to go on[/]")
