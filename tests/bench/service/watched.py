"""A real server as a process, seen from outside: what its whole tree of processes takes, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.bench.cpus import on_server_cpus
from tests.local_service import SERVING
from tests.warm_service import WarmProcess

START_SECONDS = 120.0
_STOP_SECONDS = 100.0
_SHARED_MEMORY = Path("/dev/shm")


class WatchedServer:
    """`preprocessor serve` on free ports, as a context manager.

    Args:
        options: Of the command line.
        under: A command that becomes the one that follows it, such as one that gives it a `/dev/shm` of its own.
        environment: Variables beside this process's own.
        is_warm: It is forked from a process that has loaded what a start loads: see `tests.warm_service`. Not for what is
            about the start or about memory, nor with `under`.
    Attributes:
        address, http_address: As it says it listens.
        process: The service; the fork server is its child, the workers are the fork server's.
        log: Its last lines.
    """

    def __init__(
        self,
        *options: str,
        under: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        is_warm: bool = False,
    ) -> None:
        assert not (is_warm and under)
        self._options = options
        self._is_warm = is_warm
        self._under = tuple(under)
        self._environment = environment or {}
        self.log: deque[str] = deque(maxlen=20_000)
        self.address = self.http_address = ""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="watched-server-")
        self._shared_before = _shared_files()
        free = ("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--drain-seconds", "2")
        arguments = ["serve", *free, *self._options]
        environment = {**os.environ, "TMPDIR": self._folder.name, **self._environment}
        ours, theirs = os.pipe()
        self._errors = os.fdopen(ours)
        self._popen: subprocess.Popen[bytes] | WarmProcess
        try:
            if self._is_warm:
                self._popen = WarmProcess(arguments, environment, theirs)
            else:
                command = [*self._under, sys.executable, "-m", "preprocessor", *arguments]
                with on_server_cpus():
                    self._popen = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=theirs)
        finally:
            os.close(theirs)
        self.process = psutil.Process(self._popen.pid)
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if not self._is_ready.wait(START_SECONDS) or not self.address:
            self.__exit__()
            raise RuntimeError("the server does not start:\n" + "".join(self.log))
        return self

    def __exit__(self, *_: object) -> None:
        tree = self.tree()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.send_signal(signal.SIGTERM)
            self._popen.wait(_STOP_SECONDS)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait()
        self._reader.join(_STOP_SECONDS)
        self._errors.close()
        self._folder.cleanup()

    def wait(self) -> int:
        """Wait until the service itself has ended; returns its exit status."""
        return self._popen.wait(_STOP_SECONDS)

    # -- who is there --------------------------------------------------------------------------------------------------

    def tree(self) -> list[psutil.Process]:
        """Every process of it that is alive, the service first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def fork_server(self) -> psutil.Process | None:
        """The process that forks the workers, where it is alive."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return next(iter(self.process.children()), None)
        return None

    def fronts(self) -> list[psutil.Process]:
        """The processes that share the port, where there are several."""
        return [child for child in self.process.children() if "fronts.front" in " ".join(child.cmdline())]

    def workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            fork_server = self.fork_server()
            return [] if fork_server is None else fork_server.children()
        return []

    def regions(self) -> set[Path]:
        """Named shared memory that the service has mapped."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return {Path(found) for found in re.findall(r"/dev/shm/vlm-preprocessor-\w+", maps)}

    # -- what it takes -------------------------------------------------------------------------------------------------

    def cpu_seconds(self) -> float:
        """See `tree_cpu_seconds`."""
        return tree_cpu_seconds(self.process)

    def pss_bytes(self) -> int:
        """Memory of the whole tree, shared pages counted once."""
        return sum(_pss_bytes(process) for process in self.tree())

    def descriptor_count(self) -> int:
        """Of the service and the fork server, not of workers; see `open_descriptor_count`."""
        return sum(open_descriptor_count(one.pid) for one in (self.process, self.fork_server()) if one is not None)

    @contextmanager
    def watched_pss(self, every_seconds: float = 0.5) -> Iterator[list[int]]:
        """Watches memory meanwhile; the list then holds every sample, in bytes."""
        samples = [self.pss_bytes()]
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(every_seconds):
                samples.append(self.pss_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield samples
        finally:
            is_over.set()
            watcher.join()
            samples.append(self.pss_bytes())

    # -- what it says --------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Each metric of the `preprocessor_` family: the sum over its labels."""
        values: dict[str, float] = {}
        for sample in self._samples():
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def metric_by(self, label: str, name: str) -> dict[str, float]:
        """A metric by the values of one of its labels."""
        return {sample.labels[label]: sample.value for sample in self._samples() if sample.name == name}

    def is_at_rest(self) -> bool:
        """Whether every worker is there, no request is open, and none of the budget is held."""
        now = self.metrics()
        return (
            now["preprocessor_worker_processes"] == 2 * now["preprocessor_workers"]  # a short and a long lane
            and now.get("preprocessor_requests_in_flight", 0) == 0
            and now["preprocessor_running_work"] == now["preprocessor_queued_requests"] == 0
            and now["preprocessor_budget_used_bytes"] == 0
        )

    # -- what it leaves ------------------------------------------------------------------------------------------------

    def files_left(self) -> set[Path]:
        """What lies in its TMPDIR, and what is new in /dev/shm since its start and not in use by somebody else."""
        temporary = set(Path(self._folder.name).iterdir())
        own = {process.pid for process in self.tree()}
        return temporary | {path for path in _shared_files() - self._shared_before if not _is_mapped(path, own)}

    def _samples(self) -> list[Sample]:
        with urllib.request.urlopen(f"http://{self.http_address}/metrics", timeout=START_SECONDS) as answer:
            text = answer.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def _read_log(self) -> None:
        for line in self._errors:
            self.log.append(line)
            if found := SERVING.search(line):
                self.address, self.http_address = found.groups()
                self._is_ready.set()
        self._is_ready.set()


@asynccontextmanager
async def entered(server: WatchedServer) -> AsyncIterator[WatchedServer]:
    """The server, started and ended in a thread: what it calls meanwhile may be in this event loop."""
    await asyncio.to_thread(server.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.__exit__)


def open_descriptor_count(process_id: int) -> int:
    """Open descriptors of a process, but not one of each chunk of an arena.

    A chunk needs one for as long as its memory is kept, for cached rows or for the next request: that counts as memory.
    """
    count, chunks = 0, set()
    for descriptor in Path(f"/proc/{process_id}/fd").glob("*"):
        with contextlib.suppress(OSError):  # it was closed meanwhile, or the process has ended
            if str(descriptor.readlink()).startswith("/memfd:preprocessor-rows"):
                chunks.add(descriptor.stat().st_ino)
            count += 1
    return count - len(chunks)


def tree_cpu_seconds(root: psutil.Process) -> float:
    """CPU that a process and all its descendants have used, those that have ended and were waited for included."""
    used = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                ended = process.cpu_times()
                used += process_cpu_seconds(process) + ended.children_user + ended.children_system
    return used


def process_cpu_seconds(process: psutil.Process) -> float:
    """CPU that all threads of a process have used: to the nanosecond, where /proc counts in hundredths of a second.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    try:
        return time.clock_gettime((~process.pid << 3) | 2)  # what clock_getcpuclockid(3) makes of a process's number
    except OSError as error:
        raise psutil.NoSuchProcess(process.pid) from error


def seconds_until_idle(root: psutil.Process, *, within_seconds: float, of_one_core: float = 0.2) -> float:
    """How long the tree goes on using its cores from now.

    Idle begins where, for a tenth of a second, the tree takes less than `of_one_core`.
    """
    began = time.monotonic()
    samples = [(0.0, tree_cpu_seconds(root))]
    while samples[-1][0] < within_seconds:
        time.sleep(0.01)
        samples.append((time.monotonic() - began, tree_cpu_seconds(root)))
        window = [sample for sample in samples if sample[0] >= samples[-1][0] - 0.1]
        if window[0] is not samples[0] and window[-1][1] - window[0][1] <= 0.1 * of_one_core:
            return window[0][0]
    return within_seconds


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def _shared_files() -> set[Path]:
    return set(_SHARED_MEMORY.iterdir()) if _SHARED_MEMORY.is_dir() else set()


def _is_mapped(path: Path, but_by: set[int]) -> bool:
    """Whether a process other than these has the file mapped."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if process.pid not in but_by and str(path) in Path(f"/proc/{process.pid}/maps").read_text():
                return True
    return False
