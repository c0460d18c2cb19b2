"""Uploads that are still coming: rows are made meanwhile, answers are the same, and what is not needed is dropped."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from engine_client.testing import FakeEngine
from preprocessor.client.answers import PrepareResult, ResultAssembler
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.workers.early_work import EarlyWork
from tests.media import index_in_front, moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import PATIENCE_SECONDS, eventually

OPTIONS = (("x264-params", "keyint=15:bframes=2:b-adapt=0:scenecut=0"),)
PLAIN = moving_shapes_clip(seconds=8, rate=15, width=240, height=176, grain=30, options=OPTIONS)
IN_FRONT = index_in_front(PLAIN)
SPEC = chat(
    "Compare",
    image("photo", photo(320, 240)),
    "with",
    video(size_bytes=len(IN_FRONT), sampling=pb.Sampling(fps=4)),
)


class SlowCall:
    """A call of which the end of the file is held back until it is let go.

    Attributes:
        answer: Its responses, or the error that ended it.
    """

    def __init__(self, caller: Caller, method: str, spec: Any, data: bytes, share: float) -> None:
        self._held, self._is_broken_off = threading.Event(), False
        self._call: Any = None
        held_from = int(len(data) * share)
        offsets = [*range(0, held_from, 1 << 16), held_from]
        request = pb.GenerateRequest if method == "Generate" else pb.PrepareRequest

        def messages() -> Iterator[Any]:
            yield request(spec=spec)
            for start, stop in itertools.pairwise(offsets):
                yield request(chunk=pb.MediaChunk(key="clip", offset_bytes=start, data=data[start:stop]))
            self._held.wait(PATIENCE_SECONDS)
            if not self._is_broken_off:
                yield request(chunk=pb.MediaChunk(key="clip", offset_bytes=held_from, data=data[held_from:], last=True))

        def run() -> list[Any]:
            with grpc.insecure_channel(caller.server.address, options=CHANNEL_OPTIONS) as channel:
                self._call = getattr(pb_grpc.PreprocessorStub(channel), method)(messages(), timeout=PATIENCE_SECONDS)
                return list(self._call)

        self.answer = asyncio.create_task(asyncio.to_thread(run))

    def let_go(self) -> None:
        """Send the rest."""
        self._held.set()

    def break_off(self) -> None:
        """End the upload without the rest."""
        self._is_broken_off = True
        self._held.set()

    def leave(self) -> None:
        """Cancel the call."""
        self._call.cancel()
        self.break_off()


@asynccontextmanager
async def slow_call(
    caller: Caller, spec: Any = SPEC, data: bytes = IN_FRONT, share: float = 0.9, method: str = "Prepare"
) -> AsyncIterator[SlowCall]:
    call = SlowCall(caller, method, spec, data, share)
    try:
        yield call
    finally:
        call.break_off()
        await asyncio.wait([call.answer])


async def rows_made(caller: Caller) -> None:
    """Wait until all is made that can be made of what has arrived."""
    pool = caller.server.pool

    def are_made() -> bool:
        works = [work for work in pool.early_works if isinstance(work, EarlyWork)]
        return any(work.row_count for work in works) and not pool.running_count

    await eventually(are_made)


def result(responses: list[pb.PrepareResponse]) -> PrepareResult:
    assembler = ResultAssembler()
    for response in responses:
        assembler.add(response)
    return assembler.result()


async def test_an_answer_is_the_same_and_says_what_was_made_early(model: Model) -> None:
    async with serving(model) as caller:
        async with slow_call(caller) as call:
            await rows_made(caller)
            call.let_go()
            early = result(await call.answer)
        samples = await caller.samples()
    async with serving(model, early_decoding="off") as caller:
        async with slow_call(caller) as call:
            await eventually(lambda: caller.server.pool.files.leased_bytes > 0)
            await asyncio.sleep(0.1)
            assert not caller.server.pool.running_count
            call.let_go()
            whole = result(await call.answer)
        assert ("preprocessor_early_requests_total", "used") in await caller.samples()
    assert early.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(early.tensors[name], tensor)
    assert 0 < early.report.early_row_count < len(early.tensors["pixel_patches"])
    assert whole.report.early_row_count == 0
    assert samples["preprocessor_early_requests_total", "used"] == 1
    assert samples["preprocessor_budget_used_bytes",] == 0


async def test_rows_made_early_reach_an_engine(model: Model) -> None:
    engine = FakeEngine(token_ids=(11, 12))
    async with (
        serving(model, engine) as caller,
        slow_call(caller, pb.GenerateSpec(prompt=SPEC), method="Generate") as call,
    ):
        await rows_made(caller)
        call.let_go()
        answer = await call.answer
    assert answer[-1].completion.report.early_row_count > 0


@pytest.mark.parametrize("end", ["breaks off", "leaves"])
async def test_a_caller_who_does_not_send_the_rest_leaves_nothing_behind(model: Model, end: str) -> None:
    async with serving(model) as caller:
        async with slow_call(caller) as call:
            await rows_made(caller)
            if end == "breaks off":
                call.break_off()
            else:
                call.leave()
            with pytest.raises(grpc.RpcError):
                await call.answer
        pool = caller.server.pool
        await eventually(lambda: not pool.used_bytes and not pool.early_works)
        samples = await caller.samples()
    assert samples["preprocessor_early_requests_total", "unused"] == 1
