"""Logging under ``gpurt.*`` with ONNX Runtime's severities, for each session and each run on its own.

A module logs with ``logger = logs.get(__name__)``. While a session is created or runs, its severity decides which
messages of this thread are shown, whatever module they come from; other sessions and other threads keep theirs. The
rest is Python's logging: handlers, filters and levels of the loggers ``gpurt.*`` are the application's to set.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final

from gpurt.errors import InvalidArgument
from gpurt.run_options import RunOptions

SEVERITIES: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
"""Python's levels for ONNX Runtime's severities 0 verbose, 1 info, 2 warning, 3 error, 4 fatal."""

_LETTERS: Final = dict(zip(SEVERITIES, "VIWEF", strict=True))


@dataclass(frozen=True, slots=True)
class Scope:
    """What holds while a session is created or runs.

    Attributes:
        severity: 0 to 4; -1 leaves it to the logger ``gpurt``.
        verbosity: under severity 0, messages of Logger.verbose are shown up to this number.
        name: of the session or run, in front of its messages.
    """

    severity: int = -1
    verbosity: int = 0
    name: str = ""

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.severity >= 0 or bool(self.name)

    @property
    def level(self) -> int:
        """The least of Python's levels that is shown; -1 leaves it to the logger."""
        if self.severity < 0:
            return -1
        return SEVERITIES[min(self.severity, 4)] - (min(self.verbosity, 9) if self.severity == 0 else 0)

    def of_run(self, options: RunOptions) -> Scope:
        """The scope of a run with these options in a session with this one."""
        name = "/".join(n for n in (self.name, options.logid) if n)
        if options.log_severity_level < 0:
            return replace(self, name=name)
        return Scope(options.log_severity_level, options.log_verbosity_level, name)


_scope: ContextVar[Scope | None] = ContextVar("gpurt_log_scope", default=None)


@contextmanager
def scope(entered: Scope) -> Iterator[None]:
    """Messages of this thread follow `entered`."""
    token = _scope.set(entered)
    try:
        yield
    finally:
        _scope.reset(token)


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A module's logger that follows the scope."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Whether a message of this level would be shown here and now."""
        current = _scope.get()
        least = -1 if current is None else current.level
        return self.logger.isEnabledFor(level) if least < 0 else level >= least

    def verbose(self, detail: int, message: str, *args: Any) -> None:
        """A message for log_severity_level 0 and a log_verbosity_level of at least `detail` (0 to 9)."""
        self.log(logging.DEBUG - detail, message, *args)

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """As logging.Logger.log, with the scope's name in front."""
        if not self.isEnabledFor(level):
            return
        current = _scope.get()
        if current is not None and current.name:
            msg = f"[%s] {msg if args else str(msg).replace('%', '%%')}"
            args = (current.name, *args)
        base = self.logger
        extra, info = kwargs.get("extra"), kwargs.get("exc_info")
        if info and not isinstance(info, tuple):
            info = (type(info), info, info.__traceback__) if isinstance(info, BaseException) else sys.exc_info()
        record = base.makeRecord(base.name, level, "", 0, msg, args, info, extra=extra)
        # A severity that was asked for is shown even where the application has set up no logging at all.
        (base if base.hasHandlers() else _STDERR).handle(record)


class _Stderr(logging.Handler):
    """Writes to whatever sys.stderr is at the time, in ONNX Runtime's form."""

    def emit(self, record: logging.LogRecord) -> None:
        record.letter = _LETTERS.get(record.levelno, "V")
        sys.stderr.write(self.format(record) + "\n")


_STDERR: Final = _Stderr()
_STDERR.setFormatter(logging.Formatter("%(asctime)s [%(letter)s:%(name)s] %(message)s"))


def get(name: str) -> Logger:
    """The logger of a module."""
    return Logger(logging.getLogger(name), {})


def set_default_logger_severity(level: int) -> None:
    """Set the severity of all that states none of its own: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal.

    Raises InvalidArgument for other values.
    """
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 4:
        raise InvalidArgument(f"the severity is {level!r}", remedy="Give 0 (verbose) to 4 (fatal)")
    logging.getLogger("gpurt").setLevel(SEVERITIES[level])
