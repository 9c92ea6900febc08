"""Compiled programs on disk: what comes back, what is thrown away, and that nothing of it stops a session."""

from __future__ import annotations

import logging
import os

import pytest

from gpurt import caches
from gpurt.device.binaries import Binaries, binaries_for


class Compiler:
    """A driver whose programs are their texts, and whose binaries are these backwards."""

    def __init__(self, about: str = "device 1") -> None:
        self.about, self.refuses, self.gives = about, False, True

    def portability(self) -> str:
        return self.about

    def binary(self, program: str) -> bytes | None:
        return program[::-1].encode() if self.gives else None

    def load(self, binary: bytes, name: str) -> str:
        if self.refuses:
            raise RuntimeError(f"{name}: not of this device")
        return binary.decode()[::-1]


@pytest.fixture
def driver() -> Compiler:
    return Compiler()


def files(folder):
    return sorted((folder / "programs").iterdir())


def test_a_program_is_found_again(driver, tmp_path):
    kept = Binaries(driver, tmp_path)
    assert kept.load("text", "relu") is None
    kept.keep("text", "text")
    again = Binaries(driver, tmp_path)
    assert again.load("text", "relu") == "text"
    assert again.load("other", "relu") is None
    assert (kept.hits, kept.misses, again.hits, again.misses) == (0, 1, 1, 1)


def test_another_device_or_driver_has_programs_of_its_own(driver, tmp_path):
    Binaries(driver, tmp_path).keep("text", "text")
    assert Binaries(Compiler("device 2"), tmp_path).load("text", "relu") is None


def test_a_damaged_file_is_taken_away(driver, tmp_path, caplog):
    kept = Binaries(driver, tmp_path)
    kept.keep("text", "text")
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "gpurt"):
        assert kept.load("text", "relu") is None
    assert "damaged" in caplog.text
    assert str(path) in caplog.text
    assert files(tmp_path) == []


def test_what_the_driver_refuses_is_taken_away(driver, tmp_path, caplog):
    kept = Binaries(driver, tmp_path)
    kept.keep("text", "text")
    driver.refuses = True
    with caplog.at_level(logging.WARNING, "gpurt"):
        assert kept.load("text", "relu") is None
    assert "not of this device" in caplog.text
    assert files(tmp_path) == []


def test_what_was_not_used_for_longest_goes(driver, tmp_path):
    kept = Binaries(driver, tmp_path, limit=4 * (16 + 6))
    for number in range(4):
        kept.keep(f"text-{number}", f"text-{number}"[:6])
        for age, path in enumerate(sorted(files(tmp_path), key=os.path.getmtime, reverse=True)):
            os.utime(path, (1000 - age, 1000 - age))
    assert kept.load("text-0", "relu") is not None  # and is the youngest now
    kept.keep("text-4", "text-4")
    assert [n for n in range(5) if Binaries(driver, tmp_path).load(f"text-{n}", "relu")] == [0, 3, 4]


def test_a_folder_that_cannot_be_written_stops_nothing(driver, tmp_path, caplog):
    (tmp_path / "programs").write_text("a file where a folder should be")
    kept = Binaries(driver, tmp_path)
    with caplog.at_level(logging.INFO, "gpurt"):
        kept.keep("text", "text")
    assert "cannot be kept" in caplog.text
    assert kept.load("text", "relu") is None


def test_a_driver_that_gives_no_binary_keeps_none(driver, tmp_path):
    driver.gives = False
    Binaries(driver, tmp_path).keep("text", "text")
    assert not (tmp_path / "programs").exists()


def test_where_programs_are_kept(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("GPURT_CACHE_DIR", str(tmp_path))
    assert binaries_for(driver, None) is not None
    assert binaries_for(driver, False) is None
    assert binaries_for(object(), None) is None
    monkeypatch.setenv("GPURT_CACHE_DIR", "")
    assert binaries_for(driver, None) is None
    assert caches.folder(tmp_path / "mine") == tmp_path / "mine"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    caches.write(tmp_path / "a" / "b", b"old")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        caches.write(tmp_path / "a" / "b", b"new")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").read_bytes() == b"old"
