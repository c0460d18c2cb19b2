"""When arrays are not needed any more."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from engine_client import EngineRequest
from engine_client.contract.tensors import Array
from engine_client.release import Release
from engine_client.triton import kserve
from engine_client.triton.messages import RequestMessages
from tests.waiting import PATIENCE_SECONDS, eventually


async def test_arrays_that_a_thread_reads_are_held_until_it_has_read_them_though_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_reading, may_end, released = threading.Event(), threading.Event(), asyncio.Event()
    real = kserve.encode_infer_request

    def encode(*arguments: object, **options: object) -> bytes:
        is_reading.set()
        assert may_end.wait(PATIENCE_SECONDS)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(kserve, "encode_infer_request", encode)
    release = Release(released.set)
    let_go = release.hold()
    tensors: dict[str, Array] = {"input_ids": np.ones(1, np.int32), "pixel_patches": np.zeros((2048, 1536), np.uint8)}
    messages = RequestMessages("m", EngineRequest("r", tensors), takes_pieces=False, known=None, release=release)
    encoding = asyncio.ensure_future(anext(aiter(messages)))
    await eventually(is_reading.is_set)
    encoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await encoding
    let_go()
    assert not released.is_set(), "the thread still reads"
    may_end.set()
    await eventually(released.is_set)


async def test_what_a_thread_raises_is_raised_to_who_waits() -> None:
    def fail() -> None:
        raise ValueError("wrong")

    released = asyncio.Event()
    with pytest.raises(ValueError, match="wrong"):
        await Release(released.set).hold_while(fail, None)
    await eventually(released.is_set)
