"""RunOptions: what holds for a single run; may be changed while it runs, for example to end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpurt.errors import InvalidArgument, Unsupported, suggest
from gpurt.options import check_integer, check_prefix

SHRINK: Final = "memory.enable_memory_arena_shrinkage"

CONFIG_KEYS: Final[Mapping[str, str]] = {
    SHRINK: 'devices whose arenas give unused memory back at the end of the run: "opencl:0;cuda:0"',
}
"""Keys of add_run_config_entry, with their meaning."""

# Keys of ONNX Runtime that gpurt has no use for: setting one must not be silent.
_NOT_HERE: Final = ("disable_synchronize_execution_providers", "gpu_graph_id")


class RunOptions:
    """Options of one call of InferenceSession.run; ONNX Runtime's names.

    Attributes:
        log_severity_level: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal; -1 (default): the session's.
        log_verbosity_level: under severity 0, how detailed (0 to 9).
        logid: a name for the run in log messages and profiles.
        terminate: set it to True, from any thread, and every run with these options ends at its next step with
            gpurt.Terminated. It stays set until it is set to False.
        enable_profiling: write a profile of this run alone, when it ends.
        profile_file_prefix: path and beginning of the profile's file name.
        profile_file: name of the last profile that was written; read only.
    """

    __slots__ = (
        "_entries",
        "enable_profiling",
        "log_severity_level",
        "log_verbosity_level",
        "logid",
        "profile_file",
        "profile_file_prefix",
        "terminate",
    )

    _entries: dict[str, str]
    enable_profiling: bool
    log_severity_level: int
    log_verbosity_level: int
    logid: str
    profile_file: str
    profile_file_prefix: str
    terminate: bool

    def __init__(self, **values: Any) -> None:
        defaults: Mapping[str, Any] = {
            "enable_profiling": False,
            "log_severity_level": -1,
            "log_verbosity_level": 0,
            "logid": "",
            "profile_file_prefix": "gpurt_profile",
            "terminate": False,
        }
        object.__setattr__(self, "_entries", {})
        object.__setattr__(self, "profile_file", "")
        for name, value in {**defaults, **values}.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        known = [n for n in self.__slots__ if n not in ("_entries", "profile_file")]
        if name == "only_execute_path_to_fetches":
            raise Unsupported(f"RunOptions.{name} is not supported yet", remedy="Leave it out")
        if name not in known:
            raise InvalidArgument(
                f"RunOptions has no option {name!r}{suggest(name, known)}", remedy=f"The options are {', '.join(known)}"
            )
        if name in ("terminate", "enable_profiling"):
            if not isinstance(value, bool):
                raise InvalidArgument(f"{name} is {value!r}", remedy="Give True or False")
        elif name == "profile_file_prefix":
            check_prefix(value)
        elif name == "logid":
            if not isinstance(value, str):
                raise InvalidArgument(f"{name} is {value!r}", remedy="Give a string")
        else:
            check_integer(name, value)
        object.__setattr__(self, name, value)

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Set one of CONFIG_KEYS. Raises InvalidArgument for others, NotImplemented for ONNX Runtime's others."""
        if key in _NOT_HERE:
            raise Unsupported(f"the run config entry {key!r} is not supported", remedy="Leave it out")
        if key not in CONFIG_KEYS:
            raise InvalidArgument(
                f"there is no run config entry {key!r}{suggest(str(key), CONFIG_KEYS)}",
                remedy=f"The entries are {', '.join(CONFIG_KEYS)}",
            )
        if not isinstance(value, str):
            raise InvalidArgument(f"the entry {key!r} is {value!r}", remedy="Give a string")
        self._entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """Value of an entry that was added. Raises InvalidArgument where it was not."""
        if key not in self._entries:
            raise InvalidArgument(
                f"no run config entry {key!r} was added{suggest(str(key), self._entries)}",
                remedy="Add it with add_run_config_entry",
            )
        return self._entries[key]

    def arenas_to_shrink(self) -> list[str]:
        """Names of the devices in the entry memory.enable_memory_arena_shrinkage."""
        return [name.strip() for name in self._entries.get(SHRINK, "").split(";") if name.strip()]

    def __repr__(self) -> str:
        names = [n for n in self.__slots__ if n != "_entries"]
        return f"RunOptions({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"
