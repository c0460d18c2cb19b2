"""One engine's registration of one shared memory region: made once, repeated when the engine lost it, undone at the end.

Registering is the test of whether the engine sees the same `/dev/shm`: Triton opens the key, whose random bits no other
host has, and refuses a file that is shorter than the region (2.51). It is repeated after every sign that another server
process may answer: when the engine was unavailable, and when it does not know the region.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc
from grpc.aio import AioRpcError

from engine_client.errors import EngineError, EngineUnavailable
from engine_client.shared_task import SharedTask
from engine_client.shm import SharedRegion, is_abandoned
from engine_client.triton import kserve_regions
from engine_client.triton.kserve_regions import RegisteredRegion
from engine_client.triton.messages import KnownRegion
from engine_client.triton.status import grpc_errors

logger = logging.getLogger(__name__)

# An engine that could not see the region is asked again after so long; it costs one small call.
RECHECK_SECONDS = 60.0
# For a call that Triton answers without touching a model, on a host that is busy.
CALL_TIMEOUT_SECONDS = 5.0

Ask = Callable[[str, bytes, float], Awaitable[bytes]]
"""Calls a method of the engine with a serialized message and a timeout in seconds."""

# These say nothing about whether the engine sees the region, only that it cannot answer now.
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class RegionRegistration:
    """Keeps one region registered with one engine, for many requests at once.

    Args:
        region: To register.
        ask: How to reach the engine; raises EngineError.
        engine_name: For messages.
        is_required: Raise where the engine does not see the region, instead of sending bytes.
    """

    def __init__(self, region: SharedRegion, ask: Ask, engine_name: str, *, is_required: bool) -> None:
        self._region = region
        self._ask = ask
        self._engine_name = engine_name
        self._is_required = is_required
        # Named by its key: as unique among the clients of an engine, and the same in every client of this region, since
        # Triton (2.51) does not take a key that it has by another name.
        self._wanted = RegisteredRegion(region.key[1:], region.key, 0, region.byte_size)
        self._known: KnownRegion | None = None
        self._refusal: str | None = None
        self._recheck_at = 0.0
        self._was_known = False
        self._is_registered_here = False
        self._registering = SharedTask(self._register)  # once for many requests, whoever of them leaves

    async def acquire(self) -> KnownRegion | None:
        """The region, as requests may refer to it now; None where tensors must go as bytes.

        Raises:
            EngineUnavailable: the engine does not answer; or the region is required and it cannot see it.
        """
        if self._known is None and self._is_due():
            await self._registering.outcome()
        if self._known is None and self._is_required:
            raise EngineUnavailable(f"{self._engine_name} cannot read {self._region}: {self._refusal}")
        return self._known

    def lost(self, known: KnownRegion) -> None:
        """The engine did not know the region when a request referred to it; the next `acquire` registers again."""
        if self._known is known:  # else another request was told first, and it may be registered again by now
            self._known = None
            self._refusal = None

    def give_up(self, reason: str) -> None:
        """Send bytes instead, until `RECHECK_SECONDS` have passed."""
        self._refuse(reason)

    def forget(self) -> None:
        """The engine was away: what answers next may be another process."""
        self._known = None
        self._refusal = None

    async def close(self) -> None:
        """Unregister the region: else the engine keeps its memory mapped as long as it runs.

        Only the client that registered it does so. If another client still uses it then, that one's next request registers it
        again.
        """
        await self._registering.ended()
        self._known = None
        if not self._is_registered_here:
            return
        try:
            await self._unregister(self._wanted.name)
        except EngineError as error:  # the next client that starts on this host unregisters it
            logger.warning("%s keeps %s: %s", self._engine_name, self._region, error)

    def _is_due(self) -> bool:
        return self._refusal is None or asyncio.get_running_loop().time() >= self._recheck_at

    async def _register(self) -> None:
        try:
            try:
                await self._make_known()
            except EngineError as error:
                if _status(error) is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                await self._replace_stale()
            await self._unregister_abandoned()
        except EngineError as error:
            if _status(error) in _NO_ANSWER:
                raise EngineUnavailable(
                    f"{self._engine_name} does not say whether it can read memory: {error}"
                ) from error
            self._refuse(str(error))
            return
        logger.info("tensors go to %s by shared memory: it can read %s", self._engine_name, self._region)
        self._known = KnownRegion(self._region, self._wanted.name)
        self._was_known = True

    async def _make_known(self) -> None:
        await self._call("SystemSharedMemoryRegister", kserve_regions.encode_region_register(self._wanted))
        self._is_registered_here = True

    async def _replace_stale(self) -> None:
        """The name is taken: by this very region, from an earlier call or another client; else it is made anew."""
        if self._wanted not in await self._status_of_all():
            await self._unregister(self._wanted.name)
            await self._make_known()

    async def _unregister_abandoned(self) -> None:
        """Unregister the regions of clients that ended without doing so: the engine still holds their memory.

        Only now is it known that both see the same `/dev/shm`, and so that a file missing here is missing there.
        """
        for region in await self._status_of_all():
            if is_abandoned(region.key):
                try:
                    await self._unregister(region.name)
                    logger.info("%s held %s of a client that is gone", self._engine_name, region)
                except EngineError as error:
                    logger.warning("%s keeps %s of a client that is gone: %s", self._engine_name, region, error)

    def _refuse(self, reason: str) -> None:
        level = logging.WARNING if self._was_known else logging.INFO
        logger.log(level, "tensors go to %s by gRPC: it cannot read %s: %s", self._engine_name, self._region, reason)
        self._known = None
        self._was_known = False
        self._refusal = reason
        self._recheck_at = asyncio.get_running_loop().time() + RECHECK_SECONDS

    async def _status_of_all(self) -> tuple[RegisteredRegion, ...]:
        answer = await self._call("SystemSharedMemoryStatus", kserve_regions.encode_region_status())
        with grpc_errors(self._engine_name):
            return kserve_regions.decode_region_status(answer)

    async def _unregister(self, name: str) -> None:
        await self._call("SystemSharedMemoryUnregister", kserve_regions.encode_region_unregister(name))

    async def _call(self, method: str, wire: bytes) -> bytes:
        return await self._ask(method, wire, CALL_TIMEOUT_SECONDS)


def _status(error: EngineError) -> grpc.StatusCode | None:
    cause = error.__cause__
    return cause.code() if isinstance(cause, AioRpcError) else None
