"""A load distributed over processes, because one interpreter receives at most about 1 GB/s. All start at the same time.

A pipe to each process carries start and stop in one direction, and counts, repeatedly and at the end, in the other. A process
also stops when its pipe is closed, so none remains.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from preprocessor.traffic.callers import NobodyAnswers, drive
from preprocessor.traffic.load import Connect, Load, shares
from preprocessor.traffic.tally import Tally

REPORT_SECONDS = 0.5
_START_SECONDS = 60.0  # imports from a cold disk
_END_SECONDS = 10.0

Progress = Callable[[Tally], None]
"""Called twice a second with the counts so far."""


class CallersLost(Exception):
    """A process of callers ended without reporting its counts."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of one process."""

    connect: Connect
    load: Load
    connection_count: int
    connect_seconds: float


def put_load(
    connect: Connect,
    load: Load,
    *,
    process_count: int = 1,
    connection_count: int = 1,
    connect_seconds: float = 10.0,
    progress: Progress | None = None,
) -> Tally:
    """Put a load on a service and count the results.

    After an interrupt (Ctrl-C) no more requests are sent, open ones are completed, and the results so far are returned. A second
    interrupt does not wait.

    Args:
        connect: Must pickle.
        connection_count: Of each process.
    Raises:
        NobodyAnswers: There is no connection within `connect_seconds`.
        CallersLost: A process of callers was killed.
    """
    parts = [_Part(connect, share, connection_count, connect_seconds) for share in shares(load, process_count)]
    with _started(parts) as pipes:
        deadline = time.monotonic() + _START_SECONDS + connect_seconds
        for pipe in pipes:
            _receive(pipe, deadline)
        start_at_seconds = time.monotonic() + 0.05
        for pipe in pipes:
            pipe.send(start_at_seconds)
        deadline = start_at_seconds + load.warm_up_seconds + load.seconds + load.timeout_seconds + _END_SECONDS
        with _stopped_by_an_interrupt(pipes):
            return _gather(pipes, progress, deadline)


@contextmanager
def _stopped_by_an_interrupt(pipes: list[Connection]) -> Iterator[None]:
    """Tell the processes to stop at the first Ctrl-C; a second one is handled as before.

    A KeyboardInterrupt instead could be raised while a message is read from a pipe, and its rest would be taken for the next one.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are delivered to the main thread only
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, previous)
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send("stop")

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _started(parts: list[_Part]) -> Iterator[list[Connection]]:
    """Start the processes and yield their pipes; on leaving, remaining processes are ended."""
    context = get_context("spawn")  # a fork would not have gRPC's threads
    processes: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for part in parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=_call, args=(theirs, part), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


def _gather(pipes: list[Connection], progress: Progress | None, deadline_seconds: float) -> Tally:
    """Collect counts until each process has reported its last."""
    latest: dict[Connection, Tally] = {}
    open_pipes = list(pipes)
    while open_pipes:
        ready = connection.wait(open_pipes, timeout=max(0.0, deadline_seconds - time.monotonic()))
        if not ready:
            raise CallersLost("a process of callers did not end in time")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            tally, is_last = _receive(pipe, deadline_seconds)
            latest[pipe] = tally
            if is_last:
                open_pipes.remove(pipe)
        if progress is not None and len(latest) == len(pipes):
            progress(_sum(list(latest.values())))
    return _sum(list(latest.values()))


def _sum(tallies: list[Tally]) -> Tally:
    total = copy.deepcopy(tallies[0])
    for tally in tallies[1:]:
        total.merge(tally)
    return total


def _receive(pipe: Connection, deadline_seconds: float) -> tuple[Tally, bool]:
    """The counts, and whether they are the last."""
    if not pipe.poll(max(0.0, deadline_seconds - time.monotonic())):
        raise CallersLost("a process of callers did not start in time")
    try:
        message = pipe.recv()
    except EOFError:
        raise CallersLost("a process of callers was killed") from None
    if isinstance(message, NobodyAnswers):
        raise message
    return message  # type: ignore[no-any-return]


def _call(pipe: Connection, part: _Part) -> None:
    """A process of callers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sends the stop
    try:
        asyncio.run(_drive(pipe, part))
    except NobodyAnswers as error:
        pipe.send(error)
    except BrokenPipeError:
        pass  # the parent has ended


async def _drive(pipe: Connection, part: _Part) -> None:
    load, tally = part.load, Tally()
    started: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    def read() -> None:
        try:
            message = pipe.recv()
        except EOFError:
            message = "stop"
            asyncio.get_running_loop().remove_reader(pipe.fileno())
        if message == "stop":
            stop.set()
            tally.window_stop_seconds = min(tally.window_stop_seconds, time.monotonic())
        elif not started.done():
            started.set_result(message)

    async def wait_for_start() -> float:
        pipe.send((tally, False))
        start_at_seconds = await asyncio.wait_for(started, _START_SECONDS)
        tally.window_start_seconds = start_at_seconds + load.warm_up_seconds
        tally.window_stop_seconds = tally.window_start_seconds + load.seconds
        return start_at_seconds

    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if started.done():
                pipe.send((tally, False))

    asyncio.get_running_loop().add_reader(pipe.fileno(), read)
    reporting = asyncio.create_task(report())
    cpu_seconds = time.process_time()
    try:
        await drive(
            part.connect,
            load,
            tally.add,
            when_to_start=wait_for_start,
            connection_count=part.connection_count,
            connect_seconds=part.connect_seconds,
            stop=stop,
        )
    finally:
        reporting.cancel()
    tally.client_cpu_seconds = time.process_time() - cpu_seconds
    pipe.send((tally, True))
