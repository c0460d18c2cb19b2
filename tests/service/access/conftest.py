"""Certificates and tokens of a service that knows its callers, and calls with them."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path

import grpc
import grpc.aio
import pytest

from preprocessor.client import CallFailed, Client, Credentials, PrepareResult, Prompt
from preprocessor.config import AccessSettings
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.certificates import Authority, Signed
from tests.service.conftest import Caller, chat
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
