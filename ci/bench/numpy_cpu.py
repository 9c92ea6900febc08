"""Time the cpu provider against onnx.reference.ReferenceEvaluator, the other ONNX runtime in NumPy.

usage: numpy_cpu.py [--least-ms 10] [--limit 300] [--rounds 5] [--json FILE] [MODEL.onnx ...]

Without models, a small generated set is timed. Inputs are MODEL.npz beside a model (keys ``in:NAME``), else seeded
random numbers, with 1 for each open dimension. Both sides run in one process in turns, and the least time of each
counts; a model on which one run of the reference takes over two seconds gets one run of it. Models that the reference
runs faster than --least-ms, cannot run, or does not finish within --limit seconds, stay out of the mean. The exit
status is 1 if the geometric mean is under 10 or a model under 3.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from models import feeds, generated
from rich.console import Console
from rich.table import Table

MEAN, FLOOR = 10.0, 3.0
_SLOW_S = 2.0


def _best(run: Callable[[], Any], seconds: float) -> float:
    """Least time of a call in seconds, over calls for about so many seconds, three at least."""
    found = []
    start = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return min(found)


def measure(path: pathlib.Path, rounds: int) -> tuple[float, float, float]:
    """Seconds of the reference and of gpurt, and the greatest error by the greatest value of an output."""
    from onnx.reference import ReferenceEvaluator

    import gpurt

    given = feeds(path)
    session = gpurt.InferenceSession(path, providers=["cpu"])
    reference = ReferenceEvaluator(str(path))
    begin = time.perf_counter()
    expected = reference.run(None, given)
    theirs = time.perf_counter() - begin
    error = 0.0
    for a, b in zip(expected, session.run(None, given), strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size:
            error = max(error, float(np.abs(a - b).max() / (np.abs(a).max() + 1e-30)))
    ours = math.inf
    for _ in range(rounds):
        if theirs < _SLOW_S:
            theirs = min(theirs, _best(lambda: reference.run(None, given), 0.1))
        ours = min(ours, _best(lambda: session.run(None, given), 0.1))
    return theirs, ours, error


def _child(pipe: Any, path: pathlib.Path, rounds: int) -> None:
    try:
        pipe.send(measure(path, rounds))
    except Exception as e:  # noqa: BLE001 - what went wrong is a row of the table
        pipe.send(f"{type(e).__name__}: {e}"[:100])


def limited(path: pathlib.Path, rounds: int, limit: float) -> tuple[float, float, float] | str:
    """What measure says, or why it says nothing, from a process that is ended after so many seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, path, rounds))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else f"not done in {limit:.0f} s"
    except EOFError:
        return "the process died"
    finally:
        process.kill()
        process.join()


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--least-ms", default=10.0, help="Least time of the reference that counts.")
@click.option("--limit", default=300.0, help="Seconds for one model.")
@click.option("--rounds", default=5)
@click.option("--json", "target", type=click.Path(path_type=pathlib.Path), help="Write the numbers to a file.")
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
def main(
    least_ms: float, limit: float, rounds: int, target: pathlib.Path | None, models: tuple[pathlib.Path, ...]
) -> None:
    console = Console()
    table = Table("model", "reference ms", "gpurt ms", "ratio", "error", title="cpu provider and ReferenceEvaluator")
    for column in table.columns[1:]:
        column.justify = "right"
    ratios: dict[str, float] = {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in models or generated(pathlib.Path(folder)):
            found = limited(path, rounds, limit)
            if isinstance(found, str):
                rows[path.stem] = found
                table.add_row(path.stem, found, "", "", "")
                continue
            theirs, ours, error = found
            counts = theirs * 1e3 > least_ms
            if counts:
                ratios[path.stem] = theirs / ours
            rows[path.stem] = {"reference_ms": theirs * 1e3, "gpurt_ms": ours * 1e3, "error": error}
            shown = f"{theirs / ours:.1f}" if counts else f"({theirs / ours:.1f})"
            table.add_row(path.stem, f"{theirs * 1e3:.1f}", f"{ours * 1e3:.2f}", shown, f"{error:.0e}")
            console.print(f"{path.stem}: {theirs * 1e3:.1f} ms, {ours * 1e3:.2f} ms, {shown}")
    console.print(table)
    if target is not None:
        target.write_text(json.dumps(rows, indent=1))
    if not ratios:
        raise SystemExit("no model counts")
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    least = min(ratios, key=lambda name: ratios[name])
    console.print(f"geometric mean {mean:.1f} over {len(ratios)} models, least {ratios[least]:.1f} ({least})")
    raise SystemExit(mean < MEAN or ratios[least] < FLOOR)


if __name__ == "__main__":
    main()
