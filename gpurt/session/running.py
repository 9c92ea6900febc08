"""Runs as the session's options and the caller's RunOptions want them: logged, traced, and tidied up after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeVar

from gpurt import logs
from gpurt.errors import InvalidArgument, OutOfMemory
from gpurt.plan.values import Run
from gpurt.run_options import RunOptions
from gpurt.session.profiling import Profile
from gpurt.session.site import Site

logger = logs.get(__name__)
Answer = TypeVar("Answer")

MOST_ATTEMPTS: Final = 8
"""Runs that each may learn of plans that were not known before; a body whose shapes grow may have more to tell."""


def running(
    site: Site, scope: logs.Scope, profile: Profile | None, options: RunOptions | None
) -> AbstractContextManager[Run]:
    """A run on a site.

    Args:
        site: the session's.
        scope: severity and name of the session.
        profile: the session's, if it has one.
        options: the caller's.

    Raises InvalidArgument for options that are none, or name a device that the session does not use.
    """
    if options is None and profile is None and not scope:
        return site.run()
    if options is not None and not isinstance(options, RunOptions):
        raise InvalidArgument(f"run_options is {options!r}", remedy="Give a gpurt.RunOptions")
    return _told(site, scope, profile, options)


def fitted(site: Site, sizes: Callable[[], str], attempt: Callable[[], Answer]) -> Answer:
    """A run, from its feeds to its results; where streamed weights left too little memory, again with new plans.

    What was planned first did not know of what came behind it; in the next attempt it does. In the last one no weights
    stay on the device. A run writes the caller's memory at most with what it writes again.

    Args:
        site: the session's.
        sizes: tells the run's sizes, for the error.
        attempt: the run.

    Raises what the run raises; OutOfMemory if the last attempt does, and the plans for further runs are as before then.
    """
    before, attempts = site.budget.demands, 0
    while True:
        attempts += 1
        known, site.short = site.budget.demands, False
        try:
            answer = attempt()
            if site.short and site.budget.demands.keys() != known.keys():
                site.forget()  # it went well at the expense of plans that are made better now
            return answer
        except OutOfMemory as e:
            learned = site.budget.demands != known and attempts < MOST_ATTEMPTS
            if not learned and not site.budget.tighten():
                if attempts > 1:
                    site.budget.reset(before)
                    site.forget()
                e.message += f"; in this run {told}" if (told := sizes()) else ""
                raise
        logger.info("memory is short: the plans are made again, with less of the weights on the devices")
        site.forget()


@contextmanager
def _told(site: Site, scope: logs.Scope, profile: Profile | None, given: RunOptions | None) -> Iterator[Run]:
    options = given if given is not None else RunOptions()
    spaces = site.spaces_of(options.arenas_to_shrink())
    profile = Profile() if options.enable_profiling else profile
    tracing = nullcontext() if profile is None else profile.trace(site.devices, options)
    with logs.scope(scope.of_run(options)):
        start = time.perf_counter()
        try:
            with tracing as trace, site.run(given, trace) as run:
                yield run
        finally:
            logger.verbose(1, "run of %.3f ms", 1e3 * (time.perf_counter() - start))
            if spaces:
                site.trim(spaces)
            if options.enable_profiling and profile is not None:
                object.__setattr__(options, "profile_file", profile.write(options.profile_file_prefix))
