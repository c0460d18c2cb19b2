"""Pixels that vLLM reads where they lie: ranges of a shared region's file, under names of their own.

vLLM's servicer opens `/dev/shm/NAME`, reads a range with `pread`, and removes the name (smg-grpc-servicer 0.14.1, mm_shm.py). A
region holds the tensors of many requests, so its own name must not be removed. Each range is therefore sent with a new hard link
to the region's file, and the reader removes only that link. Nothing is copied on this side.

A link keeps the memory of the whole region, so none may be left behind. A prompt's links end in one of these ways:

read        the reader has removed the link; `RegionLinks` looks for that every `POLL_SECONDS`
replied to  the reader keeps its files, or must not remove them, and has read; the link is removed here
left        the call ended before any reply: the link is removed here. If it was there, the reader may be reading at this moment,
            and other pixels must not get into vLLM's caches under this prompt's hashes: the arrays are held `UNCERTAIN_SECONDS`
abandoned   this process was killed: the next service that starts removes the link with the region, since a region's lock is one
            of its file, whatever the file's names (`engine_client.shm.remove_abandoned_regions`)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from smg_grpc_proto.generated import common_pb2

from engine_client.contract.tensors import Array
from engine_client.errors import EngineError, EngineRejected, EngineUnavailable
from engine_client.release import Release
from engine_client.shm import DIRECTORY, SharedRegion
from engine_client.vllm.server import VllmServer

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
UNCERTAIN_SECONDS = 5.0  # far beyond what it takes to copy what one message may refer to
RECHECK_SECONDS = 60.0  # after a failure, links are tried again after so long

MIN_LINKED_BYTES = 64 << 10  # below this, copying costs less than making, opening and removing a name
MAX_LINKED_BYTES = 0x7FFFF000  # what one `pread` returns at most (read(2)); the reader calls it once


def namespace_id() -> str:
    """Which `/dev/shm` this process has, in the form of `GetServerInfo.shm_namespace_id`; empty where it cannot be known.

    Source: smg-grpc-servicer 0.14.1, mm_shm.shm_namespace_id.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id}:{DIRECTORY.stat().st_dev}"
    except OSError:
        return ""


class References:
    """Refers to arrays of one prompt. The links that it names do not exist until `RegionLinks.open`.

    Attributes:
        names: File names of the links, in the order in which they were asked for.
    """

    def __init__(self, region: SharedRegion) -> None:
        self._region = region
        self.names: list[str] = []

    def refer(self, array: Array) -> common_pb2.ShmHandle | None:
        """Where the reader finds the array; None where it is to be sent."""
        offset = self._region.offset_of(array)
        if offset is None or not MIN_LINKED_BYTES <= array.nbytes <= MAX_LINKED_BYTES:
            return None
        # Begins with the region's name, so that sweeps treat both alike.
        self.names.append(f"{self._region.key[1:]}-{secrets.token_hex(8)}")
        return common_pb2.ShmHandle(name=self.names[-1], offset=offset, nbytes=array.nbytes)


class PromptLinks:
    """The links of one prompt, which hold its arrays until they are read; made by `RegionLinks.open`."""

    def __init__(self, owner: RegionLinks, paths: Sequence[Path], let_go: Callable[[], None]) -> None:
        self._owner = owner
        self._paths = paths
        self._let_go = let_go
        self._is_open = True

    @property
    def are_read(self) -> bool:
        """Whether the reader has removed them all, which it does after reading."""
        return not any(path.exists() for path in self._paths)

    def replied(self) -> None:
        """The first reply has come, so everything is read."""
        self.finish()
        self._owner.was_read()

    def failed(self, error: BaseException) -> bool:
        """The call ended with that before a reply.

        Returns:
            Whether all that went wrong is that the server could not read a link, and the arrays were held until now.
        """
        was_open, text = self._is_open, str(error)
        named = [path.name for path in self._paths if path.name in text]
        if isinstance(error, EngineError) and named:
            self.finish()
            self._owner.refuse(text.replace(named[0], self._owner.region.key[1:]))
            return was_open
        if isinstance(error, EngineRejected):  # a status that only the server itself makes
            self.finish()
        else:
            self.leave()
        return False

    def finish(self) -> None:
        """Nobody reads any more. Calling it again does nothing, as of `leave`."""
        if self._is_open:
            self._remove()
            self._let_go()

    def leave(self) -> None:
        """The call is over, and what the reader does is not known."""
        if not self._is_open:
            return
        if self._remove():
            asyncio.get_running_loop().call_later(UNCERTAIN_SECONDS, self._let_go)
        else:
            self._let_go()

    def _remove(self) -> bool:
        """Remove the names; returns whether one was still there."""
        self._is_open = False
        self._owner.forget(self)
        return sum(map(_removed, self._paths)) > 0  # all of them, not up to the first


class RegionLinks:
    """One engine's links to one region.

    Args:
        region: A file in `/dev/shm` with that name.
        engine_name: For messages.
        is_required: Raise where the engine cannot read the region, instead of sending bytes.
    """

    def __init__(self, region: SharedRegion, engine_name: str, *, is_required: bool) -> None:
        self.region = region
        self._engine_name = engine_name
        self._is_required = is_required
        self._namespace = namespace_id()
        self._refusal: str | None = None
        self._recheck_at = 0.0
        self._logged: str | None = None
        self._open: set[PromptLinks] = set()
        self._timer: asyncio.TimerHandle | None = None

    def references(self, server: VllmServer) -> References | None:
        """What the next prompt to that server refers with; None where all of it must be sent.

        Raises:
            EngineUnavailable: the region is required, and the server cannot read it.
        """
        reason = self._reason_against(server)
        if reason is None:
            return References(self.region)
        if self._is_required:
            raise EngineUnavailable(f"{self._engine_name} cannot read {self.region}: {reason}")
        self._log(logging.INFO, f"by gRPC: it cannot read {self.region}: {reason}")
        return None

    def open(self, names: Sequence[str], release: Release) -> PromptLinks:
        """Make the links that a message names; they hold `release`.

        Raises:
            OSError: one cannot be made; then there is none.
        """
        paths = [DIRECTORY / name for name in names]
        try:
            for path in paths:
                os.link(DIRECTORY / self.region.key[1:], path)
        except OSError:
            for path in paths:
                _removed(path)
            raise
        links = PromptLinks(self, paths, release.hold())
        self._open.add(links)
        self._watch()
        return links

    def was_read(self) -> None:
        """The engine has read a link."""
        self._log(logging.INFO, f"by shared memory: it can read {self.region}")

    def refuse(self, reason: str) -> None:
        """Send bytes instead, until `RECHECK_SECONDS` have passed."""
        self._refusal = reason
        self._recheck_at = asyncio.get_running_loop().time() + RECHECK_SECONDS
        self._log(logging.WARNING, f"by gRPC: it cannot read {self.region}: {reason}")

    def forget(self, links: PromptLinks) -> None:
        """They are closed."""
        self._open.discard(links)

    def close(self) -> None:
        """Leave all links."""
        for links in tuple(self._open):
            links.leave()
        if self._timer is not None:
            self._timer.cancel()

    def _reason_against(self, server: VllmServer) -> str | None:
        if not server.normalizes:
            return "it takes normalized floats, which are made in other memory"
        own = self._namespace
        if not own or server.shm_namespace != own:
            return f"its /dev/shm is {server.shm_namespace or 'unknown'}, and that of this process {own or 'unknown'}"
        if self._refusal is not None and asyncio.get_running_loop().time() >= self._recheck_at:
            self._refusal = None
        return self._refusal

    def _watch(self) -> None:
        if self._open and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        for links in [links for links in self._open if links.are_read]:
            links.finish()
        self._watch()

    def _log(self, level: int, how: str) -> None:
        """Say how tensors go, when that has changed."""
        if how != self._logged:
            self._logged = how
            logger.log(level, "tensors go to %s %s", self._engine_name, how)


def _removed(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False
