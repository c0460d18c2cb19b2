"""TLS, authentication and quotas."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from preprocessor.client import CallFailed, Client, Credentials, PrepareResult, Prompt
from preprocessor.config import AccessSettings, ServeSettings, SettingError
from preprocessor.models.family import Model
from preprocessor.service import tokens
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.certificates import Authority, Signed
from tests.media import photo
from tests.service.conftest import Caller, chat, image, serving
from tests.service.refusals import refusal_of
from tests.waiting import PATIENCE_SECONDS

SERVICE, GATEWAY, BATCH = "preprocessor.test", "gateway.test", "batch.test"
TOKEN, OTHER_TOKEN = "a-token-of-the-gateway-0123456789", "a-token-of-batch-jobs-9876543210"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SPEC = chat("hello")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture
def service_files(authority: Authority, tmp_path: Path) -> Signed:
    """The service's certificate and key, in files that a test may replace."""
    return replaced(tmp_path, authority.sign(SERVICE))


def replaced(folder: Path, signed: Signed) -> Signed:
    """Replace the certificate and its key, each atomically."""
    files = Signed(folder / "tls.crt", folder / "tls.key")
    for source, target in ((signed.certificate, files.certificate), (signed.key, files.key)):
        shutil.copyfile(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
    return files


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    digest = hashlib.sha256(OTHER_TOKEN.encode()).hexdigest()
    path.write_text(f"# who may call\n\ngateway {TOKEN}\nbatch sha256:{digest}\n")
    return path


def with_tls(files: Signed, **more: object) -> AccessSettings:
    return AccessSettings(tls_certificate=str(files.certificate), tls_key=str(files.key), **more)  # type: ignore[arg-type]


def towards_service(authority: Authority, own: Signed | None = None) -> Credentials:
    certificate, key = (str(own.certificate), str(own.key)) if own else ("", "")
    return Credentials(
        tls_root=str(authority.certificate), tls_certificate=certificate, tls_key=key, tls_server_name=SERVICE
    )


async def ask(caller: Caller, credentials: Credentials, spec: pb.PrepareSpec = SPEC) -> PrepareResult:
    """Call over a new connection."""

    def call() -> PrepareResult:
        with Client(caller.server.address, credentials, retry_seconds=0) as client:
            return client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS)

    return await asyncio.to_thread(call)


async def refusal(caller: Caller, credentials: Credentials) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await ask(caller, credentials)
    return caught.value


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def model_of(caller: Caller, token: str = "") -> pb.Model:
    return await caller.stub.GetModel(pb.GetModelRequest(), metadata=bearer(token) if token else ())


# -- TLS ---------------------------------------------------------------------------------------------------------------


async def test_with_tls_callers_that_trust_the_ca_are_served(
    model: Model, authority: Authority, service_files: Signed, tmp_path: Path
) -> None:
    async with serving(model, access=with_tls(service_files)) as caller:
        assert (await ask(caller, towards_service(authority))).header.token_count > 0
        stranger = Authority(tmp_path, "stranger")
        assert (await refusal(caller, towards_service(stranger))).code is grpc.StatusCode.UNAVAILABLE
        in_the_open = await refusal(caller, Credentials())
        assert in_the_open.code is grpc.StatusCode.UNAVAILABLE


async def test_with_mutual_tls_callers_need_a_certificate(
    model: Model, authority: Authority, service_files: Signed, tmp_path: Path
) -> None:
    access = with_tls(service_files, tls_client_root=str(authority.certificate))
    async with serving(model, access=access) as caller:
        assert (await ask(caller, towards_service(authority, authority.sign(GATEWAY)))).header.token_count > 0
        assert (await refusal(caller, towards_service(authority))).code is grpc.StatusCode.UNAVAILABLE
        forged = Authority(tmp_path, "forger").sign(GATEWAY)
        assert (await refusal(caller, towards_service(authority, forged))).code is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_serves_new_connections_without_a_restart(
    model: Model, authority: Authority, service_files: Signed, tmp_path: Path
) -> None:
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following authority")
    async with serving(model, access=with_tls(service_files)) as caller:
        with Client(caller.server.address, towards_service(authority)) as old:
            await asyncio.to_thread(old.prepare, Prompt(SPEC), timeout_seconds=PATIENCE_SECONDS)
            replaced(tmp_path, following.sign(SERVICE))
            assert (await ask(caller, towards_service(following))).header.token_count > 0
            assert (await refusal(caller, towards_service(authority))).code is grpc.StatusCode.UNAVAILABLE
            answer = await asyncio.to_thread(old.prepare, Prompt(SPEC), timeout_seconds=PATIENCE_SECONDS)
            assert answer.header.token_count > 0, "a connection that is open goes on"


async def test_mismatched_files_leave_the_previous_certificate_in_use(
    model: Model,
    authority: Authority,
    service_files: Signed,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with serving(model, access=with_tls(service_files)) as caller:
        renewed = authority.sign(SERVICE)
        service_files.certificate.write_bytes(renewed.certificate.read_bytes())  # its key is still to come
        assert (await ask(caller, towards_service(authority))).header.token_count > 0
        logged = caplog.text + capfd.readouterr().err  # a front writes its own lines
        assert "the previous certificate stays in use" in logged
        service_files.key.write_bytes(b"no key")
        assert (await ask(caller, towards_service(authority))).header.token_count > 0
        replaced(tmp_path, renewed)
        assert (await ask(caller, towards_service(authority))).header.token_count > 0


async def test_a_certificate_that_cannot_be_used_is_refused_at_start(
    model: Model, authority: Authority, service_files: Signed
) -> None:
    other = authority.sign(GATEWAY)
    access = AccessSettings(tls_certificate=str(service_files.certificate), tls_key=str(other.key))
    with pytest.raises(SettingError) as caught:
        async with serving(model, access=access, is_in_process=True):
            pass
    assert caught.value.option == "--tls-key"


@pytest.mark.parametrize("alternative", [f"DNS:{GATEWAY}", f"DNS:other.test,URI:spiffe://test/{GATEWAY}"])
async def test_a_certificate_s_owner_has_a_quota_of_his_own(
    model: Model, authority: Authority, service_files: Signed, alternative: str
) -> None:
    access = with_tls(service_files, tls_client_root=str(authority.certificate), max_calls_per_second=0.1)
    async with serving(model, access=access) as caller:
        gateway = towards_service(authority, authority.sign(GATEWAY, alternative))
        assert (await ask(caller, gateway)).header.token_count > 0
        failed = await refusal(caller, gateway)
        assert (failed.code, failed.reason) == (EXHAUSTED, "CALL_RATE_EXCEEDED")
        batch = towards_service(authority, authority.sign(BATCH, "DNS:other.test" if "URI" in alternative else ""))
        assert (await ask(caller, batch)).header.token_count > 0


# -- without TLS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.1.2.3:50051", "preprocessor.test:50051"])
def test_listening_without_tls_needs_insecure(address: str) -> None:
    with pytest.raises(SettingError, match="--insecure"):
        ServeSettings(address=address)
    assert ServeSettings(address=address, access=AccessSettings(is_insecure=True)).address == address
    assert ServeSettings(address=address, access=AccessSettings(tls_certificate="a", tls_key="b")).address == address


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_addresses_need_no_tls(address: str) -> None:
    assert ServeSettings(address=address).address == address


def test_the_command_line_refuses_to_listen_without_tls_and_names_the_option() -> None:
    command = [sys.executable, "-m", "preprocessor", "serve", "--address", "0.0.0.0:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 2
    assert "--insecure" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_certificate_has_priority_over_insecure(
    model: Model, authority: Authority, service_files: Signed
) -> None:
    async with serving(model, access=with_tls(service_files, is_insecure=True), is_in_process=True) as caller:
        assert (await ask(caller, towards_service(authority))).header.token_count > 0
        assert (await refusal(caller, Credentials())).code is grpc.StatusCode.UNAVAILABLE


async def test_with_insecure_the_service_listens_without_tls(model: Model) -> None:
    access = AccessSettings(is_insecure=True)
    async with serving(model, address="0.0.0.0:0", access=access, is_in_process=True) as caller:
        assert (await caller.prepare(SPEC)).header.token_count > 0


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"tls_key": "key.pem"}, "--tls-key"),
        ({"tls_certificate": "certificate.pem"}, "--tls-certificate"),
        ({"tls_client_root": "root.pem"}, "--tls-client-root"),
        ({"max_calls_per_second": -1.0}, "--max-calls-per-second"),
        ({"caller_metadata": "X-Caller"}, "--caller-metadata"),
        ({"caller_metadata": "caller-bin"}, "--caller-metadata"),
        ({"caller_metadata": "grpc-caller"}, "--caller-metadata"),
        ({"max_bytes_per_second": -1}, "--max-bytes-per-second"),
        ({"max_calls_a_caller": -1}, "--max-calls-a-caller"),
    ],
)
def test_invalid_access_settings_are_refused_by_option_name(fields: dict[str, object], option: str) -> None:
    with pytest.raises(SettingError) as refused:
        AccessSettings(**fields)  # type: ignore[arg-type]
    assert refused.value.option == option


def test_the_client_connects_without_tls_only_with_insecure() -> None:
    with pytest.raises(SettingError, match="--insecure"):
        Client("preprocessor.test:50051")
    Client("preprocessor.test:50051", Credentials(insecure=True)).close()


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


async def test_calls_per_second_are_limited_by_caller(model: Model, token_file: Path) -> None:
    async with metered(model, token_file, max_calls_per_second=0.3) as caller:
        for _ in range(3):
            await model_of(caller, TOKEN)
        found = await refusal_of(model_of(caller, TOKEN))
        assert (found.code, found.reason) == (EXHAUSTED, "CALL_RATE_EXCEEDED")
        assert found.retry_after_seconds is not None
        assert 0 < found.retry_after_seconds <= 1 / 0.3
        await model_of(caller, OTHER_TOKEN)


async def test_callers_are_identified_by_a_proxy_s_metadata_or_else_by_address(model: Model) -> None:
    access = AccessSettings(caller_metadata="x-caller", max_calls_per_second=0.1)
    async with serving(model, access=access) as caller:

        async def asking(*said: tuple[str, str]) -> grpc.StatusCode:
            return await caller.stub.GetModel(pb.GetModelRequest(), metadata=said, timeout=60).code()

        assert await asking(("x-caller", "a")) == grpc.StatusCode.OK
        assert await asking(("x-caller", "a")) == EXHAUSTED
        assert await asking(("x-caller", "b")) == grpc.StatusCode.OK
        assert await asking() == grpc.StatusCode.OK
        assert await asking(("x-caller", "")) == EXHAUSTED


async def test_a_token_has_priority_over_a_proxy_s_metadata(model: Model, token_file: Path) -> None:
    async with metered(model, token_file, caller_metadata="x-caller", max_calls_per_second=0.1) as caller:
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


# -- the command line --------------------------------------------------------------------------------------------------


async def test_the_command_line_calls_by_mutual_tls_with_a_token(
    model: Model, authority: Authority, service_files: Signed, token_file: Path, tmp_path: Path
) -> None:
    own_token = tmp_path / "own-token"
    own_token.write_text(f"{TOKEN}\n")
    own = authority.sign(GATEWAY)
    access = with_tls(service_files, tls_client_root=str(authority.certificate), token_file=str(token_file))
    async with serving(model, access=access) as caller:
        command = [sys.executable, "-m", "preprocessor", "prepare", "--address", caller.server.address, "--text", "Hi"]
        tls = ["--tls-root", str(authority.certificate), "--tls-server-name", SERVICE]
        mutual = ["--tls-certificate", str(own.certificate), "--tls-key", str(own.key)]

        def run(*options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
            )

        done = await asyncio.to_thread(run, *tls, *mutual, "--token-file", str(own_token))
        assert done.returncode == 0, done.stderr
        without_token = await asyncio.to_thread(run, *tls, *mutual)
        assert without_token.returncode == 1
        assert "UNAUTHENTICATED" in without_token.stderr
        no_file = await asyncio.to_thread(run, *tls, *mutual, "--token-file", str(tmp_path / "nowhere"))
        assert no_file.returncode == 2
        assert "--token-file" in no_file.stderr
