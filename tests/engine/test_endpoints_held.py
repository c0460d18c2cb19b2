"""Who of several engines gets a request whose items some of them hold; engines are fakes here."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from engine_client import EngineFailed, EngineRequest, EngineUnavailable, Pixels, SamplingParameters
from engine_client.contract.tensors import HASH_BYTES
from engine_client.endpoints import AFFINITY_MARGIN
from engine_client.testing import FakeEngine
from tests.engine.several import in_order
from tests.waiting import eventually

HASHES = np.arange(2 * HASH_BYTES, dtype=np.uint8).reshape(2, HASH_BYTES)
PIXELS = np.zeros((4, 8), np.uint8)
IDS: dict[str, np.ndarray] = {"input_ids": np.array([1], np.int32), "item_hash": HASHES}


class Making:
    """Requests without pixels, and how often these were asked for."""

    def __init__(self) -> None:
        self.count = self.released_count = 0

    async def make(self) -> Pixels:
        self.count += 1
        return Pixels(PIXELS)

    def released(self) -> None:
        self.released_count += 1

    @property
    def request(self) -> EngineRequest:
        return EngineRequest("r", IDS, SamplingParameters(), on_released=self.released, pixels_on_demand=self.make)


def holder(**options: object) -> FakeEngine:
    """An engine that holds both items."""
    engine = FakeEngine([5], keeps_items=True, **options)  # type: ignore[arg-type]
    engine.held_hashes = {row.tobytes() for row in HASHES}
    engine._told_hashes = set(engine.held_hashes)
    return engine


async def ask(endpoints: object, request: EngineRequest) -> list[int]:
    return [token async for step in endpoints.generate(request) for token in step.token_ids]  # type: ignore[attr-defined]


async def test_the_one_that_holds_the_items_is_asked_whatever_the_lot_says() -> None:
    empty, full, making = FakeEngine([5]), holder(), Making()
    async with in_order(a=empty, b=full) as endpoints:
        assert endpoints.holds(HASHES)
        assert not endpoints.holds(HASHES[:0])
        for _ in range(3):
            assert await ask(endpoints, making.request) == [5]
        assert await ask(endpoints, EngineRequest("r", IDS | {"pixel_patches": PIXELS})) == [5]
    assert (len(empty.requests), len(full.requests), making.count, making.released_count) == (1, 3, 0, 3)


async def test_one_that_holds_the_items_and_is_far_busier_than_others_does_not_get_all_of_them() -> None:
    gate = asyncio.Event()
    empty, full, making = FakeEngine([5], keeps_items=True, gate=gate), holder(gate=gate), Making()
    async with in_order(a=empty, b=full) as endpoints:
        asking = []
        for count in range(1, AFFINITY_MARGIN + 3):
            asking.append(asyncio.create_task(ask(endpoints, making.request)))
            await eventually(lambda count=count: len(empty.requests) + len(full.requests) == count)  # type: ignore[misc]
        gate.set()
        assert await asyncio.gather(*asking) == [[5]] * len(asking)
        assert (len(empty.requests), len(full.requests), making.count) == (1, AFFINITY_MARGIN + 1, 1)
        assert empty.holds(HASHES)  # and so has its share from now on


@pytest.mark.parametrize("error", [EngineUnavailable("gone"), EngineFailed("broke")])
async def test_when_the_one_that_holds_them_fails_another_one_gets_the_pixels(error: Exception) -> None:
    empty, full, making = FakeEngine([5]), holder(error=error), Making()
    async with in_order(a=empty, b=full) as endpoints:
        assert await ask(endpoints, making.request) == [5]
    assert empty.requests[0].tensors["pixel_patches"] is PIXELS
    assert "pixel_patches" not in full.requests[0].tensors
    assert (making.count, making.released_count) == (1, 1)


class Without:
    """An engine that cannot be asked what it holds."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        if name == "holds":
            raise AttributeError(name)
        return getattr(self._engine, name)


async def test_nothing_is_held_where_one_cannot_be_asked() -> None:
    async with in_order(a=Without(FakeEngine([5])), b=holder()) as endpoints:  # type: ignore[arg-type]
        assert not endpoints.holds(HASHES)


async def test_nothing_is_held_by_an_endpoint_that_gets_no_requests() -> None:
    full = holder(error=EngineUnavailable("gone"))
    async with in_order(a=full) as endpoints:
        assert endpoints.holds(HASHES)
        for _ in range(5):
            with pytest.raises(EngineUnavailable):
                await ask(endpoints, Making().request)
        assert not endpoints.holds(HASHES)


@pytest.mark.parametrize("tensors", [IDS | {"pixel_patches": PIXELS}, {"input_ids": IDS["input_ids"]}])
def test_pixels_on_demand_are_for_requests_with_hashes_and_without_pixels(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="pixels_on_demand is given with"):
        EngineRequest("r", tensors, pixels_on_demand=Making().make)
