"""The registry of providers: entry points in the group ``gpurt.providers``, loaded one by one when asked for.

A broken plug-in is listed with its reason and breaks nothing; the core reaches every provider, its own three included,
only through this module.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from gpurt.errors import InvalidArgument, ProviderError, suggest
from gpurt.provider import PROVIDER_API, Device, Provider, Unavailable

GROUP: Final = "gpurt.providers"


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """Whether a provider can be used here.

    Attributes:
        name: name in ``providers=[...]``.
        usable: whether it has at least one device.
        devices: its devices, in the order of their indices.
        reason, remedy: why it is not usable, and what to do about it.
        distribution: the installed package that brings it.
    """

    name: str
    usable: bool
    devices: Sequence[Device] = ()
    reason: str = ""
    remedy: str = ""
    distribution: str = ""


_registered: dict[str, type[Provider]] = {}
_loaded: dict[str, type[Provider]] = {}
_lock = threading.RLock()


def register(provider: type[Provider]) -> None:
    """Make a provider known without an entry point, in this process only (tests, notebooks)."""
    with _lock:
        _registered[provider.name] = _checked(provider.name, provider)


def unregister(name: str) -> None:
    """Forget a provider that was registered with :func:`register`."""
    with _lock:
        _registered.pop(name, None)


def names() -> list[str]:
    """Names of all installed and registered providers, usable or not, without importing them."""
    return sorted({*_registered, *(e.name for e in _entry_points())})


def provider_class(name: str) -> type[Provider]:
    """The class behind a name.

    Raises:
        InvalidArgument: no provider has this name; the message suggests the nearest one.
        ProviderError: its package is broken, or was written for another version of the contract.
    """
    with _lock:
        if name in _registered:
            return _registered[name]
        if name in _loaded:
            return _loaded[name]
        found = [e for e in _entry_points() if e.name == name]
        if not found:
            plain = name.removesuffix("ExecutionProvider").lower()  # ONNX Runtime's names
            raise InvalidArgument(
                f"no provider is called {name!r}{suggest(plain, names())}",
                provider=name,
                remedy=f"Installed are {', '.join(names())}; another one comes with a package of its own",
            )
        try:
            cls = found[0].load()
        except Exception as e:
            raise ProviderError(
                f"the provider's package cannot be imported: {type(e).__name__}: {e}",
                provider=name,
                remedy=f"Reinstall or remove {_distribution(found[0]) or 'the package that brings it'}",
            ) from e
        _loaded[name] = _checked(name, cls)
        return _loaded[name]


def status(name: str) -> ProviderStatus:
    """Whether one provider is usable here, or why not; never raises for an installed provider."""
    distribution = next((_distribution(e) for e in _entry_points() if e.name == name), "")
    try:
        devices = provider_class(name).probe()
    except Unavailable as e:
        return ProviderStatus(name, False, (), e.reason, e.remedy, distribution)
    except ProviderError as e:
        return ProviderStatus(name, False, (), e.message, e.remedy or "", distribution)
    except InvalidArgument:
        raise
    except Exception as e:  # noqa: BLE001 - a plug-in may raise anything, and doctor must still list the others
        return ProviderStatus(name, False, (), f"its probe failed: {type(e).__name__}: {e}", "", distribution)
    return ProviderStatus(name, True, tuple(devices), distribution=distribution)


def statuses() -> list[ProviderStatus]:
    """Status of all providers."""
    return [status(name) for name in names()]


@dataclass(frozen=True, slots=True)
class Request:
    """One entry of ``providers=[...]``: name, index in probe's order or None, options."""

    name: str
    index: int | None
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As the user would write it."""
        return self.name if self.index is None else f"{self.name}:{self.index}"


def parse(providers: Sequence[Any], provider_options: Sequence[Mapping[str, Any]] | None) -> list[Request]:
    """Read ``"name"``, ``"name:index"`` or ``(either, {options})``, with ONNX Runtime's parallel list of options.

    Raises InvalidArgument for anything else, for unknown names and for unknown options, with a suggestion.
    """
    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise InvalidArgument(f"providers is {providers!r}", remedy='Give a list: providers=["opencl", "cpu"]')
    if provider_options is not None and not (
        isinstance(provider_options, Sequence) and all(isinstance(o, Mapping) for o in provider_options)
    ):
        raise InvalidArgument(
            f"provider_options is {provider_options!r}", remedy="Give a list with a dictionary for each provider"
        )
    if provider_options is not None and len(provider_options) != len(providers):
        raise InvalidArgument(
            f"{len(providers)} providers and {len(provider_options)} provider_options",
            remedy="Give one dictionary of options for each provider",
        )
    requests: list[Request] = []
    for position, entry in enumerate(providers):
        options: Mapping[str, Any] = {}
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
            entry, options = entry
        if provider_options is not None:
            options = {**options, **provider_options[position]}
        if not isinstance(entry, str):
            raise InvalidArgument(f"a provider is {entry!r}", remedy='Use "name", "name:index" or ("name", {options})')
        name, colon, index = entry.partition(":")
        if colon and not (index.isdecimal() and len(index) < 10):
            raise InvalidArgument(f"a provider is {entry!r}", remedy='An index is a number: "opencl:1"')
        request = Request(name, int(index) if index else None, options)
        if any((r.name, r.index, r.options) == (request.name, request.index, request.options) for r in requests):
            raise InvalidArgument(f"{entry!r} is in the list twice", provider=name, remedy="List it once")
        requests.append(request)
    for request in requests:
        if request.name not in names():
            provider_class(request.name)  # raises, with a suggestion
    return requests


def open_provider(request: Request) -> Provider:
    """Open what a request asks for. Raises Unavailable, ProviderError or InvalidArgument (unknown options)."""
    cls = provider_class(request.name)
    for option in request.options:
        if option not in cls.options:
            raise InvalidArgument(
                f"{request.name} has no option {option!r}{suggest(str(option), cls.options)}",
                provider=request.name,
                remedy=f"Its options are {', '.join(cls.options) or 'none'}",
            )
    return cls.open(request.index, request.options)


def options(name: str) -> Mapping[str, str]:
    """Options that a provider accepts, with their descriptions; none where its package cannot be imported."""
    try:
        return provider_class(name).options
    except ProviderError:
        return {}


def _checked(name: str, cls: Any) -> type[Provider]:
    api = getattr(cls, "api", None)
    if not (isinstance(api, tuple) and len(api) == 2):
        raise ProviderError(
            "its entry point names no provider class with an `api` version",
            provider=name,
            remedy="The entry point must name a subclass of gpurt.provider.Provider",
        )
    if api[0] != PROVIDER_API[0] or api[1] > PROVIDER_API[1]:
        raise ProviderError(
            f"it was written for version {api[0]}.{api[1]} of the provider contract, "
            f"this gpurt has {PROVIDER_API[0]}.{PROVIDER_API[1]}",
            provider=name,
            remedy="Update gpurt" if api > PROVIDER_API else "Update the provider's package",
        )
    return cls  # type: ignore[no-any-return]


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else ""
