"""Which providers a session gets: the caller's list or the default, opened, with the host behind them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import onnx_ir as ir

from gpurt import logs, registry
from gpurt.errors import EPFail, ProviderError, Unsupported
from gpurt.options import SessionOptions
from gpurt.partitioner import Decisions
from gpurt.partitioner.assign import CONTROL, SHAPE_REASON
from gpurt.provider import HOST, Provider, Unavailable

logger = logs.get(__name__)

DEFAULT_PROVIDERS: Final = ("cuda", "opencl", "cpu")


def asked(providers: Sequence[Any] | None) -> Sequence[Any]:
    """The caller's list of providers, or the default as far as it is installed."""
    return providers if providers is not None else [n for n in DEFAULT_PROVIDERS if n in registry.names()]


def open_providers(requests: Sequence[registry.Request], *, asked: bool, strict: bool) -> list[Provider]:
    """Open the providers of the list; unusable ones are left out with one warning each, or an error under strict."""
    opened: list[Provider] = []
    for request in requests:
        try:
            provider = registry.open_provider(request)
        except (Unavailable, ProviderError) as e:
            reason = e.reason if isinstance(e, Unavailable) else e.message
            remedy = e.remedy or "Remove it from the list"
            if strict:
                raise EPFail(f"cannot be used: {reason}", provider=request.label, remedy=remedy) from e
            if asked:
                warnings.warn(
                    f"provider {request.label!r} is left out: {reason}. {remedy}", RuntimeWarning, stacklevel=4
                )
            else:
                logger.info("provider %s is left out: %s", request.label, reason)
            continue
        opened.append(provider)
    if not any(p.memory_space == HOST for p in opened):
        opened.append(registry.open_provider(registry.Request("cpu", None, {})))
    return opened


def with_settings(request: registry.Request, options: SessionOptions) -> registry.Request:
    """A request with the session's threads, caches and tuning, if its provider has options for them without values."""
    asked = {
        "intra_op_num_threads": options.intra_op_num_threads,
        "cache_dir": options.cache_dir,
        "tuning": "" if options.tuning == "cached" else options.tuning,
        "tuning_budget": (options.tuning_budget or 1e-9) if options.tuning == "online" else 0,  # 0 is no time at all
        "tuning_file": options.tuning_file,
    }
    given = {name: value for name, value in asked.items() if value or value is False}
    known = registry.options(request.name) if given else {}
    return replace(request, options={**{k: v for k, v in given.items() if k in known}, **request.options})


def check_strict(model: ir.Model, owners: Mapping[str, int], host: int, decisions: Decisions) -> None:
    """Under strict the appended host may only do shape arithmetic and control flow."""
    for node in model.graph.all_nodes():
        refused = decisions.refused.get(node.name or "", {})
        if owners.get(node.name or "") != host or node.op_type in CONTROL or SHAPE_REASON in refused.values():
            continue
        why = "; ".join(f"{d}: {r}" for d, r in refused.items())
        raise Unsupported(
            f"no provider in the list can run {node.op_type}: {why}",
            node=node.name,
            op=node.op_type,
            remedy='Add "cpu" to the providers, or leave strict off',
        )


def set_threads(count: int) -> None:
    """Limit the threads of NumPy's BLAS, for the whole process; 0 leaves them as they are."""
    if count > 0:
        from threadpoolctl import threadpool_limits

        threadpool_limits(count)
