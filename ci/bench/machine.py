"""What the benchmarks say of the machine: its processor, and how much of it other processes took."""

from __future__ import annotations

import os
import pathlib
import platform
from typing import NamedTuple


class Busy(NamedTuple):
    """Seconds since the machine's start: of all processors, of those in work, and of this process's family."""

    total: float
    used: float
    own: float

    def others(self, later: Busy) -> float:
        """The share of the machine that other processes took from here to a later moment; 0 where nothing tells."""
        total = later.total - self.total
        if total <= 0:
            return 0.0
        return max((later.used - self.used) - (later.own - self.own), 0.0) / total


def busy() -> Busy:
    """Where the processors' time has gone so far, by /proc; processes that this one has started are its own."""
    try:
        ticks = [int(v) for v in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return Busy(0.0, 0.0, 0.0)
    rate = os.sysconf("SC_CLK_TCK")
    own = 0.0
    family = {os.getpid()}
    for entry in sorted(pathlib.Path("/proc").glob("[0-9]*/stat"), key=lambda p: int(p.parent.name)):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid, parent = int(entry.parent.name), int(fields[1])
        if pid in family or parent in family:
            family.add(pid)
            own += (int(fields[11]) + int(fields[12])) / rate
    return Busy(sum(ticks) / rate, (sum(ticks) - ticks[3] - ticks[4]) / rate, own)


def describe() -> str:
    """Processor, number of cores and system."""
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
