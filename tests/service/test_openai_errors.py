"""What the port of OpenAI's API refuses, how it says so, and that limits, tokens and quotas hold there as for gRPC."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from engine_client import EngineDeadlineExceeded, EngineOverloaded, EngineRejected, EngineUnavailable
from engine_client.testing import FakeEngine
from preprocessor.config import AccessSettings, Limits, ServeSettings, SettingError, WireSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.certificates import Authority
from tests.media import photo
from tests.service.conftest import ONE_CALL, Caller
from tests.service.openai_calls import QUESTION, client_of, data_url, image_part, serving_openai, user
from tests.waiting import PATIENCE_SECONDS, eventually

PHOTO = photo(96, 64)
TOKEN = "a-token-of-the-gateway-0123456789"
BODY = json.dumps({"messages": [QUESTION]}).encode()


async def ask(client: AsyncOpenAI, messages: Any = (QUESTION,), **options: Any) -> Any:
    return await client.chat.completions.create(**{"model": "", "messages": list(messages), **options})


async def refusal(client: AsyncOpenAI, messages: Any = (QUESTION,), **options: Any) -> openai.APIStatusError:
    """The error of a request."""
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, messages, **options)
    assert caught.value.body["message"]  # type: ignore[index]
    return caught.value


async def connect(caller: Caller) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = caller.server.openai_address.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


async def exchange(caller: Caller, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes for bytes sent as they are."""
    reader, writer = await connect(caller)
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
    return int(head[0].split()[1]), headers, body


def request_bytes(body: bytes, *headers: str, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    if not any(header.startswith("Content-Type:") for header in headers):
        headers = ("Content-Type: application/json", *headers)
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest_asyncio.fixture(scope="module")
async def shared(model: Model) -> AsyncIterator[tuple[Caller, AsyncOpenAI, FakeEngine]]:
    engine = FakeEngine([5, 6, 7])
    async with serving_openai(model, engine) as (caller, client):
        yield caller, client, engine


@pytest.fixture
def caller(shared: tuple[Caller, AsyncOpenAI, FakeEngine]) -> Caller:
    shared[2].error = None
    return shared[0]


@pytest.fixture
def client(shared: tuple[Caller, AsyncOpenAI, FakeEngine]) -> AsyncOpenAI:
    return shared[1]


@pytest.fixture
def engine(shared: tuple[Caller, AsyncOpenAI, FakeEngine]) -> FakeEngine:
    shared[2].error = None
    return shared[2]


@pytest.mark.parametrize(
    ("options", "reason", "param"),
    [
        ({"temperature": -1}, "INVALID_GENERATION_PARAMETERS", "temperature"),
        ({"temperature": "warm"}, "INVALID_GENERATION_PARAMETERS", "temperature"),
        ({"max_tokens": 2**40}, "INVALID_GENERATION_PARAMETERS", "max_tokens"),
        ({"max_tokens": True}, "INVALID_GENERATION_PARAMETERS", "max_tokens"),
        ({"temperature": 10**400}, "INVALID_GENERATION_PARAMETERS", "temperature"),
        (
            {"extra_body": {"mm_processor_kwargs": {"fps": 10**400}}},
            "INVALID_GENERATION_PARAMETERS",
            "mm_processor_kwargs.fps",
        ),
        ({"n": 0}, "INVALID_GENERATION_PARAMETERS", "n"),
        ({"logprobs": True, "top_logprobs": 21}, "INVALID_GENERATION_PARAMETERS", "top_logprobs"),
        ({"stop": [""]}, "INVALID_GENERATION_PARAMETERS", "stop"),
        ({"stop": 3}, "INVALID_GENERATION_PARAMETERS", "stop"),
        ({"top_logprobs": 2}, "INVALID_GENERATION_PARAMETERS", "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "UNSUPPORTED_PARAMETER", "logit_bias"),
        ({"extra_body": {"best_of": 2}}, "UNSUPPORTED_PARAMETER", "best_of"),
        ({"extra_body": {"mm_processor_kwargs": {"crop": 1}}}, "UNSUPPORTED_PARAMETER", "mm_processor_kwargs.crop"),
        ({"extra_body": {"mm_processor_kwargs": {"min_pixels": 2**70}}}, "INVALID_GENERATION_PARAMETERS", None),
        (
            {"extra_body": {"mm_processor_kwargs": {"fps": 2}, "media_io_kwargs": {"video": {"num_frames": 4}}}},
            "INVALID_GENERATION_PARAMETERS",
            "media_io_kwargs.video.num_frames",
        ),
        ({"response_format": {"type": "yaml"}}, "INVALID_GENERATION_PARAMETERS", "response_format.type"),
        ({"tool_choice": "required"}, "INVALID_GENERATION_PARAMETERS", "tool_choice"),
        ({"tools": [{"type": "function"}]}, "INVALID_GENERATION_PARAMETERS", "tools"),
        ({"messages": []}, "EMPTY_PROMPT", "messages"),
        ({"messages": ["hello"]}, "INVALID_MESSAGE", "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "INVALID_MESSAGE", "messages[0].content"),
        ({"messages": [{"content": "hello"}]}, "INVALID_MESSAGE", "messages[0].role"),
        ({"messages": user({"type": "file"})}, "INVALID_MESSAGE", "messages[0].content[0].type"),
        ({"messages": user({"type": "image_url"})}, "INVALID_MESSAGE", "messages[0].content[0].image_url"),
        ({"messages": user(data_url(PHOTO, "image/jpeg"))}, "INVALID_MESSAGE", "messages"),
        ({"messages": user("See", image_part(b"no image"))}, "NOT_MEDIA", "messages[0].content[1]"),
        ({"messages": user(image_part(PHOTO, uuid="x" * 200))}, "INVALID_UUID", "messages[0].content[0]"),
        ({"messages": [{"role": "narrator", "content": "hello"}]}, "CHAT_TEMPLATE_FAILED", None),
    ],
)
async def test_an_error_names_the_field_at_fault(
    client: AsyncOpenAI, options: dict[str, Any], reason: str, param: str | None
) -> None:
    error = await refusal(client, **options)
    assert (error.status_code, error.type, error.code) == (400, "invalid_request_error", reason)
    assert param is None or error.param == param
    assert error.request_id


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineRejected("too long"), 400, "ENGINE_REJECTED"),
        (EngineOverloaded("full"), 429, "ENGINE_OVERLOADED"),
        (EngineUnavailable("gone"), 503, "ENGINE_UNAVAILABLE"),
        (EngineDeadlineExceeded("late"), 504, "ENGINE_DEADLINE_EXCEEDED"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_what_the_engine_says_has_a_fitting_status(
    client: AsyncOpenAI, engine: FakeEngine, error: Any, status: int, code: str, is_stream: bool
) -> None:
    engine.error, engine.fail_at_step = error, 0
    caught = await refusal(client, stream=is_stream)
    assert (caught.status_code, caught.code) == (status, code)
    assert ("retry-after" in caught.response.headers) is (status in (429, 503))


async def test_without_an_engine_it_is_unavailable(model: Model) -> None:
    async with serving_openai(model) as (_, client):
        assert (await refusal(client)).status_code == 503
        assert [one.id for one in (await client.models.list()).data] == ["qwen3-vl"]


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (request_bytes(b"{"), 400, "INVALID_JSON"),
        (request_bytes(b"[]"), 400, "INVALID_JSON"),
        (request_bytes(b""), 400, "INVALID_JSON"),
        (request_bytes(b'{"messages": 1, "messages": 2}'), 400, "DUPLICATE_JSON_KEY"),
        (request_bytes(b'{"a": [' + b"1," * 20_000 + b"1]}"), 413, "SPEC_TOO_LARGE"),
        (request_bytes(BODY, "Content-Encoding: gzip"), 415, "UNSUPPORTED_CONTENT"),
        (request_bytes(BODY, "Content-Type: text/plain"), 415, "UNSUPPORTED_CONTENT"),
        (request_bytes(BODY, path="/v1/completions"), 404, "UNKNOWN_PATH"),
        (request_bytes(BODY, path="/v1/models"), 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_requests_that_no_client_sends_are_refused(
    caller: Caller, request_: bytes, status: int, reason: str
) -> None:
    got, headers, body = await exchange(caller, request_)
    assert (got, headers["content-type"]) == (status, "application/json; charset=utf-8")
    assert json.loads(body)["error"]["code"] == reason


async def test_a_body_is_asked_for_once_the_call_is_admitted(model: Model, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"gateway {TOKEN}\n")
    access = AccessSettings(token_file=str(tmp_path / "tokens"))
    async with serving_openai(model, FakeEngine([5]), access=access) as (caller, _):
        for token, line in ((TOKEN, b"HTTP/1.1 100 Continue\r\n"), ("another", b"HTTP/1.1 401 Unauthorized\r\n")):
            reader, writer = await connect(caller)
            headers = (f"Authorization: Bearer {token}", "Expect: 100-continue")
            writer.write(request_bytes(b"", *headers, length=len(BODY)))
            assert await reader.readline() == line
            if token == TOKEN:
                writer.write(BODY)
                assert (await reader.readuntil(b"200 OK\r\n")) == b"\r\nHTTP/1.1 200 OK\r\n"
            writer.close()


async def test_a_caller_who_does_not_read_its_answer_is_disconnected(model: Model) -> None:
    engine = FakeEngine([5, 6, 7] * 100_000)
    async with serving_openai(model, engine, wire=WireSettings(answer_idle_seconds=0.3)) as (caller, _):
        _, writer = await connect(caller)
        body = json.dumps({"messages": [QUESTION], "stream": True, "max_tokens": 1_000_000}).encode()
        writer.write(request_bytes(body))
        await eventually(lambda: engine.cancelled_count == 1)
        await eventually(lambda: not caller.server._openai._http.connections)  # type: ignore[union-attr]
        samples = await caller.samples()
        assert samples["preprocessor_requests_total", "DEADLINE_EXCEEDED", "Generate"] == 1
        writer.close()


async def test_a_request_has_the_caller_s_own_id(caller: Caller) -> None:
    _, headers, body = await exchange(caller, request_bytes(BODY, "X-Request-Id: my-own-id"))
    assert headers["x-request-id"] == "my-own-id"
    assert json.loads(body)["id"] == "chatcmpl-my-own-id"


async def test_what_is_not_http_is_not_logged(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status, _, _ = await exchange(caller, b"GET / HTTP/1.1\r\nAuthoriz\x00ation: Bearer secret\r\n\r\n")
    assert status == 400
    assert "secret" not in caplog.text


async def test_files_that_are_too_large_are_refused_while_they_arrive(model: Model) -> None:
    limits = Limits(max_media_bytes=10_000, max_image_bytes=5_000)
    async with serving_openai(model, FakeEngine([5]), limits=limits) as (caller, client):
        for size in (6_000, 20_000):
            error = await refusal(client, user(image_part(bytes(size))))
            assert (error.status_code, error.code) == (413, "MEDIA_TOO_LARGE")
        head = BODY[:-1] + b', "x": "data:image/png;base64,' + b"A" * 40_000
        status, _, body = await exchange(caller, request_bytes(head, length=10**9))
        assert (status, json.loads(body)["error"]["code"]) == (413, "MEDIA_TOO_LARGE")


async def test_a_file_on_its_way_counts_against_the_memory_budget(model: Model) -> None:
    async with serving_openai(model, FakeEngine([5]), memory_budget_bytes=256 << 20) as (caller, client):
        reader, writer = await connect(caller)
        head = BODY[:-1] + b', "x": "data:video/mp4;base64,'
        writer.write(request_bytes(head, length=10**9))
        for _ in range(50):
            writer.write(b"A" * (1 << 20))
            await writer.drain()
        file_bytes = caller.server.pool.counters
        await eventually(lambda: file_bytes.file_bytes > 36 << 20)
        error = await refusal(client, user(image_part(bytes(40 << 20))))
        assert (error.status_code, error.code) == (429, "MEMORY_BUDGET_FULL")
        assert int(error.response.headers["retry-after"]) >= 1
        assert file_bytes.file_bytes < 40 << 20
        writer.transport.abort()
        await eventually(lambda: caller.server.pool.used_bytes == 0)
        assert reader.at_eof() or reader.exception() is not None


async def test_a_body_that_stops_arriving_is_given_up(model: Model) -> None:
    async with serving_openai(model, FakeEngine([5]), wire=WireSettings(upload_idle_seconds=0.2)) as (caller, _):
        status, _, body = await exchange(caller, request_bytes(BODY[:-1], length=len(BODY)))
        assert (status, json.loads(body)["error"]["code"]) == (408, "UPLOAD_IDLE")


async def test_a_caller_needs_a_token_and_has_one_quota_on_both_ports(model: Model, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"gateway {TOKEN}\n")
    access = AccessSettings(token_file=str(tmp_path / "tokens"), max_calls_per_second=ONE_CALL)
    async with serving_openai(model, FakeEngine([5]), access=access) as (caller, stranger):
        assert (await refusal(stranger)).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
        async with client_of(caller, TOKEN) as client:
            await ask(client)
            error = await refusal(client)
            assert (error.status_code, error.code) == (429, "CALL_RATE_EXCEEDED")
            assert int(error.response.headers["retry-after"]) >= 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.GetModel(pb.GetModelRequest(), metadata=(("authorization", f"Bearer {TOKEN}"),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_caller_without_a_name_is_known_by_its_address_on_both_ports(model: Model) -> None:
    access = AccessSettings(max_calls_per_second=ONE_CALL)
    async with serving_openai(model, FakeEngine([5]), access=access) as (caller, client):
        await client.models.list()
        assert (await refusal(client)).code == "CALL_RATE_EXCEEDED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.GetModel(pb.GetModelRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_tls_is_that_of_the_grpc_address(model: Model, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    signed, own = authority.sign("localhost", "IP:127.0.0.1"), authority.sign("gateway.test")
    access = AccessSettings(
        tls_certificate=str(signed.certificate),
        tls_key=str(signed.key),
        tls_client_root=str(authority.certificate),
        max_calls_per_second=ONE_CALL,
    )
    async with serving_openai(model, FakeEngine([5]), access=access) as (caller, in_the_open):
        with pytest.raises(openai.APIConnectionError):
            await ask(in_the_open)

        async def by_tls(trusted: Path, certificate: Any = None) -> None:
            context = ssl.create_default_context(cafile=str(trusted))
            if certificate is not None:
                context.load_cert_chain(certificate.certificate, certificate.key)
            client = AsyncOpenAI(
                api_key="none",
                base_url=f"https://{caller.server.openai_address}/v1",
                max_retries=0,
                http_client=DefaultAsyncHttpxClient(verify=context),
            )
            async with client:
                await ask(client)

        await by_tls(authority.certificate, own)
        assert caller.server.auth_interceptor._accounts.of("gateway.test")._calls.level < 1, "the caller's name"
        with pytest.raises(openai.APIConnectionError):
            await by_tls(authority.certificate)
        (tmp_path / "next").mkdir()
        following = Authority(tmp_path / "next", "following")
        renewed, its_own = following.sign("localhost", "IP:127.0.0.1"), following.sign("other.test")
        for source, target in (
            (renewed.certificate, signed.certificate),
            (renewed.key, signed.key),
            (following.certificate, authority.certificate),
        ):
            target.write_bytes(source.read_bytes())
        await by_tls(following.certificate, its_own)
        with pytest.raises(openai.APIConnectionError):
            await by_tls(following.certificate, own)


async def test_a_stop_waits_for_answers_and_refuses_new_calls(model: Model) -> None:
    engine = FakeEngine([5, 6, 7], gate=asyncio.Event())
    async with serving_openai(model, engine) as (caller, client):
        asked = asyncio.create_task(ask(client))
        await eventually(lambda: len(engine.requests) == 1)
        retiring = asyncio.create_task(caller.server.retire())
        await eventually(lambda: caller.server.auth_interceptor.is_draining)
        assert (await refusal(client)).code == "DRAINING"
        assert engine.gate is not None
        engine.gate.set()
        assert (await asked).usage.completion_tokens == 3
        await retiring


async def test_a_stop_without_patience_ends_answers(model: Model) -> None:
    engine = FakeEngine([5, 6, 7], gate=asyncio.Event())
    async with serving_openai(model, engine, drain_seconds=0.1) as (_, client):
        asked = asyncio.create_task(ask(client))
        await eventually(lambda: len(engine.requests) == 1)
    with pytest.raises(openai.APIConnectionError):
        await asked
    assert engine.cancelled_count == 1


async def test_connections_beyond_the_limit_are_closed_at_once(model: Model) -> None:
    async with serving_openai(model, FakeEngine([5]), wire=WireSettings(max_connections=2)) as (caller, client):
        held = [await connect(caller) for _ in range(2)]
        with pytest.raises(openai.APIConnectionError):
            await ask(client)
        for _, writer in held:
            writer.close()
        await eventually(lambda: not caller.server._openai._http.connections)  # type: ignore[union-attr]
        await ask(client)


@pytest.mark.parametrize("address", ["0.0.0.0:8000", "127.0.0.1:8080", "127.0.0.1"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(SettingError) as caught:
        ServeSettings(openai_address=address)
    assert caught.value.option == "--openai-address"


async def test_an_address_in_use_is_refused(model: Model, caller: Caller) -> None:
    with pytest.raises(SettingError) as caught:
        async with serving_openai(model, openai_address=caller.server.openai_address):
            pass
    assert caught.value.option == "--openai-address"
