"""Callers that leave or are killed: their memory is let go, and what has no owner is removed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engine_client.shm import OwnedRegion, remove_abandoned_regions
from preprocessor.client import RowsRegion
from preprocessor.service.caller_region import open_region
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import NAME_PREFIX
from preprocessor.workers.resources import RequestResources
from tests.media import moving_shapes_clip
from tests.service.caller_region.conftest import CLIP, MIB, names, opened
from tests.service.conftest import Caller, chat, video
from tests.waiting import PATIENCE_SECONDS, eventually


async def test_a_caller_that_cancels_leaves_nothing_open(allowing: Caller) -> None:
    with RowsRegion.create(4 * MIB) as region:
        own_count = len(opened())
        spec = chat(video("clip", moving_shapes_clip(seconds=3, width=160, height=120)), rows_region=region.message())
        call = allowing.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))
        first = await call.read()
        assert isinstance(first, pb.PrepareResponse) and first.HasField("header")
        assert len(opened()) > own_count
        call.cancel()
        await eventually(lambda: len(opened()) == own_count)
    await eventually(lambda: allowing.server.metrics.open_call_count() == 0)


async def test_rows_are_held_until_the_thread_that_copies_them_has_stopped(allowing: Caller) -> None:
    """Else their memory could go to another request, whose pixels would be copied to this caller."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor, RowsRegion.create(MIB) as memory:
        executor.submit(gate.wait, PATIENCE_SECONDS)
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        before_bytes, own_count = allowing.server.pool.files.leased_bytes, len(opened())
        async with RequestResources(allowing.server.pool, deadline_seconds, Timings()) as resources:
            lease = resources.lease_file(64, 0)
            region = open_region(memory.message(), executor, resources, is_allowed=True)
            rows = np.frombuffer(resources.arena.view(lease.offset, 64), np.uint8)
            writing = asyncio.create_task(region.write(rows, 64))
            await eventually(lambda: region._copying is not None)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        assert len(opened()) == own_count + 1
        assert allowing.server.pool.files.leased_bytes > before_bytes
        gate.set()
        await eventually(lambda: len(opened()) == own_count)
        await eventually(lambda: allowing.server.pool.files.leased_bytes == before_bytes)


KILLED = """
import sys
from pathlib import Path
from engine_client import shm
from preprocessor.client import Client, Credentials, Prompt, RowsRegion
from preprocessor.v1 import preprocessor_pb2 as pb

def wait(received, total):
    print("rows", flush=True)
    sys.stdin.read()

shm.DIRECTORY = Path(sys.argv[3])
spec = pb.PrepareSpec.FromString(sys.stdin.buffer.read(int(sys.argv[2])))
with RowsRegion.create(16 << 20) as region, Client(sys.argv[1], Credentials(insecure=True)) as client:
    client.prepare(Prompt(spec), progress=wait, shared_memory=region)
"""


async def test_what_a_killed_caller_leaves_is_removed_by_the_next_start_of_a_service(
    allowing: Caller, own_regions: Path
) -> None:
    spec = chat(video("clip", CLIP)).SerializeToString()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", KILLED, allowing.server.address, str(len(spec)), own_regions),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(spec)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await process.stdout.readline() == b"rows\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await eventually(lambda: not opened())
    (left,) = names()
    with RowsRegion.create(MIB) as in_use:
        assert remove_abandoned_regions() == ["/" + left]
        assert names() == {in_use.message().name[1:]}


def test_a_region_that_another_user_s_directory_keeps_is_left_to_that_user(
    monkeypatch: pytest.MonkeyPatch, own_regions: Path
) -> None:
    """In a sticky directory others may lock the file, and only its owner may remove it."""
    region = OwnedRegion.create(4096, prefix=NAME_PREFIX)
    path = own_regions / region.key[1:]
    assert region._descriptor is not None
    os.close(region._descriptor)  # its owner is gone
    region._descriptor = None
    region.buffer.close()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    try:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refuse)
            assert remove_abandoned_regions() == []
        assert remove_abandoned_regions() == [region.key]
    finally:
        path.unlink(missing_ok=True)
