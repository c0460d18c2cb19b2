"""The process that forks workers for a model. It takes seconds to start, so the tests of a session share it."""

from __future__ import annotations

from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.fork_server import ForkServer
from tests.waiting import eventually

_fork_servers: dict[LoadedModel, ForkServer] = {}


async def fork_server_of(model: LoadedModel) -> ForkServer:
    fork_server = _fork_servers.get(model)
    if fork_server is None or fork_server.lost.is_set():
        fork_server = _fork_servers[model] = ForkServer(model)
        await fork_server.start()
    return fork_server


async def killed_workers_reported() -> None:
    """Wait until no fork server is still to report the end of a worker that was killed, such as those of a closed pool."""
    await eventually(
        lambda: all(worker.is_alive for server in _fork_servers.values() for worker in server._workers.values())
    )


def close_fork_servers() -> None:
    for fork_server in _fork_servers.values():
        fork_server.close()
