"""The whole ONNX backend suite on every provider list, all of it in the GPU kernel class too; CI runs a sample there.

    python3 ci/conformance.py [PYTEST OPTIONS]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, enter  # noqa: E402 - found through the line above


def main() -> int:
    """Runs it in the project's virtual environment; returns pytest's exit status."""
    enter(["opencl", "opencl-intel", "test"])
    command = [sys.executable, "-m", "pytest", "-q", "tests/onnx", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "GPURT_BACKEND_SAMPLE": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
