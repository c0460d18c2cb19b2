"""An HTTP request as a gRPC context: as much of one as the interceptor and the handlers use."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
import grpc.aio
from aiohttp import web

from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.openai.errors import HttpError, error_of
from preprocessor.service.servicer import PreprocessorServicer
from preprocessor.service.status import DETAILS_KEY, REQUEST_ID_KEY, Context
from preprocessor.v1 import preprocessor_pb2 as pb

_SERVICE = "/preprocessor.v1.Preprocessor/"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpContext:
    """See `grpc.aio.ServicerContext`, of which this has the methods that are used.

    Args:
        messages: What the caller sends.
        write: Sends a response message.
    """

    def __init__(
        self, request: web.BaseRequest, messages: AsyncIterator[bytes], write: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._request = request
        self._messages = messages
        self._write = write
        self._is_continue_awaited = request.headers.get("Expect", "").lower() == "100-continue"
        self._code: grpc.StatusCode | None = None
        self._trailing: Mapping[str, str | bytes] = {}
        given = {name.lower(): value for name, value in request.headers.items()}
        # Chosen here, so that also the answer to a caller who sent none can tell it.
        self._metadata = {REQUEST_ID_KEY: uuid.uuid4().hex, **given}

    @property
    def error(self) -> HttpError | None:
        """Why the call was refused; None if it was not."""
        if self._code is None:
            return None
        details = self._trailing.get(DETAILS_KEY, b"")
        assert isinstance(details, bytes)
        return error_of(self._code, details)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._metadata.items())

    def peer(self) -> str:
        """As gRPC writes it, so that a caller by gRPC and by HTTP has one quota."""
        transport = self._request.transport
        address = transport.get_extra_info("peername") if transport is not None else None
        if not address:
            return "unknown:0"
        host, port = address[:2]
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def auth_context(self) -> dict[str, list[bytes]]:
        """The names in a verified certificate, under gRPC's keys."""
        transport = self._request.transport
        found = (transport.get_extra_info("peercert") if transport is not None else None) or {}
        subject = [value for names in found.get("subject", ()) for name, value in names if name == "commonName"]
        return {
            "x509_subject_alternative_name": [value.encode() for _, value in found.get("subjectAltName", ())],
            "x509_common_name": [value.encode() for value in subject],
        }

    def time_remaining(self) -> float | None:
        return None  # HTTP has no deadline

    async def read(self) -> Any:
        if self._is_continue_awaited:
            self._is_continue_awaited = False  # not before the call is admitted, so that a refused file is never sent
            await self._request.writer.write(_CONTINUE)
            self._request.writer.output_size = 0  # as in aiohttp: the response has not begun
        return await anext(self._messages, grpc.aio.EOF)

    async def write(self, message: Any) -> None:
        await self._write(message)

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        """Dropped: `DETAILS_KEY` has it too."""

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._trailing = dict(metadata)

    @property
    def as_grpc(self) -> Context:
        """The same, for those who ask for gRPC's type."""
        return cast("Context", self)


async def run_call(
    auth_interceptor: AuthInterceptor,
    handler: Any,
    method: str,
    parse: Callable[[bytes], Any],
    context: HttpContext,
    *,
    is_unary: bool = False,
) -> None:
    """Run one of the service's handlers, if the caller is admitted; see `AuthInterceptor.guard`."""
    guarded = auth_interceptor.guard(handler, _SERVICE + method, parse, is_unary=is_unary)
    async for _ in guarded(None, context):
        pass


async def check_model(
    auth_interceptor: AuthInterceptor, servicer: PreprocessorServicer, request: web.BaseRequest, name: str = ""
) -> HttpError | None:
    """Whether the caller may ask, and for this model; None if so."""

    async def message() -> AsyncIterator[bytes]:
        yield pb.GetModelRequest(model=name).SerializeToString()

    async def write(_: Any) -> None:
        raise AssertionError("a unary method returns its response")

    context = HttpContext(request, message(), write)
    parse = pb.GetModelRequest.FromString
    await run_call(auth_interceptor, servicer.GetModel, "GetModel", parse, context, is_unary=True)
    return context.error
