"""Starting a local vLLM says why it fails, and ending one leaves nothing. A program that is at once healthy stands in for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.vllm import local_server
from deploy.vllm.local_server import VllmServer, VllmSetupError
from tests.engine.test_local_server import accepts

# Beside what listens it has a process as vLLM has its core's, and shared memory; neither would end with it.
STAND_IN = """
import subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker, shared_memory
import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

class Servicer(pb_grpc.VllmEngineServicer):
    def HealthCheck(self, request, context):
        return pb.HealthCheckResponse(healthy=True)

resource_tracker.register = lambda *_: None
segment = shared_memory.SharedMemory(create=True, size=1)
print("segment", segment.name, "arguments", *sys.argv[1:], flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", "EngineCore"])
server = grpc.server(ThreadPoolExecutor(1))
pb_grpc.add_VllmEngineServicer_to_server(Servicer(), server)
server.add_insecure_port("127.0.0.1:" + sys.argv[sys.argv.index("--port") + 1])
server.start()
time.sleep(1000)
"""


@pytest.fixture
def stand_in_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The program; a test may write another one."""
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    monkeypatch.setattr(local_server, "INSTALLED", program)
    yield program


def test_nothing_installed_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_server, "INSTALLED", tmp_path / "vllm")
    with pytest.raises(VllmSetupError, match="run make vllm"), VllmServer("checkpoint"):
        pass


def test_a_server_that_does_not_start_is_shown_with_its_log(stand_in_vllm: Path) -> None:
    stand_in_vllm.write_text("#!/bin/sh\necho no such checkpoint: $2\nexit 3\n")
    with (
        pytest.raises(VllmSetupError, match=r"(?s)ended with status 3.*no such checkpoint: elsewhere"),
        VllmServer("elsewhere"),
    ):
        pass


def test_a_server_that_is_never_ready_is_given_up(stand_in_vllm: Path) -> None:
    stand_in_vllm.write_text("#!/bin/sh\nexec sleep 1000\n")
    with (
        pytest.raises(VllmSetupError, match=r"not ready in 1 s; the machine's load is \d"),
        VllmServer("checkpoint", ready_timeout_seconds=1) as server,
    ):
        raise AssertionError(server)


def segments(server: VllmServer) -> list[Path]:
    """Of all starts, in order."""
    lines = [line.split() for line in server.log_path.read_text().splitlines() if line.startswith("segment")]
    return [Path("/dev/shm") / line[1] for line in lines]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.usefixtures("stand_in_vllm")
def test_nothing_is_left_behind() -> None:
    with VllmServer("checkpoint", ["--dtype", "float32"]) as server:
        host, port = server.address.split(":")
        pid, (core,), directory, (segment,) = server.pid, server.core_pids(), server.log_path.parent, segments(server)
        assert "serve checkpoint --grpc" in server.log_path.read_text()
        assert "--dtype float32" in server.log_path.read_text()
        assert server.is_healthy()
        assert segment.exists()
    assert is_gone(pid)
    assert is_gone(core)
    assert not directory.exists()
    assert not segment.exists()
    assert not accepts(host, int(port))


@pytest.mark.usefixtures("stand_in_vllm")
def test_a_restart_has_the_same_address_and_may_have_another_checkpoint() -> None:
    with VllmServer("first") as server:
        address, (core,) = server.address, server.core_pids()
        server.kill()
        assert not server.is_healthy()
        server.restart("second", ["--dtype", "bfloat16"])
        assert (server.address, server.is_healthy()) == (address, True)
        assert is_gone(core)
        before, after = segments(server)
        assert (before.exists(), after.exists()) == (False, True)
        last = server.log_path.read_text().splitlines()[-1]
        assert "serve second" in last
        assert "--dtype bfloat16" in last
        server.stop()
        assert not server.is_healthy()


@pytest.mark.usefixtures("stand_in_vllm")
def test_a_port_that_another_server_took_is_not_shared_with_it() -> None:
    """As two servers of gRPC would."""
    with VllmServer("first") as server:
        server.kill()
        with VllmServer("other") as other:
            server._port = other._port
            with pytest.raises(VllmSetupError, match="something listens on port"):
                server.restart()
