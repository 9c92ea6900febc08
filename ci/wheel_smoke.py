"""The wheel as a user meets it: built, installed into a fresh environment, used from an empty folder.

    python3 ci/wheel_smoke.py

Checks that the import is quick, that a model runs on OpenCL, that `gpurt doctor` answers, and that a provider which was
installed with pip (tests/plugins/gpurt-sim) is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, enter, make, pip  # noqa: E402 - found through the line above

PLUGIN = ROOT / "tests" / "plugins" / "gpurt-sim"
CHECK_PLUGIN = ROOT / "tests" / "plugins" / "check_sim.py"
BUDGET, TRIES = 0.150, 5  # seconds that `import gpurt` may take; the best of so many counts

IMPORT = "import time; start = time.perf_counter(); import gpurt; print(time.perf_counter() - start, gpurt.__file__)"
MODEL = """
import sys
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
import gpurt

random = np.random.default_rng(0)
w = random.standard_normal((16, 8), dtype=np.float32)
b = random.standard_normal(8, dtype=np.float32)
nodes = [
    helper.make_node("MatMul", ["x", "w"], ["product"]),
    helper.make_node("Add", ["product", "b"], ["sum"]),
    helper.make_node("Relu", ["sum"], ["y"]),
]
graph = helper.make_graph(
    nodes,
    "smoke",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "smoke.onnx")
session = gpurt.InferenceSession("smoke.onnx", gpurt.SessionOptions(partitioning="greedy"), providers=["opencl", "cpu"])
for n in (4, 7):
    x = random.standard_normal((n, 16), dtype=np.float32)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, np.maximum(x @ w + b, 0), rtol=1e-5, atol=1e-5)
nodes = session.explain().to_dict()["nodes"]
for node in nodes:
    print(node["op_type"], "on", node["provider"], node["device"])
if "--opencl" in sys.argv and not any(node["provider"] == "opencl" for node in nodes):
    sys.exit("no node ran on OpenCL")
"""


def main() -> int:
    """Runs it all; returns the exit status."""
    enter(["test"])
    with tempfile.TemporaryDirectory(prefix="gpurt-wheel-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        python = installed(folder)
        empty = folder / "empty"
        empty.mkdir()
        failures = [check.__name__ for check in (import_time, model, doctor, plugin) if not check(python, empty)]
    print(f"wheel: {'FAILED: ' + ', '.join(failures) if failures else 'all checks passed'}")
    return 1 if failures else 0


def installed(folder: Path) -> Path:
    """Builds the wheel and installs it, and the plug-in, into a new environment; returns its interpreter."""
    headline("build the wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(command, check=True, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    headline("install it into a new environment")
    python = make(folder / "environment")
    packages = [f"{wheel}[opencl]"]
    if PLUGIN.exists():  # a copy, so that the build leaves nothing in the checkout
        packages.append(str(shutil.copytree(PLUGIN, folder / PLUGIN.name)))
    pip(["install", *packages], python)
    return python


def import_time(python: Path, folder: Path) -> bool:
    """`import gpurt` comes from the wheel and keeps to its budget."""
    headline("import gpurt")
    seconds = []
    for _ in range(TRIES):
        done = run([python, "-c", IMPORT], folder, quiet=True)
        if done.returncode:
            return False
        took, path = done.stdout.split(maxsplit=1)
        seconds.append(float(took))
        if not Path(path.strip()).is_relative_to(folder.parent / "environment"):
            print(f"gpurt came from {path.strip()}, not from the wheel")
            return False
    each = " ".join(f"{1e3 * took:.0f}" for took in seconds)
    print(f"{1e3 * min(seconds):.0f} ms at best ({each}); {1e3 * BUDGET:.0f} ms are allowed")
    return min(seconds) < BUDGET


def model(python: Path, folder: Path) -> bool:
    """A small model gives NumPy's results; where pip brings PoCL, on OpenCL."""
    headline("run a model on opencl and cpu")
    script = folder.parent / "model.py"
    script.write_text(MODEL, encoding="utf-8")
    embedded = sys.platform == "linux" and os.uname().machine == "x86_64"
    return run([python, script, *(["--opencl"] if embedded else [])], folder).returncode == 0


def doctor(python: Path, folder: Path) -> bool:
    """The command is there and knows gpurt's own providers."""
    headline("gpurt doctor")
    command = python.with_name("gpurt.exe" if os.name == "nt" else "gpurt")
    done = run([command, "doctor"], folder)
    return done.returncode == 0 and all(name in done.stdout for name in ("cuda", "opencl", "cpu"))


def plugin(python: Path, folder: Path) -> bool:
    """A provider from another distribution works."""
    headline("a provider that came by pip")
    for path in (PLUGIN, CHECK_PLUGIN):
        if not path.exists():
            print(f"skipped: there is no {path.relative_to(ROOT).as_posix()}")
            return True
    return run([python, CHECK_PLUGIN], folder).returncode == 0


def run(command: list[str | Path], folder: Path, *, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder without Python's variables of this environment; shows what it printed."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not quiet or done.returncode:
        print(done.stdout + done.stderr, end="", flush=True)
    if done.returncode:
        print(f"exit status {done.returncode}: {' '.join(map(str, command))}", flush=True)
    return done


def headline(text: str) -> None:
    """Starts a part of the output."""
    print(f"--- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
