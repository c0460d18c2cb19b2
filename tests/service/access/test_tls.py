"""TLS, and listening without it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from preprocessor.client import Client, Credentials, Prompt
from preprocessor.config import AccessSettings, ServeSettings, SettingError
from preprocessor.models.family import Model
from tests.engine.certificates import Authority, Signed
from tests.service.access.conftest import (
    BATCH,
    EXHAUSTED,
    GATEWAY,
    SERVICE,
    SPEC,
    TOKEN,
    ask,
    refusal,
    replaced,
    towards_service,
    with_tls,
)
from tests.service.conftest import ONE_CALL, serving
from tests.waiting import PATIENCE_SECONDS

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
    access = with_tls(service_files, tls_client_root=str(authority.certificate), max_calls_per_second=ONE_CALL)
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
