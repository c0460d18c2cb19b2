"""Fetching over HTTP, from well-behaved and from hostile servers, all of them on this machine."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from pathlib import Path

import pytest

from preprocessor import __version__
from preprocessor.config import SettingError
from preprocessor.errors import FetchFailed, InvalidRequest, Overloaded, PreprocessorError
from preprocessor.service.fetch.fetcher import Fetcher
from tests.engine.certificates import Authority, Signed
from tests.service.hosts import (
    Answer,
    Collected,
    Host,
    Resolver,
    chunked,
    drip,
    fetch,
    fetching,
    hang,
    redirect,
    reset,
    respond,
    send,
)
from tests.waiting import eventually

BODY = bytes(range(256)) * 2000


async def refusal(fetcher: Fetcher, url: str) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        await fetch(fetcher, url)
    assert caught.value.metadata["media_key"] == "clip" and caught.value.message.startswith("clip: ")
    return caught.value


async def reason(fetcher: Fetcher, url: str) -> str:
    return (await refusal(fetcher, url)).reason


# -- requests and responses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "announced_bytes"),
    [
        (respond(BODY, Content_Type="text/html"), len(BODY)),
        (chunked(BODY[:1], BODY[1:5000], BODY[5000:]), None),
        (send(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, close=True), None),
        (respond(BODY, Content_Encoding="identity"), len(BODY)),
    ],
    ids=["length", "chunks", "until the end", "identity"],
)
async def test_a_file_is_fetched_completely(answer: Answer, announced_bytes: int | None) -> None:
    async with Host({"/clip.mp4": answer}) as host, fetching(host) as fetcher:
        sink = Collected()
        await fetcher.fetch(host.url("/clip.mp4"), "clip", sink)
    assert (sink.data, sink.announced_bytes) == (BODY, announced_bytes)


async def test_a_host_receives_no_credentials_cookies_or_caller_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine media.test login us password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with Host({"/a?b=%2F": respond(b"x", Set_Cookie="id=1")}) as host, fetching(host) as fetcher:
        for _ in range(2):
            assert await fetch(fetcher, host.url("/a?b=%2F#part")) == b"x"
    for head in host.requests:
        assert sorted(head.strip().split("\r\n")) == [
            "Accept-Encoding: identity",
            "Accept: */*",
            "GET /a?b=%2F HTTP/1.1",
            f"Host: media.test:{host.port}",
            f"User-Agent: vlm-preprocessor/{__version__}",
        ]


async def test_connections_are_used_again_and_names_looked_up_once_each() -> None:
    resolver = Resolver()
    async with Host({"/": respond(BODY)}) as host, fetching(host, resolver=resolver) as fetcher:
        for _ in range(5):
            assert await fetch(fetcher, host.url("/")) == BODY
    assert (host.connection_count, resolver.names) == (1, ["media.test"])


# -- redirects ---------------------------------------------------------------------------------------------------------


async def test_a_chain_of_redirects_leads_to_the_file() -> None:
    async with Host({"/end?x=1": respond(BODY)}) as second, Host() as first, fetching(first, second) as fetcher:
        first.answers = {
            "/a/start": redirect("../b/next", "301 Moved Permanently"),
            "/b/next": redirect(f"//other.test:{first.port}/hop", "303 See Other"),
            "/hop": redirect("?again=1", "307 Temporary Redirect"),
            "/hop?again=1": redirect(second.url("/back", "third.test"), "308 Permanent Redirect"),
        }
        second.answers["/back"] = redirect("/end?x=1#here")
        assert await fetch(fetcher, first.url("/a/start")) == BODY


async def test_redirects_are_limited() -> None:
    async with Host({"/loop": redirect("/loop"), "/1": redirect("/2"), "/2": redirect("/3")}) as host:
        host.answers["/3"] = respond(BODY)
        async with fetching(host, max_redirects=2) as fetcher:
            assert await reason(fetcher, host.url("/loop")) == "TOO_MANY_REDIRECTS"
            assert len(host.requests) == 3
            assert await fetch(fetcher, host.url("/1")) == BODY
        async with fetching(host, max_redirects=1) as fetcher:
            assert await reason(fetcher, host.url("/1")) == "TOO_MANY_REDIRECTS"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.2:{secret}/", "HOST_NOT_ALLOWED"),
        ("http://evil.com:{secret}/", "HOST_NOT_ALLOWED"),
        ("//127.0.0.2:{secret}/", "HOST_NOT_ALLOWED"),
        ("http://media.test:1/", "PORT_NOT_ALLOWED"),
        ("http://media.test/", "PORT_NOT_ALLOWED"),
        ("http://media.test:{port}@127.0.0.2:{secret}/", "INVALID_URL"),
        ("http://127.0.0.2:{secret}\\@media.test:{port}/", "INVALID_URL"),
        ("http://2130706434:{secret}/", "INVALID_URL"),
        ("http://0x7f.2:{secret}/", "INVALID_URL"),
        ("http://[::ffff:127.0.0.2]:{secret}/", "HOST_NOT_ALLOWED"),
        ("http://[::1", "INVALID_URL"),
        ("file:///etc/passwd", "INVALID_URL"),
        ("data:;base64,YWJj", "INVALID_URL"),
        ("gopher://media.test:{port}/", "INVALID_URL"),
        ("https:///etc/passwd", "INVALID_URL"),
        ("http://media.test:{port}/ü", "INVALID_URL"),
        ("", "BAD_ANSWER"),
    ],
)
async def test_a_redirect_to_a_forbidden_url_is_refused(location: str, expected: str) -> None:
    async with Host({"/": respond(b"secret")}, "127.0.0.2") as secret, Host() as host:
        host.answers["/start"] = redirect(location.format(port=host.port, secret=secret.port))
        async with fetching(host, ports=f"{host.port},{secret.port}") as fetcher:
            assert await reason(fetcher, host.url("/start")) == expected
    assert secret.connection_count == 0


async def test_a_redirect_to_a_private_address_is_refused() -> None:
    async with Host({"/": respond(b"secret")}, "127.0.0.2") as secret, Host() as host:
        host.answers["/start"] = redirect(secret.url("/", "inside.test"))
        async with fetching(host, secret, resolver=Resolver(["127.0.0.1"], ["127.0.0.2"])) as fetcher:
            assert await reason(fetcher, host.url("/start")) == "ADDRESS_NOT_ALLOWED"
    assert (len(host.requests), secret.connection_count) == (1, 0)


# -- addresses ---------------------------------------------------------------------------------------------------------


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
        settings = {"hosts": "localhost", "ports": str(host.port)}
        async with fetching(host, **settings) as fetcher:
            fetcher = Fetcher(fetcher._settings, fetcher._metrics)  # without the resolver of the test
            async with fetcher:
                assert await fetch(fetcher, host.url("/", "localhost")) == BODY
        async with fetching(host, **settings, networks="") as fetcher:
            fetcher = Fetcher(fetcher._settings, fetcher._metrics)
            async with fetcher:
                assert await reason(fetcher, host.url("/", "localhost")) == "ADDRESS_NOT_ALLOWED"
    assert host.connection_count == 1


# -- slow hosts --------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        (hang(), {"read_seconds": 0.1}),
        (hang(b"HTTP/1.1 200 OK\r\n"), {"read_seconds": 0.1}),
        (hang(HEAD + b"some"), {"read_seconds": 0.1}),
        (drip(HEAD, b"x"), {"total_seconds": 0.3}),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), {"total_seconds": 0.3}),
        (drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), {"total_seconds": 0.1}),
        (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), {"total_seconds": 0.3}),
    ],
    ids=["no answer", "half a head", "half a body", "a slow body", "slow chunks", "a slow head", "always soon"],
)
async def test_a_host_that_takes_too_long_times_out(answer: Answer, settings: dict[str, float]) -> None:
    async with Host({"/": answer}) as host, fetching(host, **settings) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"
        await eventually(lambda: host.busy_count == 0)


async def test_a_name_that_never_resolves_times_out() -> None:
    class Silent(Resolver):
        async def resolve(self, *_: object) -> list[object]:  # type: ignore[override]
            await asyncio.Event().wait()
            return []

    async with Host() as host, fetching(host, resolver=Silent(), connect_seconds=0.1) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"


async def test_redirects_share_one_timeout() -> None:
    async def slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await redirect("/")(_, writer)

    async with Host({"/": slowly}) as host, fetching(host, total_seconds=0.5, max_redirects=100) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"


# -- hostile hosts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (send(HEAD + BODY, close=True), "FETCH_INCOMPLETE"),
        (send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=True), "FETCH_INCOMPLETE"),
        (reset(HEAD + BODY), "FETCH_INCOMPLETE"),
        (reset(b""), "FETCH_INCOMPLETE"),
        (send(b"", close=True), "FETCH_INCOMPLETE"),
        (send(b"SSH-2.0-OpenSSH_9.2\r\n", close=True), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"), "BAD_ANSWER"),
        (respond(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), "FETCH_ENCODED"),
        (respond(gzip.compress(bytes(10_000_000)), Content_Encoding="deflate"), "FETCH_ENCODED"),
        (respond(BODY, Content_Encoding="identity, gzip"), "FETCH_ENCODED"),
        (respond(BODY, Content_Encoding="br"), "FETCH_ENCODED"),
        *((respond(BODY, f"{status} No"), "FETCH_STATUS") for status in (201, 206, 300, 400, 401, 403, 404, 500)),
        *((send(b"HTTP/1.1 %d No\r\n\r\n" % status), "FETCH_STATUS") for status in (204, 304)),
        (send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "FETCH_STATUS"),
    ],
)
async def test_a_response_that_is_not_the_file_is_refused(answer: Answer, expected: str) -> None:
    async with Host({"/": answer, "/next": respond(b"fine")}) as host, fetching(host) as fetcher:
        assert await reason(fetcher, host.url("/")) == expected
        assert await fetch(fetcher, host.url("/next")) == b"fine", "and the next one is"


async def test_bytes_beyond_content_length_are_ignored_and_affect_no_other_response() -> None:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    answer = send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + smuggled)
    async with Host({"/": answer, "/next": respond(b"fine")}) as host, fetching(host) as fetcher:
        for _ in range(3):
            assert await fetch(fetcher, host.url("/")) == b"hello"
            assert await fetch(fetcher, host.url("/next")) == b"fine"


async def test_the_http_status_is_reported() -> None:
    async with Host() as host, fetching(host) as fetcher:
        error = await refusal(fetcher, host.url("/nowhere"))
    assert (type(error), error.metadata["http_status"]) == (FetchFailed, "404")
    assert "the host answered 404" in error.message


async def test_a_compressed_transfer_is_not_inflated() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n" % len(bomb)
    async with Host({"/": send(head + bomb + b"\r\n0\r\n\r\n")}) as host, fetching(host) as fetcher:
        assert len(await fetch(fetcher, host.url("/"))) == len(bomb)


async def test_a_refused_body_ends_the_connection() -> None:
    class Full(Collected):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            if len(self.data) > 1_000_000:
                raise Overloaded("full")

    async with Host({"/": chunked(bytes(1 << 16), endless=True)}) as host, fetching(host) as fetcher:
        sink = Full()
        with pytest.raises(Overloaded):
            await fetcher.fetch(host.url("/"), "clip", sink)
        assert len(sink.data) < 2_000_000
        await eventually(lambda: host.busy_count == 0)


async def test_a_host_that_does_not_listen_is_unreachable() -> None:
    async with Host() as host:
        pass
    async with fetching(host) as fetcher, fetching(host, resolver=Resolver([])) as lost:
        assert await reason(fetcher, host.url("/")) == "FETCH_UNREACHABLE"
        assert await reason(lost, host.url("/")) == "FETCH_UNREACHABLE"


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "authority")


def identity(signed: Signed) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.certificate, signed.key)
    return context


async def test_a_certificate_must_be_for_the_name_and_by_an_authority(
    authority: Authority, stranger: Authority
) -> None:
    good, wrong_name, self_made = (
        identity(authority.sign("media.test")),
        identity(authority.sign("other.test")),
        identity(stranger.sign("media.test")),
    )
    root = str(authority.certificate)
    for tls, expected in ((good, ""), (wrong_name, "FETCH_TLS"), (self_made, "FETCH_TLS")):
        async with Host({"/": respond(BODY)}, tls=tls) as host, fetching(host, tls_root=root) as fetcher:
            if expected:
                assert await reason(fetcher, host.url("/")) == expected
                assert host.requests == []
            else:
                assert await fetch(fetcher, host.url("/")) == BODY


async def test_a_private_ca_is_not_trusted_by_default(authority: Authority) -> None:
    async with (
        Host({"/": respond(BODY)}, tls=identity(authority.sign("media.test"))) as host,
        fetching(host) as fetcher,
    ):
        assert await reason(fetcher, host.url("/")) == "FETCH_TLS"


async def test_the_certificate_must_be_for_the_url_s_host(authority: Authority) -> None:
    names: list[str] = []
    tls = identity(authority.sign("media.test"))
    tls.sni_callback = lambda _, name, __: names.append(name)
    async with (
        Host({"/": respond(BODY)}, tls=tls) as host,
        fetching(host, tls_root=str(authority.certificate)) as fetcher,
    ):
        await fetch(fetcher, host.url("/"))
    assert names == ["media.test"]


async def test_a_redirect_from_https_to_http_is_refused(authority: Authority) -> None:
    async with Host({"/": respond(BODY)}) as plain:
        safe = Host({"/": redirect(plain.url("/"))}, tls=identity(authority.sign("media.test")))
        async with safe, fetching(plain, safe, tls_root=str(authority.certificate)) as fetcher:
            error = await refusal(fetcher, safe.url("/"))
    assert error.reason == "INVALID_URL" and "from https to http" in error.message
    assert plain.connection_count == 0


async def test_an_unusable_tls_root_is_refused_at_startup(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pem", Path(__file__)):
        with pytest.raises(SettingError, match="--fetch-tls-root"):
            async with fetching(tls_root=str(path), ports="443"):
                pass


# -- concurrency and metrics -------------------------------------------------------------------------------------------


async def test_concurrent_fetches_are_limited_and_others_wait() -> None:
    go_on = asyncio.Event()
    at_once: list[int] = []

    async def counting(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once.append(host.busy_count)
        await go_on.wait()
        await respond(b"x", Connection="close")(_, writer)

    async with Host({"/": counting}) as host, fetching(host, max_at_once=2) as fetcher:
        tasks = [asyncio.create_task(fetch(fetcher, host.url("/"))) for _ in range(6)]
        await eventually(lambda: host.busy_count == 2)
        go_on.set()
        assert await asyncio.gather(*tasks) == [b"x"] * 6
    assert max(at_once) == 2


async def test_fetches_beyond_the_queue_are_refused() -> None:
    async with Host({"/": hang()}) as host, fetching(host, max_at_once=1) as fetcher:
        tasks = [asyncio.create_task(fetch(fetcher, host.url("/"))) for _ in range(33)]
        await eventually(lambda: host.busy_count == 1)
        with pytest.raises(Overloaded) as refused:
            await fetch(fetcher, host.url("/"))
        assert refused.value.reason == "FETCH_QUEUE_FULL"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: host.busy_count == 0)
        host.answers["/"] = respond(BODY)
        assert await fetch(fetcher, host.url("/")) == BODY


async def test_fetches_are_counted_by_scheme_and_outcome() -> None:
    async with Host({"/": respond(BODY), "/slow": hang(HEAD)}) as host, fetching(host) as fetcher:
        await fetch(fetcher, host.url("/"))
        await reason(fetcher, host.url("/nowhere"))
        leaving = asyncio.create_task(fetch(fetcher, host.url("/slow")))
        await eventually(lambda: len(host.requests) == 3)
        value = fetcher._metrics.registry.get_sample_value
        assert value("preprocessor_fetches_in_flight") == 1
        leaving.cancel()
        await asyncio.wait([leaving])
        await eventually(lambda: host.busy_count == 0)
    for outcome in ("ok", "fetch_status", "cancelled"):
        labels = {"scheme": "http", "outcome": outcome}
        assert value("preprocessor_fetch_duration_seconds_count", labels) == 1, outcome
    assert value("preprocessor_fetched_bytes_total", {"scheme": "http"}) == len(BODY)
    assert value("preprocessor_fetches_in_flight") == 0


@pytest.mark.parametrize(
    "url", ["http://media.test/", "file:///etc/passwd", "s3://bucket/key", "x", "", "data:,x", "HTTP:x"]
)
async def test_without_settings_nothing_is_fetched(url: str) -> None:
    async with fetching(hosts="", ports="80") as fetcher:
        with pytest.raises(InvalidRequest) as refused:
            await fetch(fetcher, url)
    assert refused.value.reason == "FETCH_DISABLED"
