"""Starting a local server fails at once, and says why, where it would otherwise hang or go wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.triton.local_server import TritonServer, TritonSetupError
from tests.engine.servers import SCRIPTED_REPOSITORY
from tests.waiting import PATIENCE_SECONDS, eventually


def entering(**options: Any) -> None:
    with TritonServer(["scripted"], repository=SCRIPTED_REPOSITORY, ready_timeout_seconds=PATIENCE_SECONDS, **options):
        pass


def test_nothing_installed_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TritonSetupError, match="run make triton"):
        entering(dist=tmp_path)


def test_a_python_with_numpy_2_is_refused() -> None:
    with pytest.raises(TritonSetupError, match="needs numpy<2"):  # this process's own has it
        entering(python=Path(sys.executable))


def test_packages_that_only_this_process_finds_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("__version__ = '2.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # which the models' Python ignores
    entering()


def test_a_model_that_does_not_load_is_shown_with_the_log(tmp_path: Path) -> None:
    with pytest.raises(TritonSetupError, match="no_such_model"), TritonServer(["no_such_model"], repository=tmp_path):
        pass


def test_without_a_checkpoint_the_model_does_not_load_and_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model's Python has the working directory on its path too: from here it finds `engine_client` only where it must be.
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(TritonSetupError, match=r"no checkpoint is set: .* or random-weights for a tiny random model"),
        TritonServer(["vlm_transformers"], environment={"VLM_CHECKPOINT": " "}),
    ):
        pass


def test_nothing_is_left_behind() -> None:
    with TritonServer(["scripted"], repository=SCRIPTED_REPOSITORY) as server:
        pid, directory = server.pid, server.log_path.parent
        prefix = f"triton_*_{server.grpc_address.split(':')[1]}_*"
        assert list(Path("/dev/shm").glob(prefix))
    assert not Path(f"/proc/{pid}").exists()
    assert not directory.exists()
    assert not list(Path("/dev/shm").glob(prefix))


async def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.triton.local_server", "scripted", "--repository", str(SCRIPTED_REPOSITORY)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed process leaves its temporary directory
    starter = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    assert starter.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            announcement = (await starter.stdout.readline()).decode()
        host, port = announcement.split()[3].split(":")
        assert accepts(host, int(port))
    finally:
        starter.kill()
        await starter.wait()
    await eventually(lambda: not accepts(host, int(port)))


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
