"""An engine in this process, for the tests of programs that use one.

    engine = FakeEngine(token_ids=[5, 6, 7])
    ...                                             # give it to the code under test
    assert engine.requests[0].tensors["input_ids"].tolist() == [1, 2]

It needs no network and no engine, and waits for nothing but its gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from engine_client.capabilities import EngineCapabilities
from engine_client.client import PROBE_TIMEOUT_SECONDS, Metadata
from engine_client.contract.sampling import TokenLogprob
from engine_client.contract.tensors import FEATURE_TENSORS, ITEM_HASH, PIXELS
from engine_client.errors import EngineDeadlineExceeded, EngineError, EngineRejected, EngineUnavailable
from engine_client.release import Release
from engine_client.shm import SharedRegion
from engine_client.types import EngineInfo, EngineRequest, EngineStep, FinishReason


class FakeEngine:
    """An `EngineClient` that answers every request with the same token ids, one a step.

    The answer is cut at the request's `max_tokens` and after its first stop token, as a real engine's is; it ends with
    STOP unless it was cut for length. Of several answers, answer i is the token ids without the first i of them; the steps of
    all alternate. Where log probabilities are asked for, token t has -t, and so have the ids above it as alternatives.
    Penalties, min_p and constraints have no effect. Rows that are still being written are waited for, and the arrays are
    released before the first step. The attributes may be changed between requests.

    Args:
        token_ids: The answer.
        error: Raised instead of step `fail_at_step`, or of the end if the answer is shorter.
        fail_at_step: Steps that come before `error`.
        is_available: False lets every method raise EngineUnavailable.
        gate: Awaited before each step, so that a test decides when the engine goes on.
        capabilities: What it says that it takes. A request beyond that is rejected: pixels of another type, `pending` where
            it takes no pieces, pixels where it takes hashes only.
        keeps_items: It says that it holds the items of each prompt that it has answered, and has their hashes in `held_hashes`.
            Where a test takes some out, it is asked without pixels and asks for them.
        features: Parameters of `FEATURE_TENSORS` that it has; a request with another one is rejected.
    """

    def __init__(
        self,
        token_ids: Sequence[int] = (),
        *,
        error: EngineError | None = None,
        fail_at_step: int = 0,
        is_available: bool = True,
        gate: asyncio.Event | None = None,
        capabilities: EngineCapabilities | None = None,
        features: Collection[str] = tuple(FEATURE_TENSORS),
        keeps_items: bool = False,
    ) -> None:
        self.token_ids = tuple(token_ids)
        self.error = error
        self.fail_at_step = fail_at_step
        self.is_available = is_available
        self.gate = gate
        self.capabilities = capabilities or EngineCapabilities(takes_pieces=True)
        self.features = frozenset(features)
        self.keeps_items = keeps_items
        self.held_hashes: set[bytes] = set()
        self._told_hashes: set[bytes] = set()
        self.region: SharedRegion | None = None
        """What `share` was called with."""
        self.requests: list[EngineRequest] = []
        """Every request, in the order of arrival; with its pixels, where it has asked for them."""
        self.metadata: list[Metadata] = []
        """What came along with each."""
        self.cancelled_count = 0
        """Answers that their reader left before the end."""
        self.is_closed = False

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """See `EngineClient.share`."""
        assert self.capabilities.reads_shared_memory, "share is for engines that read shared memory"
        self.region = region

    def holds(self, item_hashes: np.ndarray[Any, Any]) -> bool:
        """See `HoldsItems.holds`."""
        hashes = _hashes_of(item_hashes)
        return bool(hashes) and hashes <= self._told_hashes

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        let_go = Release(request.on_released).hold()
        tokens_received = 0
        try:
            self._require_available()
            hashes = _hashes_of(request.tensors.get(ITEM_HASH))
            if not hashes <= self.held_hashes:
                request = await request.with_pixels()
            self.requests.append(request)
            self.metadata.append(metadata)
            self._require_within_capabilities(request)
            await self._await_rows(request, deadline)
            let_go()
            if self.keeps_items:
                self.held_hashes |= hashes
                self._told_hashes |= hashes
            for step in self._steps(request):
                await self._pass_gate(deadline)
                if self.error is not None and tokens_received == self.fail_at_step:
                    raise self.error
                tokens_received += len(step.token_ids)
                yield step
            if self.error is not None and tokens_received <= self.fail_at_step:
                raise self.error
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled_count += 1
            raise
        except EngineError as error:
            error.tokens_received = tokens_received
            raise
        finally:
            let_go()

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """See `EngineClient.check_ready`."""
        self._require_available()

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """See `EngineClient.describe`."""
        self._require_available()
        return EngineInfo("fake", "0", "fake", ("1",), inputs=(), outputs=())

    async def sampling_features(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> frozenset[str]:
        """See `EngineClient.sampling_features`."""
        self._require_available()
        return self.features

    async def close(self) -> None:
        """See `EngineClient.close`."""
        self.is_closed = True

    def _steps(self, request: EngineRequest) -> list[EngineStep]:
        """The steps of every answer, those of all answers in turn."""
        count = request.sampling.answer_count
        answers = [self._answer(request, index) for index in range(count)]
        return [step for turn in zip_longest(*answers) for step in turn if step is not None]

    def _answer(self, request: EngineRequest, index: int) -> list[EngineStep]:
        sampling, script = request.sampling, self.token_ids[index:]
        stops = [place for place, token_id in enumerate(script) if token_id in sampling.stop_token_ids]
        answer = script[: stops[0] + 1] if stops else script
        reason = FinishReason.STOP if len(answer) <= sampling.max_tokens else FinishReason.LENGTH
        answer = answer[: sampling.max_tokens]
        if not answer:
            return [EngineStep((), reason, index)]
        return [
            EngineStep(
                (token_id,),
                reason if place == len(answer) - 1 else None,
                index,
                () if sampling.logprobs is None else (_logprob(token_id, sampling.logprobs),),
            )
            for place, token_id in enumerate(answer)
        ]

    async def _await_rows(self, request: EngineRequest, deadline: float | None) -> None:
        if request.pending is None:
            return
        try:
            async with asyncio.timeout_at(deadline) as limit:
                await request.pending.wait_past(len(request.tensors[request.pending.tensor_name]) - 1)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineDeadlineExceeded("the fake engine waits for rows") from error

    async def _pass_gate(self, deadline: float | None) -> None:
        if self.gate is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self.gate.wait()
        except TimeoutError as error:
            raise EngineDeadlineExceeded("the fake engine waits at its gate") from error

    def _require_within_capabilities(self, request: EngineRequest) -> None:
        pixels, taken = request.tensors.get(PIXELS), self.capabilities
        if lacking := sorted(request.sampling.features - self.features):
            raise EngineRejected(f"the fake engine has no {', '.join(lacking)}")
        if request.pending is not None and not taken.takes_pieces:
            raise EngineRejected("the fake engine takes no pieces; the request has rows that are not final")
        if pixels is None:
            return
        if taken.takes_hashes_only:
            raise EngineRejected(f"the fake engine takes hashes only; the request has {PIXELS}")
        if pixels.dtype not in [pixel_type.dtype for pixel_type in taken.pixel_types]:
            raise EngineRejected(f"{PIXELS} is {pixels.dtype}; the fake engine takes {', '.join(taken.pixel_types)}")

    def _require_available(self) -> None:
        if self.is_closed or not self.is_available:
            raise EngineUnavailable("the fake engine is closed" if self.is_closed else "the fake engine is unavailable")


def _hashes_of(item_hashes: np.ndarray[Any, Any] | None) -> set[bytes]:
    return set() if item_hashes is None else {row.tobytes() for row in item_hashes}


def _logprob(token_id: int, top_count: int) -> TokenLogprob:
    return TokenLogprob(-float(token_id), tuple((token_id + i, -float(token_id + i)) for i in range(top_count)))
