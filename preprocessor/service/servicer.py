"""The `Preprocessor` service: its four methods, each as a sequence of stages.

Handlers write to the context rather than yield. When a caller cancels, the exception is then raised at the handler's current
await, and the call's resources are released at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from types import MappingProxyType
from typing import Any, TypeVar

import av
import grpc.aio

from engine_client import EngineClient, EngineError, EngineUnavailable
from preprocessor import __version__
from preprocessor.config import ServeSettings
from preprocessor.errors import ModelNotFound
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.versions import library_versions
from preprocessor.pipeline.request_checks import check_request
from preprocessor.service import generation, parameters, reading, tensor_stream, writing
from preprocessor.service.caller_region import open_region
from preprocessor.service.calls import Call, Calls
from preprocessor.service.engine import pixel_form_for
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.files import begin_early, receive_files, store_inline
from preprocessor.service.made_items import MadeItems
from preprocessor.service.metrics import Metrics
from preprocessor.service.tracing import Traces
from preprocessor.service.upload_stream import Upload, UploadStream
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.types.plan import Plan
from preprocessor.types.request import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.workers.pool import WorkerPool

Spec = TypeVar("Spec", pb.PrepareSpec, pb.GenerateSpec)
ReceiveSpec = Callable[[Upload[Any], Call], Awaitable[tuple[Spec, Mapping[str, memoryview]]]]
"""Receives the spec of a `Prepare` or `Generate`, and the files of chunked media that come before it, by media key."""

ENGINE_TIMEOUT_SECONDS = 1.0
"""How long `GetModel` may wait for an engine that says what it has; it says so at once, or is not there."""


_NO_FILES: Mapping[str, memoryview] = MappingProxyType({})


class PreprocessorServicer(pb_grpc.PreprocessorServicer):
    """Serves one model.

    Args:
        engine: For `Generate`; None if this deployment has no engine.
        copying: Where rows are copied into callers' shared memory.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: ServeSettings,
        pool: WorkerPool,
        metrics: Metrics,
        fetcher: Fetcher,
        engine: EngineClient | None,
        copying: Executor,
        traces: Traces | None = None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._calls = Calls(
            pool,
            metrics,
            settings.wire,
            traces=traces,
            log_payloads=settings.log_payloads,
            are_callers_named=settings.access.are_callers_named,
        )
        self._upload_stream = UploadStream(settings.wire)
        self._metrics = metrics
        self._fetcher = fetcher
        self._engine = engine
        self._copying = copying
        self._made_items = MadeItems() if settings.cache_share else MadeItems(0)

    # -- the four methods ----------------------------------------------------------------------------------------------

    async def Prepare(  # type: ignore[override]
        self,
        requests: AsyncIterator[pb.PrepareRequest],
        context: grpc.aio.ServicerContext[pb.PrepareRequest, pb.PrepareResponse | bytes],
    ) -> None:
        await self.prepare(requests, context, _receive_first_message)

    async def prepare(
        self,
        requests: AsyncIterator[pb.PrepareRequest],
        context: grpc.aio.ServicerContext[pb.PrepareRequest, pb.PrepareResponse | bytes],
        receive_spec: ReceiveSpec[pb.PrepareSpec],
    ) -> None:
        """`Prepare`, whatever form its spec arrives in."""
        async with self._calls.open("Prepare", context) as call:
            async with self._upload_stream.upload(requests, context.peer()) as upload:
                spec, received = await receive_spec(upload, call)
                self._open_region(spec, call)
                receiving = self._receive(spec, upload, call, received, makes_pixels=True)
                del spec  # as `_receive` does, before files are awaited
                request = await receiving
            planned = await self._plan(request, call)
            response = pb.PrepareResponse(header=self._header(request, planned, call))
            send_rows = tensor_stream.rows_sender(response.header.tensors, call)
            await call.send(response)
            del response
            await tensor_stream.send_large_tensors(planned, send_rows, call, self._metrics)
            if planned.pixels is not None:
                await tensor_stream.send_pixels(request, planned, planned.pixels, send_rows, call, self._metrics)
            await call.send(pb.PrepareResponse(report=_report(planned, call)))

    async def Generate(  # type: ignore[override]
        self,
        requests: AsyncIterator[pb.GenerateRequest],
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        await self.generate(requests, context, _receive_first_message)

    async def generate(
        self,
        requests: AsyncIterator[pb.GenerateRequest],
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
        receive_spec: ReceiveSpec[pb.GenerateSpec],
    ) -> None:
        """`Generate`, whatever form its spec arrives in."""
        async with self._calls.open("Generate", context) as call:
            engine = self._require_engine()
            async with self._upload_stream.upload(requests, context.peer()) as upload:
                spec, received = await receive_spec(upload, call)
                sampling = parameters.read_parameters(spec.parameters, self._model.stop_token_ids)
                stop_strings = parameters.read_stop_strings(spec.parameters)
                await parameters.require_features(engine, sampling)
                prompt = spec.prompt
                del spec
                request = await self._receive(prompt, upload, call, received, makes_pixels=True, engine=engine)
            planned = await self._plan(request, call)
            await call.send(pb.GenerateResponse(header=self._header(request, planned, call, with_data=False)))
            detokenizers = [Detokenizer(self._model.tokenizer, stop_strings) for _ in range(sampling.answer_count)]
            async with generation.engine_request(
                request, planned, sampling, call, self._metrics, engine, self._made_items
            ) as engine_request:
                completion = await generation.stream_answers(engine, engine_request, detokenizers, call, self._metrics)
            # After the context: an engine may answer before the worker has reported that all pixels are written.
            completion.prompt_token_count = planned.token_count
            completion.report.CopyFrom(_report(planned, call))
            await call.send(pb.GenerateResponse(completion=completion))

    async def CountTokens(
        self,
        requests: AsyncIterator[pb.CountTokensRequest],
        context: grpc.aio.ServicerContext[pb.CountTokensRequest, pb.CountTokensResponse],
    ) -> pb.CountTokensResponse:
        async with self._calls.open("CountTokens", context) as call:
            async with self._upload_stream.upload(requests, context.peer()) as upload:
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
            message = writing.write_model(self._model, self._engine is not None, versions)
            if self._engine is not None:
                with contextlib.suppress(EngineError):  # unknown as long as no engine answers
                    features = await self._engine.sampling_features(ENGINE_TIMEOUT_SECONDS)
                    message.generation_features.extend(sorted(features))
            return message

    # -- stages --------------------------------------------------------------------------------------------------------

    def _open_region(self, spec: pb.PrepareSpec, call: Call) -> None:
        """Open the shared memory that the spec names, if any, for the call."""
        if spec.HasField("rows_region"):
            is_allowed = self._settings.access.is_caller_shared_memory_on
            call.region = open_region(spec.rows_region, self._copying, call.resources, is_allowed=is_allowed)

    async def _receive(
        self,
        spec: pb.PrepareSpec,
        upload: Upload[Any],
        call: Call,
        received: Mapping[str, memoryview] = _NO_FILES,
        *,
        makes_pixels: bool = False,
        engine: EngineClient | None = None,
    ) -> PreparationRequest:
        """Check the spec, then receive uploaded files and fetch those named by URL.

        Args:
            received: As in `receive_files`.
            makes_pixels: Pixels are to be made, and may be while files arrive.
            engine: Chooses the form of the pixels in place of the caller.
        """
        with call.timings.stage("receive"):
            self._require_model(spec.model)
            reading.check_counts(spec, self._settings.limits, self._settings.wire.max_spec_parts)
            call.media_keys = tuple(medium.key for medium in spec.media)
            request, sources = reading.read_spec(spec, self._settings.background)
            del spec  # it holds a copy of the inline files, which the request has
            check_request(request, self._model.modalities, self._settings.limits)
            self._model.check_arguments(request.processor_arguments)
            limits = self._settings.limits
            for key, url in sources.urls.items():
                self._fetcher.check(url, key)
            request = await store_inline(request, sources, limits, call.resources)
            form = request.pixel_form if engine is None else pixel_form_for(engine.capabilities)
            request = dataclasses.replace(request, video_decoder=self._settings.video_decoder, pixel_form=form)
            if makes_pixels and self._settings.early_decoding == "on" and self._model.plans_from_headers(request):
                begin_early(request, sources, limits, call.resources, received)
            request = await receive_files(request, sources, upload, limits, self._fetcher, call, received)
        call.received_bytes = sum(len(medium.data) for medium in request.media if medium.key not in sources.cached)
        self._metrics.received_bytes.inc(call.received_bytes)
        return request

    async def _plan(self, request: PreparationRequest, call: Call) -> Plan:
        planned = await call.resources.plan(request, self._settings.limits)
        call.timings.merge(planned.timings)
        call.resources.keep_files(request)
        self._metrics.observe_plan(planned)
        call.substitutions = writing.write_substitutions(planned, planned.substitutions)
        return planned

    def _header(self, request: PreparationRequest, planned: Plan, call: Call, *, with_data: bool = True) -> pb.Header:
        sizes = {medium.key: len(medium.data) for medium in request.media}
        return writing.write_header(self._model, planned, sizes, call.request_id, with_data=with_data)

    def _require_model(self, name: str) -> None:
        if name not in ("", self._model.name):
            raise ModelNotFound(
                f"the model {name!r} is not served here; this service serves {self._model.name!r}",
                model=self._model.name,
            )

    def _require_engine(self) -> EngineClient:
        if self._engine is None:
            raise EngineUnavailable("no engine is configured; start the service with --engine, or call Prepare")
        return self._engine


async def _receive_first_message(upload: Upload[Any], call: Call) -> tuple[Any, Mapping[str, memoryview]]:
    return (await upload.spec()).spec, _NO_FILES


def _report(planned: Plan, call: Call) -> pb.Report:
    """What a call has done; to be made when all of it is done."""
    return writing.write_report(
        call.timings,
        call.received_bytes,
        planned.pixel_bytes,
        call.substitutions,
        call.cached_item_count,
        call.early_row_count,
    )
