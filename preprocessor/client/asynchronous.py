"""The client for asyncio: what `sync` has, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from preprocessor.client.answers import AnswerState, PrepareResult, ResultAssembler
from preprocessor.client.channel import Credentials, call_metadata, open_aio_channel
from preprocessor.client.errors import failure_of
from preprocessor.client.known_files import MEDIA_NOT_CACHED, KnownFiles, digests_of
from preprocessor.client.requests import (
    Parameters,
    Progress,
    Prompt,
    count_requests,
    generate_requests,
    prepare_requests,
)
from preprocessor.client.retry import RETRY_SECONDS, RemainingSeconds, Retries
from preprocessor.client.routing import routing_metadata
from preprocessor.client.shared_memory import CallRegions, RowsRegion
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc

_Result = TypeVar("_Result")
_Metadata = tuple[tuple[str, str], ...]


class AsyncClient:
    """Calls one service from the event loop on which it is made. Arguments, methods and errors are those of `Client`.

    >>> async def ask(question: str) -> str:
    ...     async with AsyncClient(address) as client:
    ...         async with client.generate(chat(question), max_tokens=4, timeout_seconds=60) as answer:
    ...             return await answer.read()
    >>> len(asyncio.run(ask("What is this?"))) > 0
    True

    Cancelling the task that awaits a method cancels the call.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
        reuse_files: bool = True,
    ) -> None:
        self._credentials = credentials or Credentials()
        self._retry_seconds = retry_seconds
        self._known_files = KnownFiles() if reuse_files else None
        self._call_regions = CallRegions()
        call_metadata(self._credentials)  # a token file that cannot be used is refused here
        self._channel = open_aio_channel(address, self._credentials)
        self._stub: pb_grpc.PreprocessorAsyncStub = pb_grpc.PreprocessorStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open calls end with CANCELLED."""
        await self._channel.close()

    async def prepare(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        progress: Progress | None = None,
        upload_progress: Progress | None = None,
        shared_memory: bool | RowsRegion = False,
    ) -> PrepareResult:
        """See `Client.prepare`. With `shared_memory=True` the memory is allocated on the event loop, which takes milliseconds."""

        async def attempt(remaining: RemainingSeconds) -> PrepareResult:
            while (result := await in_region(remaining)) is None:
                pass
            return result

        async def in_region(remaining: RemainingSeconds) -> PrepareResult | None:
            with self._call_regions.region(shared_memory) as region:
                try:
                    return await self._with_known_files(
                        prompt, lambda sent, metadata: ask(sent, metadata, remaining(), region)
                    )
                except grpc.RpcError as error:
                    if not self._call_regions.grow(region, shared_memory, failure_of(error)):
                        raise
            if self._known_files is not None:  # the service has planned with the files, and so has them
                self._known_files.sent(digests_of(prompt).values())
            return None

        async def ask(
            sent: Prompt, metadata: _Metadata, remaining_seconds: float | None, region: RowsRegion | None
        ) -> PrepareResult:
            assembler = ResultAssembler(progress, region)
            requests = prepare_requests(sent, upload_progress, None if region is None else region.message())
            call = self._stub.Prepare(requests, timeout=remaining_seconds, metadata=metadata)
            try:
                async for response in call:
                    assembler.add(response)
            finally:
                call.cancel()  # does nothing where it has ended
            return assembler.result()

        return await self._attempts(attempt, timeout_seconds)

    async def count_tokens(self, prompt: Prompt, *, timeout_seconds: float | None = None) -> pb.CountTokensResponse:
        """See `Client.count_tokens`."""
        return await self._attempts(
            lambda remaining: self._with_known_files(
                prompt,
                lambda sent, metadata: self._stub.CountTokens(
                    count_requests(sent), timeout=remaining(), metadata=metadata
                ),
            ),
            timeout_seconds,
        )

    async def get_model(self, model: str = "", *, timeout_seconds: float | None = None) -> pb.Model:
        """See `Client.get_model`."""
        request = pb.GetModelRequest(model=model)
        return await self._attempts(
            lambda remaining: self._stub.GetModel(request, timeout=remaining(), metadata=self._metadata),
            timeout_seconds,
        )

    @asynccontextmanager
    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        upload_progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncIterator[AsyncAnswer]:
        """See `Client.generate`."""

        async def attempt(remaining: RemainingSeconds) -> AsyncAnswer:
            return await self._with_known_files(prompt, lambda sent, metadata: ask(sent, metadata, remaining()))

        async def ask(sent: Prompt, metadata: _Metadata, remaining_seconds: float | None) -> AsyncAnswer:
            requests = generate_requests(sent, parameters, upload_progress)
            answer = AsyncAnswer(self._stub.Generate(requests, timeout=remaining_seconds, metadata=metadata))
            await answer._receive_header()
            return answer

        answer = await self._attempts(attempt, timeout_seconds)
        try:
            yield answer
        finally:
            answer.cancel()

    @property
    def _metadata(self) -> _Metadata:
        return call_metadata(self._credentials)

    async def _with_known_files(
        self, prompt: Prompt, ask: Callable[[Prompt, _Metadata], Awaitable[_Result]]
    ) -> _Result:
        """See `Client._with_known_files`."""
        known = self._known_files
        digests = {} if known is None else digests_of(prompt)
        metadata = (*self._metadata, *routing_metadata(prompt, digests))
        if known is None:
            return await ask(prompt, metadata)
        named = known.named(prompt, digests)
        if named is not None:
            try:
                result = await ask(named, metadata)
            except grpc.aio.AioRpcError as error:
                if failure_of(error).reason != MEDIA_NOT_CACHED:
                    raise
                known.missed(digests.values())
            else:
                known.found()
                return result
        result = await ask(prompt, metadata)
        known.sent(digests.values())
        return result

    async def _attempts(
        self, attempt: Callable[[RemainingSeconds], Awaitable[_Result]], timeout_seconds: float | None
    ) -> _Result:
        """Make a call, again where the service asks for it. An attempt is given what tells the seconds that it may still take."""
        retries = Retries(self._retry_seconds, timeout_seconds)
        while True:
            try:
                return await attempt(lambda: retries.remaining_seconds)
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                delay_seconds = retries.delay_after(failure)
                if delay_seconds is None:
                    raise failure from error
            await asyncio.sleep(delay_seconds)


class AsyncAnswer(AnswerState, AsyncIterator[pb.Delta]):
    """An answer of `generate`; iterating yields its deltas as they come. See `Answer`."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self._call = call
        self._responses = aiter(call)

    async def _receive_header(self) -> None:
        try:
            self._begin(await anext(self._responses, None))
        except BaseException:
            self.cancel()
            raise

    async def __anext__(self) -> pb.Delta:
        try:
            async for response in self._responses:
                if (delta := self._add(response)) is not None:
                    return delta
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        self._end()
        raise StopAsyncIteration

    async def read(self) -> str:
        """Read to the end; the whole text of the first answer."""
        async for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the call; what has come stays."""
        self._call.cancel()
