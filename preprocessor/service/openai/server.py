"""The listening socket of OpenAI's API: connections, routes, the end."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from preprocessor.config import ServeSettings, is_loopback, split_address
from preprocessor.errors import trace_of
from preprocessor.models.loaded import LoadedModel
from preprocessor.service import addresses
from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.concurrency import Turns
from preprocessor.service.openai.context import HttpContext, check_model, run_call
from preprocessor.service.openai.errors import HttpError
from preprocessor.service.openai.exchange import Exchange, json_response, send
from preprocessor.service.servicer import PreprocessorServicer
from preprocessor.service.status import REQUEST_ID_KEY, request_id_of
from preprocessor.service.tls import server_context
from preprocessor.v1 import preprocessor_pb2 as pb

logger = logging.getLogger(__name__)

OPTION = "--openai-address"
COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/models"
_HANDSHAKE_SECONDS = 10.0  # as for gRPC
_IDLE_SECONDS = 75.0  # between requests, and from the connection to the end of the first one's headers
_WINDOW_BYTES = 64 << 10  # what a caller may send before it is read, as for gRPC; the kernel allows about twice as much
_CLOSE_SECONDS = 1.0  # for connections, once their requests have ended
_OWNER = "vlm-preprocessor"


class OpenAIServer:
    """Serves OpenAI's API by the handlers of a `PreprocessorServicer`.

    Args:
        auth_interceptor: That of the gRPC server: the two ports share its quotas and its number of open calls.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: ServeSettings,
        servicer: PreprocessorServicer,
        auth_interceptor: AuthInterceptor,
    ) -> None:
        self._model = model
        self._settings = settings
        self._servicer = servicer
        self._auth_interceptor = auth_interceptor
        self._created = int(time.time())  # noqa: TID251  # a date for `/v1/models`, which nothing is computed from
        http_logger = logging.getLogger(f"{__name__}.http")
        http_logger.addFilter(_without_content)
        self._http = web.Server(
            self._handle,
            handler_cancellation=True,  # a caller who leaves is a call that is cancelled
            access_log=None,
            logger=http_logger,
            auto_decompress=False,
            read_bufsize=_WINDOW_BYTES,
            keepalive_timeout=_IDLE_SECONDS,
            max_field_size=settings.wire.max_metadata_bytes,
        )
        self._turns = Turns()
        self._requests: set[asyncio.Task[Any]] = set()
        self._sockets: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; returns the address with the bound port.

        Raises:
            SettingError: The address cannot be listened on, or a TLS file cannot be used.
        """
        address = self._settings.openai_address
        host, port = split_address(OPTION, address)
        context = server_context(self._settings.access)
        if context is None and not is_loopback(host):
            logger.warning("%s %s is without TLS: anyone who can connect can call", OPTION, address)
        try:
            bound = addresses.bound_socket(host, port)
        except OSError as error:
            raise addresses.unusable_address(OPTION, address, error) from error
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)  # connections inherit it
        self._sockets = await asyncio.get_running_loop().create_server(
            self._accept,
            sock=bound,
            ssl=context,
            ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
        )
        return f"{host}:{self._sockets.sockets[0].getsockname()[1]}"

    async def stop(self, grace_seconds: float) -> None:
        """Let requests in progress end within that time, then cancel them. Calling it again is fine."""
        if self._sockets is not None:
            self._sockets.close()
        self._http.pre_shutdown()
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=grace_seconds)
            for request in late:
                request.cancel()
        await self._http.shutdown(_CLOSE_SECONDS)

    def _accept(self) -> asyncio.Protocol:
        if len(self._http.connections) >= self._settings.openai_connection_count:
            return _Refused()
        return self._http()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            return await self._answer(request)
        finally:
            self._requests.discard(task)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        route = (request.method, path)
        if route == ("POST", COMPLETIONS):
            is_plain = request.headers.get("Content-Encoding", "identity").lower() == "identity"
            # Of no other type: pages of other origins may send those without asking first.
            if not is_plain or request.content_type != "application/json":
                error = HttpError(415, "UNSUPPORTED_CONTENT", "send application/json, not compressed")
                return await self._send(request, error)
            return await self._complete(request)
        if route == ("GET", MODELS) or (request.method == "GET" and path.startswith(f"{MODELS}/")):
            return await self._tell_models(request, path.removeprefix(MODELS).removeprefix("/"))
        known = path in (COMPLETIONS, MODELS)
        status, reason = (405, "METHOD_NOT_ALLOWED") if known else (404, "UNKNOWN_PATH")
        error = HttpError(
            status, reason, f"{request.method} {path[:200]} is not served; POST {COMPLETIONS}, GET {MODELS}"
        )
        return await self._send(request, error)

    async def _complete(self, request: web.BaseRequest) -> web.StreamResponse:
        context = HttpContext(request, request.content.iter_any(), lambda response: exchange.write(response))
        request_id = request_id_of(context.as_grpc)
        heading = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": self._model.name}  # noqa: TID251
        exchange = Exchange(
            request,
            heading,
            {REQUEST_ID_KEY: request_id},
            self._model.tokenizer,
            self._settings.limits,
            self._settings.wire,
            self._turns,
        )
        behaviour = functools.partial(self._servicer.generate, receive_spec=exchange.receive_spec)
        await run_call(self._auth_interceptor, behaviour, "Generate", _chunk, context)
        return await exchange.end(context.error)

    async def _tell_models(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """The one model that is served; `name`, if it is not empty, must be its."""
        error = await check_model(self._auth_interceptor, self._servicer, request, name)
        model = {"id": self._model.name, "object": "model", "created": self._created, "owned_by": _OWNER}
        return await self._send(request, error, model if name else {"object": "list", "data": [model]})

    async def _send(self, request: web.BaseRequest, error: HttpError | None, body: Any = None) -> web.StreamResponse:
        status, headers = (200, {}) if error is None else (error.status, error.headers)
        response = json_response(body if error is None else error.body, status, headers)
        return await send(request, response, self._settings.wire.answer_idle_seconds)


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _chunk(data: bytes) -> pb.GenerateRequest:
    """A piece of the body as a message that `Upload` receives."""
    return pb.GenerateRequest(chunk=pb.MediaChunk(data=data))


def _without_content(record: logging.LogRecord) -> bool:
    """Drop what aiohttp logs of malformed requests, and from its other errors everything that may quote one."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return True
    record.msg, record.args, record.exc_info = "a request failed\n%s", (trace_of(error),), None
    return not isinstance(error, HttpProcessingError)
