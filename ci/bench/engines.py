"""Time models on several engines beside ONNX Runtime's CPU provider: each in a process of its own, in turns.

    python ci/bench/engines.py [MODEL.onnx | FOLDER ...] [--engines gpurt:opencl+cpu,tinygrad,opencv] [--rounds 5]
                               [--json FILE] [--min-ms 1]

Engines: ``gpurt:PROVIDER[@PLATFORM]+...``; ``ort`` is always there; ``tinygrad:CL``, or another device of
tinygrad's; ``opencv`` and ``opencv:opencl``. ``--python ENGINE=PROGRAM`` runs one with another interpreter, for what
is not installed beside gpurt. tinygrad and OpenCV need the system's OpenCL loader (Debian: ocl-icd-libopencl1).
Without models, a small generated set is timed. Inputs are MODEL.npz beside a model (keys ``in:NAME``), else seeded
random numbers, with 1 for each open dimension.

In a round every engine runs for --seconds, one after the other, while the others wait, with as many threads each; the
ratio of a round is between the medians of the same round, as the machine's speed drifts, and the median of the ratios
is told. Spinning threads lose a factor of three to a busy neighbour, so the share of the machine that other processes
took is told and noted. An engine whose outputs differ from ONNX Runtime's by more than --tolerance of the largest
value is marked and stays out of the mean, as do models that ONNX Runtime runs faster than --min-ms.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
from engine_worker import LOADED
from machine import busy, describe
from models import generated
from rich.console import Console
from rich.table import Table

REFERENCE = "ort"


@dataclass
class Worker:
    """An engine's process with one model; it answers one line of JSON for each line that it is sent."""

    engine: str
    process: subprocess.Popen[str]
    outputs: pathlib.Path
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[list[float]] = field(default_factory=list)
    failed: str = ""

    @classmethod
    def start(cls, engine: str, model: pathlib.Path, threads: int, program: str, folder: pathlib.Path) -> Worker:
        script = pathlib.Path(__file__).with_name("engine_worker.py")
        outputs = folder / f"{engine.replace(os.sep, '_').replace(':', '_')}.npz"
        environment = os.environ | {n: str(threads) for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        environment |= {"POCL_MAX_PTHREAD_COUNT": str(threads), "DEV": engine.partition(":")[2]}
        process = subprocess.Popen(
            [program, script, engine, model, str(threads), outputs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        worker = cls(engine, process, outputs)
        worker.facts = worker.answer()
        return worker

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            found = json.loads(line)
        except ValueError:
            found = {"error": f"it ended with status {self.process.wait()}"}
        if isinstance(found, dict) and "error" in found:
            self.failed = found["error"]
        return found

    def run(self, seconds: float) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        except OSError:
            self.failed = "it ended between rounds"
            return
        times = self.answer()
        if not self.failed:
            self.rounds.append(times)

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(
    model: pathlib.Path, engines: Sequence[str], threads: int, rounds: int, seconds: float, programs: dict[str, str]
) -> dict[str, Any]:  # fmt: skip
    """For each engine its times in milliseconds, ratio and error, or why it cannot run the model."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker.start(e, model, threads, programs.get(e, sys.executable), pathlib.Path(folder)) for e in engines
        ]
        try:
            before = busy()
            for _ in range(rounds):
                for worker in workers:
                    if not worker.failed:
                        worker.run(seconds)
            after = busy()
            found = {w.engine: _row(w, workers[0]) for w in workers}
        finally:
            for worker in workers:
                worker.close()
    return {"engines": found, "others_busy": before.others(after)}


def _row(worker: Worker, reference: Worker) -> dict[str, Any]:
    if worker.failed:
        return {"error": worker.failed}
    medians = [statistics.median(r) for r in worker.rounds]
    row: dict[str, Any] = {
        "min_ms": 1e3 * min(min(r) for r in worker.rounds),
        "median_ms": 1e3 * statistics.median(medians),
        "load_s": worker.facts["load"],
        "first_s": worker.facts["first"],
        "version": worker.facts["version"],
        "device": worker.facts["device"],
    }
    if not reference.failed and reference is not worker:
        pairs = zip((statistics.median(r) for r in reference.rounds), medians, strict=True)
        row["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
        row["difference"] = _difference(reference.outputs, worker.outputs)
    return row


def _difference(expected: pathlib.Path, actual: pathlib.Path) -> float:
    """The largest difference of an output by its largest value; infinite where shapes differ."""
    worst = 0.0
    with np.load(expected) as one, np.load(actual) as other:
        if len(one.files) != len(other.files):
            return math.inf
        for name in one.files:
            a, b = one[name].astype(np.float64), other[name].astype(np.float64)
            if a.shape != b.shape:
                return math.inf
            if a.size:
                worst = max(worst, float(np.abs(a - b).max() / (np.abs(a).max() + 1e-30)))
    return worst


def means(models: dict[str, Any], engines: Sequence[str], least_ms: float, tolerance: float) -> dict[str, Any]:
    """For each engine the geometric mean of its ratios, over how many models, and the worst; by pairs too."""
    counted: dict[str, dict[str, float]] = {}
    for engine in engines:
        counted[engine] = {}
        for name, found in models.items():
            row, base = found["engines"][engine], found["engines"][REFERENCE]
            if "ratio" in row and row["difference"] <= tolerance and base["median_ms"] >= least_ms:
                counted[engine][name] = row["ratio"]
    total = {
        e: {"mean": _geometric(r.values()), "models": len(r), "worst": min(r.values())} for e, r in counted.items() if r
    }
    for ours in (e for e in total if e.startswith("gpurt:")):
        against = {}
        for theirs in (e for e in total if not e.startswith("gpurt:")):
            both = [counted[ours][m] / counted[theirs][m] for m in counted[theirs] if m in counted[ours]]
            if both:
                against[theirs] = {"mean": _geometric(both), "models": len(both)}
        total[ours]["against"] = against
    return total


def _geometric(values: Any) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def _cell(row: dict[str, Any], tolerance: float) -> str:
    if "error" in row:
        return f"[red]{row['error'][:40]}[/]"
    text = f"{row['median_ms']:.2f} ms"
    if "ratio" not in row:
        return text
    mark = "" if row["difference"] <= tolerance else f" [red]differs by {row['difference']:.0e}[/]"
    return f"{text}  [{'green' if row['ratio'] >= 1 else 'yellow'}]{row['ratio']:.2f}[/]{mark}"


def _models(given: Sequence[pathlib.Path], folder: pathlib.Path) -> list[pathlib.Path]:
    if not given:
        return generated(folder)
    return [m for path in given for m in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--engines", default="gpurt:opencl+cpu,gpurt:cpu", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=0.3, show_default=True, help="Of one engine in one round.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--min-ms", default=0.0, show_default=True, help="Least time of ONNX Runtime's for the mean.")
@click.option("--tolerance", default=1e-3, show_default=True)
@click.option("--python", "programs", multiple=True, metavar="ENGINE=PROGRAM")
@click.option("--json", "file", type=click.Path(path_type=pathlib.Path))
def main(
    models: Sequence[pathlib.Path], engines: str, rounds: int, seconds: float, threads: int, min_ms: float,
    tolerance: float, programs: Sequence[str], file: pathlib.Path | None,
) -> None:  # fmt: skip
    listed = [REFERENCE, *(e.strip() for e in engines.split(",") if e.strip() != REFERENCE)]
    unknown = [e for e in listed if e.partition(":")[0] not in LOADED]
    if unknown:
        raise click.BadParameter(f"no engine is called {unknown[0]!r}: there are {', '.join(LOADED)}")
    chosen = dict(p.partition("=")[::2] for p in programs)
    console = Console(width=None if sys.stdout.isatty() else 200, emoji=False)
    table = Table("model", *listed, "others", box=None, pad_edge=False)
    result: dict[str, Any] = {
        "version": 1, "date": time.strftime("%Y-%m-%d %H:%M"), "machine": describe(), "threads": threads,
        "python": platform.python_version(), "rounds": rounds, "seconds": seconds, "models": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for model in _models(models, pathlib.Path(folder)):
            found = measure(model, listed, threads, rounds, seconds, chosen)
            result["models"][model.stem] = found
            cells = [_cell(found["engines"][e], tolerance) for e in listed]
            table.add_row(model.stem, *cells, f"{100 * found['others_busy']:.0f} %")
            if file is not None:
                result["means"] = means(result["models"], listed, min_ms, tolerance)
                file.write_text(json.dumps(result, indent=1) + "\n")
            console.print(f"{model.stem}: {'  '.join(cells)}", highlight=False)
    console.print(table)
    for engine, total in means(result["models"], listed, min_ms, tolerance).items():
        against = "".join(f", {a['mean']:.1f} times {e} ({a['models']})" for e, a in total.get("against", {}).items())
        console.print(
            f"{engine}: {total['mean']:.3f} times as fast as {REFERENCE} over {total['models']} models, "
            f"the worst {total['worst']:.2f}{against}",
            highlight=False,
        )


if __name__ == "__main__":
    main()
