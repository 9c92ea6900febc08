"""gpurt: an ONNX runtime for Python that puts the GPU first and takes hardware as plug-ins.

    import gpurt
    session = gpurt.InferenceSession("model.onnx", providers=["cuda", "opencl", "cpu"])
    outputs = session.run(None, {"x": x})

Names are loaded on first use (PEP 562): importing the package alone is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpurt.errors import (
        EPFail,
        Fail,
        GpurtError,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NoSuchFile,
        NotImplemented,
        OutOfMemory,
        ProviderError,
        RuntimeException,
        Terminated,
    )
    from gpurt.logs import set_default_logger_severity
    from gpurt.options import ExecutionMode, GraphOptimizationLevel, SessionOptions
    from gpurt.run_options import RunOptions
    from gpurt.session import Explanation, InferenceSession, IOBinding, NodeArg
    from gpurt.tensor import Tensor

__version__ = "0.1.0"

_WHERE = {
    "Explanation": "gpurt.session",
    "IOBinding": "gpurt.session",
    "InferenceSession": "gpurt.session",
    "NodeArg": "gpurt.session",
    "ExecutionMode": "gpurt.options",
    "GraphOptimizationLevel": "gpurt.options",
    "SessionOptions": "gpurt.options",
    "EPFail": "gpurt.errors",
    "Fail": "gpurt.errors",
    "GpurtError": "gpurt.errors",
    "InvalidArgument": "gpurt.errors",
    "InvalidGraph": "gpurt.errors",
    "InvalidProtobuf": "gpurt.errors",
    "NoSuchFile": "gpurt.errors",
    "NotImplemented": "gpurt.errors",
    "OutOfMemory": "gpurt.errors",
    "ProviderError": "gpurt.errors",
    "RuntimeException": "gpurt.errors",
    "Terminated": "gpurt.errors",
    "RunOptions": "gpurt.run_options",
    "set_default_logger_severity": "gpurt.logs",
    "Tensor": "gpurt.tensor",
}

__all__ = [
    "EPFail",
    "ExecutionMode",
    "Explanation",
    "Fail",
    "GpurtError",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoSuchFile",
    "NodeArg",
    "NotImplemented",
    "OutOfMemory",
    "ProviderError",
    "RunOptions",
    "RuntimeException",
    "SessionOptions",
    "Tensor",
    "Terminated",
    "__version__",
    "get_available_providers",
    "providers",
    "set_default_logger_severity",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gpurt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def providers() -> list[Any]:
    """Status of every installed provider: usable with its devices, or why not and what to do about it."""
    return import_module("gpurt.registry").statuses()  # type: ignore[no-any-return]


def get_available_providers() -> list[str]:
    """Names of the providers that can be used here, in the default priority order."""
    usable = [s.name for s in providers() if s.usable]
    rank = {"cuda": 0, "opencl": 1, "cpu": 99}
    return sorted(usable, key=lambda n: (rank.get(n, 50), n))
