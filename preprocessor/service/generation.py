"""The engine's part of a `Generate` call: the request with its tensors, and the stream of tokens that answers it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np

from engine_client import (
    EngineClient,
    EngineFailed,
    EngineRequest,
    EngineStep,
    FinishReason,
    HoldsItems,
    SamplingParameters,
)
from engine_client.contract.tensors import HASH_BYTES, ITEM_HASH, PIXELS
from preprocessor.service import writing
from preprocessor.service.calls import Call
from preprocessor.service.engine_pixels import EnginePixels
from preprocessor.service.made_items import MadeItems, scoped_hashes
from preprocessor.service.metrics import Metrics
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.types.plan import Plan
from preprocessor.types.request import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb

_NO_HASHES = np.zeros((0, HASH_BYTES), np.uint8)


@contextlib.asynccontextmanager
async def engine_request(
    request: PreparationRequest,
    planned: Plan,
    sampling: SamplingParameters,
    call: Call,
    metrics: Metrics,
    engine: EngineClient,
    made_items: MadeItems,
) -> AsyncIterator[EngineRequest]:
    """The request for the engine. If the engine takes pieces, it can be sent while workers still write later rows of pixels.

    No pixels are made of items that the engine says it holds, unless it asks for them after all.
    """
    tensors = dict(planned.tensors)
    if engine.capabilities.tells_items_apart:
        tensors |= planned.item_tensors
    if ITEM_HASH in tensors:
        tensors[ITEM_HASH] = scoped_hashes(tensors[ITEM_HASH], call.resources.cache_scope)
    if planned.pixels is None or engine.capabilities.takes_hashes_only:
        call.resources.skip_pixels()
        yield EngineRequest(call.request_id, tensors, sampling)
        return
    hashes = tensors.get(ITEM_HASH, _NO_HASHES)
    pixels = EnginePixels(
        request.media,
        planned,
        call,
        metrics,
        takes_pieces=engine.capabilities.takes_pieces,
        on_made=lambda substitutions: made_items.add(hashes, substitutions),
    )
    told = made_items.find(hashes) if isinstance(engine, HoldsItems) and engine.holds(hashes) else None
    try:
        if told is None:
            made = await pixels.make()
            yield EngineRequest(call.request_id, tensors | {PIXELS: made.array}, sampling, made.pending)
        else:
            call.resources.skip_pixels()
            yield EngineRequest(call.request_id, tensors, sampling, pixels_on_demand=pixels.make)
        await pixels.finish()
    finally:
        pixels.cancel()
    result = "miss" if told is None else "lost" if pixels.are_asked_for else "hit"
    metrics.engine_held_items.labels(result).inc(len(planned.pixels.items))
    if result == "hit":
        call.cached_item_count = len(planned.pixels.items)
        call.substitutions += writing.write_substitutions(planned, told or ())


async def stream_answers(
    engine: EngineClient,
    request: EngineRequest,
    detokenizers: Sequence[Detokenizer],
    call: Call,
    metrics: Metrics,
) -> pb.Completion:
    """Send the engine's tokens to the caller as they arrive, with their text; returns how the answers ended.

    Args:
        detokenizers: One for each answer.
    Raises:
        EngineFailed: A step is of an answer that was not asked for.
    """
    started, first_token_at = time.perf_counter(), 0.0
    small_bytes = sum(array.nbytes for name, array in request.tensors.items() if name != PIXELS)
    metrics.sent_bytes.labels("engine").inc(small_bytes)  # `EnginePixels` counts the others
    answers, observe_gap = [_Answer(detokenizer) for detokenizer in detokenizers], metrics.between_tokens.observe
    open_count = len(answers)
    # The memory is reused once the engine has read all of it. That may be after the call, if it ends before its first token.
    request = dataclasses.replace(request, on_released=call.resources.retain())
    async with contextlib.aclosing(
        engine.generate(request, timeout_seconds=call.remaining_seconds, metadata=call.trace.start_engine_request())
    ) as steps:
        async for step in steps:
            now = time.perf_counter()
            first_token_at = first_token_at or now
            if not 0 <= step.answer_index < len(answers):
                raise EngineFailed(f"the engine sent answer {step.answer_index} of {len(answers)}")
            answer = answers[step.answer_index]
            if answer.has_ended:  # its stop string has come; the engine goes on with it as long as with the others
                continue
            if answer.last_token_at:
                observe_gap(now - answer.last_token_at)
            answer.last_token_at = now
            delta = answer.take(step)
            if delta.token_ids or delta.text:
                await call.send(pb.GenerateResponse(delta=delta))
            open_count -= answer.has_ended
            if not open_count and any(one.is_stopped for one in detokenizers):  # closing the stream stops the engine
                break
    ended = time.perf_counter()
    call.timings.add("first_token", ((first_token_at or ended) - started) * 1e3)
    call.timings.add("generate", (ended - started) * 1e3)
    token_count = sum(answer.token_count for answer in answers)
    metrics.answer_tokens.inc(token_count)
    ends = [
        pb.AnswerEnd(finish_reason=writing.write_finish_reason(one.finish_reason), token_count=one.token_count)
        for one in answers
    ]
    return pb.Completion(finish_reason=ends[0].finish_reason, completion_token_count=token_count, answers=ends)


class _Answer:
    """One of the answers to a prompt, as far as it has come."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self.token_count = 0
        self.last_token_at = 0.0
        self.finish_reason = FinishReason.STOP
        self.has_ended = False

    def take(self, step: EngineStep) -> pb.Delta:
        """A step's tokens, up to the one that completes a stop string, and the text that they complete."""
        delta, detokenizer = pb.Delta(answer_index=step.answer_index), self._detokenizer
        for place, token_id in enumerate(step.token_ids):
            delta.token_ids.append(token_id)
            if step.logprobs:
                delta.logprobs.append(writing.write_logprob(step.logprobs[place]))
            delta.text += detokenizer.push((token_id,))
            if detokenizer.is_stopped:
                break
        if step.finish_reason is not None and not detokenizer.is_stopped:
            delta.text += detokenizer.finish()
            if not detokenizer.is_stopped:
                self.finish_reason = step.finish_reason
        self.token_count += len(delta.token_ids)
        self.has_ended = detokenizer.is_stopped or step.finish_reason is not None
        return delta
