"""The process that forks workers for a model. It takes seconds to start, so the tests of a session share it."""

from __future__ import annotations

from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.fork_server import ForkServer

_fork_servers: dict[LoadedModel, ForkServer] = {}


async def fork_server_of(model: LoadedModel) -> ForkServer:
    fork_server = _fork_servers.get(model)
    if fork_server is None or fork_server.lost.is_set():
        fork_server = _fork_servers[model] = ForkServer(model)
        await fork_server.start()
    return fork_server


def close_fork_servers() -> None:
    for fork_server in _fork_servers.values():
        fork_server.close()
