"""Time of start-up: creation of a session and its first run, in fresh processes, with empty caches and with full ones.

usage: startup.py [--providers opencl@PoCL,opencl@Intel,cpu] [--rounds N] [--json FILE] [MODEL.onnx ...]

Without models, a small generated set is taken. A provider is NAME or NAME@PLATFORM. The first process of a provider
finds no compiled kernels, neither gpurt's nor PoCL's own; the others find gpurt's alone, so that what PoCL keeps cannot
hide a kernel that is compiled again. Where onnxruntime is installed, the same is measured for it, in turns. Imports are
not counted, but shown: of the runtime's own modules, NumPy and onnx being there already; drivers and providers are
loaded by a session's creation. The least of the rounds is shown; "compiled" counts programs. The exit status is 1 if a
later process compiles.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

import click
from models import feeds, generated
from rich.console import Console
from rich.table import Table

COLUMNS = ("create", "first", "second")
SHOWN = ("import", *COLUMNS)


def process(path: pathlib.Path, provider: str, caches: pathlib.Path, pocl: pathlib.Path) -> dict[str, Any]:
    """What a fresh process measures, in seconds; see measure."""
    command = [sys.executable, __file__, "--measure", provider, str(path)]
    pocl.mkdir(parents=True)
    env = os.environ | {"GPURT_CACHE_DIR": str(caches), "POCL_CACHE_DIR": str(pocl)}
    # Modules compiled to bytecode, as installing a package leaves them.
    env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(caches.parent / "bytecode")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: pathlib.Path, provider: str) -> dict[str, Any]:
    """Seconds of import, creation, first and second run in this process; programs that gpurt compiled."""
    from time import perf_counter

    given = feeds(path)
    compiled = Compiled()
    logger = logging.getLogger("gpurt.device.progress")
    logger.setLevel(logging.INFO)
    logger.addHandler(compiled)
    session: Any
    start = perf_counter()
    if provider == "ort":
        import onnxruntime

        begin = perf_counter()
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    else:
        import gpurt
        from gpurt.session import InferenceSession

        name, _, platform = provider.partition("@")
        begin = perf_counter()
        session = InferenceSession(path, gpurt.SessionOptions(), [(name, {"platform": platform}) if platform else name])
    marks = [begin, perf_counter()]
    for _ in range(2):
        session.run(None, given)
        marks.append(perf_counter())
    found: dict[str, Any] = {c: b - a for c, a, b in zip(COLUMNS, marks, marks[1:], strict=False)}
    found |= {"import": begin - start, "compiled": compiled.count}
    return found


class Compiled(logging.Handler):
    """Counts what gpurt logs of programs that it compiles."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - each counts
        self.count += 1


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--providers", default="opencl,cpu", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=pathlib.Path))
@click.option("--measure", "inner", hidden=True)
def main(
    models: tuple[pathlib.Path, ...], providers: str, rounds: int, target: pathlib.Path | None, inner: str | None
) -> None:
    """See the module."""
    if inner is not None:
        click.echo(json.dumps(measure(models[0], inner)))
        return
    table = Table("model", "provider", "caches", *(f"{c} s" for c in SHOWN), "both s", "to ort", "compiled")
    rows = []
    listed = [*(["ort"] if find_spec("onnxruntime") else []), *providers.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for number, path in enumerate(models or generated(folder)):
            yardstick = None
            turns: dict[str, list[dict[str, Any]]] = {provider: [] for provider in listed}
            for turn in range(rounds + 1):
                for provider, runs in turns.items():
                    caches = folder / f"{number}-{provider}"
                    runs.append(process(path, provider, caches, folder / f"{caches.name}-{turn}"))
            for provider, runs in turns.items():
                best = min(runs[1:], key=lambda r: r["create"] + r["first"])
                best["compiled"] = max(r["compiled"] for r in runs[1:])
                for state, run in (("empty", runs[0]), ("full", best)):
                    if provider == "ort" and state == "empty":
                        continue
                    both = run["create"] + run["first"]
                    yardstick = both if provider == "ort" else yardstick
                    ratio = None if yardstick is None else both / yardstick
                    rows.append({"model": path.name, "provider": provider, "caches": state, "ratio": ratio, **run})
                    table.add_row(
                        path.name, provider, state, *(f"{run[c]:.3f}" for c in SHOWN), f"{both:.3f}",
                        "" if ratio is None else f"{ratio:.2f}", str(run["compiled"]),
                    )  # fmt: skip
    Console().print(table)
    if target is not None:
        target.write_text(json.dumps(rows, indent=2))
    raise SystemExit(any(r["caches"] == "full" and r["compiled"] for r in rows))


if __name__ == "__main__":
    main()
