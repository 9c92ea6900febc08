"""The scripts of ci/bench still run: each on something small, and no time counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMED = ("host.py", "optimizer.py")  # their exit status is of times
SCRIPTS = Path(__file__).resolve().parents[2] / "ci" / "bench"


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        ("host.py", ["--runs", "2"], "us a step"),
        ("decode.py", ["--tokens", "4", "--binding"], "builds"),
        ("memory.py", [], "with memories apart"),
        ("optimizer.py", ["--nodes", "50", "100"], "nodes"),
        ("parallel.py", ["--rounds", "1", "--size", "64"], "lanes"),
        ("kernels.py", ["--rounds", "1", "-k", "BERT 128 x 768 x 768"], "of sgemm"),
    ],
)
def test_runs(script: str, options: list[str], told: str) -> None:
    command = [sys.executable, str(SCRIPTS / script), *options]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in ((0, 1) if script in TIMED else (0,)), done.stderr
    assert told in done.stdout, done.stderr
