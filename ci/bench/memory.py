"""Memory of devices that models take: what plans reserve beside the least that any layout of their steps would need.

usage: memory.py [--providers opencl,cpu] [--json FILE] [MODEL.onnx ...]

Without models, a small generated set is taken. Inputs are MODEL.npz beside a model (keys ``in:NAME``), else seeded
random numbers, with 1 for each open dimension. Each model runs three times; what the third run allocates is shown. The
exit status is 1 if a model reserves over 1.10 times the bound, or all over 1.03 times in the mean.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import click
from models import feeds, generated
from rich.console import Console
from rich.table import Table

import gpurt

WORST, MEAN = 1.10, 1.03


def measure(path: pathlib.Path, providers: list[str]) -> dict[str, dict[str, int]]:
    """InferenceSession.memory() after three runs, for devices that the model uses."""
    session = gpurt.InferenceSession(path, providers=providers)
    given = feeds(path)
    for _ in range(3):
        session.run(None, given)
    return {device: m for device, m in session.memory().items() if m["lower_bound"]}


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--providers", default="opencl,cpu", show_default=True)
@click.option("--json", "target", type=click.Path(path_type=pathlib.Path))
def main(models: tuple[pathlib.Path, ...], providers: str, target: pathlib.Path | None) -> None:
    """See the module."""
    columns = ("planned_peak", "lower_bound", "held", "weights", "allocations_last_run")
    table = Table("model", "device", *(c.replace("_", " ") for c in columns), "ratio")
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for path in models or generated(pathlib.Path(folder)):
            for device, memory in measure(path, providers.split(",")).items():
                ratio = memory["planned_peak"] / memory["lower_bound"]
                ratios.append(ratio)
                rows.append({"model": path.name, "device": device, "ratio": ratio, **{c: memory[c] for c in columns}})
                table.add_row(path.name, device, *(f"{memory[c]:,}" for c in columns), f"{ratio:.3f}")
    console = Console()
    console.print(table)
    mean, worst = sum(ratios) / max(len(ratios), 1), max(ratios, default=1.0)
    console.print(f"mean {mean:.3f}, worst {worst:.3f}")
    if target is not None:
        target.write_text(json.dumps({"rows": rows, "mean": mean, "worst": worst}, indent=2))
    raise SystemExit(mean > MEAN or worst > WORST)


if __name__ == "__main__":
    main()
