"""Writes the pages of docs/ that are made from code: docs/operators.md, which operator runs where.

    python3 ci/make_docs.py [--check]

With --check nothing is written, and the exit status is 1 where a page is out of date. It needs no device: providers
say what they have by class.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, enter  # noqa: E402 - found through the line above

PROVIDERS = ("cuda", "opencl", "cpu")  # those of this repository, in the default order of sessions
STATUS = {"native": "yes", "function": "composed", "core": "core", "handed on": "on cpu", "no": "no"}
INTRODUCTION = """\
# Operators

Which operator runs natively on which provider. The page is made by `python ci/make_docs.py`; do not edit it.

- **yes**: a kernel of the provider. Without element types it takes all that the standard allows. With a star there are
  attributes or ranks that it does not take; these nodes go to the next provider.
- **composed**: from the operator's definition in the ONNX standard, by nodes that the provider has.
- **core**: the runtime itself, whatever the providers are.
- **on cpu**: the session hands it on to the `cpu` provider, which is part of every session unless `strict` is set.
- **no**: making a session fails, with an error that names the node, the operator and the types.

Element types: {legend} A number before a type is the position of an input.

Models of older opsets are brought to the newest form when they are loaded; "version" is that of this form, as of opset
{opset} of ai.onnx. `gpurt ops NAME` prints the same for one operator and also covers providers that are installed
besides, and `gpurt explain MODEL` says what holds for the nodes of a model.
"""


def operators_page() -> str:
    """The text of docs/operators.md."""
    from gpurt import support

    found = support.operators(PROVIDERS)
    parts = [INTRODUCTION.format(legend=support.LEGEND, opset=support.newest_opset())]
    for domain in dict.fromkeys(o.domain for o in found):
        rows = [o for o in found if o.domain == domain]
        parts.append(f"## {domain or 'ai.onnx'}\n\n{summary(rows)}\n\n{table(rows)}")
    parts.append(f"## What devices hand on to the host, and why\n\n{reasons(found)}")
    return "\n".join(parts)


def summary(rows: Sequence) -> str:
    """How many operators have which status."""
    lines = []
    for provider in PROVIDERS:
        counts = Counter(STATUS[o.cells[provider].status] for o in rows)
        lines.append(f"`{provider}`: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    return f"{len(rows)} operators. " + "; ".join(lines) + "."


def table(rows: Iterable) -> str:
    """One row an operator."""
    lines = [f"| operator | version | {' | '.join(PROVIDERS)} |", f"|---|---|{'---|' * len(PROVIDERS)}"]
    for o in rows:
        cells = []
        for provider in PROVIDERS:
            cell = o.cells[provider]
            star = "*" if cell.status == "native" and cell.note else ""
            cells.append(STATUS[cell.status] + star + (f" ({cell.types})" if cell.types else ""))
        lines.append(f"| {o.name} | {o.version or ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def reasons(found: Iterable) -> str:
    """One row a reason, with the operators that it holds for."""
    groups: dict[str, list[str]] = {}
    for o in found:
        notes = {c.note or "no device kernel, and no reason given" for c in o.cells.values() if c.status == "handed on"}
        for note in notes:
            groups.setdefault(note, []).append(o.label)
    lines = ["| reason | operators |", "|---|---|"]
    lines += [f"| {note} | {', '.join(names)} |" for note, names in groups.items()]
    return "\n".join(lines) + "\n"


PAGES = {"operators.md": operators_page}


def main() -> int:
    """Write or check the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the pages of docs/ that come from code.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    arguments = parser.parse_args()
    enter(["test"])
    stale = 0
    for name, page in PAGES.items():
        path, text = ROOT / "docs" / name, page()
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            print(f"docs/{name} is up to date")
            continue
        if arguments.check:
            stale += 1
            print(f"docs/{name} is out of date: run python ci/make_docs.py")
            print("".join(list(difflib.unified_diff(old.splitlines(True), text.splitlines(True), n=0))[:20]), end="")
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"docs/{name} written")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
