"""Who is who, between a client and a real Triton: TLS, mutual TLS, and a token from a file."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import (
    CredentialsError,
    EngineRequest,
    EngineUnavailable,
    SamplingParameters,
    TokenMetadata,
    TritonEngine,
    tls_credentials,
)
from tests.engine.certificates import SERVER_NAME, Authority, Signed
from tests.engine.servers import SCRIPTED_REPOSITORY, answer, serving
from tests.waiting import PATIENCE_SECONDS

SECRET_NAME, SECRET = "triton-grpc-protocol-tests", "open-sesame"
REQUEST = EngineRequest("r", {"input_ids": np.zeros(1, np.int32)}, SamplingParameters(max_tokens=3))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Signed:
    return authority.sign("client")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which the first knows nothing of."""
    return Authority(tmp_path_factory.mktemp("stranger"), "authority")


@pytest.fixture(scope="module")
def tls_triton(authority: Authority) -> Iterator[TritonServer]:
    server = authority.sign(SERVER_NAME)
    options = ("--grpc-use-ssl=true", f"--grpc-server-cert={server.certificate}", f"--grpc-server-key={server.key}")
    with serving("scripted", SCRIPTED_REPOSITORY, *options) as triton:
        yield triton
        triton.kill()  # at once: nothing is under way that an orderly end would save


@pytest.fixture(scope="module")
def mutual_triton(authority: Authority) -> Iterator[TritonServer]:
    server = authority.sign(SERVER_NAME)
    files = (f"--grpc-server-cert={server.certificate}", f"--grpc-server-key={server.key}")
    options = ("--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={authority.certificate}")
    with serving("scripted", SCRIPTED_REPOSITORY, *options) as triton:
        yield triton
        triton.kill()  # at once: nothing is under way that an orderly end would save


@pytest.fixture(scope="module")
def guarded_triton() -> Iterator[TritonServer]:
    """It answers inference only to those who send its secret along."""
    key = SECRET_NAME.removeprefix("triton-grpc-protocol-")
    with serving("scripted", SCRIPTED_REPOSITORY, f"--grpc-restricted-protocol=inference,health:{key}={SECRET}") as one:
        yield one
        one.kill()


async def test_tokens_come_over_tls(tls_triton: TritonServer, authority: Authority) -> None:
    credentials = tls_credentials(root=authority.certificate)
    async with TritonEngine(
        tls_triton.grpc_address, "scripted", credentials=credentials, tls_server_name=SERVER_NAME
    ) as engine:
        await engine.check_ready()
        assert await answer(engine, REQUEST) == [0, 1, 2]


async def test_a_server_of_another_authority_is_not_trusted(tls_triton: TritonServer, stranger: Authority) -> None:
    credentials = tls_credentials(root=stranger.certificate)
    async with TritonEngine(
        tls_triton.grpc_address, "scripted", credentials=credentials, tls_server_name=SERVER_NAME
    ) as engine:
        with pytest.raises(EngineUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await answer(engine, REQUEST)


async def test_a_certificate_for_another_name_is_not_trusted(tls_triton: TritonServer, authority: Authority) -> None:
    credentials = tls_credentials(root=authority.certificate)
    async with TritonEngine(
        tls_triton.grpc_address, "scripted", credentials=credentials, tls_server_name="elsewhere.test"
    ) as engine:
        with pytest.raises(EngineUnavailable, match=r"elsewhere\.test|verif"):
            await answer(engine, REQUEST)


async def test_plain_text_to_a_tls_port_is_unavailable(tls_triton: TritonServer) -> None:
    async with TritonEngine(tls_triton.grpc_address, "scripted") as engine:
        with pytest.raises(EngineUnavailable):
            await engine.check_ready()


async def test_tokens_come_over_mutual_tls(mutual_triton: TritonServer, authority: Authority, client: Signed) -> None:
    credentials = tls_credentials(authority.certificate, client.certificate, client.key)
    async with TritonEngine(
        mutual_triton.grpc_address, "scripted", credentials=credentials, tls_server_name=SERVER_NAME
    ) as engine:
        await engine.check_ready()
        assert await answer(engine, REQUEST) == [0, 1, 2]


@pytest.mark.parametrize("has_certificate", [False, True], ids=["none", "a stranger's"])
async def test_mutual_tls_turns_away_clients_without_a_certificate_of_its_authority(
    mutual_triton: TritonServer, authority: Authority, stranger: Authority, has_certificate: bool
) -> None:
    own = stranger.sign("client") if has_certificate else None
    pair = (own.certificate, own.key) if own else ()
    async with TritonEngine(
        mutual_triton.grpc_address,
        "scripted",
        credentials=tls_credentials(authority.certificate, *pair),
        tls_server_name=SERVER_NAME,
    ) as engine:
        with pytest.raises(EngineUnavailable):
            await answer(engine, REQUEST)


async def test_a_token_from_a_file_goes_along_with_every_call(guarded_triton: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    token = TokenMetadata(tmp_path / "token", header=SECRET_NAME, scheme="")
    async with TritonEngine(guarded_triton.grpc_address, "scripted", call_metadata=token) as engine:
        await engine.check_ready()
        assert await answer(engine, REQUEST) == [0, 1, 2]


async def test_what_a_caller_sends_along_with_a_prompt_reaches_the_engine(guarded_triton: TritonServer) -> None:
    async with TritonEngine(guarded_triton.grpc_address, "scripted") as engine:
        steps = [step async for step in engine.generate(REQUEST, metadata=((SECRET_NAME, SECRET),))]
        assert [token_id for step in steps for token_id in step.token_ids] == [0, 1, 2]


async def test_without_the_token_the_engine_is_unavailable(guarded_triton: TritonServer) -> None:
    async with TritonEngine(guarded_triton.grpc_address, "scripted") as engine:
        with pytest.raises(EngineUnavailable, match="restricted"):
            await engine.check_ready()
        # The stream may be over before the prompt is written: then nobody says why.
        with pytest.raises(EngineUnavailable):
            await answer(engine, REQUEST)


def test_a_token_that_is_replaced_is_read_again_when_its_time_has_come(tmp_path: Path) -> None:
    path, now = tmp_path / "token", [0.0]
    path.write_text("first")
    token = TokenMetadata(path, refresh_seconds=30, clock=lambda: now[0])
    path.write_text("second")
    assert token() == (("authorization", "Bearer first"),)
    now[0] = 30.0
    assert token() == (("authorization", "Bearer second"),)


def test_a_token_file_that_goes_away_leaves_the_last_token_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "token", [0.0]
    path.write_text("kept")
    token = TokenMetadata(path, refresh_seconds=30, clock=lambda: now[0])
    path.unlink()
    now[0] = 31.0
    with caplog.at_level(logging.WARNING):
        assert token() == (("authorization", "Bearer kept"),)
    assert str(path) in caplog.text


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"two\nlines", "schlüssel".encode()])
def test_a_file_without_a_token_is_refused_by_its_name_and_its_text_stays_secret(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(CredentialsError, match=r"token .*token holds no token") as raised:
        TokenMetadata(tmp_path / "token")
    assert "words" not in str(raised.value)
    assert "lines" not in str(raised.value)


def test_files_that_are_missing_are_named(tmp_path: Path, client: Signed) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(CredentialsError, match=f"root {gone} cannot be read"):
        tls_credentials(root=gone)
    with pytest.raises(CredentialsError, match=f"certificate {gone} cannot be read"):
        tls_credentials(certificate=gone, key=client.key)
    with pytest.raises(CredentialsError, match=f"key {gone} cannot be read"):
        tls_credentials(certificate=client.certificate, key=gone)
    with pytest.raises(CredentialsError, match=f"token {gone} cannot be read"):
        TokenMetadata(gone)


def test_files_that_are_something_else_are_named(tmp_path: Path, authority: Authority, client: Signed) -> None:
    junk = tmp_path / "junk"
    junk.write_text("not PEM at all")
    with pytest.raises(CredentialsError, match=f"root {junk} holds no PEM certificate"):
        tls_credentials(root=junk)
    with pytest.raises(CredentialsError, match=f"certificate {client.key} holds no PEM certificate"):
        tls_credentials(certificate=client.key, key=client.key)
    with pytest.raises(CredentialsError, match=f"key {authority.certificate} holds no PEM private key"):
        tls_credentials(certificate=client.certificate, key=authority.certificate)


def test_a_key_of_another_certificate_is_refused(authority: Authority, client: Signed) -> None:
    other = authority.sign("other")
    with pytest.raises(CredentialsError, match=f"key {other.key} does not belong to certificate {client.certificate}"):
        tls_credentials(certificate=client.certificate, key=other.key)


def test_an_encrypted_key_is_refused_before_it_asks_for_a_password(tmp_path: Path, client: Signed) -> None:
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(client.key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    with pytest.raises(CredentialsError, match=f"key {locked} is encrypted"):
        tls_credentials(certificate=client.certificate, key=locked)


def test_half_a_pair_is_refused(client: Signed) -> None:
    with pytest.raises(CredentialsError, match="key is missing"):
        tls_credentials(certificate=client.certificate)
    with pytest.raises(CredentialsError, match="certificate is missing"):
        tls_credentials(key=client.key)
