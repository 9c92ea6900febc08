"""The device layer's OpenCL kernels in Oclgrind, a simulator that checks every access of every work-item.

    python3 ci/oclgrind.py [--op RE] [--class gpu|cpu|both] [--sample N] [--self-test]

It finds accesses outside a buffer, values that nobody has written, data races and barriers that not every item of a
group reaches. The cases are in oclgrind_cases.py; each runs in `gpurt.testing.kernels.run_op`, where every value has a
buffer of its exact size, and results and workspaces begin as memory that nobody has written. Seeded defects are looked
for first: if one is missed, the rest would prove nothing. There is no list of findings to overlook: a kernel that is
right and yet reported is written in another way. What fusion makes of several nodes is in oclgrind_graphs.py.

Programs are built without optimization: Oclgrind 21.10 lacks an instruction (freeze) that the optimizer makes, and
what the optimizer removes would not be checked. Products and sums are not contracted: for the function that does both
it does not look at the lanes of a vector one by one. Where values are tracked it dies of a vector shuffle that leaves
lanes open, and takes lane 11 of a shuffle's operands for unwritten, so kernels name the lanes instead of using .hi or
.odd of wide vectors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.oclgrind_cases import LAST, SEEDED, Task, cases_of_operators, seeded  # noqa: E402 - found through the line above
from ci.oclgrind_graphs import Graph, graphs, run_graph  # noqa: E402
from ci.venv import ROOT, enter, make, restart  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from gpurt_opencl import OpenCLProvider

FOLDER = ROOT / ".venv-oclgrind"  # of its own: in the other one, sessions of the tests would find this device
CLASSES = ("gpu", "cpu")
SETTINGS = {
    "OCLGRIND_DATA_RACES": "1",
    "OCLGRIND_UNINITIALIZED": "1",
    "OCLGRIND_MAX_ERRORS": "200",  # a process starts anew after each case with findings
    "OCLGRIND_NUM_THREADS": "1",  # the same order in every run
    "OCLGRIND_COMPUTE_UNITS": "4",  # kernels of the CPU class share their work among these
    "OCLGRIND_BUILD_OPTIONS": "-cl-opt-disable -ffp-contract=off",
}

_FINDING = re.compile(r"Invalid (?:read|write)|data race|ninitialized|divergence|OCLGRIND (?:FATAL )?ERROR")
_COMPILER = re.compile(r"^\d+ warnings? generated\.\n", re.MULTILINE)  # the texts are switched off
_ADDRESS = re.compile(r" address 0x[0-9a-f]+")
_KERNEL = re.compile(r"^\s*Kernel:\s+(\w+)", re.MULTILINE)
_LINE = re.compile(r"^\s*At line \d+ \(column \d+\) of [^\n]*:\n\s*(.*)", re.MULTILINE)


@dataclass
class Tally:
    """What became of the cases of one operator in one kernel class."""

    ran: int = 0
    clean: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


FORGET = """
__kernel void forget(__global char *p, const int n) {
    char unset[64];
    for (int i = 0; i < n / 64; i++) __builtin_memcpy(p + 64 * i, unset, 64);
    for (int i = n / 64 * 64; i < n; i++) __builtin_memcpy(p + i, unset, 1);
}
"""


def forget_on_alloc(provider: OpenCLProvider) -> None:
    """Lets every buffer begin as unwritten in all its bytes.

    Oclgrind notes what is written only for buffers that the host has written to, and for as many bytes as the host has
    written; it also keeps the notes of a buffer that is freed for the next one in its place. So the host writes all of
    a new buffer, and a kernel copies memory over it that was never written. Oclgrind says nothing about that:
    memcpy only hands the notes on.
    """
    import numpy as np

    from gpurt.provider import BufferRef

    driver = provider.driver
    if "alloc" in vars(driver):  # by an earlier provider of this driver
        return
    plain_alloc = driver.alloc
    program = driver.build(FORGET, "forget")
    stream = driver.stream()

    def alloc(nbytes: int) -> Any:
        import pyopencl as cl

        buffer = plain_alloc(nbytes)
        driver.write(BufferRef(buffer, 0, nbytes), np.zeros(nbytes, np.uint8), stream)
        kernel = cl.Kernel(program, "forget")
        kernel.set_args(buffer, np.int32(nbytes))
        cl.enqueue_nd_range_kernel(stream, kernel, (1,), (1,))
        driver.synchronize(stream)
        return buffer

    driver.alloc = alloc


def worker(pipe: Connection, kernel_class: str, log: str) -> None:
    """The other process: runs what comes through the pipe and answers what became of it; the log is its stderr."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(SETTINGS)
    from gpurt.errors import EPFail
    from gpurt.provider import Refused
    from gpurt.spec import Unknown
    from gpurt.testing.kernels import run_op
    from gpurt_opencl import OpenCLProvider

    options = {"device": "oclgrind", "kernel_class": kernel_class}
    provider = OpenCLProvider.open(None, options)
    forget_on_alloc(provider)
    pipe.send("ready")
    while True:
        task = pipe.recv()
        answer = ""
        try:
            if isinstance(task, int):
                seeded(provider, task)
            elif isinstance(task, Graph):
                run_graph(task, options, forget_on_alloc)
            else:
                run_op(
                    provider, task.op, task.inputs, task.attrs,
                    domain=task.domain, outputs=task.outputs, constant=task.constant, poison=False,
                )  # fmt: skip
        except (Refused, Unknown) as e:
            answer = f"refused: {e}"
        except EPFail as e:
            answer = e.message
        except Exception as e:  # noqa: BLE001 - one broken case must not stop the others
            answer = str(e) if isinstance(e, AssertionError) else f"{type(e).__name__}: {e}"
        pipe.send(answer)


class Simulator:
    """A worker that is started anew where it must be."""

    def __init__(self, kernel_class: str, limit: float, folder: str) -> None:
        self.kernel_class = kernel_class
        self.limit = limit
        self.log = Path(folder, f"{kernel_class}.log")
        self.process: Any = None
        self.pipe: Any = None

    def run(self, task: Task | Graph | int) -> tuple[str, str]:
        """(answer, log) of a task."""
        if self.process is None:
            self.start()
        offset = self.log.stat().st_size
        self.pipe.send(task)
        answer = self.answer(self.limit)
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(offset)
            text = _COMPILER.sub("", file.read())
        if text.strip():  # what follows shall not depend on how many errors there have been
            self.stop()
        return answer, text

    def start(self) -> None:
        self.log.write_bytes(b"")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        given = (theirs, self.kernel_class, str(self.log))
        self.process = context.Process(target=worker, args=given, daemon=True)
        self.process.start()
        theirs.close()
        if self.answer(120) != "ready":
            sys.exit(f"The simulator does not start:\n{self.log.read_text(encoding='utf-8', errors='replace')}")

    def answer(self, limit: float) -> str:
        try:
            if self.pipe.poll(limit):
                return str(self.pipe.recv())
            answer = f"over {limit:g} s"
        except (EOFError, ConnectionResetError):
            self.process.join()
            answer = f"the process ended with status {self.process.exitcode}"
        self.stop()
        return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def findings(log: str) -> list[tuple[str, str, str]]:
    """(what, kernel, line of its text) of each finding in a log."""
    found = []
    for block in re.split(r"\n\s*\n(?=\S)", log):
        what = block.strip().split("\n", 1)[0]
        if _FINDING.search(what):
            kernel, line = _KERNEL.search(block), _LINE.findall(block)
            found.append((_ADDRESS.sub("", what), kernel[1] if kernel else "?", " | ".join(line)))
    return found


def self_test(simulator: Simulator) -> int:
    """Launches the seeded defects; returns how many of them were missed."""
    missed = 0
    for number, (name, wanted, _) in enumerate(SEEDED):
        answer, log = simulator.run(number)
        seen = [what for what, _, _ in findings(log)]
        good = not answer and (any(wanted in what for what in seen) if wanted else not seen)
        missed += not good
        what = f"{answer} {'; '.join(sorted(set(seen)))}".strip() or "nothing"
        print(f"  {'found' if good and wanted else 'clean' if good else 'WRONG':6}{name}: {what}", flush=True)
    return missed


def examine(simulator: Simulator, task: Task | Graph, tally: Tally, *, verbose: bool) -> None:
    """Runs one case and counts what became of it; prints what was found."""
    start = time.perf_counter()
    answer, log = simulator.run(task)
    if verbose:
        print(f"{time.perf_counter() - start:7.2f} s {simulator.kernel_class} {task.title} {task.name} {answer}")
    seen = Counter(f"{what}, {kernel}: {line}" for what, kernel, line in findings(log))
    if answer and not answer.startswith("refused"):
        seen[answer[:300]] += 1
    elif log.strip() and not seen:
        seen[f"unknown message: {log.strip()[:300]}"] += 1
    elif answer and not seen:
        tally.skipped[re.sub(r"\s+", " ", answer)[:160]] += 1
        return
    tally.ran += 1
    tally.clean += not seen
    for text, count in seen.items():
        times = f" ({count} times)" if count > 1 else ""
        print(f"{task.title} {simulator.kernel_class} {task.name}: {text}{times}", flush=True)


def report(tallies: dict[tuple[str, str], Tally], classes: Sequence[str]) -> int:
    """Prints the table; returns the number of cases with findings."""
    print(f"\n{'operator':34}" + "".join(f"{c:>6}{'clean':>7}" for c in classes) + "  skipped")
    total = dict.fromkeys(classes, (0, 0))
    for op in sorted({op for op, _ in tallies}):
        cells, skipped = "", Counter[str]()
        for c in classes:
            t = tallies[op, c]
            cells += f"{t.ran:6}{t.clean:7}"
            skipped += t.skipped
            total[c] = (total[c][0] + t.ran, total[c][1] + t.clean)
        print(f"{op[:33]:34}{cells}  {'; '.join(f'{n} {why}' for why, n in skipped.items())}")
    print(f"{'all':34}" + "".join(f"{ran:6}{clean:7}" for ran, clean in total.values()))
    return sum(ran - clean for ran, clean in total.values())


def main() -> int:
    """Self-test, cases, table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Runs gpurt's OpenCL kernels in a simulator that checks them.")
    parser.add_argument("--op", metavar="RE", default="", help="only operators that match: Conv, ^Reduce, microsoft")
    parser.add_argument("--class", choices=[*CLASSES, "both"], default="both", dest="kernel_class")
    parser.add_argument("--sample", type=int, metavar="N", help="at most this many cases of an operator, by chance")
    parser.add_argument("--elements", type=int, default=10000, help="leave out larger cases (default 10000)")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="time for one case (default 120)")
    parser.add_argument("--self-test", action="store_true", help="only look for the seeded defects")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each case")
    arguments = parser.parse_args()
    if Path(sys.prefix) != FOLDER:
        restart(make(FOLDER))
    enter(["sanitize"], also=["pytest"])  # cases are in modules of tests

    start = time.perf_counter()
    classes = CLASSES if arguments.kernel_class == "both" else (arguments.kernel_class,)
    with tempfile.TemporaryDirectory(prefix="gpurt-oclgrind-") as folder:
        simulators = [Simulator(c, arguments.limit, folder) for c in classes]
        print("Seeded defects")
        if missed := self_test(simulators[0]):
            print(f"{missed} of {len(SEEDED)} did not end as they must: Oclgrind does not work here.")
            return 1
        if arguments.self_test:
            return 0

        of_op: dict[str, list[Any]] = {
            op: found for op, found in sorted(cases_of_operators().items()) if re.search(arguments.op, op)
        }
        for graph in graphs():
            if re.search(arguments.op, graph.kind):
                of_op.setdefault(graph.kind, []).append(graph)
        if not of_op:
            print(f"No operator's name matches {arguments.op}.")
            return 1
        tallies: dict[tuple[str, str], Tally] = {}
        for simulator in simulators:
            for op, found in of_op.items():
                tally = tallies[op, simulator.kernel_class] = Tally()
                small = [task for task in found if task.elements <= arguments.elements]
                if len(small) < len(found):
                    tally.skipped["larger"] = len(found) - len(small)
                if arguments.sample:
                    random.seed(op)
                    small = random.sample(small, min(arguments.sample, len(small)))
                for task in small:
                    examine(simulator, task, tally, verbose=arguments.verbose)
            simulator.stop()
    bad = report(tallies, classes)
    elsewhere = {("gpu", op) for op, _ in tallies if op.startswith(f"{LAST}.")}
    unseen = [f"{op} ({c})" for (op, c), tally in tallies.items() if not tally.ran and (c, op) not in elsewhere]
    if unseen:
        print(f"Operators of which no case ran: {', '.join(unseen)}. Add one to further() in oclgrind_cases.py.")
    print(f"{bad} cases with findings; {time.perf_counter() - start:.0f} s")
    return 1 if bad or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
