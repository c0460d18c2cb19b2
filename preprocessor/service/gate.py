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
from contextvars import ContextVar
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from preprocessor.config import AccessSettings, WireSettings
from preprocessor.errors import Draining, InvalidRequest, Overloaded, PreprocessorError, Unauthenticated
from preprocessor.service.metrics import Metrics
from preprocessor.service.quotas import Account, Accounts
from preprocessor.service.status import Context, abort, request_id_of, status_of
from preprocessor.service.tokens import TokenFile

FREE_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
_SCHEME = "bearer "  # RFC 6750; the scheme's case does not matter, RFC 9110
_CALLER: ContextVar[Account] = ContextVar("caller")


def current_caller() -> Account:
    """Whose call the running handler serves."""
    return _CALLER.get()


class Gate(grpc.aio.ServerInterceptor):
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
        self._with_certificates = bool(access.tls_client_root)
        self._accounts = Accounts(access)

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or details.method in FREE_METHODS:
            return handler
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                guarded = self._guarded(behaviour, details.method.rpartition("/")[2])
                return handler._replace(**{kind: guarded}, request_deserializer=_tolerant(handler.request_deserializer))
        return handler

    def _guarded(self, behaviour: Any, method: str) -> Any:
        """The same handler behind the door, in whichever of gRPC's two forms it has."""

        async def answer(request: Any, context: Context) -> Any:
            async with self._admitted(method, context):
                return await behaviour(_well_formed(request), context)

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context):
                async for message in behaviour(_well_formed(request), context):
                    yield message

        return answers if inspect.isasyncgenfunction(behaviour) else answer

    @contextlib.contextmanager
    def keeping_waiting(self) -> Iterator[None]:
        """Meanwhile calls that come are neither let in nor refused; at the end they are, as `is_closed` says."""
        self._wait_over = asyncio.Event()
        try:
            yield
        finally:
            self._wait_over.set()

    @contextlib.asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        """Holds the call's place; a call that gets none, or whose bytes are no message, is aborted here."""
        try:
            await self._kept_waiting()
            with self._held_place(context):
                yield
        except PreprocessorError as error:
            code, reason, _ = status_of(error)
            self._metrics.count_end(method, code.name, reason)
            await abort(context, error, request_id_of(context))

    async def _kept_waiting(self) -> None:
        if self._wait_over is None or self.waiting_count >= self._max_open_count:
            return
        self.waiting_count += 1
        try:
            await self._wait_over.wait()
        finally:
            self.waiting_count -= 1

    @contextlib.contextmanager
    def _held_place(self, context: Context) -> Iterator[None]:
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
        _CALLER.set(account)
        try:
            yield
        finally:
            self.open_count -= 1
            account.end_call()

    def _name_of(self, context: Context) -> str:
        """Who calls: by token where there are any, else by certificate, else by address.

        Raises:
            Unauthenticated: There is no token, or it is nobody's.
        """
        if self._tokens is not None:
            given = dict(context.invocation_metadata() or ()).get("authorization", "")
            given = given if isinstance(given, str) else ""
            name = self._tokens.name_of(given[len(_SCHEME) :]) if given.lower().startswith(_SCHEME) else None
            if name is None:
                what = "nobody's token was sent" if given else "no token was sent"
                raise Unauthenticated(f"{what}; send the metadata authorization: Bearer TOKEN")
            return name
        if self._with_certificates:
            return certificate_name(context.auth_context())
        return address_of(str(context.peer()))


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
    """A caller's messages up to the first that is none."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return _checked(await anext(self._messages))


def _well_formed(request: Any) -> Any:
    return _WellFormed(request) if hasattr(request, "__anext__") else _checked(request)


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
