"""Authentication and admission of calls: an interceptor that every call of every service on this server passes.

A call is admitted if its caller is authenticated and within its quota, and if fewer than `max_open_calls` calls are open.
`Health.Check` is exempt: it only says whether this replica serves, and kubelets and load balancers have no token.

Messages are parsed here, so that malformed ones are refused (gRPC would end the call with INTERNAL, as for a fault of the
service), and so that many large ones do not hold up the messages of everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from preprocessor.config import AccessSettings, WireSettings
from preprocessor.errors import Draining, InvalidRequest, Overloaded, PreprocessorError, Unauthenticated
from preprocessor.service.concurrency import Turns
from preprocessor.service.metrics import Metrics
from preprocessor.service.quotas import Accounts, serve_caller
from preprocessor.service.refused_uploads import RefusedUploads
from preprocessor.service.status import Context, refuse, request_id_of, status_of
from preprocessor.service.tokens import CallerTokens
from preprocessor.service.upload_stream import UploadStream

EXEMPT_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
_SCHEME = "bearer "  # RFC 6750; schemes are case-insensitive, RFC 9110
_UNARY_CONCURRENCY = 2
_UNARY_GRACE_SECONDS = 0.25
_LARGE_MESSAGE_BYTES = 2 << 20  # to parse it, and to check what it says, takes milliseconds
MAX_SINGLE_MESSAGE_COUNT = 2 * _UNARY_CONCURRENCY
"""Requests of unary methods that are received at one time: of health checks, and of all others."""


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Admits or refuses calls.

    Attributes:
        open_count: Admitted calls that have not ended.
        is_draining: Further calls are refused with `Draining`, because this process is about to stop.
        held_count: Calls that are neither admitted nor refused yet; see `hold_new_calls`.

    Raises:
        SettingError: The token file cannot be used.
    """

    def __init__(self, access: AccessSettings, wire: WireSettings, metrics: Metrics) -> None:
        self.open_count = 0
        self.is_draining = False
        self.held_count = 0
        self._hold_over: asyncio.Event | None = None
        self._max_open_count = wire.max_open_calls
        self._metrics = metrics
        self._tokens = CallerTokens(access.token_file) if access.token_file else None
        self._caller_metadata = access.caller_metadata
        self._with_certificates = bool(access.tls_client_root)
        self._accounts = Accounts(access)
        self._refused_uploads = RefusedUploads()
        self._turns = Turns()
        # Health checks have their own, so that other calls' messages do not delay them.
        self._unary_uploads, self._exempt_uploads = (
            UploadStream(wire, _UNARY_CONCURRENCY, grace_seconds=_UNARY_GRACE_SECONDS) for _ in range(2)
        )

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        return None if handler is None else self.guard_handler(handler, details.method)

    def guard_handler(self, handler: Any, path: str) -> Any:
        """A handler of gRPC with `guard` around it; it streams both ways."""
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                parse = handler.request_deserializer
                guarded = self.guard(behaviour, path, parse, is_unary=kind.startswith("unary"))
                as_streams = {
                    kind: None,
                    "stream_stream": guarded,
                    "request_streaming": True,
                    "response_streaming": True,
                }
                return handler._replace(**as_streams, request_deserializer=None)
        return handler

    def guard(self, behaviour: Any, path: str, parse: Callable[[bytes], Any], *, is_unary: bool) -> Any:
        """The handler, called for admitted calls alone.

        Every handler becomes one that streams both ways, which is the same on the wire. gRPC reads a unary request whole, 16 MiB
        for example, before the handler can refuse it; and with the status of a refused unary call it would send an empty
        response, which Envoy's JSON transcoder takes for the answer.
        """
        method, is_exempt = path.rpartition("/")[2], path in EXEMPT_METHODS
        unary_uploads = self._exempt_uploads if is_exempt else self._unary_uploads

        async def read_request(context: Context) -> Any:
            messages = _ParsedMessages(context, parse, self._turns)
            if not is_unary:
                return messages
            async with unary_uploads.upload(messages, str(context.peer())) as upload:
                return await upload.only()

        async def single_response(request: Any, context: Context) -> AsyncIterator[Any]:
            response = None
            try:
                await self._wait_while_held(is_exempt=is_exempt)
                with self._admitted(context, is_exempt=is_exempt):
                    response = await behaviour(await read_request(context), context)
            except PreprocessorError as error:
                self._refuse(method, context, error)
            if not is_unary:
                await self._refused_uploads.discard(context)
            if response is not None:
                yield response

        async def response_stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                await self._wait_while_held(is_exempt=is_exempt)
                with self._admitted(context, is_exempt=is_exempt):
                    async for message in behaviour(await read_request(context), context):
                        yield message
            except PreprocessorError as error:
                self._refuse(method, context, error)

        return response_stream if inspect.isasyncgenfunction(behaviour) else single_response

    def _refuse(self, method: str, context: Context, error: PreprocessorError) -> None:
        """For a call that is not admitted, or whose request is malformed."""
        code, reason, _ = status_of(error)
        self._metrics.count_end(method, code.name, reason)
        refuse(context, error, request_id_of(context))

    @contextlib.contextmanager
    def hold_new_calls(self) -> Iterator[None]:
        """Meanwhile new calls are neither admitted nor refused; afterwards they are, depending on `is_draining`."""
        self._hold_over = asyncio.Event()
        try:
            yield
        finally:
            self._hold_over.set()

    async def _wait_while_held(self, *, is_exempt: bool) -> None:
        if is_exempt or self._hold_over is None or self.held_count >= self._max_open_count:
            return
        self.held_count += 1
        try:
            await self._hold_over.wait()
        finally:
            self.held_count -= 1

    @contextlib.contextmanager
    def _admitted(self, context: Context, *, is_exempt: bool) -> Iterator[None]:
        """The call counts as open until this is left.

        Raises:
            Draining, Unauthenticated: The call is not admitted.
            Overloaded: `TOO_MANY_CALLS`, or a reason of `Account.begin_call`.
        """
        if is_exempt:
            serve_caller(self._accounts.of(""))
            yield
            return
        if self.is_draining:
            raise Draining("this replica is stopping; try again on another replica")
        account = self._accounts.of(self._caller_of(context))
        if self.open_count >= self._max_open_count:
            raise Overloaded(
                f"{self.open_count} calls are open, the most that are allowed; try again, or on another replica",
                reason="TOO_MANY_CALLS",
            )
        account.begin_call()
        self.open_count += 1
        serve_caller(account)
        try:
            yield
        finally:
            self.open_count -= 1
            account.end_call()

    def _caller_of(self, context: Context) -> str:
        """The caller's name: by token if tokens are configured, else by a proxy's metadata, by certificate, or by address.

        Raises:
            Unauthenticated: The token is missing or unknown.
        """
        if self._tokens is not None:
            given = _text_of(context, "authorization")
            name = self._tokens.name_of(given[len(_SCHEME) :]) if given.lower().startswith(_SCHEME) else None
            if name is None:
                what = "the token is unknown" if given else "no token was sent"
                raise Unauthenticated(f"{what}; send the metadata authorization: Bearer TOKEN")
            return name
        if self._caller_metadata and (name := _text_of(context, self._caller_metadata)):
            return name
        if self._with_certificates:
            return certificate_name(context.auth_context())
        return address_of(str(context.peer()))


def _text_of(context: Context, key: str) -> str:
    """A text value of the call's metadata; empty if it is missing."""
    given = dict(context.invocation_metadata() or ()).get(key, "")
    return given if isinstance(given, str) else ""


def certificate_name(facts: Mapping[str, Iterable[bytes]]) -> str:
    """The subject of a verified certificate: its SPIFFE ID, else its first alternative name, else its common name.

    Raises:
        Unauthenticated: It has none of these.
    """
    names: list[str] = [name.decode(errors="replace") for name in facts.get("x509_subject_alternative_name", ())]
    common: list[str] = [name.decode(errors="replace") for name in facts.get("x509_common_name", ())]
    found = [*(name for name in names if name.startswith("spiffe://")), *names, *common]
    if not found:
        raise Unauthenticated(
            "the certificate names no subject; issue one with a subject alternative name or a common name"
        )
    return found[0]


def address_of(peer: str) -> str:
    """gRPC's peer without its port: `ipv4:127.0.0.1` of `ipv4:127.0.0.1:5678`."""
    return peer.rpartition(":")[0]


class _ParsedMessages:
    """A caller's messages; the first malformed one raises.

    They are read from the context: the generator that gRPC passes to a handler is part of a reference cycle that holds the
    last message.
    """

    def __init__(self, context: Context, parse: Callable[[bytes], Any], turns: Turns) -> None:
        self._context = context
        self._parse = parse
        self._turns = turns

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        data = await self._context.read()
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        if len(data) > _LARGE_MESSAGE_BYTES:
            await self._turns.next()
        try:
            return self._parse(data)
        except DecodeError:
            raise InvalidRequest(
                "a message is malformed; send the method's request type in protobuf's encoding, strings in UTF-8",
                reason="MALFORMED_MESSAGE",
            ) from None
