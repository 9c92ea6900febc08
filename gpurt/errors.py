"""The exceptions of gpurt: ONNX Runtime's names, each with the node, operator, provider and remedy it concerns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GpurtError(Exception):
    """Base of all errors that gpurt raises on purpose.

    Attributes:
        node: name of the node concerned, or None.
        op: operator type, with its domain when that is not ai.onnx, or None.
        provider: name of the provider concerned, or None.
        remedy: what the caller can do about it, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        op: str | None = None,
        provider: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.node = node
        self.op = op
        self.provider = provider
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        where = [f"{k} {v!r}" for k, v in (("node", self.node), ("op", self.op), ("provider", self.provider)) if v]
        text = self.message if not where else f"{self.message} [{', '.join(where)}]"
        return f"{text}. {self.remedy}" if self.remedy else text


class Fail(GpurtError):
    """Something failed that none of the other classes describes."""


class Terminated(Fail):
    """A run was ended by RunOptions.terminate."""


class InvalidArgument(GpurtError, ValueError):
    """The caller passed something that does not fit: a feed, an option, a name."""


class NoSuchFile(GpurtError, FileNotFoundError):
    """A model or one of its data files does not exist."""


class InvalidProtobuf(GpurtError, ValueError):
    """The bytes are not an ONNX model."""


class InvalidGraph(GpurtError, ValueError):
    """The model was read, but breaks ONNX's rules."""


class NotImplemented(GpurtError, NotImplementedError):  # noqa: A001 - ONNX Runtime's name, reached as gpurt.NotImplemented
    """No provider in the session's list can run a node, or gpurt does not know the operator."""


Unsupported = NotImplemented
"""The same class under a name that does not hide Python's constant."""


class RuntimeException(GpurtError, RuntimeError):
    """A kernel failed while the model ran."""


class ProviderError(GpurtError):
    """A provider is unknown, broken or not usable here."""


class EPFail(ProviderError, RuntimeError):
    """A provider failed while it compiled or ran its part of a model."""


class OutOfMemory(GpurtError, MemoryError):
    """An arena or its device has no room for what was asked."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
