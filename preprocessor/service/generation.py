"""The engine's part of a `Generate` call: the request with its tensors, and the stream of tokens that answers it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence

from engine_client import (
    EngineCapabilities,
    EngineClient,
    EngineFailed,
    EngineRequest,
    EngineStep,
    FinishReason,
    RowProgress,
    SamplingParameters,
)
from engine_client.contract.tensors import PIXELS
from preprocessor.errors import PreprocessorError
from preprocessor.service import writing
from preprocessor.service.calls import Call
from preprocessor.service.metrics import Metrics
from preprocessor.service.tensor_stream import finish_pixels
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.types.plan import Plan
from preprocessor.types.request import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.pixel_run import PixelRun


@contextlib.asynccontextmanager
async def engine_request(
    request: PreparationRequest,
    planned: Plan,
    sampling: SamplingParameters,
    call: Call,
    metrics: Metrics,
    capabilities: EngineCapabilities,
) -> AsyncIterator[EngineRequest]:
    """The request for the engine. If the engine takes pieces, it can be sent while workers still write later rows of pixels."""
    tensors = dict(planned.tensors)
    if capabilities.tells_items_apart:
        tensors |= planned.item_tensors
    if planned.pixels is None or capabilities.takes_hashes_only:
        yield EngineRequest(call.request_id, tensors, sampling)
        return
    run = call.resources.pixels(request.media, planned.pixels)
    tensors[PIXELS] = pixels = await run.begun()
    progress = RowProgress(PIXELS)
    forwarding = asyncio.create_task(_forward_progress(run, progress, planned, call, metrics))
    try:
        if not capabilities.takes_pieces:
            await forwarding
            await progress.wait_past(len(pixels) - 1)  # raises what ended the rows early
        yield EngineRequest(call.request_id, tensors, sampling, progress if capabilities.takes_pieces else None)
        await forwarding
    finally:
        forwarding.cancel()


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
    metrics.sent_bytes.labels("engine").inc(sum(array.nbytes for array in request.tensors.values()))
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


async def _forward_progress(run: PixelRun, progress: RowProgress, planned: Plan, call: Call, metrics: Metrics) -> None:
    """Report finished rows to the engine client, or the error that ended them."""
    try:
        async for first_row, row_count in run.finished_rows():
            progress.finish(first_row + row_count)
        await finish_pixels(run, planned, call, metrics)
    except PreprocessorError as error:
        progress.fail(error)


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
