"""Run the benchmarks and write docs/benchmarks.md with its charts; or draw it again from the last run's numbers.

    python ci/bench/page.py [MODEL.onnx | FOLDER ...] [--engines E,E] [--devices D,D] [--rounds 5] [--min-ms 1]
    python ci/bench/page.py --draw

The numbers are kept beside the page, docs/benchmarks_engines.json and docs/benchmarks_kernels.json; the charts are SVG
that is written here, without a library.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import click

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
ENGINES, KERNELS = DOCS / "benchmarks_engines.json", DOCS / "benchmarks_kernels.json"
COLORS = ("#2f6fb0", "#e08a2c", "#4b9b57", "#a04a8c", "#7a7a7a")
WIDTH, LABEL, BAR, GAP = 860, 300, 13, 8

MODELS_READ = """\
A bar is the median over rounds of ONNX Runtime's median time by the engine's in the same round. Every engine has a
process of its own, and they run in turns."""
KERNELS_READ = """\
Operations are those of the direct algorithm, so Winograd's convolutions (3 x 3, stride 1) may pass 100 %. The time is
the sum of a layer's kernels by the device's clock, padding and packing included. The peaks, measured in the same run,
are NumPy's sgemm's, and that of multiplications and additions in registers alone."""
IDLE = """\
The machine should be idle: engines whose threads spin lose a factor of three to a busy neighbour. This page came
from:"""


def bars(title: str, unit: str, rows: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str],
         line: float, most: float) -> str:  # fmt: skip
    """A chart of groups of horizontal bars, with a line at a value; longer bars are cut at `most` and say so."""
    scale = (WIDTH - LABEL - 70) / most
    top = 30 + 16 * len(names)
    group = BAR * len(names) + GAP
    height = top + group * len(rows) + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        "<style>text { font-family: sans-serif; font-size: 11px } .title { font-size: 14px }</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" class="title" font-weight="bold">{escape(title)}</text>',
    ]
    for i, name in enumerate(names):
        y = 26 + 16 * i
        out.append(f'<rect x="8" y="{y}" width="12" height="10" fill="{COLORS[i % len(COLORS)]}"/>')
        out.append(f'<text x="26" y="{y + 9}">{escape(name)}</text>')
    for r, (label, values) in enumerate(rows):
        y = top + r * group
        out.append(f'<text x="{LABEL - 6}" y="{y + group / 2}" text-anchor="end">{escape(label)}</text>')
        for i, value in enumerate(values):
            at = y + i * BAR
            if value is None:
                out.append(f'<text x="{LABEL + 3}" y="{at + 10}" fill="#999999">cannot run it</text>')
                continue
            length = max(min(value, most) * scale, 1)
            color = COLORS[i % len(COLORS)]
            out.append(f'<rect x="{LABEL}" y="{at}" width="{length:.1f}" height="{BAR - 2}" fill="{color}"/>')
            text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
            out.append(f'<text x="{LABEL + length + 4:.1f}" y="{at + 10}">{text}{escape(unit)}</text>')
    x = LABEL + line * scale
    out.append(f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{height - 20}" stroke="#c0392b"/>')
    out.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" fill="#c0392b">{line:g}{escape(unit)}</text>')
    return "\n".join([*out, "</svg>", ""])


def engines_chart(run: dict[str, Any]) -> str:
    """Times as fast as ONNX Runtime, by model."""
    names = [e for e in next(iter(run["models"].values()))["engines"] if e != "ort"]
    rows = [(m, [found["engines"][e].get("ratio") for e in names]) for m, found in run["models"].items()]
    values = sorted(v for _, row in rows for v in row if v is not None)
    most = max(2.0, values[int(0.95 * (len(values) - 1))] * 1.1) if values else 2.0
    return bars("Times as fast as ONNX Runtime's CPU provider (1 is equal)", "", rows, names, 1.0, most)


def kernels_chart(run: dict[str, Any]) -> str:
    """Shares of sgemm's peak, better layout of each case, by device."""
    devices = list(run["devices"].values())
    best = [_best(d) for d in devices]
    rows = [(name, [100 * b[name] for b in best]) for name in best[0]]
    names = [
        f"{d['device']}, driver {d['driver'][:30]}: sgemm {d['peaks']['sgemm'] / 1e9:.0f} GFLOP/s" for d in devices
    ]
    most = max(110.0, *(v for _, row in rows for v in row))
    return bars("Kernels, in percent of sgemm's peak (85 is the aim)", " %", rows, names, 85.0, most)


def _best(device: dict[str, Any]) -> dict[str, float]:
    best: dict[str, float] = {}
    for case in device["cases"]:
        best[case["name"]] = max(best.get(case["name"], 0.0), case["share"])
    return best


def page(models: dict[str, Any], kernels: dict[str, Any]) -> str:
    """The page's text."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `ci/bench/page.py` from the last run; nothing here is typed by hand.",
        "",
        "## Models",
        "",
        f"{models['date']}, {models['machine']}, {models['threads']} threads each, Python {models['python']}, float32.",
        "",
        "![models](benchmarks_engines.svg)",
        "",
        MODELS_READ,
        "",
        *_models_table(models),
        "",
        *_means(models),
        "",
        *_busy([f["others_busy"] for f in models["models"].values()]),
        "",
        "## Kernels",
        "",
        f"{kernels['date']}, {kernels['machine']}.",
        "",
        "![kernels](benchmarks_kernels.svg)",
        "",
        KERNELS_READ,
        "",
        *_kernels_table(kernels),
        "",
        *_busy([d["others_busy"] for d in kernels["devices"].values()]),
        "",
        "## Again, on your machine",
        "",
        "    pip install gpurt[opencl,test]      # opencl-intel for Intel's runtime",
        "    python ci/bench/page.py             # generated models, the default OpenCL device",
        "    python ci/bench/page.py FOLDER --engines gpurt:opencl@PoCL+cpu,gpurt:cpu --devices opencl@PoCL",
        "",
        IDLE,
        "",
        f"    {models['page']}",
        "",
    ]
    return "\n".join(lines)


def _models_table(run: dict[str, Any]) -> list[str]:
    engines = list(next(iter(run["models"].values()))["engines"])
    out = [f"| model | {' | '.join(engines)} |", "|---" * (len(engines) + 1) + "|"]
    for model, found in run["models"].items():
        cells = []
        for engine in engines:
            row = found["engines"][engine]
            if "error" in row:
                cells.append("cannot run it")
                continue
            ratio = f" ({row['ratio']:.2f})" if "ratio" in row else ""
            cells.append(f"{row['median_ms']:.2f} ms, least {row['min_ms']:.2f}{ratio}")
        out.append(f"| {model} | {' | '.join(cells)} |")
    versions = {
        e: (row["version"], row["device"])
        for found in run["models"].values()
        for e, row in found["engines"].items()
        if "version" in row
    }
    return [*out, "", *(f"- `{e}`: version {v}, on {d}" for e, (v, d) in versions.items())]


def _means(run: dict[str, Any]) -> list[str]:
    out = ["| engine | geometric mean | models | worst |", "|---|---|---|---|"]
    for engine, total in run["means"].items():
        out.append(f"| {engine} | {total['mean']:.2f} | {total['models']} | {total['worst']:.2f} |")
    for engine, total in run["means"].items():
        for other, against in total.get("against", {}).items():
            out += [
                "",
                f"`{engine}` is {against['mean']:.1f} times as fast as `{other}` over {against['models']} models.",
            ]
    return out


def _kernels_table(run: dict[str, Any]) -> list[str]:
    out = []
    for device in run["devices"].values():
        peaks = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in device["peaks"].items())
        out += ["", f"{device['device']}, driver {device['driver']}. Peaks in GFLOP/s: {peaks}.", ""]
        out += [
            "| layer | layout | kernels | ms | GFLOP/s | of sgemm | of registers |",
            "|---|---|---|---|---|---|---|",
        ]
        for c in device["cases"]:
            kernels = ", ".join(c["kernels"])
            share = f"{100 * c['share']:.0f} % | {100 * c['of_registers']:.0f} %"
            out.append(f"| {c['name']} | {c['layout']} | {kernels} | {c['ms']:.3f} | {c['gflops']:.0f} | {share} |")
    return out


def _busy(shares: Sequence[float]) -> list[str]:
    worst = max(shares, default=0.0)
    if worst < 0.15:
        return [f"Other processes took at most {100 * worst:.0f} % of the machine."]
    return [f"**Other processes took up to {100 * worst:.0f} % of the machine: these figures are not to be trusted.**"]


def draw() -> None:
    """The page and its charts from the numbers that are kept."""
    models, kernels = (json.loads(f.read_text()) for f in (ENGINES, KERNELS))
    (DOCS / "benchmarks_engines.svg").write_text(engines_chart(models))
    (DOCS / "benchmarks_kernels.svg").write_text(kernels_chart(kernels))
    (DOCS / "benchmarks.md").write_text(page(models, kernels))


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True))
@click.option("--engines", default="gpurt:opencl+cpu,gpurt:cpu", show_default=True)
@click.option("--devices", default="opencl", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=0.3, show_default=True)
@click.option("--min-ms", default=1.0, show_default=True)
@click.option("--python", "programs", multiple=True, metavar="ENGINE=PROGRAM")
@click.option("--draw", "only_draw", is_flag=True, help="Run nothing.")
def main(
    models: Sequence[str], engines: str, devices: str, rounds: int, seconds: float, min_ms: float,
    programs: Sequence[str], only_draw: bool,
) -> None:  # fmt: skip
    if not only_draw:
        here = pathlib.Path(__file__).parent
        more = [a for p in programs for a in ("--python", p)]
        subprocess.run(
            [sys.executable, here / "engines.py", *models, "--engines", engines, "--rounds", str(rounds), "--seconds",
             str(seconds), "--min-ms", str(min_ms), "--json", ENGINES, *more], check=True,
        )  # fmt: skip
        subprocess.run(
            [sys.executable, here / "kernels.py", "--providers", devices, "--rounds", str(rounds), "--json", KERNELS],
            check=True,
        )
        run = json.loads(ENGINES.read_text())
        folder = ["FOLDER"] if models else []
        options = ["--engines", engines, "--devices", devices, "--rounds", str(rounds), "--seconds", str(seconds)]
        run["page"] = " ".join(["python ci/bench/page.py", *folder, *options, "--min-ms", str(min_ms)])
        ENGINES.write_text(json.dumps(run, indent=1) + "\n")
    draw()


if __name__ == "__main__":
    main()
