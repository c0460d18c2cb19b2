"""The fake behaves like an engine where a test of a program can tell."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from engine_client import (
    EngineCapabilities,
    EngineClient,
    EngineDeadlineExceeded,
    EngineFailed,
    EngineRejected,
    EngineRequest,
    EngineStep,
    EngineUnavailable,
    FinishReason,
    PixelType,
    RowProgress,
    SamplingParameters,
    TokenLogprob,
    TritonEngine,
)
from engine_client.contract.tensors import PIXELS
from engine_client.testing import FakeEngine


def request(**sampling: object) -> EngineRequest:
    parameters = SamplingParameters(**sampling)  # type: ignore[arg-type]
    return EngineRequest("r", {"input_ids": np.array([1, 2], np.int32)}, parameters)


async def steps(engine: EngineClient, asked: EngineRequest, timeout_seconds: float | None = None) -> list[EngineStep]:
    return [step async for step in engine.generate(asked, timeout_seconds=timeout_seconds)]


def test_both_engines_are_engine_clients() -> None:
    clients: list[EngineClient] = [FakeEngine(), TritonEngine("nowhere:1")]  # checked by mypy, too
    assert len(clients) == 2


async def test_the_script_comes_a_token_a_step_and_the_request_is_kept() -> None:
    engine, asked = FakeEngine([5, 6]), request()
    assert await steps(engine, asked) == [EngineStep((5,)), EngineStep((6,), FinishReason.STOP)]
    assert engine.requests == [asked]


@pytest.mark.parametrize(
    ("script", "sampling", "token_ids", "reason"),
    [
        ([5, 6, 7], {"max_tokens": 2}, [5, 6], FinishReason.LENGTH),
        ([5, 6, 7], {"max_tokens": 3}, [5, 6, 7], FinishReason.STOP),
        ([5, 6, 7], {"stop_token_ids": (6,)}, [5, 6], FinishReason.STOP),
        ([], {}, [], FinishReason.STOP),
    ],
)
async def test_the_script_is_cut_as_an_engine_would(
    script: list[int], sampling: dict[str, object], token_ids: list[int], reason: FinishReason
) -> None:
    got = await steps(FakeEngine(script), request(**sampling))
    assert [token_id for step in got for token_id in step.token_ids] == token_ids
    assert got[-1].finish_reason is reason


@pytest.mark.parametrize("fail_at_step", [0, 2, 3])
async def test_it_fails_at_the_step_that_was_asked_for(fail_at_step: int) -> None:
    engine = FakeEngine([5, 6, 7], error=EngineFailed("boom"), fail_at_step=fail_at_step)
    with pytest.raises(EngineFailed, match="boom") as raised:
        await steps(engine, request())
    assert raised.value.tokens_received == fail_at_step


async def test_unavailable_holds_for_every_method() -> None:
    engine = FakeEngine([5], is_available=False)
    for attempt in (steps(engine, request()), engine.check_ready(), engine.describe()):
        with pytest.raises(EngineUnavailable):
            await attempt
    engine.is_available = True
    await engine.check_ready()


async def test_the_gate_holds_each_step_back() -> None:
    engine = FakeEngine([5], gate=asyncio.Event())
    assert engine.gate is not None
    reading = asyncio.create_task(steps(engine, request()))
    _, pending = await asyncio.wait({reading}, timeout=0.01)
    assert pending
    engine.gate.set()
    assert len(await reading) == 1


async def test_a_deadline_passes_at_the_gate() -> None:
    with pytest.raises(EngineDeadlineExceeded):
        await steps(FakeEngine([5], gate=asyncio.Event()), request(), timeout_seconds=0.01)


async def test_leaving_early_is_counted() -> None:
    engine = FakeEngine([5, 6])
    async with aclosing(engine.generate(request())) as answer:
        await anext(answer)
    assert engine.cancelled_count == 1


async def test_a_closed_engine_is_unavailable() -> None:
    engine = FakeEngine([5])
    await engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await steps(engine, request())


@pytest.mark.parametrize(
    ("capabilities", "is_pending", "complaint"),
    [
        (EngineCapabilities(), True, "takes no pieces"),
        (EngineCapabilities((PixelType.FP16,)), False, "is uint8; .* takes fp16"),
        (EngineCapabilities(takes_hashes_only=True), False, "takes hashes only"),
    ],
    ids=["pieces", "type", "hashes"],
)
async def test_what_it_does_not_take_it_rejects(
    capabilities: EngineCapabilities, is_pending: bool, complaint: str
) -> None:
    tensors: dict[str, np.ndarray] = {"input_ids": np.array([1], np.int32), PIXELS: np.zeros((2, 3), np.uint8)}
    asked = EngineRequest("r", tensors, pending=RowProgress(PIXELS) if is_pending else None)
    with pytest.raises(EngineRejected, match=complaint):
        await steps(FakeEngine([5], capabilities=capabilities), asked)


async def test_each_of_several_answers_has_its_index_and_its_end() -> None:
    asked = request(answer_count=2, temperature=1.0, max_tokens=2, logprobs=1)
    assert await steps(FakeEngine([5, 6]), asked) == [
        EngineStep((5,), None, 0, (TokenLogprob(-5.0, ((5, -5.0),)),)),
        EngineStep((6,), FinishReason.STOP, 1, (TokenLogprob(-6.0, ((6, -6.0),)),)),
        EngineStep((6,), FinishReason.STOP, 0, (TokenLogprob(-6.0, ((6, -6.0),)),)),
    ]


async def test_a_parameter_that_it_lacks_is_rejected_by_name() -> None:
    engine = FakeEngine([5], features=["logprobs"])
    assert await engine.sampling_features() == {"logprobs"}
    with pytest.raises(EngineRejected, match="no min_p, regex"):
        await steps(engine, request(min_p=0.5, regex="a", logprobs=0))
