"""http and https: one pool of connections, every hop of every redirect by the same rules."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urljoin

import aiohttp
from aiohttp import AddrInfoType, hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from preprocessor import __version__
from preprocessor.config import FetchSettings, SettingError
from preprocessor.config.fetch import parse_networks
from preprocessor.errors import FetchFailed, InvalidRequest
from preprocessor.service.fetch.addresses import AddressRules
from preprocessor.service.fetch.sink import Sink
from preprocessor.service.fetch.urls import WebRules, invalid_url

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    hdrs.USER_AGENT: f"vlm-preprocessor/{__version__}",
    hdrs.ACCEPT: "*/*",
    hdrs.ACCEPT_ENCODING: "identity",  # media are compressed already; what inflates is a bomb, and is refused
}


class WebSource:
    """Fetches by http and https. To be made inside the event loop.

    Args:
        resolver: Finds a host's addresses; None asks the system in a thread of the loop's.
    """

    def __init__(self, settings: FetchSettings, resolver: AbstractResolver | None = None) -> None:
        self._rules = WebRules(settings)
        self._addresses = AddressRules(parse_networks("--fetch-networks", settings.networks))
        self._max_redirects = settings.max_redirects
        self._resolver = _AllowedResolver(resolver or ThreadedResolver(), self._addresses)
        connector = aiohttp.TCPConnector(
            ssl=_tls(settings.tls_root),
            resolver=self._resolver,
            use_dns_cache=False,  # the pool saves the lookups that count; an answer is used once and forgotten
            socket_factory=self._make_socket,
            limit=0,  # `Fetcher` bounds how many run
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(connect=settings.connect_seconds, sock_read=settings.read_seconds),
        )

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """See `Source`."""
        target = self._rules.read(url, key)
        for _ in range(self._max_redirects + 1):
            with _failures(key):
                async with self._session.get(target, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        await _read(response, key, sink)
                        return
                    target = self._follow(response, target, key)
        raise FetchFailed(
            f"{key}: the URL redirects more than {self._max_redirects} times; give the one it ends at",
            reason="TOO_MANY_REDIRECTS",
            media_key=key,
        )

    async def close(self) -> None:
        """See `Source`."""
        await self._session.close()
        await self._resolver.close()

    def _follow(self, response: aiohttp.ClientResponse, source: URL, key: str) -> URL:
        """Where a redirect leads, by the rules for any URL."""
        location = response.headers.get(hdrs.LOCATION, "")
        if not location:
            raise _bad_answer(key)
        try:
            joined = urljoin(str(source), location)
        except ValueError:
            raise invalid_url(key, "it redirects to something that is none") from None
        target = self._rules.read(joined, key)
        if source.scheme == "https" and target.scheme == "http":
            raise invalid_url(key, "it redirects from https to http")
        return target

    def _make_socket(self, address_info: AddrInfoType) -> socket.socket:
        """A socket for one address, the last place before it is connected: whatever led here, an address is judged."""
        family, kind, protocol, _, address = address_info
        if not self._addresses.allow(str(address[0])):
            raise _AddressRefused
        return socket.socket(family, kind, protocol)


class _AddressRefused(Exception):
    """Not an OSError: aiohttp would try the next address, and report what came last."""


class _AllowedResolver(AbstractResolver):
    """Leaves out of a resolver's answers what may not be connected to."""

    def __init__(self, resolver: AbstractResolver, rules: AddressRules) -> None:
        self._resolver = resolver
        self._rules = rules

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        allowed = [result for result in found if self._rules.allow(result["host"])]
        if found and not allowed:
            raise _AddressRefused
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


async def _read(response: aiohttp.ClientResponse, key: str, sink: Sink) -> None:
    """Pass the body on as it comes."""
    if response.status != 200:
        raise FetchFailed(
            f"{key}: the host answered {response.status}; give a URL that it answers with the file",
            reason="FETCH_STATUS",
            media_key=key,
            http_status=str(response.status),
        )
    if response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise FetchFailed(
            f"{key}: the host sends the file compressed although it was asked not to; have it sent as it is",
            reason="FETCH_ENCODED",
            media_key=key,
        )
    if response.content_length is not None:
        sink.announce(response.content_length)
    async for data in response.content.iter_any():
        await sink.write(data)


def _tls(root: str) -> ssl.SSLContext:
    """Certificates and names are verified, always."""
    try:
        return ssl.create_default_context(cafile=root or None)
    except OSError as error:
        raise SettingError("--fetch-tls-root", root, f"a PEM file of certificates ({error})") from error


@contextlib.contextmanager
def _failures(key: str) -> Iterator[None]:
    """aiohttp's errors as ours; those of time pass."""

    def failed(reason: str, what: str) -> FetchFailed:
        return FetchFailed(f"{key}: {what}", reason=reason, media_key=key)

    try:
        yield
    except TimeoutError:
        raise
    except _AddressRefused:
        raise InvalidRequest(  # which address it was is not the caller's to learn
            f"{key}: the host lies in a network from which files are not fetched; send the file itself",
            reason="ADDRESS_NOT_ALLOWED",
            field="media[].url",
            media_key=key,
        ) from None
    except aiohttp.ClientSSLError as error:
        raise failed("FETCH_TLS", "the host's certificate or its TLS is not to be trusted") from error
    except aiohttp.ClientConnectorError as error:
        raise failed("FETCH_UNREACHABLE", "the host cannot be found or does not accept connections") from error
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        raise failed("FETCH_INCOMPLETE", "the connection ended before the whole file had arrived") from error
    except aiohttp.ClientError as error:
        raise _bad_answer(key) from error


def _bad_answer(key: str) -> FetchFailed:
    return FetchFailed(f"{key}: what the host answers is not HTTP as it should be", reason="BAD_ANSWER", media_key=key)
