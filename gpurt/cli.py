"""The command line: what can be used here (doctor), what runs where and why (explain), how it runs (run, profile)."""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpurt import __version__
from gpurt.cli_ops import ops
from gpurt.cli_profile import report
from gpurt.cli_tune import tune_report
from gpurt.errors import GpurtError

PACKAGES: Final = ("numpy", "onnx", "onnx-ir", "ml_dtypes", "pyopencl", "pocl-binary-distribution", "intel-opencl-rt")


class _Commands(click.Group):
    """Commands whose errors are a message and exit status 1, without a traceback."""

    expected: ClassVar[tuple[type[Exception], ...]] = (GpurtError, OSError)

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            try:
                return super().invoke(ctx)
            except self.expected as e:
                _tell("[bold red]error:[/]", e)
                ctx.exit(1)


def _tell(label: str, what: object) -> None:
    Console(stderr=True).print(f"{label} {escape(str(what))}", highlight=False, soft_wrap=True)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of Python's own form, which shows the line of gpurt's code that warned."""
    _tell("[yellow]warning:[/]", message)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpurt")
def main() -> None:
    """An ONNX runtime that puts the GPU first."""


main.add_command(ops)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say for each installed provider which devices it has, or why it cannot be used and what to do about it."""
    from gpurt import registry

    found = registry.statuses()
    notes = {s.name: _notes(s.name) for s in found}
    if as_json:
        providers = [
            {
                "name": s.name,
                "usable": s.usable,
                "devices": [{"name": d.name, "description": d.description, "kind": d.kind} for d in s.devices],
                "reason": s.reason,
                "remedy": s.remedy,
                "distribution": s.distribution,
                "notes": notes[s.name],
            }
            for s in found
        ]
        click.echo(json.dumps({"version": 1, "versions": versions(), "providers": providers}, indent=2))
        return
    console = _console()
    table = Table("provider", "", "devices, or why not", box=None, pad_edge=False)
    for status in found:
        lines = [f"{escape(d.name)}  {escape(d.description)}" for d in status.devices]
        if not status.usable:
            lines = [escape(status.reason), f"[bold]{escape(status.remedy)}[/]"]
        lines += [f"[yellow]note:[/] {escape(note)}" for note in notes[status.name]]
        mark = "[green]usable[/]" if status.usable else "[red]not usable[/]"
        table.add_row(f"[bold]{escape(status.name)}[/]", mark, "\n".join(line for line in lines if line))
    console.print(table)
    console.print(", ".join(f"{name} {v}" for name, v in versions().items()), highlight=False)


def _providers(command: Callable[..., None]) -> Callable[..., None]:
    """The option --providers, read into a list or None."""

    @click.option("--providers", metavar="A,B", help="Priority order, for example opencl:1,cpu. Default: all usable.")
    @wraps(command)
    def with_option(*args: Any, providers: str | None, **kwargs: Any) -> None:
        listed = None if providers is None else [p.strip() for p in providers.split(",") if p.strip()]
        command(*args, providers=listed, **kwargs)

    return with_option


_SHAPES = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input; may be repeated."
)
_MODEL = click.argument("model", type=click.Path(path_type=Path))


@main.command()
@_MODEL
@_providers
@_SHAPES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(model: Path, providers: Sequence[str] | None, shapes: Sequence[str], as_json: bool) -> None:
    """Decide for each node of MODEL who would run it, and say who refused it and why; nothing is compiled.

    Copies, run times and memory are predicted for the shapes that are given, or for assumed ones.
    """
    import gpurt

    session = gpurt.InferenceSession(model, providers=providers, dry_run=True, expected_shapes=parse_shapes(shapes))
    explanation = session.explain()
    click.echo(json.dumps(explanation.to_dict(), indent=2) if as_json else str(explanation))


@main.command()
@_MODEL
@_providers
@_SHAPES
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs; the first one also plans.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random inputs.")
def run(model: Path, providers: Sequence[str] | None, shapes: Sequence[str], repeat: int, seed: int) -> None:
    """Run MODEL on random inputs, and print the outputs' shapes and the times."""
    import gpurt

    start = time.perf_counter()
    session = gpurt.InferenceSession(model, providers=providers)
    created = time.perf_counter() - start
    given = parse_shapes(shapes, [i.name for i in session.get_inputs()])
    feeds = {i.name: random_input(i, given.get(i.name), seed) for i in session.get_inputs()}
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        outputs = session.run(None, feeds)
        times.append(time.perf_counter() - start)
    console = _console()
    table = Table("", "name", "value", box=None, pad_edge=False)
    for name, value in feeds.items():
        table.add_row("input", escape(name), escape(describe(value)))
    for info, value in zip(session.get_outputs(), outputs, strict=True):
        table.add_row("output", escape(info.name), escape(describe(value)))
    console.print(table)
    rest = f", then {1e3 * min(times[1:]):.2f} ms at best" if times[1:] else ""
    console.print(f"session {1e3 * created:.1f} ms, first run {1e3 * times[0]:.1f} ms{rest}", highlight=False)


@main.command()
@_MODEL
@_providers
@_SHAPES
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs after the one that plans.")
@click.option("--output", metavar="PREFIX", default=None, help="Beginning of the trace's file name.")
@click.option("--top", default=15, show_default=True, type=click.IntRange(1), help="Rows of each table.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random inputs.")
def profile(
    model: Path,
    providers: Sequence[str] | None,
    shapes: Sequence[str],
    runs: int,
    output: str | None,
    top: int,
    seed: int,
) -> None:
    """Run MODEL on random inputs, write a trace for Perfetto, and print where the time went."""
    import gpurt

    options = gpurt.SessionOptions(enable_profiling=True, profile_file_prefix=output or f"{model.stem}_profile")
    session = gpurt.InferenceSession(model, options, providers=providers)
    given = parse_shapes(shapes, [i.name for i in session.get_inputs()])
    feeds = {i.name: random_input(i, given.get(i.name), seed) for i in session.get_inputs()}
    for _ in range(runs + 1):
        session.run(None, feeds)
    report(session.end_profiling(), skip=1, top=top)


@main.command()
@_MODEL
@_providers
@_SHAPES
@click.option("--budget", default=300.0, show_default=True, type=click.FloatRange(0), help="Seconds for measuring.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the devices' choices to a file, for shipping.",
)
@click.option("--input", "given", type=click.Path(path_type=Path), help="A file of this kind to begin with.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random inputs.")
def tune(
    model: Path,
    providers: Sequence[str] | None,
    shapes: Sequence[str],
    budget: float,
    output: Path | None,
    given: Path | None,
    seed: int,
) -> None:
    """Measure the parameters of MODEL's kernels on the devices, and keep the best for later sessions.

    Every winner's result is verified. Sessions take what is kept with SessionOptions.tuning "cached", the default; a
    file of --output goes with an application and is given as SessionOptions.tuning_file.
    """
    import gpurt

    options = gpurt.SessionOptions(tuning="online", tuning_budget=budget, tuning_file=given)
    session = gpurt.InferenceSession(model, options, providers=providers)
    wanted = parse_shapes(shapes, [i.name for i in session.get_inputs()])
    feeds = {i.name: random_input(i, wanted.get(i.name), seed) for i in session.get_inputs()}
    session.run(None, feeds)
    tune_report(session, output)


@main.command()
@_MODEL
@click.argument("target", type=click.Path(path_type=Path))
@_providers
@click.option("--level", default="extended", show_default=True, help="basic or extended.")
@click.option("--opset", default=26, show_default=True, help="Version of ONNX's operators in the file.")
@click.option("--external-data", is_flag=True, help="Write weights to a file of their own, TARGET.data.")
def optimize(
    model: Path, target: Path, providers: Sequence[str] | None, level: str, opset: int, external_data: bool
) -> None:
    """Optimize MODEL and write it to TARGET, as ONNX that gpurt and ONNX Runtime load.

    Operators are fused where one of the providers (cpu unless given) has the fused kernel. What depends on a device,
    layouts among it, is done when TARGET is loaded.
    """
    from gpurt.session.offline import optimize_file

    made = optimize_file(
        model, target, level=level, opset=opset, providers=providers or ("cpu",), external_data=external_data
    )
    files = ", ".join(map(str, made.files))
    Console().print(
        f"{made.before} nodes became {made.after}: {escape(files)}", highlight=False, soft_wrap=True
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, gpurt and the packages it builds on, as far as they are installed."""
    found = {"python": platform.python_version(), "gpurt": __version__}
    for name in (*PACKAGES, "cupy-cuda12x", "cupy-cuda13x", "cupy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def parse_shapes(texts: Sequence[str], names: Sequence[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Read ``name=1,3,224,224``; ``name=`` is a scalar. Raises InvalidArgument, also for names that are not there."""
    from gpurt.errors import InvalidArgument, suggest

    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        try:
            shape = tuple(int(s) for s in sizes.split(",") if s.strip())
        except ValueError:
            shape = (-1,)
        if not separator or any(n < 0 for n in shape):
            raise InvalidArgument(f"--shape is {text!r}", remedy="Write it as name=1,3,224,224")
        if names is not None and name not in names:
            raise InvalidArgument(
                f"no input is called {name!r}{suggest(name, names)}", remedy=f"Inputs: {', '.join(names)}"
            )
        found[name] = shape
    return found


def random_input(info: Any, shape: tuple[int, ...] | None, seed: int) -> Any:
    """A tensor for an input: floats of a normal distribution, integers 0 and 1, texts; free dimensions are 1.

    Args:
        info: gpurt.NodeArg.
        shape: in place of the model's, which must not contradict it.
        seed: makes it repeatable.

    Raises InvalidArgument for inputs that are no tensors, that are too large, or whose rank is neither known nor given.
    """
    import numpy as np

    from gpurt.dtypes import from_name, is_float
    from gpurt.errors import InvalidArgument

    if not info.type.startswith("tensor("):
        raise InvalidArgument(
            f"input {info.name!r} is a {info.type}", remedy="gpurt run makes tensors only: use Python"
        )
    if shape is None:
        if info.shape is None:
            raise InvalidArgument(
                f"the rank of input {info.name!r} is not known", remedy=f"Add --shape {info.name}=..."
            )
        shape = tuple(n if isinstance(n, int) else 1 for n in info.shape)
    dtype = from_name(info.type.removeprefix("tensor(").removesuffix(")"))
    rng = np.random.default_rng(seed)
    try:
        if dtype == np.dtype(object):
            return np.full(shape, "text", dtype=object)
        if is_float(dtype) or dtype.kind == "c":
            return rng.standard_normal(shape).astype(np.float32).astype(dtype)
        return rng.integers(0, 2, shape).astype(dtype)
    except (MemoryError, ValueError, OverflowError) as e:  # NumPy's, for arrays that it cannot even count
        raise InvalidArgument(
            f"input {info.name!r} cannot be made of shape {list(shape)}: {e}", remedy="Give a smaller --shape"
        ) from e


def describe(value: Any) -> str:
    """Type and shape of a value, for people."""
    if isinstance(value, list):
        return f"list of {len(value)}" + (f": {describe(value[0])}" if value else "")
    if isinstance(value, Mapping):
        return f"map of {len(value)}"
    if value is None:
        return "absent"
    return f"{value.dtype}{list(value.shape)}"


def _notes(name: str) -> list[str]:
    """What a provider's class says besides its devices, if it has a class method `notes`."""
    from gpurt import registry

    try:
        notes = getattr(registry.provider_class(name), "notes", None)
        return [] if notes is None else list(notes())
    except Exception:  # noqa: BLE001 - a note that cannot be had must not hide the rest
        return []


def _console() -> Console:
    """On a terminal its width, else wide enough that no line of a table is broken."""
    return Console(width=None if sys.stdout.isatty() else 240)


if __name__ == "__main__":
    main()
