"""The command `gpurt ops`: which operators run natively where, in which element types, and why not elsewhere."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLORS: Final = {"native": "green", "function": "cyan", "core": "cyan", "handed on": "yellow", "no": "red"}


@click.command()
@click.argument("op", required=False)
@click.option("--provider", "only", metavar="P", multiple=True, help="Only this provider; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ops(op: str | None, only: tuple[str, ...], as_json: bool) -> None:
    """Say where operator OP runs, in which types, and why not elsewhere; without OP, all of them.

    OP is a name, with its domain where that is not ai.onnx: Conv, com.microsoft.Gelu. `*` stands for anything.
    """
    from fnmatch import fnmatchcase

    from gpurt import registry, support
    from gpurt.errors import InvalidArgument, suggest

    providers = list(only) or sorted(registry.names(), key=lambda n: (n == support.HOST_NAME, n))
    every = support.operators(providers)
    pattern = (op or "*").lower()
    found = [o for o in every if any(fnmatchcase(name.lower(), pattern) for name in (o.name, o.label))]
    if not found:
        raise InvalidArgument(
            f"no operator is called {op!r}{suggest(op or '', [o.label for o in every])}",
            remedy="See gpurt ops for all names",
        )
    if as_json:
        click.echo(json.dumps([asdict(o) for o in found], indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 240)
    detailed = len(found) <= 20  # of a few operators all there is to say, of many a word each
    table = Table("operator", "version", *providers, box=None, pad_edge=False)
    for o in found:
        cells = []
        for name in providers:
            cell = o.cells[name]
            color = _COLORS.get(cell.status, "dim")
            more = "; ".join(t for t in (cell.types, cell.note) if t) if detailed else ""
            cells.append(f"[{color}]{cell.status}[/]" + (f"\n{escape(more)}" if more else ""))
        table.add_row(f"[bold]{escape(o.label)}[/]", str(o.version or ""), *cells)
    console.print(table)
    if detailed:
        console.print(support.LEGEND, style="dim", highlight=False)
        return
    for name in providers:
        counts = Counter(o.cells[name].status for o in found)
        text = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        console.print(f"{name}: {text}", highlight=False)
