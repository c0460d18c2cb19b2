"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, Unpack

import grpc

from preprocessor.client.answers import AnswerState, PrepareResult, ResultAssembler
from preprocessor.client.channel import Credentials, call_metadata, open_channel
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


class Client:
    """Calls one service. May be used from several threads at once.

    >>> with Client(address) as client:
    ...     client.get_model().name
    'qwen3-vl'

    Of every method: `timeout_seconds` is the deadline of the whole call, repeated attempts and waits included; None sets none. A
    call that the service refuses for lack of capacity is made again after the wait that the service asks for. Leaving a method by
    an exception, such as KeyboardInterrupt, cancels the call; `close` from another thread cancels all that are open.

    Args:
        address: host:port, or another of gRPC's targets, such as unix:/run/preprocessor.sock.
        credentials: TLS and token; without them only an address of this machine is accepted.
        retry_seconds: How long a refused call is made again; 0 makes every call once.
        reuse_files: Name files that the service has had from this client, and send them only if it has them no more.
    Raises:
        SettingError: A file of the credentials cannot be used, or prompts would cross a network unencrypted.
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
        self._channel = open_channel(address, self._credentials)
        self._stub = pb_grpc.PreprocessorStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; open calls end with CANCELLED."""
        self._channel.close()

    def prepare(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        progress: Progress | None = None,
        upload_progress: Progress | None = None,
        shared_memory: bool | RowsRegion = False,
    ) -> PrepareResult:
        """Turn a prompt into the tensors that an engine takes.

        Args:
            progress: Called as rows of a large tensor, such as the pixels, arrive, with bytes of it received and in all. What it
                raises ends the call.
            upload_progress: Called as files that are sent in chunks leave, with bytes sent and in all, on a thread of gRPC's
                (by `AsyncClient` on the event loop); from the first byte again if the call is made again. It must not raise.
            shared_memory: Have a service on this host write large tensors into shared memory, in place of sending them. True
                makes it for this call; the first call may be made twice, until the size is known. A region is used as it is.
        Raises:
            CallFailed: The service refused the call, or did not answer.
            OSError: There is no space left for shared memory.
        """

        def attempt(remaining: RemainingSeconds) -> PrepareResult:
            while (result := in_region(remaining)) is None:
                pass
            return result

        def in_region(remaining: RemainingSeconds) -> PrepareResult | None:
            with self._call_regions.region(shared_memory) as region:
                try:
                    return self._with_known_files(
                        prompt, lambda sent, metadata: ask(sent, metadata, remaining(), region)
                    )
                except grpc.RpcError as error:
                    if not self._call_regions.grow(region, shared_memory, failure_of(error)):
                        raise
            if self._known_files is not None:  # the service has planned with the files, and so has them
                self._known_files.sent(digests_of(prompt).values())
            return None

        def ask(
            sent: Prompt, metadata: _Metadata, remaining_seconds: float | None, region: RowsRegion | None
        ) -> PrepareResult:
            assembler = ResultAssembler(progress, region)
            requests = prepare_requests(sent, upload_progress, None if region is None else region.message())
            call = self._stub.Prepare(requests, timeout=remaining_seconds, metadata=metadata)
            with _cancelled_on_error(call):
                for response in call:
                    assembler.add(response)
            return assembler.result()

        return self._attempts(attempt, timeout_seconds)

    def count_tokens(self, prompt: Prompt, *, timeout_seconds: float | None = None) -> pb.CountTokensResponse:
        """What a prompt would cost, from the headers of its files.

        Raises:
            CallFailed: As `prepare`.
        """
        return self._attempts(
            lambda remaining: self._with_known_files(
                prompt,
                lambda sent, metadata: self._stub.CountTokens(
                    count_requests(sent), timeout=remaining(), metadata=metadata
                ),
            ),
            timeout_seconds,
        )

    def get_model(self, model: str = "", *, timeout_seconds: float | None = None) -> pb.Model:
        """The model that is served: family, modalities, placeholders, fingerprint.

        Args:
            model: The name that it must have; empty for whichever it is.
        Raises:
            CallFailed: As `prepare`; NOT_FOUND where another model is served.
        """
        request = pb.GetModelRequest(model=model)
        return self._attempts(
            lambda remaining: self._stub.GetModel(request, timeout=remaining(), metadata=self._metadata),
            timeout_seconds,
        )

    @contextmanager
    def generate(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        upload_progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> Iterator[Answer]:
        """Send a prompt through the service to its engine. Leaving the `with` block cancels what has not come.

        An answer that has begun is not asked for again.

        Args:
            upload_progress: As `prepare`'s.
            parameters: `max_tokens`, `temperature` and further ones: `Parameters`.
        Raises:
            InvalidRequest: Parameters exclude each other.
            CallFailed: As `prepare`; while the answer is read, too.
        """

        def attempt(remaining: RemainingSeconds) -> Answer:
            return self._with_known_files(prompt, lambda sent, metadata: ask(sent, metadata, remaining()))

        def ask(sent: Prompt, metadata: _Metadata, remaining_seconds: float | None) -> Answer:
            requests = generate_requests(sent, parameters, upload_progress)
            return Answer(self._stub.Generate(requests, timeout=remaining_seconds, metadata=metadata))

        answer = self._attempts(attempt, timeout_seconds)
        try:
            yield answer
        finally:
            answer.cancel()

    @property
    def _metadata(self) -> _Metadata:
        return call_metadata(self._credentials)

    def _with_known_files(self, prompt: Prompt, ask: Callable[[Prompt, _Metadata], _Result]) -> _Result:
        """Make one call; files that the service has had are named, and sent only if it does not have them any more."""
        known = self._known_files
        digests = {} if known is None else digests_of(prompt)
        metadata = (*self._metadata, *routing_metadata(prompt, digests))
        if known is None:
            return ask(prompt, metadata)
        named = known.named(prompt, digests)
        if named is not None:
            try:
                result = ask(named, metadata)
            except grpc.RpcError as error:
                if failure_of(error).reason != MEDIA_NOT_CACHED:
                    raise
                known.missed(digests.values())
            else:
                known.found()
                return result
        result = ask(prompt, metadata)
        known.sent(digests.values())
        return result

    def _attempts(self, attempt: Callable[[RemainingSeconds], _Result], timeout_seconds: float | None) -> _Result:
        """Make a call, again where the service asks for it. An attempt is given what tells the seconds that it may still take."""
        retries = Retries(self._retry_seconds, timeout_seconds)
        while True:
            try:
                return attempt(lambda: retries.remaining_seconds)
            except grpc.RpcError as error:
                failure = failure_of(error)
                delay_seconds = retries.delay_after(failure)
                if delay_seconds is None:
                    raise failure from error
            time.sleep(delay_seconds)


class Answer(AnswerState, Iterator[pb.Delta]):
    """An answer of `generate`; iterating yields its deltas as they come.

    Raises:
        CallFailed: The answer broke off, when a delta is asked for.
    """

    def __init__(self, call: Any) -> None:
        super().__init__()
        self._call = call
        with _cancelled_on_error(call):
            self._begin(next(call, None))

    def __next__(self) -> pb.Delta:
        try:
            for response in self._call:
                if (delta := self._add(response)) is not None:
                    return delta
        except grpc.RpcError as error:
            raise failure_of(error) from error
        self._end()
        raise StopIteration

    def read(self) -> str:
        """Read to the end; the whole text of the first answer.

        Raises:
            CallFailed: It broke off.
        """
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the call; what has come stays."""
        self._call.cancel()


@contextmanager
def _cancelled_on_error(call: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        call.cancel()
        raise
