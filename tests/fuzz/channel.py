"""`python -m tests.fuzz.channel`: what a worker may send that was taken over, read by the service's own code.

The other end of a worker's two sockets is played here. Whatever it sends, the task must end: with a result that was checked, an
error for the caller, or the end of the worker. Nothing else may change: no descriptor stays, nothing is called, no class or
constant of the process is another one, and no case takes long.

    python -m tests.fuzz.channel --seed SEED --first NUMBER --count 1      # one case again
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.models.family import Model
from preprocessor.types import plan as plan_types
from preprocessor.types import request as request_types
from preprocessor.types.plan import Plan
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from preprocessor.workers import claims, stop_flag, untrusted
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import Command, TaskFailed
from preprocessor.workers.payloads import EarlyPlanPayload, PixelPayload, PlanPayload
from preprocessor.workers.process import ProcessWorker, WorkerDied
from preprocessor.workers.ranges import Ranges
from tests.bench.service.watched import open_descriptor_count
from tests.fuzz.worker_messages import good_messages, spoil
from tests.loading import load_family_model
from tests.media import moving_shapes_clip, photo

_MIB = 1 << 20
_MOST_SECONDS = 10.0
_MOST_GROWN_BYTES = 512 * _MIB
_NEVER = (
    "exec", "compile", "import", "pickle", "marshal", "subprocess", "shutil", "code.", "socket.connect", "socket.bind",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "os.remove", "os.rename", "os.putenv", "os.chmod",
)  # fmt: skip
"""Beginnings of audit events that no message may cause; `sys.addaudithook`."""


@dataclass(slots=True)
class Findings:
    """Attributes:
    outcomes: How cases ended.
    failures: What must not be, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class _Watch:
    """What the process does while a message is read."""

    def __init__(self) -> None:
        self.is_on = False
        self.events: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event.startswith(_NEVER):
            self.events.append(f"{event} {arguments[0]!r}")


_watch: list[_Watch] = []
"""One for the process: an audit hook cannot be removed."""


class _Case:
    """One case: a task, and what is sent for it."""

    def __init__(self, run: ChannelFuzz, number: int) -> None:
        self.source = random.Random(f"{run.seed}/{number}")
        self.payload = self.source.choice((run.plan_payload, run.early_payload, run.pixel_payload))
        self.frames, self.told = spoil(good_messages(self.payload, run.plan, self.source), self.source)
        self.has_descriptors = self.source.random() < 0.1


class ChannelFuzz:
    """A run of cases.

    Args:
        model: Whose plans are sent.
    """

    def __init__(self, model: Model, seed: int) -> None:
        self.seed = seed
        media = (
            Media("a", Modality.VIDEO, moving_shapes_clip(seconds=1, width=64, height=64)),
            Media("b", Modality.IMAGE, photo(64, 64)),
        )
        request = PreparationRequest(ChatPrompt((Message("user", (MediaPart("a"), MediaPart("b"))),)), media)
        planned = pipeline.plan(model, request, Limits())
        assert planned.pixels is not None
        self.plan: Plan = planned
        self.plan_payload = PlanPayload(request, Limits())
        self.early_payload = EarlyPlanPayload(self.plan_payload, {"a": len(media[0].data) + 1})
        self.arena = Arena.create(64 * _MIB)
        self.rows = Ranges(self.arena, self.arena.rows_start, self.arena.size_bytes, 0, self.arena.unit_bytes)
        tensor = self.rows.lease(planned.pixels.size_bytes)
        assert tensor is not None
        self.pixel_payload = PixelPayload(media, planned.pixels, tensor.offset, range(planned.pixels.row_count))

    async def run(self, first: int, count: int, seconds: float = float("inf")) -> Findings:
        """Run cases one after another."""
        if not _watch:
            _watch.append(_Watch())
        findings = Findings()
        for kind in untrusted._CLASSES.values():
            claims._field_checks(kind)  # which compiles them, once
        await self._judge(_Case(self, -1), -1, Findings())  # loads what the first use of anything loads
        shared, descriptors = _shared_state(), open_descriptor_count(os.getpid())
        memory_bytes, began = _peak_bytes(), time.monotonic()
        for number in range(first, first + count):
            if time.monotonic() - began > seconds or len(findings.failures) > 20:
                break
            case = _Case(self, number)
            await self._judge(case, number, findings)
            if _shared_state() != shared:
                findings.failures.append(f"case {number}: what the process shares has changed, after {case.told}")
                break
        for _ in range(10):  # transports close one turn of the loop later
            await asyncio.sleep(0)
        if (left := open_descriptor_count(os.getpid()) - descriptors) > 0:
            findings.failures.append(f"{left} descriptors stay open")
        if _peak_bytes() - memory_bytes > _MOST_GROWN_BYTES:
            findings.failures.append(f"memory has grown by {(_peak_bytes() - memory_bytes) >> 20} MiB")
        return findings

    async def _judge(self, case: _Case, number: int, findings: Findings) -> None:
        began = time.process_time()
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                outcome = await self._outcome(case)
        except TimeoutError:
            outcome = "FAILED: it hangs"
        spent = time.process_time() - began
        if spent > _MOST_SECONDS / 2:
            outcome = f"FAILED: it takes {spent:.1f} CPU seconds"
        findings.outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith("FAILED"):
            findings.failures.append(f"case {number}: {outcome} after {case.told}")

    async def _outcome(self, case: _Case) -> str:
        """How a task ends for which these frames are sent."""
        flag, flag_descriptor = stop_flag.make()
        os.close(flag_descriptor)
        told: list[tuple[int, int]] = []
        leased: list[Any] = []

        def lease_result(size_bytes: int) -> int | None:
            lease = self.rows.lease(size_bytes)
            if lease is not None:
                leased.append(lease)
            return None if lease is None else lease.offset

        violations: list[str] = []
        worker = ProcessWorker(self.arena, flag, lambda: True, violations.append)
        channel, their_channel = socket.socketpair()
        supply, their_supply = socket.socketpair()
        await worker.connect(channel, supply)
        worker.note_exit(-9)  # there is no process: whoever asks for its end finds it ended
        playing = asyncio.create_task(_play(their_channel, their_supply, case))
        command = Command(1, float("inf"), 60.0, case.payload)
        watch = _watch[0]
        watch.events.clear()
        watch.is_on = True
        try:
            result = await worker.run(command, lambda first, count: told.append((first, count)), lease_result)
            outcome = f"a result: {type(result).__name__}"
        except WorkerDied as death:
            outcome = f"refused as {death.violation.kind}" if death.violation else "the end of the worker"
            if bool(violations) != bool(death.violation):
                outcome = "FAILED: a violation that is not counted"
        except (PreprocessorError, TaskFailed) as error:
            outcome = f"an error: {type(error).__name__}"
        except Exception as error:  # any other is a finding
            outcome = f"FAILED: {type(error).__name__}: {error}"
        finally:
            watch.is_on = False
            worker.retire()
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
            their_channel.close()
            their_supply.close()
            for lease in leased:
                lease.release()
        if watch.events:
            return f"FAILED: it caused {watch.events[0]}"
        stop = case.payload.expected_rows.start
        for first_row, row_count in told:
            if type(first_row) is not int or type(row_count) is not int:
                return "FAILED: rows that are no numbers were announced"
            if first_row != stop or row_count <= 0 or first_row + row_count > case.payload.expected_rows.stop:
                return f"FAILED: rows {first_row} to {first_row + row_count} were announced after {stop}"
            stop = first_row + row_count
        return outcome


async def _play(channel: socket.socket, supply: socket.socket, case: _Case) -> None:
    """Send the frames, take whatever the service sends, and close."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    supply.setblocking(False)

    async def drain(end: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(end, 1 << 16):
                pass

    draining = [asyncio.create_task(drain(end)) for end in (channel, supply)]
    try:
        for place, frame in enumerate(case.frames):
            if case.has_descriptors and place == 0:
                socket.send_fds(channel, [frame[:1]], [0, 1])
                frame = frame[1:]
            await loop.sock_sendall(channel, frame)
        channel.shutdown(socket.SHUT_WR)
        await asyncio.gather(*draining)
    except ConnectionError:
        pass  # the service has closed its end
    finally:
        for one in draining:
            one.cancel()
        await asyncio.gather(*draining, return_exceptions=True)


def _shared_state() -> str:
    """Of what messages can name, all that every request shares."""
    kinds = [*untrusted._CLASSES.values(), *untrusted._ENUMS.values(), *untrusted._ERRORS.values()]
    enums = [(repr(one), one.value) for kind in untrusted._ENUMS.values() for one in kind]
    return repr(([sorted(vars(kind)) for kind in kinds], enums, plan_types.NO_ROWS, len(vars(request_types))))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.channel", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="a random one if absent")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=20_000, help="cases at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="when to stop before")
    given = parser.parse_args(arguments)
    findings = asyncio.run(
        ChannelFuzz(load_family_model("qwen3-vl"), given.seed).run(given.first, given.count, given.seconds)
    )
    print(f"{sum(findings.outcomes.values())} messages of workers, seed {given.seed}")
    for outcome, count in findings.outcomes.most_common():
        print(f"{count:7} {outcome}")
    print(*(findings.failures or ["no failure"]), sep="\n")
    return bool(findings.failures)


if __name__ == "__main__":
    sys.exit(main())
