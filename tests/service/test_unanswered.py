"""The explanation for a service that does not answer: one sentence, found by probing the address."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import grpc
import pytest

from deploy.child_process import held_ports
from preprocessor.__main__ import main
from preprocessor.cli import unanswered
from preprocessor.cli.unanswered import explain, why_unanswered
from preprocessor.client import CallFailed
from preprocessor.client.channel import Credentials
from tests.engine.certificates import Authority, Signed
from tests.waiting import PATIENCE_SECONDS

SERVICE = "service.test"
ASKING = [("prepare",), ("generate",), ("bench", "--seconds", "0.1")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.sign(SERVICE)


@contextmanager
def grpc_server(signed: Signed | None = None, client_root: Path | None = None) -> Iterator[str]:
    """A gRPC server without a method; yields its address."""
    server = grpc.server(ThreadPoolExecutor(1))
    if signed is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = (signed.key.read_bytes(), signed.certificate.read_bytes())
        root = None if client_root is None else client_root.read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], root, root is not None))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def silent_listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def http_server() -> Iterator[str]:
    """Answers one request as a server of HTTP/1 does that does not know HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = Thread(target=answer)
        answering.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        answering.join()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's servers may be late."""
    monkeypatch.setattr(unanswered, "_TRY_SECONDS", PATIENCE_SECONDS)


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_a_closed_port_error_says_how_to_start_a_service(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    with held_ports(1) as (port,):  # at which nobody listens
        address = f"127.0.0.1:{port}"
        assert main([*command, "--address", address, "--text", "Hi"]) == 1
    said = capsys.readouterr().err
    assert f"{address}: nobody listens there; start `preprocessor serve --address {address}`" in said
    assert said.count("\n") == 1


def test_another_grpc_server_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with grpc_server() as address:
        assert main(["prepare", "--address", address, "--text", "Hi"]) == 1
    assert "another gRPC server listens there" in capsys.readouterr().err


def test_a_deadline_error_names_the_option_to_extend_it() -> None:
    late = CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "", "Deadline Exceeded", None)
    with grpc_server() as address:
        said = explain(late, argparse.Namespace(address=address, timeout_seconds=2.0), Credentials())
    assert "no whole answer within 2 s; give more --timeout-seconds" in said


def test_a_reachable_server_gives_no_explanation(authority: Authority, signed: Signed) -> None:
    trusting = Credentials(tls_root=str(authority.certificate), tls_server_name=SERVICE)
    with grpc_server() as plain, grpc_server(signed) as encrypted:
        assert why_unanswered(plain, Credentials()) == ""
        assert why_unanswered(encrypted, trusting) == ""


def test_plain_text_to_a_tls_service_is_reported(signed: Signed) -> None:
    with grpc_server(signed) as address:
        assert "speaks TLS; add --tls" in why_unanswered(address, Credentials())


def test_tls_to_a_plain_text_service_is_reported(authority: Authority) -> None:
    with grpc_server() as address:
        said = why_unanswered(address, Credentials(tls_root=str(authority.certificate)))
    assert "does not speak TLS; leave out --tls" in said


def test_a_certificate_of_an_unknown_authority_asks_for_its_root(signed: Signed) -> None:
    with grpc_server(signed) as address:
        assert "--tls-root FILE" in why_unanswered(address, Credentials(tls=True, tls_server_name=SERVICE))


def test_a_certificate_for_another_name_asks_for_that_name(authority: Authority, signed: Signed) -> None:
    with grpc_server(signed) as address:
        said = why_unanswered(address, Credentials(tls_root=str(authority.certificate)))
    assert "--tls-server-name NAME" in said


def test_a_missing_client_certificate_is_reported(authority: Authority, signed: Signed) -> None:
    with grpc_server(signed, authority.certificate) as address:
        said = why_unanswered(address, Credentials(tls_root=str(authority.certificate), tls_server_name=SERVICE))
    assert "give --tls-certificate and --tls-key" in said


def test_the_http_port_is_recognized() -> None:
    with http_server() as address:
        assert "not its --http-address" in why_unanswered(address, Credentials())


def test_a_silent_listener_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unanswered, "_TRY_SECONDS", 0.1)
    with ExitStack() as stack:
        address = stack.enter_context(silent_listener())
        assert "says nothing" in why_unanswered(address, Credentials())


def test_an_unknown_host_is_reported() -> None:
    assert "there is no such host" in why_unanswered("nowhere.invalid:50051", Credentials(insecure=True))


def test_a_socket_that_is_not_there_is_named_so(tmp_path: Path) -> None:
    assert "there is no such socket" in why_unanswered(f"unix:{tmp_path / 'none'}", Credentials())


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "localhost:port", "localhost:70000"])
def test_an_address_without_a_port_is_refused_before_anything_is_sent(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--address", address, "--text", "Hi"]) == 2
    assert "give host:port" in capsys.readouterr().err
