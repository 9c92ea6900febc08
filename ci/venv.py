"""A virtual environment with gpurt installed, for the scripts of this folder.

`enter` is called first in each script. It imports the standard library only, because nothing else may be there yet.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
STAMP = "gpurt-installed.json"
JUST_INSTALLED = "GPURT_CI_JUST_INSTALLED"


def enter(extras: Sequence[str], also: Sequence[str] = (), no_deps: Sequence[str] = ()) -> None:
    """Returns inside a virtual environment that has this checkout with `extras`; restarts the script to get there.

    Where no environment is active, `.venv` of the checkout is made and used. The active one gets what it lacks. A stamp
    in the environment says what is there, so that the next start costs nothing.

    Args:
        extras: extras of gpurt's pyproject.toml.
        also: requirements to install besides.
        no_deps: requirements to install without their dependencies, and whatever Python they say they need.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs it has not installed gpurt yet
        stop(f"Python 3.11 or later is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    if sys.prefix == sys.base_prefix:
        restart(make(FOLDER))

    if os.environ.pop(JUST_INSTALLED, None):
        return
    stamp = Path(sys.prefix) / STAMP
    wanted = {f"[{extra}]" for extra in extras} | set(also) | {f"{name} --no-deps" for name in no_deps}
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    have = installed(stamp, digest)
    if have is not None and wanted <= have:
        return

    print(f"Installing gpurt[{','.join(sorted(extras))}] into {sys.prefix}", flush=True)
    pip(["install", "--editable", f"{ROOT}[{','.join(sorted(extras))}]", *also])
    if no_deps:
        pip(["install", "--no-deps", "--ignore-requires-python", *no_deps])
    stamp.write_text(json.dumps({"digest": digest, "has": sorted(wanted | (have or set()))}), encoding="utf-8")
    os.environ[JUST_INSTALLED] = "1"
    restart(Path(sys.executable))


def cuda_check() -> list[str]:
    """The extra `cuda-check`, unless the environment has a CuPy for something other than CUDA 12: two of them clash."""
    names = {(dist.metadata["Name"] or "").lower() for dist in importlib.metadata.distributions()}
    return [] if any(name.startswith("cupy") and name != "cupy-cuda12x" for name in names) else ["cuda-check"]


def installed(stamp: Path, digest: str) -> set[str] | None:
    """What the stamp lists, or None where it is missing, out of date, or the gpurt here is not this checkout's."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
        origin = importlib.metadata.distribution("gpurt").read_text("direct_url.json") or "{}"
    except (OSError, ValueError, importlib.metadata.PackageNotFoundError):
        return None
    if found.get("digest") != digest or json.loads(origin).get("url") != ROOT.as_uri():
        return None
    return set(found["has"])


def make(folder: Path) -> Path:
    """Makes the environment where it is missing, broken or of another Python; returns its interpreter."""
    python = interpreter(folder)
    if python.exists():
        command = [str(python), "-c", "import sys; print(sys.version)"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            answer = None
        if answer is not None and answer.returncode == 0 and answer.stdout.strip() == sys.version.strip():
            return python
    missing = [module for module in ("venv", "ensurepip") if importlib.util.find_spec(module) is None]
    if missing:
        stop(
            f"{sys.executable} cannot make a virtual environment: its module {missing[0]} is missing.\n"
            "On Debian and Ubuntu: apt install python3-venv. Or activate an environment of your own and run this again."
        )
    print(f"Making the virtual environment {folder}", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(f"Making the virtual environment failed:\n{done.stdout}{done.stderr}")
    return python


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(arguments: Sequence[str], python: str | Path = sys.executable) -> None:
    """Runs pip, says in a line each what it downloads and installs, and shows its whole output only where it fails."""
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "ensurepip", "--default-pip"], capture_output=True, check=False)
    flags = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", *arguments, *flags]
    log: list[str] = []
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    with process, Clock(start):
        for line in process.stdout or ():
            log.append(line)
            if short := condensed(line):
                print(f"\r{time.perf_counter() - start:6.1f} s  {short}", flush=True)
    if process.returncode:
        stop(f"{''.join(log[-60:])}\npip failed (its last lines are above): {' '.join(command)}")


def condensed(line: str) -> str | None:
    """The few lines of pip's output that tell how far it is, in short."""
    line = line.strip()
    if found := re.match(r"(?:Downloading|Using cached) (\S+)(?: (\(.*\)))?", line):
        name = found[1].rsplit("/", 1)[-1]
        return None if name.endswith(".metadata") else f"{line.split()[0].lower()} {name} {found[2] or ''}".rstrip()
    if line.startswith("Installing collected packages:"):
        return f"packages to install: {line.count(',') + 1}"
    if line.startswith(("Preparing editable metadata", "Building editable")) and line.endswith("started"):
        return line.removesuffix(": started").lower()
    return None


class Clock:
    """Shows on a terminal that time passes, for large downloads take a while; prints nothing elsewhere."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.tick, daemon=True)

    def __enter__(self) -> None:
        if sys.stdout.isatty():
            self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.done.set()

    def tick(self) -> None:
        while not self.done.wait(0.5):
            print(f"\r{time.perf_counter() - self.start:6.1f} s  ", end="", flush=True)


def restart(python: Path) -> NoReturn:
    """Runs this script from its beginning with another interpreter, in place of this process where the system can."""
    command = [str(python), *sys.orig_argv[1:]]
    sys.stdout.flush()
    if os.name == "nt":
        sys.exit(subprocess.run(command, check=False).returncode)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def stop(message: str) -> NoReturn:
    """Ends the script with a message and status 1."""
    sys.exit(message)
