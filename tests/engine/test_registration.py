"""How a region is registered, without an engine; with one: test_shared_memory.py."""

from __future__ import annotations

import asyncio

import pytest

from engine_client import OwnedRegion
from engine_client.triton.registration import RegionRegistration
from tests.waiting import eventually


async def test_what_a_caller_began_goes_on_when_it_leaves_so_that_short_deadlines_register_too() -> None:
    gate, asked = asyncio.Event(), list[str]()

    async def ask(method: str, wire: bytes, timeout_seconds: float) -> bytes:
        asked.append(method)
        await gate.wait()
        return b""

    with OwnedRegion.create(1 << 20) as region:
        registration = RegionRegistration(region, ask, "engine", is_required=False)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await registration.acquire()
        gate.set()
        await eventually(lambda: registration._known is not None)
        assert await registration.acquire() is not None
        assert asked.count("SystemSharedMemoryRegister") == 1
        await registration.close()
