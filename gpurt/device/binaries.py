"""Compiled programs on disk, so that the next process compiles nothing: one file a program, named by all it depends on.

A file begins with the digest of its content. One that does not match, or that the driver refuses, is taken away and the
program is built again; nothing that goes wrong here stops a session.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any, Final

from gpurt import caches, logs
from gpurt.device.driver import Driver, PortableDriver

logger = logs.get(__name__)

VERSION: Final = 1
LIMIT: Final = 512 << 20
"""Bytes of all files; beyond it those go that were not used for longest, down to three quarters."""

_DIGEST: Final = 16
_LOCK = threading.Lock()


class Binaries:
    """The compiled programs of one device in a folder.

    Args:
        driver: of the device.
        folder: of all caches; the files lie in ``programs`` there.
        limit: bytes that all files of the folder may have.

    Attributes:
        hits, misses: programs that were there and that were not.
    """

    def __init__(self, driver: PortableDriver, folder: Path, limit: int = LIMIT) -> None:
        self._driver, self._folder, self._limit = driver, folder / "programs", limit
        self._about = f"{VERSION} {driver.portability()}".encode()
        self.hits = self.misses = 0

    def load(self, text: str, name: str) -> Any | None:
        """The program with this text, if it was kept."""
        path = self._path(text)
        try:
            content = path.read_bytes()
        except OSError:
            self.misses += 1
            return None
        try:
            digest, binary = content[:_DIGEST], content[_DIGEST:]
            if _digest(binary) != digest:
                raise ValueError("it is damaged")
            program = self._driver.load(binary, name)
            os.utime(path)  # it was used
        except Exception as e:  # noqa: BLE001 - whatever a driver has against it, the program can be built again
            logger.warning("%s is no use: %s; %s is built again", path, e, name)
            path.unlink(missing_ok=True)
            self.misses += 1
            return None
        self.hits += 1
        return program

    def keep(self, text: str, program: Any) -> None:
        """Write a program that was built."""
        path = self._path(text)
        try:
            binary = self._driver.binary(program)
            if binary is None:
                return
            caches.write(path, _digest(binary) + binary)
            self._trim()
        except OSError as e:
            logger.info("compiled programs cannot be kept in %s: %s", self._folder, e)

    def _path(self, text: str) -> Path:
        return self._folder / f"{_digest(self._about + bytes(1) + text.encode()).hex()}.bin"

    def _trim(self) -> None:
        with _LOCK:
            files = []
            for entry in os.scandir(self._folder):
                try:
                    files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
                except FileNotFoundError:
                    continue
            total = sum(size for _, size, _ in files)
            if total <= self._limit:
                return
            for _, size, path in sorted(files):
                Path(path).unlink(missing_ok=True)
                total -= size
                if total <= self._limit * 3 // 4:
                    break


def binaries_for(driver: Driver, cache_dir: Any) -> Binaries | None:
    """Where the programs of a device are kept; None if the driver cannot, or nothing shall be kept."""
    folder = caches.folder(cache_dir)
    if folder is None or not isinstance(driver, PortableDriver):
        return None
    return Binaries(driver, folder)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
