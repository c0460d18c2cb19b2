"""The `Preprocessor` service: each method reads like the story of its call.

Handlers write to the context rather than yield: when a caller goes away, the cancellation then arrives inside the handler,
at its await, and everything it holds is let go at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import av
import grpc.aio

from engine_client import (
    EngineClient,
    EngineRequest,
    EngineStep,
    EngineUnavailable,
    FinishReason,
    PendingRows,
    SamplingParameters,
)
from engine_client.contract import PIXELS
from preprocessor import __version__
from preprocessor.config import ServeSettings
from preprocessor.errors import ModelNotFound, PreprocessorError
from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel, GenericPrepared
from preprocessor.models.versions import library_versions
from preprocessor.pipeline.request_checks import check_request
from preprocessor.service import reading, writing
from preprocessor.service.calls import Call, Calls
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.files import receive_files, store_inline
from preprocessor.service.metrics import Metrics
from preprocessor.service.tracing import Traces
from preprocessor.service.upload_stream import Upload, UploadStream
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.types.plan import Plan
from preprocessor.types.request import PixelForm, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.wire.tensors import is_small, write_rows
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import PixelRun


class PreprocessorServicer(pb_grpc.PreprocessorServicer):
    """Serves one model.

    Args:
        engine: Where `Generate` sends prompts; None where this deployment only prepares.
        engine_form: The form in which it takes pixels; None is the model's own.
    """

    def __init__(
        self,
        model: Model | GenericModel,
        settings: ServeSettings,
        pool: WorkerPool,
        metrics: Metrics,
        fetcher: Fetcher,
        engine: EngineClient | None,
        engine_form: PixelForm | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._calls = Calls(pool, metrics, settings.wire, traces=traces, log_payloads=settings.log_payloads)
        self._intake = UploadStream(settings.wire)
        self._metrics = metrics
        self._fetcher = fetcher
        self._engine = engine
        self._engine_form = engine_form

    # -- the four methods ----------------------------------------------------------------------------------------------

    async def Prepare(  # type: ignore[override]
        self,
        requests: AsyncIterator[pb.PrepareRequest],
        context: grpc.aio.ServicerContext[pb.PrepareRequest, pb.PrepareResponse | bytes],
    ) -> None:
        async with self._calls.open("Prepare", context) as call:
            async with self._intake.upload(requests, context.peer()) as upload:
                request = await self._receive((await upload.spec()).spec, upload, call)
            planned = await self._plan(request, call)
            await call.send(pb.PrepareResponse(header=self._header(request, planned, call)))
            await self._stream_large_tensors(planned, call)
            if isinstance(planned, Plan) and planned.pixel_bytes:
                await self._stream_pixels(request, planned, call)
            report = writing.write_report(call.timings, call.received_bytes, planned.pixel_bytes, call.substitutions)
            await call.send(pb.PrepareResponse(report=report))

    async def Generate(  # type: ignore[override]
        self,
        requests: AsyncIterator[pb.GenerateRequest],
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        async with self._calls.open("Generate", context) as call:
            engine = self._require_engine()
            async with self._intake.upload(requests, context.peer()) as upload:
                spec = (await upload.spec()).spec
                sampling = reading.read_parameters(spec.parameters, self._model.stop_token_ids)
                stop_strings = reading.read_stop_strings(spec.parameters)
                prompt = spec.prompt
                del spec
                request = await self._receive(prompt, upload, call)
            request = dataclasses.replace(
                request, pixel_form=self._engine_form
            )  # the engine's choice, not the caller's
            planned = await self._plan(request, call)
            await call.send(pb.GenerateResponse(header=self._header(request, planned, call, with_data=False)))
            async with self._engine_request(request, planned, sampling, call) as engine_request:
                completion = await self._stream_answer(engine, engine_request, stop_strings, call)
            # Only now is the pixels' own report there: an engine may answer before the worker has said that it is done.
            report = writing.write_report(call.timings, call.received_bytes, planned.pixel_bytes, call.substitutions)
            completion.prompt_token_count = planned.token_count
            completion.report.CopyFrom(report)
            await call.send(pb.GenerateResponse(completion=completion))

    async def CountTokens(
        self,
        requests: AsyncIterator[pb.CountTokensRequest],
        context: grpc.aio.ServicerContext[pb.CountTokensRequest, pb.CountTokensResponse],
    ) -> pb.CountTokensResponse:
        async with self._calls.open("CountTokens", context) as call:
            async with self._intake.upload(requests, context.peer()) as upload:
                request = await self._receive((await upload.spec()).spec, upload, call)
            planned = await self._plan(request, call)
            sizes = {medium.key: len(medium.data) for medium in request.media}
            return pb.CountTokensResponse(
                token_count=planned.token_count,
                items=[writing.write_item(item, sizes[item.key]) for item in planned.items],
                pixel_bytes=planned.pixel_bytes,
            )

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[pb.GetModelRequest, pb.Model]
    ) -> pb.Model:
        async with self._calls.open("GetModel", context):
            self._require_model(request.model)
            versions = {**library_versions(), "preprocessor": __version__, "ffmpeg": av.ffmpeg_version_info}
            return writing.write_model(self._model, self._engine is not None, versions)

    # -- stages --------------------------------------------------------------------------------------------------------

    async def _receive(self, spec: pb.PrepareSpec, upload: Upload[Any], call: Call) -> PreparationRequest:
        """Check the spec, then take the upload and fetch what is named by URL."""
        with call.timings.stage("receive"):
            self._require_model(spec.model)
            reading.check_counts(spec, self._settings.limits, self._settings.wire.max_spec_parts)
            call.media_keys = tuple(medium.key for medium in spec.media)
            request, sources = reading.read_spec(spec, self._settings.background)
            del spec  # its inline files, which the request holds
            check_request(request, self._model.modalities, self._settings.limits)
            limits = self._settings.limits
            for key, url in sources.urls.items():
                self._fetcher.check(url, key)
            request = await store_inline(request, sources, limits, call.resources)
            request = await receive_files(request, sources, upload, limits, self._fetcher, call)
        request = dataclasses.replace(request, video_decoder=self._settings.video_decoder)
        call.received_bytes = sum(len(medium.data) for medium in request.media)
        self._metrics.received_bytes.inc(call.received_bytes)
        return request

    async def _plan(self, request: PreparationRequest, call: Call) -> Plan | GenericPrepared:
        planned = await call.resources.plan(request, self._settings.limits)
        call.timings.merge(planned.timings)
        self._metrics.observe_plan(planned)
        if isinstance(planned, GenericPrepared):
            call.substitutions = writing.write_substitutions(planned, planned.substitutions)
        return planned

    def _header(
        self, request: PreparationRequest, planned: Plan | GenericPrepared, call: Call, *, with_data: bool = True
    ) -> pb.Header:
        sizes = {medium.key: len(medium.data) for medium in request.media}
        return writing.write_header(self._model, planned, sizes, call.request_id, with_data=with_data)

    async def _stream_large_tensors(self, planned: Plan | GenericPrepared, call: Call) -> None:
        """Send what the header had no room for, such as the positions of a very long prompt."""
        with call.timings.stage("send"):
            for tensor_index, array in enumerate(planned.tensors.values()):
                self._metrics.sent_bytes.labels("caller").inc(array.nbytes)  # in the header, or here
                if not is_small(array):
                    for message in write_rows(tensor_index, array, 0, len(array), lambda: call.piece_bytes):
                        await call.send(message)

    async def _stream_pixels(self, request: PreparationRequest, planned: Plan, call: Call) -> None:
        """Send rows while workers write the next ones."""
        run = call.resources.pixels(request.media, planned.pixels)
        pixels = await run.begun()
        sent_bytes = self._metrics.sent_bytes.labels("caller")
        tensor_index = len(planned.tensors)  # `write_header` puts the pixels last
        async for first_row, row_count in run.finished_rows():
            with call.timings.stage("send"):
                for message in write_rows(tensor_index, pixels, first_row, row_count, lambda: call.piece_bytes):
                    await call.send(message)
            sent_bytes.inc(pixels[first_row : first_row + row_count].nbytes)
        await self._conclude(run, planned, call)

    @contextlib.asynccontextmanager
    async def _engine_request(
        self,
        request: PreparationRequest,
        planned: Plan | GenericPrepared,
        sampling: SamplingParameters,
        call: Call,
    ) -> AsyncIterator[EngineRequest]:
        """The tensors, put together; pixels may still be in the making while the first of them are sent."""
        tensors = dict(planned.tensors)
        if not isinstance(planned, Plan) or not planned.pixel_bytes:
            yield EngineRequest(call.request_id, tensors, sampling)
            return
        run = call.resources.pixels(request.media, planned.pixels)
        tensors[PIXELS] = await run.begun()
        pending = PendingRows(PIXELS)
        following = asyncio.create_task(self._follow(run, pending, planned, call))
        try:
            yield EngineRequest(call.request_id, tensors, sampling, pending)
            await following
        finally:
            following.cancel()

    async def _follow(self, run: PixelRun, pending: PendingRows, planned: Plan, call: Call) -> None:
        """Tell the engine's client of finished rows, or of the error that ends them."""
        try:
            async for first_row, row_count in run.finished_rows():
                pending.finish(first_row + row_count)
            await self._conclude(run, planned, call)
        except PreprocessorError as error:
            pending.fail(error)

    async def _conclude(self, run: PixelRun, planned: Plan, call: Call) -> None:
        """Wait for the pixels' end and take down what happened."""
        report = await run.report()
        call.timings.merge(report.timings)
        call.substitutions = writing.write_substitutions(planned, report.substitutions)
        self._metrics.observe_pixels(planned, report.decoded_frame_count)

    async def _stream_answer(
        self,
        engine: EngineClient,
        request: EngineRequest,
        stop_strings: tuple[str, ...],
        call: Call,
    ) -> pb.Completion:
        """Pass the engine's tokens on as they come, with the text they complete; returns how they ended."""
        detokenizer = Detokenizer(self._model.tokenizer, stop_strings)
        started, first_token_at, token_count = time.perf_counter(), 0.0, 0
        self._metrics.sent_bytes.labels("engine").inc(sum(array.nbytes for array in request.tensors.values()))
        last_token_at, observe_gap = 0.0, self._metrics.between_tokens.observe
        finish_reason = FinishReason.STOP
        # Others get the room when the engine has read all of it, which may be after a call that ends before its first token.
        request = dataclasses.replace(request, on_released=call.resources.lend())
        async with contextlib.aclosing(
            engine.generate(request, timeout_seconds=call.remaining_seconds, metadata=call.trace.ask_engine())
        ) as steps:
            async for step in steps:
                now = time.perf_counter()
                first_token_at = first_token_at or now
                if last_token_at:
                    observe_gap(now - last_token_at)
                last_token_at = now
                delta = _delta(step, detokenizer)
                token_count += len(delta.token_ids)
                if delta.token_ids or delta.text:
                    await call.send(pb.GenerateResponse(delta=delta))
                if detokenizer.is_stopped:  # closing the stream stops the engine
                    break
                finish_reason = step.finish_reason or finish_reason
        ended = time.perf_counter()
        call.timings.add("first_token", ((first_token_at or ended) - started) * 1e3)
        call.timings.add("generate", (ended - started) * 1e3)
        self._metrics.answer_tokens.inc(token_count)
        return pb.Completion(
            finish_reason=writing.write_finish_reason(finish_reason), completion_token_count=token_count
        )

    def _require_model(self, name: str) -> None:
        if name not in ("", self._model.name):
            raise ModelNotFound(
                f"the model {name!r} is not served here; {self._model.name!r} is", model=self._model.name
            )

    def _require_engine(self) -> EngineClient:
        if self._engine is None:
            raise EngineUnavailable("no engine is configured here; start the service with --engine, or call Prepare")
        return self._engine


def _delta(step: EngineStep, detokenizer: Detokenizer) -> pb.Delta:
    """A step's tokens up to the one that completes a stop string, and the text that they make certain."""
    delta = pb.Delta()
    for token_id in step.token_ids:
        delta.token_ids.append(token_id)
        delta.text += detokenizer.push((token_id,))
        if detokenizer.is_stopped:
            return delta
    if step.finish_reason is not None:
        delta.text += detokenizer.finish()
    return delta
