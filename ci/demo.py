"""gpurt's main job, seen whole: text found and read in an image, by three real models, on whatever this machine has.

    python3 ci/demo.py [IMAGE] [--with cuda12] [--compare]

Without an image it draws one, and its exit status says whether all the text it drew was read. It needs nothing but
Python 3.11: it makes a virtual environment (see ci/venv.py) and installs gpurt and the models into it.
"""
# ruff: noqa: E402 - what is installed first can only be imported after it

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import enter

parser = argparse.ArgumentParser(description="Finds and reads the text in an image with gpurt.")
parser.add_argument("image", nargs="?", type=Path, help="an image file; without it, one is drawn")
parser.add_argument(
    "--with", dest="extra", action="append", default=[], metavar="EXTRA",
    help="a further extra of gpurt to install: cuda12, cuda13, rocm or opencl-intel",
)  # fmt: skip
parser.add_argument("--compare", action="store_true", help="install ONNX Runtime and measure it beside gpurt")
arguments = parser.parse_args()
enter(
    ["opencl", *arguments.extra],
    also=["pillow>=10.1", *(["onnxruntime"] if arguments.compare else [])],
    no_deps=["rapidocr-onnxruntime==1.4.4"],  # for its models (Apache-2.0); its code and what that needs stay unused
)

import importlib.util
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gpurt
from ci import ocr

PROVIDERS = ["cuda", "opencl", "cpu"]
MODELS = {
    "detection": "ch_PP-OCRv4_det_infer.onnx",
    "angle": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "recognition": "ch_PP-OCRv4_rec_infer.onnx",
}
LINES = {  # text: where, size, degrees
    "Text found by three models": ((36, 24), 40, 0),
    "Convolutions on any OpenCL GPU": ((36, 110), 30, 0),
    "Invoice 2047-118": ((36, 178), 26, 0),
    "Total: 1,234.56 EUR": ((430, 178), 26, 0),
    "A line that leans a little": ((60, 230), 30, 7),
    "and one that stands on its head": ((150, 352), 28, 180),
    "small print, eighteen pixels high": ((36, 440), 18, 0),
}
TURNS, RUNS = 5, 3  # how often each engine has its turn, and runs in a turn
SECONDS = 10.0  # for one engine and one model: after these it has no further turn

Run = Callable[[dict[str, np.ndarray]], list[Any]]
console = Console()


def main() -> int:
    """Runs it all; returns the exit status."""
    show_providers()
    folder = Path(importlib.util.find_spec("rapidocr_onnxruntime").submodule_search_locations[0]) / "models"
    paths = {name: folder / file for name, file in MODELS.items()}
    image = Image.open(arguments.image) if arguments.image else drawn()
    pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])

    warnings.filterwarnings("ignore", "provider .* is left out", RuntimeWarning)  # show_providers has said it
    start = time.perf_counter()
    sessions = {name: gpurt.InferenceSession(path, providers=PROVIDERS) for name, path in paths.items()}
    loaded = time.perf_counter()
    fed: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in MODELS}

    def run(name: str, data: np.ndarray) -> np.ndarray:
        feeds = {sessions[name].get_inputs()[0].name: data}
        fed[name].append(feeds)
        return np.asarray(sessions[name].run(None, feeds)[0])

    boxes, texts = read(run, pixels, characters(paths["recognition"]))
    end = time.perf_counter()
    show_texts(boxes, texts)
    console.print(f"Loading took {loaded - start:.1f} s, the first pass (plans, kernels) {end - loaded:.1f} s.\n")
    show_placement(sessions)
    show_times(sessions, paths, fed)
    return verdict(texts)


def read(
    run: Callable[[str, np.ndarray], np.ndarray], pixels: np.ndarray, alphabet: list[str]
) -> tuple[list[ocr.Box], list[ocr.Text]]:
    """The pipeline: boxes of text, each line upright, what it says."""
    boxes = ocr.detection_boxes(run("detection", ocr.detection_input(pixels)), pixels)
    lines = [ocr.crop(pixels, box) for box in boxes]
    if lines:
        lines = ocr.upright(lines, run("angle", ocr.line_input(lines, width=192)))
    texts = [ocr.Text("", 0.0)] * len(lines)
    for indices, width in ocr.batches(lines):
        scores = run("recognition", ocr.line_input([lines[at] for at in indices], width))
        for at, text in zip(indices, ocr.decode(scores, alphabet), strict=True):
            texts[at] = text
    return boxes, texts


def characters(model: Path) -> list[str]:
    """What the recogniser's classes stand for: the blank, the characters in the model's metadata, the space."""
    metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def drawn() -> Image.Image:
    """An image with LINES in it, saved to a temporary folder."""
    image = Image.new("RGB", (768, 480), "#f4f1ea")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 768, 86), "#1d3557")
    draw.line((36, 222, 732, 222), "#999999")
    for text, ((x, y), size, degrees) in LINES.items():
        font = ImageFont.load_default(size)
        mask = Image.new("L", (int(font.getlength(text)) + 8, size * 3 // 2))
        ImageDraw.Draw(mask).text((4, 2), text, 255, font)
        mask = mask.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        image.paste("#ffffff" if y < 86 else "#222222", (x, y), mask)
    path = Path(tempfile.mkdtemp(prefix="gpurt-demo-")) / "text.png"
    image.save(path)
    console.print(f"Drew {len(LINES)} lines of text: {path}\n", markup=False, highlight=False)
    return image


def show_providers() -> None:
    """Which providers are usable here, and why the others are not."""
    table = Table("provider", "usable", "devices, or the reason and the remedy", title="Providers")
    for status in gpurt.providers():
        if status.usable:
            words = "\n".join(f"{device.name}: {device.description}" for device in status.devices)
        else:
            words = "\n".join(str(part) for part in (status.reason, status.remedy) if part)
        table.add_row(status.name, "yes" if status.usable else "no", escape(words))
    console.print(table)


def show_texts(boxes: list[ocr.Box], texts: list[ocr.Text]) -> None:
    """Each box with what it says."""
    table = Table("text", "score", "box", "top left", "size", "angle", title="Text found (scores of text and box)")
    table.columns[0].overflow = "fold"
    for box, text in zip(boxes, texts, strict=True):
        angle = -np.degrees(np.arctan2(box.along[1], box.along[0]))
        x, y = box.corners[0]
        table.add_row(
            escape(text.content), f"{text.score:.3f}", f"{box.score:.3f}", f"{x:.0f}, {y:.0f}",
            f"{box.width:.0f} x {box.height:.0f}", f"{angle + 0:.0f}°",
        )  # fmt: skip
    console.print(table)


def show_placement(sessions: dict[str, Any]) -> None:
    """How many nodes of each model went to which provider."""
    explained = {name: session.explain().to_dict() for name, session in sessions.items()}
    table = Table("model", "nodes", *PROVIDERS, "copies", "casts", title="Who runs the nodes (after optimization)")
    for name, found in explained.items():
        taken = Counter(node["provider"] for node in found["nodes"])
        counts = [taken[provider] for provider in PROVIDERS]
        counts = [len(found["nodes"]), *counts, len(found["copies"]), len(found["casts"])]
        table.add_row(name, *map(str, counts))
    console.print(table)


def show_times(sessions: dict[str, Any], paths: dict[str, Path], fed: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Time of each model over what this image fed it, beside ONNX Runtime's where that is installed."""
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    columns = ["model", "shapes", "gpurt ms"]
    if onnxruntime:
        columns += ["ONNX Runtime ms", "ratio", "largest difference"]
    table = Table(*columns, title="Time of a pass over this image (median)")
    for name, feeds in fed.items():
        if not feeds:
            continue
        engines: list[Run] = [partial(sessions[name].run, None)]
        if onnxruntime:
            theirs = onnxruntime.InferenceSession(str(paths[name]), providers=["CPUExecutionProvider"])
            engines.append(partial(theirs.run, None))
        times = [f"{seconds * 1e3:.1f}" for seconds in in_turns(engines, feeds)]
        shapes = " ".join("x".join(map(str, value.shape)) for feed in feeds for value in feed.values())
        row = [name, shapes, times[0]]
        if onnxruntime:
            row += [times[1], f"{float(times[0]) / float(times[1]):.2f}", f"{difference(engines, feeds):.1e}"]
        table.add_row(*row)
    console.print(table)
    if onnxruntime:
        console.print(
            f"ONNX Runtime {onnxruntime.__version__} on its CPU provider, in this process. The two have a thread pool "
            f"each, so they run in turns ({TURNS} turns of a warm-up and {RUNS} runs), each after a pause in which the "
            "other's threads go to sleep. Whatever else the machine does slows both. The outputs that differ are "
            "probabilities.\n"
        )
    else:
        console.print("ONNX Runtime is not installed here; --compare installs it and measures it beside gpurt.\n")


def in_turns(engines: list[Run], feeds: list[dict[str, np.ndarray]]) -> list[float]:
    """Median seconds of each engine over all the feeds."""
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(TURNS):
        for engine, measured in zip(engines, seconds, strict=True):
            time.sleep(0.1)
            for turn in range(RUNS + 1):
                if sum(measured) > SECONDS:
                    break
                start = time.perf_counter()
                for feed in feeds:
                    engine(feed)
                if turn:
                    measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in seconds]


def difference(engines: list[Run], feeds: list[dict[str, np.ndarray]]) -> float:
    """The largest difference of two engines' outputs."""
    worst = 0.0
    for feed in feeds:
        for ours, theirs in zip(engines[0](feed), engines[1](feed), strict=True):
            worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def verdict(texts: list[ocr.Text]) -> int:
    """Whether every line that was drawn was read, spaces and case aside."""
    found = {plain(text.content) for text in texts}
    if arguments.image:
        console.print(f"{len(found)} lines read.")
        return 0
    missing = [line for line in LINES if plain(line) not in found]
    console.print(f"{len(LINES) - len(missing)} of {len(LINES)} lines that were drawn were read.")
    for line in missing:
        console.print(f"Not found: {line}", style="red", markup=False)
    return 1 if missing else 0


def plain(text: str) -> str:
    """Without spaces (which this recogniser often leaves out) and case."""
    return "".join(text.split()).casefold()


if __name__ == "__main__":
    sys.exit(main())
