"""Callers' tokens, and quotas."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from preprocessor.client import CallFailed
from preprocessor.config import AccessSettings, SettingError
from preprocessor.models.family import Model
from preprocessor.service import quotas, tokens
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.access.conftest import EXHAUSTED, OTHER_TOKEN, TOKEN, UNAUTHENTICATED, bearer, model_of
from tests.service.conftest import ONE_CALL, Caller, chat, image, serving
from tests.service.refusals import refusal_of

# -- tokens ------------------------------------------------------------------------------------------------------------


async def test_callers_need_a_known_token(model: Model, token_file: Path) -> None:
    async with serving(model, access=AccessSettings(token_file=str(token_file))) as caller:
        for token in (TOKEN, OTHER_TOKEN):
            assert (await model_of(caller, token)).name == "qwen3-vl"
        digest = hashlib.sha256(OTHER_TOKEN.encode()).hexdigest()
        for wrong in ("", "wrong-token-0123456789", f"sha256:{digest}", TOKEN + "x", TOKEN[:-1]):
            found = await refusal_of(model_of(caller, wrong))
            assert (found.code, found.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
            assert not wrong or wrong not in found.message
        samples = await caller.samples()
        assert samples["preprocessor_requests_total", "UNAUTHENTICATED", "GetModel"] == 5


@pytest.mark.usefixtures("refusals_at_once")
async def test_every_method_asks_for_the_token(model: Model, token_file: Path) -> None:
    async with serving(model, access=AccessSettings(token_file=str(token_file))) as caller:
        for path in (
            "/preprocessor.v1.Preprocessor/Prepare",
            "/preprocessor.v1.Preprocessor/Generate",
            "/preprocessor.v1.Preprocessor/CountTokens",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ):
            found = await refusal_of(caller.channel.stream_stream(path)())
            assert found.code is UNAUTHENTICATED, path
        watch: Any = caller.channel.unary_stream("/grpc.health.v1.Health/Watch")
        assert (await refusal_of(watch(b""))).code is UNAUTHENTICATED


async def test_health_checks_need_no_token(model: Model, token_file: Path) -> None:
    async with serving(model, access=AccessSettings(token_file=str(token_file))) as caller:
        answer = await health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_needs_authentication_too(model: Model, token_file: Path) -> None:
    async with serving(model, access=AccessSettings(token_file=str(token_file))) as caller:
        stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        asking = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        [listing] = [answer async for answer in stub.ServerReflectionInfo(asking, metadata=bearer(TOKEN))]
        assert len(listing.list_services_response.service) == 3


async def test_tokens_are_rotated_while_the_service_runs(
    model: Model, token_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "REFRESH_SECONDS", 0.0)
    async with serving(model, access=AccessSettings(token_file=str(token_file))) as caller:
        assert (await model_of(caller, TOKEN)).name
        rewrite(token_file, "gateway its-new-token-0123456789\n")
        assert (await model_of(caller, "its-new-token-0123456789")).name
        assert (await refusal_of(model_of(caller, TOKEN))).code is UNAUTHENTICATED
        rewrite(token_file, "a file that was cut o")
        assert (await model_of(caller, "its-new-token-0123456789")).name
        assert "the previous tokens stay in use" in caplog.text
        rewrite(token_file, None)
        assert (await model_of(caller, "its-new-token-0123456789")).name


def rewrite(path: Path, text: str | None) -> None:
    """Replace a file, or take it away."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nobody\n",
        "gateway",
        "gateway short",
        "gateway sha256:12ab",
        "two words token-0123456789",
        "näme token-0123456789",
    ],
)
def test_an_invalid_token_file_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(SettingError) as caught:
        tokens.CallerTokens(str(path))
    assert caught.value.option == "--token-file"
    assert "0123456789" not in str(caught.value)
    assert "12ab" not in str(caught.value)


def test_a_token_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"gateway {TOKEN}\nbatch {TOKEN}\n")
    with pytest.raises(SettingError, match="line 2"):
        tokens.CallerTokens(str(path))


def test_an_owner_may_have_several_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"gateway {TOKEN}\ngateway {OTHER_TOKEN}\n")
    table = tokens.CallerTokens(str(path))
    assert {table.name_of(TOKEN), table.name_of(OTHER_TOKEN)} == {"gateway"}
    assert table.name_of("") is None


# -- quotas ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def metered(model: Model, token_file: Path, **quota: float | str) -> AsyncIterator[Caller]:
    access = AccessSettings(token_file=str(token_file), **quota)  # type: ignore[arg-type]
    async with serving(model, access=access) as caller:
        yield caller


async def test_calls_per_second_are_limited_by_caller(
    model: Model, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "BURST_SECONDS", 3 / ONE_CALL)
    async with metered(model, token_file, max_calls_per_second=ONE_CALL) as caller:
        for _ in range(3):
            await model_of(caller, TOKEN)
        found = await refusal_of(model_of(caller, TOKEN))
        assert (found.code, found.reason) == (EXHAUSTED, "CALL_RATE_EXCEEDED")
        assert found.retry_after_seconds is not None
        assert 0 < found.retry_after_seconds <= 1 / ONE_CALL
        await model_of(caller, OTHER_TOKEN)


async def test_callers_are_identified_by_a_proxy_s_metadata_or_else_by_address(model: Model) -> None:
    access = AccessSettings(caller_metadata="x-caller", max_calls_per_second=ONE_CALL)
    async with serving(model, access=access) as caller:

        async def asking(*said: tuple[str, str]) -> grpc.StatusCode:
            return await caller.stub.GetModel(pb.GetModelRequest(), metadata=said, timeout=60).code()

        assert await asking(("x-caller", "a")) == grpc.StatusCode.OK
        assert await asking(("x-caller", "a")) == EXHAUSTED
        assert await asking(("x-caller", "b")) == grpc.StatusCode.OK
        assert await asking() == grpc.StatusCode.OK
        assert await asking(("x-caller", "")) == EXHAUSTED


async def test_a_token_has_priority_over_a_proxy_s_metadata(model: Model, token_file: Path) -> None:
    async with metered(model, token_file, caller_metadata="x-caller", max_calls_per_second=ONE_CALL) as caller:
        await model_of(caller, TOKEN)
        call = caller.stub.GetModel(pb.GetModelRequest(), metadata=(*bearer(TOKEN), ("x-caller", "b")), timeout=60)
        assert await call.code() == EXHAUSTED


async def test_bytes_per_second_are_limited_by_caller_and_no_upload_is_interrupted(
    model: Model, token_file: Path
) -> None:
    async with metered(model, token_file, max_bytes_per_second=100) as caller:
        spec = chat(image("photo", photo(200, 200)))
        assert spec.ByteSize() > 1000, "more than ten seconds' worth"

        def asking(token: str) -> Awaitable[list[pb.PrepareResponse]]:
            return caller.send([pb.PrepareRequest(spec=spec)], bearer(token))

        assert (await asking(TOKEN))[-1].WhichOneof("message") == "report"
        found = await refusal_of(asking(TOKEN))
        assert (found.code, found.reason) == (EXHAUSTED, "BYTE_RATE_EXCEEDED")
        assert found.retry_after_seconds is not None
        assert found.retry_after_seconds > 1
        assert (await asking(OTHER_TOKEN))[-1].WhichOneof("message") == "report"


async def test_open_calls_are_limited_by_caller(model: Model, token_file: Path) -> None:
    async with metered(model, token_file, max_calls_a_caller=1) as caller:
        idle = caller.stub.Prepare(metadata=bearer(TOKEN))
        await idle.write(pb.PrepareRequest(spec=chat(image("photo"))))
        found: CallFailed = await refusal_of(model_of(caller, TOKEN))
        assert (found.code, found.reason) == (EXHAUSTED, "TOO_MANY_CALLS")
        await model_of(caller, OTHER_TOKEN)
        idle.cancel()
