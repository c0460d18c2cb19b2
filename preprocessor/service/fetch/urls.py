"""The http and https URLs that are accepted: their syntax, hosts and ports."""

from __future__ import annotations

import ipaddress
import re

from yarl import URL

from preprocessor.config import FetchSettings
from preprocessor.config.fetch import parse_ports, split_list
from preprocessor.errors import InvalidRequest

MAX_URL_LENGTH = 8192  # the request line limit of common servers, and twice the length of the longest signed URLs

# RFC 3986 without rarely used parts: user information, IPv6 zones, future address forms, percent-encoded hosts. It must match
# the whole URL, so that there is one way to parse it.
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
_WEB_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/{_PATH}*)?(?P<query>\?(?:{_PATH}|[?\[\]])*)?(?:#.*)?",
)
_LOWER = re.compile(r"[^/?#]*//[^/?#]*")  # scheme and host, which are case-insensitive
_NUMERIC_LABEL = re.compile(
    r"[0-9]+|0x[0-9a-f]*"
)  # WHATWG URL, 3.5: where the last label is one, a host is an IPv4 address
_DEFAULT_PORTS = {"http": 80, "https": 443}


class WebRules:
    """Parses URLs by the configured rules."""

    def __init__(self, settings: FetchSettings) -> None:
        hosts = split_list(settings.hosts)
        self._is_any_allowed = "*" in hosts
        self._names = frozenset(hosts)
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._ports = parse_ports("--fetch-ports", settings.ports)

    def read(self, text: str, key: str) -> URL:
        """The URL to request: host in lower case, explicit port, no fragment.

        Raises:
            InvalidRequest: `INVALID_URL`, `HOST_NOT_ALLOWED` or `PORT_NOT_ALLOWED`.
        """
        match = _WEB_URL.fullmatch(_LOWER.sub(lambda part: part[0].lower(), text, count=1))
        if match is None or len(text) > MAX_URL_LENGTH or not text.isascii():
            raise invalid_url(key, _complaint(text))
        scheme, host = match["scheme"], match["host"]
        port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
        _check_host(host, key)
        if not self._allows(host):
            raise InvalidRequest(
                f"{key}: files are not fetched from {host}; upload the file, or have the host allowed",
                reason="HOST_NOT_ALLOWED",
                field="media[].url",
                media_key=key,
            )
        if port not in self._ports:
            raise InvalidRequest(
                f"{key}: files are not fetched from port {port}; allowed: {', '.join(map(str, sorted(self._ports)))}",
                reason="PORT_NOT_ALLOWED",
                field="media[].url",
                media_key=key,
            )
        url = URL(f"{scheme}://{host}:{port}{match['path'] or '/'}{match['query'] or ''}", encoded=True)
        # The HTTP client must parse the URL in the same way.
        if (url.raw_host, url.port, url.raw_user, url.raw_password) != (host.strip("[]"), port, None, None):
            raise invalid_url(key, "it can be parsed in two ways")
        return url

    def _allows(self, host: str) -> bool:
        return self._is_any_allowed or host in self._names or host.endswith(self._suffixes)


def invalid_url(key: str, complaint: str) -> InvalidRequest:
    """The error for a malformed URL."""
    return InvalidRequest(
        f"{key}: the URL cannot be used: {complaint}; write https://host/path in ASCII, other characters percent-encoded",
        reason="INVALID_URL",
        field="media[].url",
        media_key=key,
    )


def _check_host(host: str, key: str) -> None:
    """Refuse names that a resolver might interpret differently.

    Raises:
        InvalidRequest: `INVALID_URL`.
    """
    labels = host.split(".")
    if host.startswith("["):
        kind: type[ipaddress.IPv6Address | ipaddress.IPv4Address] = ipaddress.IPv6Address
    elif _NUMERIC_LABEL.fullmatch(labels[-1]):
        kind = ipaddress.IPv4Address
    elif all(0 < len(label) <= 63 for label in labels) and len(host) <= 253:  # RFC 1035, 2.3.4
        return
    else:
        raise invalid_url(key, "its host has an empty or too long label, or ends in a dot")
    try:
        kind(host.strip("[]"))
    except ValueError:
        raise invalid_url(key, "its host is a number that is not an address in the usual form") from None


def _complaint(text: str) -> str:
    """What is wrong with a URL, for its author."""
    authority = text.partition("//")[2].partition("/")[0]
    if len(text) > MAX_URL_LENGTH:
        return f"it has {len(text)} characters, and at most {MAX_URL_LENGTH} are accepted"
    if "@" in authority:
        return "it contains a user name"
    if not text.isascii():
        return "it contains non-ASCII characters"
    return "it does not have that form"
