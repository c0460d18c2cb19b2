"""A run: many cases against real services, each judged by how it ended, and the services by what is left of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import WireSettings
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz.cases import Case, make_case
from tests.fuzz.targets import MAX_CPU_SECONDS, Target
from tests.reasons import documented

CONCURRENCY = 4
_PATIENCE_SECONDS = 8 * MAX_CPU_SECONDS
"""Longer than two tries of a stage may take beside three others on two cores: what takes longer hangs."""
OK = "OK"
_REST_SECONDS = 60.0
_SERVICE = "/preprocessor.v1.Preprocessor/"

# Documented, and still wrong here: faults of the program, time that ran out, and what only a fetch or an engine may say.
_NOT_HERE = frozenset({"INTERNAL", "ENGINE_FAILED", "DEADLINE_EXCEEDED", "UPLOAD_IDLE", "ENGINE_DEADLINE_EXCEEDED"})
WORKER_LOST = "WORKER_LOST"


@dataclass(frozen=True, slots=True)
class Settings:
    """Attributes:
    count, seconds: The run ends with either.
    only: As `make_case`'s.
    folder: Where files go that are worth keeping.
    """

    seed: int
    first: int
    count: int
    seconds: float
    only: str
    folder: Path


@dataclass(slots=True)
class Findings:
    """Attributes:
    outcomes: (kind, outcome) → how often.
    failures: What must not be, in words.
    lost: Cases that killed two workers in a row: allowed, and to be looked at.
    slowest: Seconds and number of the longest cases.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())


async def run(settings: Settings, targets: Mapping[int, Target]) -> Findings:
    """Send the cases, then see what is left."""
    findings, numbers = Findings(), iter(range(settings.first, settings.first + settings.count))
    started = time.monotonic()
    before = {id(target): target.server.descriptor_count() for target in targets.values()}
    with ExitStack() as stack:
        channels = {
            modality: stack.enter_context(grpc.insecure_channel(target.server.address, options=CHANNEL_OPTIONS))
            for modality, target in targets.items()
        }

        async def work() -> None:
            for number in numbers:
                if time.monotonic() - started > settings.seconds or len(findings.failures) > 200:
                    return
                case = await asyncio.to_thread(make_case, settings.seed, number, settings.only)
                began = time.monotonic()
                code, reason = await asyncio.to_thread(send, channels[case.modality], case)
                took = time.monotonic() - began
                _judge(case, code, reason, settings, findings)
                findings.slowest = sorted([*findings.slowest, (took, f"{number} {case.kind}: {reason}")])[-8:]

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    findings.seconds = time.monotonic() - started
    for target in set(targets.values()):
        await _check_rest(target, before[id(target)], findings)
    return findings


def send(channel: grpc.Channel, case: Case) -> tuple[str, str]:
    """Status and reason with which a case ends; both OK where it is answered.

    Not by grpc.aio, whose callers see INTERNAL, "Internal error from Core", where a call ends before all is sent.
    """
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_SERVICE + case.method)
    try:
        for _ in call(iter(case.sent), timeout=_PATIENCE_SECONDS):
            pass
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        sent = {entry.key: entry.value for entry in error.trailing_metadata() or ()}
        status = status_pb2.Status.FromString(sent.get("grpc-status-details-bin", b""))
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            detail.Unpack(info)
        return error.code().name, info.reason or f"(none) {error.details()}"
    return OK, OK


def _judge(case: Case, code: str, reason: str, settings: Settings, findings: Findings) -> None:
    findings.outcomes[case.kind, reason] += 1
    if code == OK:
        return
    if code == "RESOURCE_EXHAUSTED" and max(map(len, case.sent)) > WireSettings().max_message_bytes:
        return  # gRPC refuses such a message before the service sees it, without a reason
    if (code, reason) == ("INTERNAL", WORKER_LOST):
        findings.lost.append(f"{case.number} {case.kind}: {case.told}")
        _keep(case, reason, settings)
    elif reason in _NOT_HERE or not any((one.code, one.reason) == (code, reason) for one in documented()):
        findings.failures.append(f"case {case.number}, {case.kind}: {code} {reason} after {case.told}")
        _keep(case, reason, settings)


def _keep(case: Case, reason: str, settings: Settings) -> None:
    folder = settings.folder / f"{settings.seed}-{case.number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(case.data)
    for place, message in enumerate(case.sent):
        (folder / f"message-{place}").write_bytes(message)
    about = {"kind": case.kind, "method": case.method, "told": case.told, "reason": reason}
    (folder / "about.json").write_text(json.dumps(about, indent=2))


async def _check_rest(target: Target, descriptors_before: int, findings: Findings) -> None:
    """Afterwards the service is there, has all of its workers and none of anybody's memory, and goes on serving."""
    server = target.server
    if not server.process.is_running() or server.fork_server() is None:
        findings.failures.append("the service has died:\n" + "".join(list(target.log)[-40:]))
        return
    deadline = time.monotonic() + _REST_SECONDS
    while not (server.is_at_rest() and server.descriptor_count() <= descriptors_before):
        if time.monotonic() > deadline:
            now = server.metrics()
            findings.failures.append(
                f"not at rest: {now['preprocessor_budget_used_bytes']:.0f} bytes held, "
                f"{now['preprocessor_running_work']:.0f} running, {now['preprocessor_worker_processes']:.0f} workers, "
                f"descriptors {descriptors_before} → {server.descriptor_count()}"
            )
            break
        await asyncio.sleep(0.2)
    if left := server.files_left():
        findings.failures.append(f"files left: {sorted(map(str, left))}")
    findings.failures += [f"in the log: {line.strip()}" for line in target.log.faults]
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        spec = pb.PrepareSpec(text="still there?").SerializeToString()
        request = b"\x0a" + bytes([len(spec)]) + spec
        code, reason = send(channel, Case(-1, "text", "Prepare", pb.MODALITY_IMAGE, b"", (request,), ""))
        if code != OK:
            findings.failures.append(f"a good request fails afterwards: {code} {reason}")
