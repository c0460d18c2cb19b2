"""Which networks are reached: addresses in URLs, from DNS and by redirects."""

from __future__ import annotations

from typing import Any

import pytest

from preprocessor.service.fetch.fetcher import Fetcher
from tests.service.hosts import (
    Host,
    Resolver,
    fetch,
    fetching,
    reason,
    respond,
)

BODY = bytes(range(256)) * 2000


async def test_without_a_named_network_nothing_on_this_machine_is_reached() -> None:
    async with Host({"/": respond(BODY)}) as host, fetching(host, networks="", hosts="*") as fetcher:
        for name in ("media.test", "127.0.0.1"):
            assert await reason(fetcher, host.url("/", name)) == "ADDRESS_NOT_ALLOWED"
    assert host.connection_count == 0


@pytest.mark.parametrize(
    "name", ["127.0.0.2", "[::ffff:127.0.0.2]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:2]", "[::1]"]
)
async def test_an_ip_address_in_the_url_is_checked_like_a_resolved_one(name: str) -> None:
    async with Host({"/": respond(b"secret")}, "127.0.0.2") as secret, fetching(secret, hosts="*") as fetcher:
        assert await reason(fetcher, secret.url("/", name)) == "ADDRESS_NOT_ALLOWED"
    assert secret.connection_count == 0


async def test_dns_rebinding_reaches_no_private_address() -> None:
    """The first DNS answer is allowed; all later ones are private addresses."""
    resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
    async with (
        Host({"/": respond(BODY, Connection="close")}) as host,
        Host({"/": respond(b"secret")}, "127.0.0.2", host.port) as secret,
        fetching(host, resolver=resolver) as fetcher,
    ):
        assert await fetch(fetcher, host.url("/")) == BODY
        assert len(resolver.names) == 1, "one look-up, whose answer is the one that is used"
        for _ in range(3):
            assert await reason(fetcher, host.url("/")) == "ADDRESS_NOT_ALLOWED"
    assert secret.connection_count == 0


async def test_only_a_name_s_allowed_addresses_are_tried() -> None:
    resolver = Resolver(["127.0.0.2", "::1", "127.0.0.1", "::ffff:127.0.0.2", "10.0.0.1"])
    async with (
        Host({"/": respond(BODY)}) as host,
        Host({"/": respond(b"secret")}, "127.0.0.2", host.port) as secret,
        fetching(host, resolver=resolver) as fetcher,
    ):
        assert await fetch(fetcher, host.url("/")) == BODY
    assert secret.connection_count == 0


async def test_a_name_with_only_private_addresses_is_refused() -> None:
    resolver = Resolver(["127.0.0.2", "10.0.0.1", "::1", "::ffff:127.0.0.1"])
    async with Host({"/": respond(b"secret")}, "127.0.0.2") as secret, fetching(secret, resolver=resolver) as fetcher:
        assert await reason(fetcher, secret.url("/")) == "ADDRESS_NOT_ALLOWED"
    assert secret.connection_count == 0


async def test_addresses_from_the_system_s_resolver_are_checked_too() -> None:
    async with Host({"/": respond(BODY)}) as host:
        settings: dict[str, Any] = {"hosts": "localhost", "ports": str(host.port)}
        async with fetching(host, **settings) as fetcher:
            fetcher = Fetcher(fetcher._settings, fetcher._metrics)  # without the resolver of the test
            async with fetcher:
                assert await fetch(fetcher, host.url("/", "localhost")) == BODY
        async with fetching(host, **settings, networks="") as fetcher:
            fetcher = Fetcher(fetcher._settings, fetcher._metrics)
            async with fetcher:
                assert await reason(fetcher, host.url("/", "localhost")) == "ADDRESS_NOT_ALLOWED"
    assert host.connection_count == 1
