"""The one door: every call of every service passes here, whoever adds one.

A call is let in when it is known whose it is, its owner's quota has room, and not too many calls are open. `Health.Check`
alone is free: it tells nobody more than whether this replica serves, and a kubelet or balancer has no token to show.

Bytes that are no message are told apart here too: gRPC would end such a call as if the service had broken.
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
from preprocessor.service.lingering import Lingering
from preprocessor.service.metrics import Metrics
from preprocessor.service.quotas import Accounts, serve_caller
from preprocessor.service.status import Context, refuse, request_id_of, status_of
from preprocessor.service.tokens import TokenFile
from preprocessor.service.upload_stream import UploadStream

FREE_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
_SCHEME = "bearer "  # RFC 6750; the scheme's case does not matter, RFC 9110
_SINGLES_AT_ONCE = 2
_SINGLE_GRACE_SECONDS = 0.25


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls in.

    Attributes:
        open_count: Calls that are in.
        is_closed: No further ones are let in, for this process is about to end.
        waiting_count: Calls that wait to hear whether they are; see `keeping_waiting`.

    Raises:
        SettingError: The file of tokens cannot be used.
    """

    def __init__(self, access: AccessSettings, wire: WireSettings, metrics: Metrics) -> None:
        self.open_count = 0
        self.is_closed = False
        self.waiting_count = 0
        self._wait_over: asyncio.Event | None = None
        self._max_open_count = wire.max_open_calls
        self._metrics = metrics
        self._tokens = TokenFile(access.token_file) if access.token_file else None
        self._caller_metadata = access.caller_metadata
        self._with_certificates = bool(access.tls_client_root)
        self._accounts = Accounts(access)
        self._lingering = Lingering()
        # Of health checks apart, which nobody else's messages shall keep waiting.
        self._singles = [
            UploadStream(wire, _SINGLES_AT_ONCE, grace_seconds=_SINGLE_GRACE_SECONDS) for _ in ("others", "free")
        ]

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            return handler
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                guarded = self._guarded(behaviour, details.method, takes_one=kind.startswith("unary"))
                as_streams = {
                    kind: None,
                    "stream_stream": guarded,
                    "request_streaming": True,
                    "response_streaming": True,
                }
                return handler._replace(**as_streams, request_deserializer=_tolerant(handler.request_deserializer))
        return handler

    def _guarded(self, behaviour: Any, path: str, *, takes_one: bool) -> Any:
        """The same handler behind the door.

        All of them take streams and give streams, on the wire the same. Of a single message gRPC would take in all of it, 16 MiB
        say, before anybody could say whether there is room; and before the status of a refusal it would send an empty one, which
        Envoy's JSON takes for the answer.
        """
        method, is_free = path.rpartition("/")[2], path in FREE_METHODS

        async def asked(context: Context) -> Any:
            messages = _WellFormed(context)
            if not takes_one:
                return messages
            async with self._singles[is_free].upload(messages, str(context.peer())) as upload:
                return await upload.only()

        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            answered = None
            try:
                await self._kept_waiting(is_free=is_free)
                with self._held_place(context, is_free=is_free):
                    answered = await behaviour(await asked(context), context)
            except PreprocessorError as error:
                self._refuse(method, context, error)
            if not takes_one:
                await self._lingering.linger(context)
            if answered is not None:
                yield answered

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                await self._kept_waiting(is_free=is_free)
                with self._held_place(context, is_free=is_free):
                    async for message in behaviour(await asked(context), context):
                        yield message
            except PreprocessorError as error:
                self._refuse(method, context, error)

        return answers if inspect.isasyncgenfunction(behaviour) else answer

    def _refuse(self, method: str, context: Context, error: PreprocessorError) -> None:
        """For a call that gets no place, or whose bytes are no message."""
        code, reason, _ = status_of(error)
        self._metrics.count_end(method, code.name, reason)
        refuse(context, error, request_id_of(context))

    @contextlib.contextmanager
    def keeping_waiting(self) -> Iterator[None]:
        """Meanwhile calls that come are neither let in nor refused; at the end they are, as `is_closed` says."""
        self._wait_over = asyncio.Event()
        try:
            yield
        finally:
            self._wait_over.set()

    async def _kept_waiting(self, *, is_free: bool) -> None:
        if is_free or self._wait_over is None or self.waiting_count >= self._max_open_count:
            return
        self.waiting_count += 1
        try:
            await self._wait_over.wait()
        finally:
            self.waiting_count -= 1

    @contextlib.contextmanager
    def _held_place(self, context: Context, *, is_free: bool) -> Iterator[None]:
        if is_free:
            serve_caller(self._accounts.of(""))
            yield
            return
        if self.is_closed:
            raise Draining("this replica is about to end; try again, at another one")
        account = self._accounts.of(self._name_of(context))
        if self.open_count >= self._max_open_count:
            raise Overloaded(
                f"{self.open_count} calls are open, which is as many as may be; try again, or another replica",
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

    def _name_of(self, context: Context) -> str:
        """Who calls: by token where there are any, else by a proxy's word, else by certificate, else by address.

        Raises:
            Unauthenticated: There is no token, or it is nobody's.
        """
        if self._tokens is not None:
            given = _text_of(context, "authorization")
            name = self._tokens.name_of(given[len(_SCHEME) :]) if given.lower().startswith(_SCHEME) else None
            if name is None:
                what = "nobody's token was sent" if given else "no token was sent"
                raise Unauthenticated(f"{what}; send the metadata authorization: Bearer TOKEN")
            return name
        if self._caller_metadata and (said := _text_of(context, self._caller_metadata)):
            return said
        if self._with_certificates:
            return certificate_name(context.auth_context())
        return address_of(str(context.peer()))


def _text_of(context: Context, key: str) -> str:
    """A text of the call's metadata; empty where there is none."""
    given = dict(context.invocation_metadata() or ()).get(key, "")
    return given if isinstance(given, str) else ""


def certificate_name(facts: Mapping[str, Iterable[bytes]]) -> str:
    """Whom a verified certificate names: its SPIFFE id, else its first alternative name, else its common name."""
    names: list[str] = [name.decode(errors="replace") for name in facts.get("x509_subject_alternative_name", ())]
    common: list[str] = [name.decode(errors="replace") for name in facts.get("x509_common_name", ())]
    found = [*(name for name in names if name.startswith("spiffe://")), *names, *common]
    if not found:
        raise Unauthenticated("the certificate names nobody; give it a subject alternative name or a common name")
    return found[0]


def address_of(peer: str) -> str:
    """The host of gRPC's `ipv4:127.0.0.1:5678`."""
    return peer.rpartition(":")[0]


class _Malformed:
    """Stands for bytes that are no message of the kind that was due."""


class _WellFormed:
    """A caller's messages up to the first that is none.

    Read one by one: the generator that gRPC hands to a handler is part of a cycle, with the last message in it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return _checked(message)


def _checked(message: Any) -> Any:
    if isinstance(message, _Malformed):
        raise InvalidRequest(
            "a message is not what the method takes, in protobuf's encoding with text in UTF-8",
            reason="MALFORMED_MESSAGE",
        )
    return message


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed()

    return attempt
