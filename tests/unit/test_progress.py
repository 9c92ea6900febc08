"""What is said while programs are compiled: a line after two seconds, on a terminal; the log in any case."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from gpurt import logs
from gpurt.device.progress import PATIENCE, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(monkeypatch, stream, seconds: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = Progress("opencl:0")
    progress.seconds, progress.built = seconds, 7
    with progress.compiling("Conv[x]"):
        pass
    assert progress.built == 8
    return stream.getvalue()


def test_a_line_appears_when_compiling_takes_long(monkeypatch):
    text = told(monkeypatch, Terminal(), PATIENCE)
    assert "compiling kernels, 7 done in 2 s, now Conv[x]" in text


def test_nothing_appears_before(monkeypatch):
    assert told(monkeypatch, Terminal(), PATIENCE - 0.1) == ""


def test_nothing_appears_off_a_terminal(monkeypatch):
    assert told(monkeypatch, io.StringIO(), 60) == ""


def test_nothing_appears_for_those_who_want_no_messages(monkeypatch):
    with logs.scope(logs.Scope(severity=3)):
        assert told(monkeypatch, Terminal(), 60) == ""


def test_the_log_says_what_was_compiled(caplog):
    progress = Progress("opencl:0")
    with caplog.at_level(logging.INFO, "gpurt"), progress.compiling("Conv"):
        pass
    assert "opencl:0: kernel for Conv compiled in" in caplog.text
    assert "1 programs" in caplog.text


def test_what_fails_is_not_counted():
    progress = Progress("opencl:0")
    with pytest.raises(RuntimeError), progress.compiling("Conv"):
        raise RuntimeError
    assert progress.built == 0
