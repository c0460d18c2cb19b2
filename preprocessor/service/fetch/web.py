"""http and https: one connection pool; every redirect is checked by the same rules."""

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
    hdrs.ACCEPT_ENCODING: "identity",  # media are compressed already; anything else may be a decompression bomb
}


class WebSource:
    """Fetches by http and https. Create it on the event loop.

    Args:
        resolver: Resolves host names; None uses the system's resolver in a thread.
    """

    def __init__(self, settings: FetchSettings, resolver: AbstractResolver | None = None) -> None:
        self._rules = WebRules(settings)
        self._addresses = AddressRules(parse_networks("--fetch-networks", settings.networks))
        self._max_redirects = settings.max_redirects
        self._resolver = _AllowedResolver(resolver or ThreadedResolver(), self._addresses)
        connector = aiohttp.TCPConnector(
            ssl=_tls(settings.tls_root),
            resolver=self._resolver,
            use_dns_cache=False,  # connections are pooled, so caching would save little; each DNS answer is used once
            socket_factory=self._make_socket,
            limit=0,  # `Fetcher` limits the concurrency
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
        """The target of a redirect, checked like any URL."""
        location = response.headers.get(hdrs.LOCATION, "")
        if not location:
            raise _bad_answer(key)
        try:
            joined = urljoin(str(source), location)
        except ValueError:
            raise invalid_url(key, "it redirects to a malformed URL") from None
        target = self._rules.read(joined, key)
        if source.scheme == "https" and target.scheme == "http":
            raise invalid_url(key, "it redirects from https to http")
        return target

    def _make_socket(self, address_info: AddrInfoType) -> socket.socket:
        """A socket for one address. This is the last point before connecting, so every address is checked here."""
        family, kind, protocol, _, address = address_info
        if not self._addresses.allow(str(address[0])):
            raise _AddressRefused
        return socket.socket(family, kind, protocol)


class _AddressRefused(Exception):
    """Not an OSError: aiohttp would try the next address, and report the last error."""


class _AllowedResolver(AbstractResolver):
    """Removes addresses that are not allowed from a resolver's answers."""

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
    """Write the body to the sink as it arrives."""
    if response.status != 200:
        raise FetchFailed(
            f"{key}: the host answered {response.status}; give a URL that returns the file",
            reason="FETCH_STATUS",
            media_key=key,
            http_status=str(response.status),
        )
    if response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise FetchFailed(
            f"{key}: the host sends the file with a Content-Encoding that was not requested; have it sent without",
            reason="FETCH_ENCODED",
            media_key=key,
        )
    if response.content_length is not None:
        sink.announce(response.content_length)
    async for data in response.content.iter_any():
        await sink.write(data)


def _tls(root: str) -> ssl.SSLContext:
    """A TLS context that verifies certificates and host names."""
    try:
        return ssl.create_default_context(cafile=root or None)
    except OSError as error:
        raise SettingError("--fetch-tls-root", root, f"a PEM file of certificates ({error})") from error


@contextlib.contextmanager
def _failures(key: str) -> Iterator[None]:
    """Map aiohttp's errors to this package's; TimeoutError passes."""

    def failed(reason: str, what: str) -> FetchFailed:
        return FetchFailed(f"{key}: {what}", reason=reason, media_key=key)

    try:
        yield
    except TimeoutError:
        raise
    except _AddressRefused:
        raise InvalidRequest(  # without the address, which the caller must not learn
            f"{key}: the host is in a network from which files are not fetched; upload the file",
            reason="ADDRESS_NOT_ALLOWED",
            field="media[].url",
            media_key=key,
        ) from None
    except aiohttp.ClientSSLError as error:
        raise failed("FETCH_TLS", "the TLS handshake failed, or the host's certificate is not trusted") from error
    except aiohttp.ClientConnectorError as error:
        raise failed("FETCH_UNREACHABLE", "the host cannot be resolved or does not accept connections") from error
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        raise failed("FETCH_INCOMPLETE", "the connection ended before the whole file was received") from error
    except aiohttp.ClientError as error:
        raise _bad_answer(key) from error


def _bad_answer(key: str) -> FetchFailed:
    return FetchFailed(f"{key}: the host's response is not valid HTTP", reason="BAD_ANSWER", media_key=key)
