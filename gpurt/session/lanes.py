"""The execution mode of a session: what its plans are divided among threads for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

from gpurt.options import ExecutionMode, SessionOptions
from gpurt.partitioner.rates import kind_of, rates
from gpurt.plan.costs import Machine
from gpurt.plan.schedule import Parallel
from gpurt.provider import HOST, DeviceMemory, Provider


def parallel(
    options: SessionOptions, providers: Sequence[Provider], spaces: Sequence[int], folder: Path | None
) -> Parallel | None:
    """What divides the plans of a session; None where the options want one thread for each run.

    Args:
        options: the session's.
        providers: in priority order.
        spaces: the number of each one's memory space.
        folder: where measured rates are kept, if anywhere.
    """
    most = options.inter_op_num_threads
    if options.execution_mode != ExecutionMode.ORT_PARALLEL or most == 1:
        return None
    owners: dict[int, Provider] = {}
    for space, provider in zip(spaces, providers, strict=True):
        owners.setdefault(space, provider)
    return Parallel(partial(_machine, options, owners, folder), (most or cores() + len(owners) - 1) - 1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine(options: SessionOptions, owners: dict[int, Provider], folder: Path | None) -> Machine:
    count = cores()
    # Two calls of a BLAS with threads of its own wait for one another; so do kernels that each take all cores.
    crowded = {0} if _blas_threads() > 1 else set()
    for space, provider in owners.items():
        if space and kind_of(provider) == "cpu" and (options.intra_op_num_threads or count) >= count:
            crowded.add(space)
    speeds = [rates(owners[space], folder) for space in sorted(owners)]
    queues = [1 if p.memory_space == HOST else _queues(p) for _, p in sorted(owners.items(), key=itemgetter(0))]
    return Machine(speeds, count, frozenset(crowded), queues, options.inter_op_num_threads)


def _queues(provider: Provider) -> int:
    """Queues of a device for independent kernels; one where the host sees its memory, or weights pass through it."""
    assert isinstance(provider, DeviceMemory), "whoever has memory of its own says how to use it"
    return 1 if provider.shares_host or provider.streams_weights else provider.branches


def _blas_threads() -> int:
    from threadpoolctl import threadpool_info

    return max((i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"), default=1)
