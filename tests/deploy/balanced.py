"""Replicas behind an Envoy, and what each of them does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import grpc.aio

from tests.deploy.calls import HeldUpload
from tests.deploy.envoy import Envoy
from tests.deploy.replicas import Replica
from tests.media import photo
from tests.waiting import PATIENCE_SECONDS

PHOTO = photo(160, 120)


@dataclass(frozen=True, slots=True)
class Balanced:
    """The replicas, and Envoy before them."""

    replicas: list[Replica]
    envoy: Envoy
    channel: grpc.aio.Channel

    async def in_flight(self, replica: Replica) -> int:
        return int(await replica.metric("preprocessor_requests_in_flight", method="Prepare"))

    async def all_in_flight(self, count: int) -> list[int]:
        """Open calls of each replica, once there are so many together."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            counts = [await self.in_flight(replica) for replica in self.replicas]
            if sum(counts) == count:
                return counts
            assert time.monotonic() < deadline, f"{counts} calls are open, and not {count}"
            await asyncio.sleep(0.02)

    async def connect(self) -> None:
        """Have Envoy connect to every replica.

        It does so with the first call of each, and does not count those that wait for the connection: to a replica that it
        has never called it sends more than its share.
        """
        held: list[HeldUpload] = []
        while not all(await self.all_in_flight(len(held))):
            held.append(HeldUpload(self.channel, PHOTO))
            await held[-1].begin()
        await asyncio.gather(*(upload.finish() for upload in held))
        await self.all_in_flight(0)

    async def items(self) -> dict[str, int]:
        """Items of requests so far, of all replicas: "hit", "joined" or "miss"."""
        counts = {"hit": 0, "joined": 0, "miss": 0}
        for replica in self.replicas:
            for result in counts:
                counts[result] += int(await replica.metric("preprocessor_cache_items_total", result=result))
        return counts
