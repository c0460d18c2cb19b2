"""Accepted requests when the machine fails: nothing is lost silently, and nothing needs a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
import pytest_asyncio

from deploy.child_process import held_ports
from preprocessor.client import CallFailed, Client, PrepareResult, Prompt
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import split_address
from preprocessor.service.logs import MAX_SIMILAR
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.service.watched import WatchedServer
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import chat, eventually_answered, image, video
from tests.service.refusals import refusal_of
from tests.waiting import PATIENCE_SECONDS, eventually, has_ended

MIB = 1 << 20
CLIP = moving_shapes_clip(seconds=4, width=374, height=374)
PHOTO = photo(90, 60)
WORK = chat(video("clip", CLIP, sampling=pb.Sampling(every_frame=pb.EveryFrame())))
SHARED = ("--engine", "127.0.0.1:1", "--engine-transport", "shared-memory")
"""An engine that nobody runs, towards which the arena is a file in /dev/shm all the same."""


async def ask(address: str, spec: pb.PrepareSpec = chat("hello")) -> PrepareResult:  # noqa: B008 - read, never written
    """Call over a new connection."""

    def call() -> PrepareResult:
        with Client(address, retry_seconds=0) as client:
            return client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS)

    return await asyncio.to_thread(call)


def in_flight(server: WatchedServer) -> float:
    return server.metrics().get("preprocessor_requests_in_flight", 0)


def readiness(server: WatchedServer) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.http_address}/readyz", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# -- SIGTERM and SIGKILL -----------------------------------------------------------------------------------------------


async def test_a_stop_under_load_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    with WatchedServer("--workers", "1", "--memory-budget", "1GiB", "--drain-seconds", "60", is_warm=True) as server:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.PreprocessorStub(channel)
            accepted = [stub.Prepare(iter([pb.PrepareRequest(spec=WORK)])) for _ in range(8)]
            uploading = stub.Prepare()
            await uploading.write(pb.PrepareRequest(spec=chat(image("photo"))))
            await eventually(lambda: in_flight(server) == 9)
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: readiness(server) == (503, "draining\n"))
            late = await refusal_of(stub.GetModel(pb.GetModelRequest()))
            assert late.code is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(CallFailed) as caught:
                await ask(server.address)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            await uploading.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=PHOTO, last=True)))
            for call in (*accepted, uploading):
                assert await last_kind(call) == "report"
        assert await asyncio.to_thread(server.wait) == 0


@dataclass
class Stop:
    """The endings of calls during a stop, and the log."""

    codes: Counter[grpc.StatusCode]
    log: list[str]


@pytest_asyncio.fixture(scope="module")
async def stop_under_calls() -> Stop:
    """A service that is stopped while 48 callers, on four connections, call continuously."""
    codes: Counter[grpc.StatusCode] = Counter()
    is_over = asyncio.Event()
    with WatchedServer("--workers", "1", "--drain-seconds", "60", is_warm=True) as server:

        async def ask_on(channel: grpc.aio.Channel) -> None:
            while not is_over.is_set():
                call = pb_grpc.PreprocessorStub(channel).GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
                codes[await call.code()] += 1

        async with contextlib.AsyncExitStack() as stack:
            options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))
                for _ in range(4)
            ]
            upload = pb_grpc.PreprocessorStub(
                channels[0]
            ).Prepare()  # keeps the service until it has been refusing for long
            await upload.write(pb.PrepareRequest(spec=chat(image("photo"))))
            await eventually(lambda: in_flight(server) >= 1)
            asking = [asyncio.create_task(ask_on(channel)) for channel in channels for _ in range(12)]
            await eventually(lambda: codes[grpc.StatusCode.OK] > len(asking))
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: codes[grpc.StatusCode.UNAVAILABLE] > 10 * len(asking))
            await upload.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=PHOTO, last=True)))
            assert await last_kind(upload) == "report"
            assert await asyncio.to_thread(server.wait) == 0
            is_over.set()
            await asyncio.gather(*asking)
    return Stop(codes, list(server.log))


def test_a_stop_refuses_calls_with_unavailable_only(stop_under_calls: Stop) -> None:
    assert set(stop_under_calls.codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, stop_under_calls.codes


def test_a_stop_logs_its_refusals_in_summary_lines(stop_under_calls: Stop) -> None:
    about_refusals = [line for line in stop_under_calls.log if "refused" in line]
    sums = [int(found[1]) for line in about_refusals if (found := re.search(r": (\d+) more like this in", line))]
    assert sum(sums) >= 400
    assert len(about_refusals) <= (MAX_SIMILAR + 1) * len(sums)


async def test_a_stop_signal_to_every_process_interrupts_no_task() -> None:
    """As systemd does, and everyone who signals a whole cgroup."""
    with WatchedServer("--workers", "1", "--memory-budget", "1GiB", "--drain-seconds", "60", is_warm=True) as server:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            accepted = [
                pb_grpc.PreprocessorStub(channel).Prepare(iter([pb.PrepareRequest(spec=WORK)])) for _ in range(4)
            ]
            await eventually(lambda: in_flight(server) == 4)
            for process in server.tree():
                process.send_signal(signal.SIGTERM)
            assert [await last_kind(call) for call in accepted] == ["report"] * 4
        assert await asyncio.to_thread(server.wait) == 0
        assert [line for line in server.log if "lost" in line or "Traceback" in line] == []


async def last_kind(call: grpc.aio.StreamStreamCall[pb.PrepareRequest, pb.PrepareResponse]) -> str | None:
    kind: str | None = None
    message: Any
    while (message := await call.read()) is not grpc.aio.EOF:
        kind = message.WhichOneof("message")
    return kind


async def test_calls_beyond_the_drain_time_end_as_unavailable() -> None:
    with WatchedServer("--workers", "1", "--drain-seconds", "0.2", is_warm=True) as server:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            uploading = pb_grpc.PreprocessorStub(channel).Prepare()
            await uploading.write(pb.PrepareRequest(spec=chat(image("photo"))))
            await eventually(lambda: in_flight(server) == 1)
            server.process.send_signal(signal.SIGTERM)
            assert (await refusal_of(uploading)).code is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.to_thread(server.wait) == 0


async def test_the_next_start_removes_the_files_of_a_killed_service() -> None:
    options = ("--workers", "1", "--memory-budget", "64MiB", *SHARED)
    with WatchedServer(*options, is_warm=True) as server:
        await ask(server.address, chat(image("photo", PHOTO)))
        [region] = server.regions()
        tree = server.tree()
        server.process.kill()
        server.wait()
        await eventually(lambda: all(map(has_ended, tree)))
        # The file may be gone already: any service that starts on this machine removes it, those of other tests too.
        with WatchedServer(*options, is_warm=True) as following:
            assert not region.exists()
            assert await ask(following.address)
            [own] = following.regions()
        assert not own.exists()


# -- exhausted resources -----------------------------------------------------------------------------------------------


def own_mounts(*mounts: str) -> tuple[str, ...]:
    """A command prefix that mounts private file systems and executes the command that follows.

    Skips the test where no mount namespace may be made, as in a container without CAP_SYS_ADMIN.
    """
    script = " && ".join([*(f"mount -t tmpfs {mount}" for mount in mounts), 'exec "$@"'])
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs a mount namespace, which is refused here: unshare --mount")
    return command


async def test_full_shared_memory_fails_requests_and_not_the_service() -> None:
    within = own_mounts("-o size=80m none /dev/shm")
    with WatchedServer("--workers", "1", "--memory-budget", "64MiB", *SHARED, under=within) as server:
        assert await ask(server.address, chat(image("photo", PHOTO)))
        filler = Path(f"/proc/{server.process.pid}/root/dev/shm/filler")
        fill(filler)
        for spec in (
            chat(image("photo", photo(1500, 1500, "PNG"))),
            chat(video("clip", CLIP)),
            chat(image("photo", PHOTO)),
        ):
            with contextlib.suppress(CallFailed):  # what fits into pages that are there already is answered
                await ask(server.address, spec)
        with pytest.raises(CallFailed) as caught:
            await ask(server.address, chat(video("clip", CLIP, sampling=pb.Sampling(fps=8))))
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARED_MEMORY_FULL")
        assert caught.value.retry_after_seconds is not None
        assert server.process.is_running()
        await eventually(server.is_at_rest)
        assert server.metrics().get("preprocessor_worker_ends_total", 0) == 0
        await asyncio.to_thread(filler.unlink)
        assert await ask(server.address, chat(video("clip", CLIP, sampling=pb.Sampling(fps=8))))


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass
    with contextlib.suppress(OSError), path.with_name("rest").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """For gRPC and for HTTP: a service whose log nobody can read does not say them."""
    with held_ports(2) as held:
        yield held


async def test_full_disks_stop_neither_the_service_nor_its_start(tmp_path: Path, ports: list[int]) -> None:
    """No file is needed, and a log that cannot be written is lost alone."""
    grpc_port, http_port = ports
    folder = tmp_path / "full"
    folder.mkdir()
    within = own_mounts(f"-o size=64k none {folder}")
    script = ("sh", "-c", f'head -c 1M /dev/zero > {folder}/filler 2>/dev/null; exec "$@" 2>/dev/full', "sh")
    options = ["--workers", "1", "--address", f"127.0.0.1:{grpc_port}", "--http-address", f"127.0.0.1:{http_port}"]
    process = subprocess.Popen(  # noqa: ASYNC220 - as WatchedServer does
        [*within, *script, sys.executable, "-m", "preprocessor", "serve", "--log-level", "debug", *options],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: is_listening(http_port))
        assert await ask(f"127.0.0.1:{grpc_port}", WORK)
        with pytest.raises(CallFailed) as caught:  # which is logged, as far as that goes
            await ask(f"127.0.0.1:{grpc_port}", chat(image("photo", b"no image")))
        assert caught.value.reason == "NOT_MEDIA"
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


_ALL_TAKEN = 3  # the numbers below are standard input, output and errors


async def test_open_calls_survive_a_lack_of_file_descriptors() -> None:
    with WatchedServer("--workers", "1", is_warm=True) as server:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.PreprocessorStub(channel)
            await stub.GetModel(pb.GetModelRequest())
            await eventually(lambda: len(server.workers()) == 2)  # ready is who will be forked, too
            normal = server.process.rlimit(psutil.RLIMIT_NOFILE)
            # No number below is free, so that no file, socket or pipe can be opened, whatever else is closed.
            server.process.rlimit(psutil.RLIMIT_NOFILE, (_ALL_TAKEN, normal[1]))
            for worker in server.workers():
                worker.kill()
            await eventually(lambda: any("no worker can be started" in line for line in server.log))
            assert (await stub.GetModel(pb.GetModelRequest())).name == "qwen3-vl"
            with socket.create_connection(split_address("--address", server.address), timeout=PATIENCE_SECONDS):
                pass  # the kernel takes it, the service cannot
            server.process.rlimit(psutil.RLIMIT_NOFILE, normal)
            await eventually_answered(
                lambda: ask(server.address), grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
            )
            await eventually(server.is_at_rest)
            assert readiness(server) == (200, "ok\n")


# -- clocks ------------------------------------------------------------------------------------------------------------

SKEW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *offset;
__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("SKEW_FILE"), O_RDONLY);
    offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def skewed(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which the wall clock is off by the seconds in a file, as a native 64-bit number."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler to bend the wall clock: cc")
    source, library, offset = tmp_path / "skew.c", tmp_path / "skew.so", tmp_path / "offset"
    source.write_text(SKEW)
    offset.write_bytes(struct.pack("q", 0))
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=PATIENCE_SECONDS
    )
    return {"LD_PRELOAD": str(library), "SKEW_FILE": str(offset)}, offset


def skew(offset: Path, seconds: int) -> None:
    """Set the clock, in place: the file is mapped."""
    with offset.open("r+b") as file:
        file.write(struct.pack("q", seconds))


async def test_a_wall_clock_jump_ends_no_call_early_or_late(skewed: tuple[dict[str, str], Path]) -> None:
    environment, offset = skewed
    options = ("--workers", "1", "--upload-idle-seconds", "60", "--max-timeout-seconds", "120")
    with WatchedServer(*options, environment=environment) as server:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.PreprocessorStub(channel)
            for jump_seconds in (86_400, -86_400):
                under_way = stub.Prepare(timeout=PATIENCE_SECONDS)
                await under_way.write(pb.PrepareRequest(spec=chat(image("photo"))))
                await eventually(lambda: in_flight(server) == 1)
                skew(offset, jump_seconds)
                assert (await ask(server.address, WORK)).header.token_count > 0
                await under_way.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=PHOTO, last=True)))
                assert await last_kind(under_way) == "report"
                late = await refusal_of(stub.Prepare(timeout=0.5))
                assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
                await eventually(lambda: in_flight(server) == 0)
        with pytest.raises(CallFailed):
            await ask(server.address, chat(image("photo", b"no image")))
        await eventually(lambda: any("NOT_MEDIA" in line for line in server.log))
        days = {line[:10] for line in server.log if re.match(r"\d{4}-\d\d-\d\d", line)}
        assert len(days) > 1, "the clock did not jump"
        assert readiness(server) == (200, "ok\n")
