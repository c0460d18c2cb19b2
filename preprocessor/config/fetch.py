"""Which media may be given by URL."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from preprocessor.config.checks import require_positive_int, require_seconds
from preprocessor.config.declare import SettingError, setting

_HOST_RULE = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_STORE = re.compile(r"([a-z][a-z0-9+-]*)://[^/\s]+(/\S*)?")
_NO_STORES = frozenset({"file", "local", "http", "https", "data"})  # these have rules of their own

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """What media may be given by URL. Options begin with `--fetch`; each of them that lists something takes commas.

    With none of `hosts`, `roots` and `stores` only `data:` URLs are taken, which need no fetching.
    """

    hosts: str = setting(
        "",
        "hosts that http and https URLs may name: example.com, *.example.com for what lies below it, or * for any; without "
        "it, none",
        "HOSTS",
        kind=str,
        is_joined=True,
    )
    ports: str = setting("80,443", "ports that they may name", "PORTS", kind=str, is_joined=True)
    networks: str = setting(
        "",
        "networks that hosts may lie in although they are not public, such as 10.1.0.0/16",
        "NETWORKS",
        kind=str,
        is_joined=True,
    )
    tls_root: str = setting(
        "",
        "PEM of the authorities that may have signed hosts' certificates; the system's own if absent",
        "FILE",
        kind=str,
    )
    roots: str = setting(
        "", "directories below which file: URLs may lie; without it, none", "DIRECTORIES", kind=str, is_joined=True
    )
    stores: str = setting(
        "",
        "where object stores may be read, through fsspec, such as s3://bucket/clips/; without it, none",
        "URLS",
        kind=str,
        is_joined=True,
    )
    connect_seconds: float = setting(5.0, "longest wait for a connection, name and TLS included", "S", kind=float)
    read_seconds: float = setting(10.0, "longest silence of a host", "S", kind=float)
    total_seconds: float = setting(60.0, "longest that one file may take, redirects included", "S", kind=float)
    max_redirects: int = setting(5, "redirects to follow for one file")
    max_at_once: int = setting(32, "files fetched at the same time")

    def __post_init__(self) -> None:
        for host in split_list(self.hosts):
            if not _HOST_RULE.fullmatch(host):
                raise SettingError(
                    "--fetch-hosts", host, "hosts in lower case, such as example.com, *.example.com or *"
                )
        parse_ports("--fetch-ports", self.ports)
        parse_networks("--fetch-networks", self.networks)
        for root in split_list(self.roots):
            if not root.startswith("/"):
                raise SettingError("--fetch-roots", root, "absolute directories, such as /srv/media")
        for store in split_list(self.stores):
            match = _STORE.fullmatch(store)
            if match is None or match[1] in _NO_STORES:
                raise SettingError("--fetch-stores", store, "an object store's URL, such as s3://bucket/clips/")
        for name in ("connect_seconds", "read_seconds", "total_seconds"):
            require_seconds(f"--fetch-{name.replace('_', '-')}", getattr(self, name))
        require_positive_int("--fetch-max-redirects", self.max_redirects)
        require_positive_int("--fetch-max-at-once", self.max_at_once)


def split_list(text: str) -> tuple[str, ...]:
    """What commas part, without the space around it."""
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def parse_ports(option: str, text: str) -> frozenset[int]:
    """Ports of "80,443".

    Raises:
        SettingError: One is not 1 to 65535.
    """
    ports = split_list(text)
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise SettingError(option, text, "ports from 1 to 65535, such as 80,443")
    return frozenset(map(int, ports))


def parse_networks(option: str, text: str) -> tuple[Network, ...]:
    """Networks of "10.1.0.0/16,fd00::/8"; an address alone is a network of one.

    Raises:
        SettingError: One is no network, or has bits set behind its prefix.
    """
    try:
        return tuple(ipaddress.ip_network(network) for network in split_list(text))
    except ValueError as error:
        raise SettingError(option, text, f"networks such as 10.1.0.0/16,fd00::/8 ({error})") from error
