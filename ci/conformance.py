"""The whole ONNX backend suite on every provider list, all of it in the GPU kernel class too; CI runs a sample there.

    python3 ci/conformance.py [--platform NAME] [--level NAME ...] [PYTEST OPTIONS]

With --level, which may be given several times, all cases run at that optimization level (disable_all, basic, extended,
layout, all; every: at each of them) instead of at all. The figures of each list and level are printed at the end.
With --platform only the OpenCL lists run, on the platform with NAME in its name: --platform Intel for Intel's CPU
runtime (extra opencl-intel), which has float16 arithmetic and subgroups.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, enter  # noqa: E402 - found through the line above

LEVELS = ["disable_all", "basic", "extended", "layout", "all"]


def main() -> int:
    """Runs it in the project's virtual environment; returns pytest's exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", help="part of an OpenCL platform's name")
    parser.add_argument("--level", action="append", choices=[*LEVELS, "every"], help="an optimization level")
    options, rest = parser.parse_known_args()
    enter(["opencl", "opencl-intel", "test"])
    env = {**os.environ, "GPURT_BACKEND_SAMPLE": "1"}
    if options.platform:
        env["GPURT_BACKEND_PLATFORM"] = options.platform
    levels = LEVELS if "every" in (options.level or ()) else options.level or ["all"]
    env["GPURT_BACKEND_LEVELS"] = ",".join(dict.fromkeys(levels))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/onnx", f"--junit-xml={report}", *rest]
        status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        if report.exists():
            figures(report)
    return status


def figures(report: Path) -> None:
    """Print how many cases of each list and level passed, failed and were not run."""
    counts: dict[str, Counter[str]] = {}
    name = re.compile(r"test_backend\[(cpu|opencl-gpu-class|opencl)-(disable_all|basic|extended|layout)?")
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it just now
        found = name.match(case.get("name", ""))
        if found:
            outcome = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
            counts.setdefault(f"{found[1]}, level {found[2] or 'all'}", Counter())[outcome] += 1
    for label, count in counts.items():
        failed = count["failure"] + count["error"]
        print(f"{label}: {count['passed']} of {count.total()} passed, {failed} failed, {count['skipped']} excluded")


if __name__ == "__main__":
    sys.exit(main())
