"""The whole ONNX backend suite on every provider list, all of it in the GPU kernel class too; CI runs a sample there.

    python3 ci/conformance.py [--platform NAME] [PYTEST OPTIONS]

With --platform only the OpenCL lists run, on the platform with NAME in its name: --platform Intel for Intel's CPU
runtime (extra opencl-intel), which has float16 arithmetic and subgroups.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, enter  # noqa: E402 - found through the line above


def main() -> int:
    """Runs it in the project's virtual environment; returns pytest's exit status."""
    enter(["opencl", "opencl-intel", "test"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--platform", help="part of an OpenCL platform's name")
    options, rest = parser.parse_known_args()
    env = {**os.environ, "GPURT_BACKEND_SAMPLE": "1"}
    if options.platform:
        env["GPURT_BACKEND_PLATFORM"] = options.platform
    command = [sys.executable, "-m", "pytest", "-q", "tests/onnx", *rest]
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
