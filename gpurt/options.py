"""SessionOptions: every knob with its type, default and meaning; misspelt names are refused."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

from gpurt import caches
from gpurt.errors import InvalidArgument, Unsupported, suggest


class GraphOptimizationLevel(IntEnum):
    """How much the graph is optimized; ONNX Runtime's names and numbers."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


_LEVELS: Final = {
    "disable_all": GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class ExecutionMode(IntEnum):
    """Whether a run's steps are done one after the other or by several threads; ONNX Runtime's names and numbers."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


_MODES: Final = {"sequential": ExecutionMode.ORT_SEQUENTIAL, "parallel": ExecutionMode.ORT_PARALLEL}

_PARTITIONING: Final = ("cost", "greedy")

TUNING: Final = ("off", "cached", "online")
"""Where the parameters of devices' kernels are from; see SessionOptions.tuning."""

# Options of ONNX Runtime that users may reach for and gpurt does not have yet; setting one must not be silent.
_NOT_YET: Final = {
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "enable_mem_reuse",
    "execution_order",
    "use_deterministic_compute",
}


# Integer options, with their least and largest value.
_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "inter_op_num_threads": (0, 2**31 - 1),
    "intra_op_num_threads": (0, 2**31 - 1),
    "log_severity_level": (-1, 4),
    "log_verbosity_level": (0, 2**31 - 1),
    "plan_cache_bytes": (0, 2**63 - 1),
    "plan_cache_size": (1, 2**31 - 1),
}


def check_integer(name: str, value: Any) -> None:
    """Refuse what is no integer in the range of an option. Raises InvalidArgument."""
    low, high = _RANGES[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"{name} is {value!r}", remedy=f"Give an integer from {low} to {high}")


def check_prefix(value: Any) -> None:
    """Refuse what cannot begin a file's name; an empty text can. Raises InvalidArgument."""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgument(f"profile_file_prefix is {value!r}", remedy="Give a string")


def _items(name: str, value: Any) -> tuple[Any, ...]:
    """What is in a list; texts, also of bytes, are none. Raises InvalidArgument."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidArgument(f"{name} is {value!r}", remedy="Give a list")
    return tuple(value)


def _number(value: Any) -> int:
    """An integer, of Python's or NumPy's. Raises TypeError, for True and False too."""
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)


def _mode(value: Any) -> ExecutionMode:
    remedy = f"Use one of {', '.join(_MODES)}, or 0, 1"
    if isinstance(value, str):
        if value.lower() not in _MODES:
            raise InvalidArgument(f"execution_mode is {value!r}{suggest(value, _MODES)}", remedy=remedy)
        return _MODES[value.lower()]
    try:
        return ExecutionMode(_number(value))
    except (TypeError, ValueError) as e:
        raise InvalidArgument(f"execution_mode is {value!r}", remedy=remedy) from e


def _level(value: Any) -> GraphOptimizationLevel:
    if isinstance(value, str):
        if value.lower() not in _LEVELS:
            raise InvalidArgument(
                f"graph_optimization_level is {value!r}{suggest(value, _LEVELS)}",
                remedy=f"Use one of {', '.join(_LEVELS)}",
            )
        return _LEVELS[value.lower()]
    try:
        return GraphOptimizationLevel(_number(value))
    except (TypeError, ValueError) as e:
        raise InvalidArgument(
            f"graph_optimization_level is {value!r}", remedy=f"Use one of {', '.join(_LEVELS)}, or 0, 1, 2, 3, 99"
        ) from e


class SessionOptions:
    """Options of an InferenceSession.

    Attributes:
        graph_optimization_level: GraphOptimizationLevel, its number or its name. Default all.
        disabled_optimizers: names of optimizations that shall not run, global ones and rules; see gpurt.optimizer.
        tuning: ``off``: kernels' parameters are heuristics'. ``cached``, the default: what was measured on the device
            before, or on one like it, where a table knows the sizes or near ones. ``online``: the first plan for a
            shape measures what no table knows, verifies the winners and keeps them for later sessions.
        tuning_budget: seconds that measuring may take under ``online``; what comes later keeps its heuristics.
        tuning_file: a file that ``gpurt tune --output`` wrote, shipped with an application; asked after the cache.
        transformers: optimizations added with :meth:`add_transformer`.
        partitioning: ``greedy``: the first provider in the list that can run a node takes it (ONNX Runtime's way).
            ``cost``, the default: the placement whose estimated work and copies take least; the list's order is a
            preference.
        pins: where nodes must run: a node's name, ``meta:key=value``, a pattern over names, or ``op:Conv``, each to a
            device of the session (``"opencl:1"``, ``"cpu"``); in this order they win over one another.
        strict: an unusable provider in the list, or a node that falls to the appended cpu, is an error. Default False.
        cache_dir: folder for caches; None for the user's cache folder, False for none.
        execution_mode: ExecutionMode, its number or its name. ``sequential``, the default: a run's steps follow one
            another on the thread that calls it. ``parallel``: where a plan's estimated time falls by it, what does not
            depend on one another goes to several threads: devices beside the host and beside one another, and branches
            of ``cpu``. Values are the same; docs/threads.md.
        inter_op_num_threads: threads of a run under ``parallel``, the one that calls it included; 1 is ``sequential``,
            0 one for each device and for ``cpu`` as many as branches, at most as cores.
        intra_op_num_threads: threads of NumPy's BLAS, for the whole process, and of OpenCL devices that are CPUs, for
            this session; 0 leaves them as they are.
        plan_cache_size: most plans kept for each point where a plan can begin; the least recently used goes first.
        plan_cache_bytes: device memory that all plans may hold together; beyond it the least recently used go. Default
            2 GiB; 0 for no limit. The plan that runs stays, however large.
        log_severity_level: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal, for this session alone; -1 leaves it to
            gpurt.set_default_logger_severity and the application's logging.
        log_verbosity_level: under severity 0, how detailed (0 to 9).
        logid: a name for the session in log messages.
        optimized_model_filepath: a file to write the optimized model to, up to level extended; "" for none.
        enable_profiling: note what is done and when, until InferenceSession.end_profiling.
        profile_file_prefix: path and beginning of the profile's file name.
    """

    __slots__ = (
        "cache_dir",
        "disabled_optimizers",
        "enable_profiling",
        "execution_mode",
        "graph_optimization_level",
        "inter_op_num_threads",
        "intra_op_num_threads",
        "log_severity_level",
        "log_verbosity_level",
        "logid",
        "optimized_model_filepath",
        "partitioning",
        "pins",
        "plan_cache_bytes",
        "plan_cache_size",
        "profile_file_prefix",
        "strict",
        "transformers",
        "tuning",
        "tuning_budget",
        "tuning_file",
    )

    cache_dir: str | os.PathLike[str] | bool | None
    disabled_optimizers: Sequence[str]
    enable_profiling: bool
    execution_mode: ExecutionMode
    graph_optimization_level: GraphOptimizationLevel
    inter_op_num_threads: int
    intra_op_num_threads: int
    log_severity_level: int
    log_verbosity_level: int
    logid: str
    optimized_model_filepath: str | os.PathLike[str]
    partitioning: str
    pins: Mapping[str, str]
    plan_cache_bytes: int
    plan_cache_size: int
    profile_file_prefix: str
    strict: bool
    transformers: Sequence[Any]
    tuning: str
    tuning_budget: float
    tuning_file: str | os.PathLike[str] | None

    def __init__(self, **values: Any) -> None:
        defaults: Mapping[str, Any] = {
            "cache_dir": None,
            "disabled_optimizers": (),
            "enable_profiling": False,
            "execution_mode": ExecutionMode.ORT_SEQUENTIAL,
            "graph_optimization_level": GraphOptimizationLevel.ORT_ENABLE_ALL,
            "inter_op_num_threads": 0,
            "intra_op_num_threads": 0,
            "log_severity_level": -1,
            "log_verbosity_level": 0,
            "logid": "",
            "optimized_model_filepath": "",
            "partitioning": "cost",
            "pins": {},
            "plan_cache_bytes": 2 << 30,
            "plan_cache_size": 32,
            "profile_file_prefix": "gpurt_profile",
            "strict": False,
            "transformers": (),
            "tuning": "cached",
            "tuning_budget": 30.0,
            "tuning_file": None,
        }
        for name, value in {**defaults, **values}.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NOT_YET:
            raise Unsupported(f"SessionOptions.{name} is not supported yet", remedy="Leave it at its default")
        if name not in self.__slots__:
            raise InvalidArgument(
                f"SessionOptions has no option {name!r}{suggest(name, self.__slots__)}",
                remedy=f"The options are {', '.join(self.__slots__)}",
            )
        if name == "graph_optimization_level":
            value = _level(value)
        elif name == "execution_mode":
            value = _mode(value)
        elif name == "partitioning" and not (isinstance(value, str) and value in _PARTITIONING):
            raise InvalidArgument(
                f"partitioning is {value!r}{suggest(str(value), _PARTITIONING)}",
                remedy=f"Use one of {', '.join(_PARTITIONING)}",
            )
        elif name == "tuning" and not (isinstance(value, str) and value in TUNING):
            raise InvalidArgument(
                f"tuning is {value!r}{suggest(str(value), TUNING)}", remedy=f"Use one of {', '.join(TUNING)}"
            )
        elif name == "tuning_budget":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:  # NaN, too
                raise InvalidArgument(f"tuning_budget is {value!r}", remedy="Give a number of seconds")
        elif name == "tuning_file" and value is not None:
            caches.checked(name, value, "Give a path, or None")
        elif name == "optimized_model_filepath" and not (isinstance(value, str) and not value):
            caches.checked(name, value, "Give the path of a file to write")
        elif name == "cache_dir":
            caches.checked_folder(value)
        elif name == "pins":
            if not isinstance(value, Mapping) or not all(isinstance(t, str) for kv in value.items() for t in kv):
                raise InvalidArgument(f"pins is {value!r}", remedy='Give a dictionary: {"op:Conv": "opencl:0"}')
            value = dict(value)
        elif name == "transformers":
            value = _items(name, value)
        elif name == "disabled_optimizers":
            value = _items(name, value)
            if not all(isinstance(n, str) for n in value):
                raise InvalidArgument(f"{name} is {value!r}", remedy="Give a list of names")
        elif name in _RANGES:
            check_integer(name, value)
        elif name in ("enable_profiling", "strict") and not isinstance(value, bool):
            raise InvalidArgument(f"{name} is {value!r}", remedy="Give True or False")
        elif name == "logid" and not isinstance(value, str):
            raise InvalidArgument(f"{name} is {value!r}", remedy="Give a string")
        elif name == "profile_file_prefix":
            check_prefix(value)
        object.__setattr__(self, name, value)

    def add_transformer(self, transformer: Any) -> None:
        """Add an optimization of your own: a gpurt.optimizer.RewriteRule or GraphTransformer, or the class of one.

        It runs after gpurt's own, from the level that its attribute ``level`` names on; basic unless it has one.
        """
        self.transformers = (*self.transformers, transformer)

    def __repr__(self) -> str:
        return f"SessionOptions({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__slots__)})"
