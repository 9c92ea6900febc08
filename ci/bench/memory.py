"""Memory of devices that models take: what plans reserve beside the least that any layout of their steps would need;
and how many values a run copies from one memory to another, as the devices are and if each had a memory of its own.

usage: memory.py [--providers opencl,cpu] [--json FILE] [MODEL.onnx ...]

Without models, a small generated set is taken. Inputs are MODEL.npz beside a model (keys ``in:NAME``), else seeded
random numbers, with 1 for each open dimension. Each model runs three times; what the third run allocates is shown. The
exit status is 1 if a model reserves over 1.10 times the bound, all over 1.03 times in the mean, or if a third run
allocates.
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


def measure(path: pathlib.Path, providers: list[str]) -> tuple[dict[str, dict[str, int]], int]:
    """InferenceSession.memory() after three runs, for devices that the model uses; and the copies in a run."""
    session = gpurt.InferenceSession(path, providers=providers)
    given = feeds(path)
    for _ in range(3):
        session.run(None, given)
    memory = {device: m for device, m in session.memory().items() if m["lower_bound"]}
    return memory, len(session.explain().to_dict()["copies"])


def copies_apart(path: pathlib.Path, providers: list[str]) -> tuple[int, int]:
    """Number and bytes of the copies in a run on devices that share no memory with the host, as a dry run decides."""
    apart = [(name, {"zero_copy": False}) if name.startswith("opencl") else name for name in providers]
    shapes = {name: value.shape for name, value in feeds(path).items()}
    session = gpurt.InferenceSession(path, providers=apart, dry_run=True, expected_shapes=shapes)
    copies = session.explain().to_dict()["copies"]
    return len(copies), sum(c["bytes"] or 0 for c in copies)


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--providers", default="opencl,cpu", show_default=True)
@click.option("--json", "target", type=click.Path(path_type=pathlib.Path))
def main(models: tuple[pathlib.Path, ...], providers: str, target: pathlib.Path | None) -> None:
    """See the module."""
    columns = ("planned_peak", "lower_bound", "held", "weights", "allocations_last_run")
    table = Table("model", "device", *(c.replace("_", " ") for c in columns), "ratio")
    crossing = Table("model", "copies in a run", "with memories apart", "bytes of these")
    rows, copied = [], []
    with tempfile.TemporaryDirectory() as folder:
        for path in models or generated(pathlib.Path(folder)):
            devices, copies = measure(path, providers.split(","))
            apart, size = copies_apart(path, providers.split(","))
            copied.append({"model": path.name, "copies": copies, "copies_apart": apart, "bytes_apart": size})
            crossing.add_row(path.name, str(copies), str(apart), f"{size:,}")
            for device, memory in devices.items():
                ratio = memory["planned_peak"] / memory["lower_bound"]
                rows.append({"model": path.name, "device": device, "ratio": ratio, **{c: memory[c] for c in columns}})
                table.add_row(path.name, device, *(f"{memory[c]:,}" for c in columns), f"{ratio:.3f}")
    console = Console()
    console.print(table)
    console.print(crossing)
    ratios = [r["ratio"] for r in rows] or [1.0]
    mean, worst = sum(ratios) / len(ratios), max(ratios)
    console.print(f"mean {mean:.3f}, worst {worst:.3f}")
    if target is not None:
        target.write_text(json.dumps({"rows": rows, "copies": copied, "mean": mean, "worst": worst}, indent=2))
    allocated = any(r["allocations_last_run"] for r in rows)
    raise SystemExit(mean > MEAN or worst > WORST or allocated)


if __name__ == "__main__":
    main()
