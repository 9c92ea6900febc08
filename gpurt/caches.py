"""Where gpurt keeps what it finds out once for all, and how it writes there: whole files or none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from gpurt.errors import InvalidArgument


def checked(name: str, value: Any, remedy: str = "Give a path") -> str | os.PathLike[str]:
    """The value of an option that is a path. Raises InvalidArgument, which names the option, where it cannot be one."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"{name} is {value!r}", remedy=remedy)
    return value  # type: ignore[no-any-return]


def checked_folder(value: Any) -> str | os.PathLike[str] | bool | None:
    """The value of the option cache_dir. Raises InvalidArgument where it is neither a path, a bool nor None."""
    if value is None or isinstance(value, bool):
        return value
    return checked("cache_dir", value, "Give a path, None for the user's cache folder, or False for none")


def folder(cache_dir: str | os.PathLike[str] | bool | None) -> Path | None:
    """The folder of all caches: the option, else GPURT_CACHE_DIR, else the user's cache folder; None for nowhere.

    Args:
        cache_dir: SessionOptions.cache_dir; False for nowhere, as is an empty GPURT_CACHE_DIR.

    Raises InvalidArgument where the option is none of these.
    """
    cache_dir = checked_folder(cache_dir)
    if cache_dir is False:
        return None
    if cache_dir is not None and cache_dir is not True:
        return Path(cache_dir)
    given = os.environ.get("GPURT_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None
    return Path(user_cache_dir("gpurt", appauthor=False))


def write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
