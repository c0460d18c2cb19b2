"""From addresses to engines: the scheme of an address says what kind of engine it is.

    triton://HOST:PORT     Triton, by KServe v2 over gRPC
    HOST:PORT              the same
    vllm://HOST:PORT       `vllm serve MODEL --grpc`

A target of gRPC's own, such as `dns:///HOST:PORT` or `unix:/PATH`, is Triton's too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from engine_client.breaker import EndpointPolicy
from engine_client.client import EngineClient
from engine_client.endpoints import Endpoints
from engine_client.options import EngineOptions
from engine_client.triton import connect as triton


def _connect_vllm(target: str, options: EngineOptions) -> EngineClient:
    from engine_client.vllm.connect import connect  # not above: Triton needs none of vLLM's messages

    return connect(target, options)


DEFAULT_SCHEME = "triton"
SCHEMES: Mapping[str, Callable[[str, EngineOptions], EngineClient]] = {
    DEFAULT_SCHEME: triton.connect,
    "vllm": _connect_vllm,
}
"""By scheme: makes the client of one engine from what follows `://`. A further engine is an entry here."""

_GRPC_RESOLVERS = ("dns", "unix", "xds")  # of targets that may have `://`: grpc/grpc, doc/naming.md


class UnknownScheme(ValueError):
    """An address has a scheme that no engine here has; the text lists those that there are."""


def split_scheme(address: str) -> tuple[str, str]:
    """The scheme of an address, and the rest of it.

    Raises:
        UnknownScheme: no engine here has that scheme.
    """
    scheme, separator, target = address.partition("://")
    if not separator or scheme in _GRPC_RESOLVERS:
        return DEFAULT_SCHEME, address
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in sorted(SCHEMES))
        raise UnknownScheme(f"{scheme}:// of {address} is unknown; known: {known}; none means {DEFAULT_SCHEME}://")
    return scheme, target


def connect_engine(address: str, options: EngineOptions) -> EngineClient:
    """Make the client of one engine; nothing is sent yet.

    Raises:
        UnknownScheme: no engine here has the address's scheme.
        MappingError: the tensor mapping of the options cannot be read.
    """
    scheme, target = split_scheme(address)
    return SCHEMES[scheme](target, options)


def connect_endpoints(
    addresses: str | Sequence[str],
    options: EngineOptions | None = None,
    policy: EndpointPolicy | None = None,
    *,
    chance: random.Random | None = None,
) -> Endpoints:
    """Make one client of several engines that have the same model; nothing is sent yet.

    Args:
        addresses: Separated by commas, or a sequence.
        options: For each of them.
        policy: Limits and periods of the endpoints.
        chance: Draws endpoints and jitter.
    Raises:
        ValueError: there is no address, an empty one, or one twice; UnknownScheme and MappingError as `connect_engine`.
    """
    listed = [address.strip() for address in (addresses.split(",") if isinstance(addresses, str) else addresses)]
    if not all(listed) or not listed:
        raise ValueError(f"addresses is {addresses!r}; give host:port, separated by commas, none of them empty")
    if len(set(listed)) < len(listed):
        raise ValueError(f"addresses is {addresses!r}; each engine must be named once")
    options = options or EngineOptions()
    return Endpoints({address: connect_engine(address, options) for address in listed}, policy, chance=chance)
