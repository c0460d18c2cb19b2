"""Fetching over HTTP: requests, redirects, TLS, concurrency. The servers are on this machine."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from preprocessor import __version__
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest, Overloaded
from tests.engine.certificates import Authority, Signed
from tests.service.hosts import (
    Answer,
    Collected,
    Host,
    Resolver,
    chunked,
    fetch,
    fetching,
    hang,
    reason,
    redirect,
    refusal,
    respond,
    send,
)
from tests.waiting import eventually

BODY = bytes(range(256)) * 2000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


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
