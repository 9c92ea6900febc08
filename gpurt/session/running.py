"""Runs as the session's options and the caller's RunOptions want them: logged, traced, and tidied up after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from gpurt import logs
from gpurt.errors import InvalidArgument
from gpurt.plan.values import Run
from gpurt.run_options import RunOptions
from gpurt.session.profiling import Profile
from gpurt.session.site import Site

logger = logs.get(__name__)


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
