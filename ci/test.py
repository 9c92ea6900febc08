"""Everything that CI and a contributor run: style, types, layers, tests, kernels compiled for CUDA, the wheel.

    python3 ci/test.py [--fast] [-k EXPR]

It needs nothing but Python 3.11: it makes a virtual environment (see ci/venv.py). Every step runs, whatever became
of those before it; the exit status is 0 if all of them passed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import ROOT, cuda_check, enter  # noqa: E402 - found through the line above

TESTS = ROOT / "tests"
FIRST = ("unit", "device", "onnx", "models")  # the order of the folders under tests/; any others follow by name
SLOW = ("onnx", "models")  # what --fast leaves out
NOTHING_COLLECTED = 5  # pytest's exit status
SUMMARY = re.compile(r"^=* ?((?:\d+ [a-z]+,? ?)+)in [\d.]+s")  # pytest's last line
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Step:
    """A command and what became of it."""

    name: str
    command: list[str]
    pytest: bool = False
    status: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Runs it, its output shown as it comes."""
        print(f"\n===== {self.name}\n$ python {' '.join(self.command)}", flush=True)
        start = time.perf_counter()
        if self.pytest:
            self.status = self.run_pytest()
        else:
            self.status = subprocess.run([sys.executable, *self.command], cwd=ROOT, check=False).returncode
        self.seconds = time.perf_counter() - start
        print(f"----- {self.name}: {self.result} in {self.seconds:.1f} s", flush=True)

    def run_pytest(self) -> int:
        color = "yes" if sys.stdout.isatty() else "no"
        command = [sys.executable, *self.command, f"--color={color}"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                if found := SUMMARY.match(ANSI.sub("", line)):
                    counted = re.findall(r"(\d+) ([a-z]+)", found[1])
                    self.counts = Counter({word.removesuffix("s"): int(count) for count, word in counted})
        return 0 if process.returncode == NOTHING_COLLECTED else process.returncode

    @property
    def failed(self) -> int:
        """Tests that failed, or 1 where the step failed for another reason."""
        return max(self.counts["failed"] + self.counts["error"], int(self.status != 0))

    @property
    def result(self) -> str:
        """In words."""
        words = "passed" if self.status == 0 else "FAILED"
        counted = ", ".join(f"{count} {word}" for word, count in self.counts.items() if count)
        return f"{words} ({counted})" if counted else words


def steps(fast: bool, expression: str | None) -> list[Step]:
    """What to run, in order."""
    found = [
        Step("ruff check", ["-m", "ruff", "check", "."]),
        Step("mypy --strict", ["-m", "mypy", "--strict"]),
        Step("import layers", ["-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-logo"]),
    ]
    found += script("generated pages", "make_docs.py", "--check")
    found += tests(fast, expression)
    if not fast and not expression:
        found += script("kernels compiled for CUDA", "cuda_compile.py") + script("wheel", "wheel_smoke.py")
    return found if not expression else [step for step in found if step.pytest]


def tests(fast: bool, expression: str | None) -> list[Step]:
    """A step for each folder of tests there is, the fast ones first."""
    folders = sorted({path.parent.relative_to(TESTS).parts[:1] for path in TESTS.rglob("test_*.py")})
    names = [folder[0] if folder else "" for folder in folders if not folder or folder[0] != "plugins"]
    names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    options = ["-q", *(["-m", "not slow"] if fast else []), *(["-k", expression] if expression else [])]
    found = []
    for name in names:
        if fast and name in SLOW:
            continue
        paths = [f"tests/{name}"] if name else sorted(f"tests/{path.name}" for path in TESTS.glob("test_*.py"))
        found.append(Step(f"tests/{name}", ["-m", "pytest", *options, *paths], pytest=True))
    return found


def script(name: str, file: str, *options: str) -> list[Step]:
    """A step that is one of this folder's scripts."""
    return [Step(name, [f"ci/{file}", *options])] if (ROOT / "ci" / file).exists() else []


def summary(done: Sequence[Step], *, chosen: bool) -> int:
    """Prints what became of each step, at last the tests' counts; returns the exit status.

    That no test ran is a failure, unless the user has chosen which.
    """
    print("\n===== Summary")
    for step in done:
        print(f"{step.seconds:8.1f} s  {step.name:28} {step.result}")
    total: Counter[str] = sum((step.counts for step in done), Counter())
    failed = sum(step.failed for step in done)
    if not total["passed"] and not failed and not chosen:
        print("No test ran.")
        failed = 1
    rest = "".join(f", {total[word]} {word}" for word in ("skipped",) if total[word])
    print(f"\n{total['passed']} passed, {failed} failed{rest}", flush=True)
    return 1 if failed else 0


def main() -> int:
    """Runs it all; returns the exit status."""
    parser = argparse.ArgumentParser(description="Runs the checks and tests of gpurt.")
    parser.add_argument("--fast", action="store_true", help="only style, types, layers and the quick tests")
    parser.add_argument("-k", metavar="EXPR", dest="expression", help="only the tests that match, as in pytest")
    arguments = parser.parse_args()
    enter(["opencl", "opencl-intel", "test", *([] if arguments.fast else cuda_check())])
    done = steps(arguments.fast, arguments.expression)
    for step in done:
        step.run()
    return summary(done, chosen=bool(arguments.expression))


if __name__ == "__main__":
    sys.exit(main())
