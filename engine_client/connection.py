"""The connection to one engine: made on first use, and whatever is sent along with every call on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import grpc
import grpc.aio

from engine_client.client import Metadata
from engine_client.errors import EngineError, EngineUnavailable

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and protobuf's own limit."""

_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Not more often than gRPC servers allow by default (Triton's `grpc-http2-min-recv-ping-interval-without-data`): a
    # server counts faster pings as abuse and drops the connection with every answer on it, during a long prefill too.
    # The timeout also bounds how long sent bytes may stay unacknowledged, which finds a dead host much sooner.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC would move a prompt whose connection has just ended to the next one by itself: to an engine not compared yet.
    ("grpc.enable_retries", 0),
    # An engine that restarted is found again within these, and until then each request fails at once. gRPC's own are a
    # second, for one that was away for a moment, and two minutes; on a local network a vain attempt costs next to nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # One that comes back as a new pod has another address under its name, which gRPC would ask for every 30 seconds at most.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Its own connection, and its own pauses. gRPC would share those of other channels to the same address, also of closed ones:
    # a channel ends only when the last of its calls is freed, and an exception that somebody keeps refers to one.
    ("grpc.use_local_subchannel_pool", 1),
)

_Answer = TypeVar("_Answer")

_UNDECIDED_STATES = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
_TRIES = 3  # to ask by one connection
_SETTLING_TURNS = 3  # of the event loop: gRPC's future, the coroutine that waits for it, the task


class ConnectionWatch:
    """One connection of a channel, from when it was asked for until it ends. gRPC then makes another by itself.

    What was found out by one connection holds for what answers by that one alone: behind the next may be another process, with
    another model. A call may go by the next one although this one stood just before, so who must know asks again once the
    answer has begun.

    Args:
        who: Starts the messages of errors.
    """

    def __init__(self, who: str, channel: grpc.aio.Channel) -> None:
        self._who = who
        self._channel = channel
        ended = channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self._end = asyncio.get_running_loop().create_task(ended)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, as far as is known now; also where there was none."""
        return self._end.done() or self._channel.get_state() is not grpc.ChannelConnectivity.READY

    async def settle(self) -> bool:
        """Let what gRPC has reported by now be seen; returns whether no end of it is among that."""
        for _ in range(_SETTLING_TURNS):
            await asyncio.sleep(0)
        return not self._end.done()

    async def require(self) -> None:
        """Check, once an answer has begun, that it came by this connection.

        Raises:
            EngineUnavailable: It may have come by another one.
        """
        if not await self.settle():
            raise EngineUnavailable(f"{self._who}: the connection was made anew while the prompt was sent")

    def forget(self) -> None:
        """Nobody asks any more."""
        self._end.cancel()


class Connection:
    """A gRPC channel to one service, whose messages are given and returned serialized.

    Args:
        address: host:port, or any gRPC target.
        service: Its full name, between slashes.
        who: Starts the messages of errors; names the engine.
        grpc_errors: Turns the errors of gRPC inside it into this package's; gets `who`.
        credentials: For TLS; None is plain text.
        tls_server_name: The name in the engine's certificate, where it is not the host of `address`.
        call_metadata: Asked before every call for what to send along.
    """

    def __init__(
        self,
        address: str,
        service: str,
        who: str,
        grpc_errors: Callable[[str], AbstractContextManager[None]],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls_server_name: str | None = None,
        call_metadata: Callable[[], Metadata] | None = None,
    ) -> None:
        self._address = address
        self._service = service
        self._who = who
        self._grpc_errors = grpc_errors
        self._credentials = credentials
        self._options = list(_OPTIONS)
        if tls_server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", tls_server_name))
        self._call_metadata = call_metadata or (lambda: ())
        self._channel: grpc.aio.Channel | None = None
        self._watch: ConnectionWatch | None = None
        self._is_closed = False

    def watch(self) -> ConnectionWatch:
        """The connection as it is now; one that has ended already where there is none."""
        if self._watch is None or self._watch.has_ended:
            self._watch = ConnectionWatch(self._who, self._opened())
        return self._watch

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what a call raises inside it into this package's errors.

        Raises:
            EngineError: the call failed, or `close` has ended it.
        """
        try:
            with self._grpc_errors(self._who):
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._is_closed or task is None or task.cancelling():
                raise
            raise self._closed_error() from error  # gRPC cancels calls of a channel that closes, and so who waits for them

    async def ask_by_one(
        self, ask: Callable[[], Awaitable[_Answer]], timeout_seconds: float
    ) -> tuple[_Answer, ConnectionWatch]:
        """Ask what it is: all that belongs together, and again where the connection ended meanwhile.

        Args:
            ask: Makes one or several calls.
            timeout_seconds: To connect in; `ask` has its own limits.
        Returns:
            What it returns, and the connection by which it was said; one that has ended already where each did.
        Raises:
            EngineUnavailable: there is no connection, or it does not say.
        """
        try:
            for _ in range(_TRIES):
                await self._connect(timeout_seconds)
                watch = self.watch()
                answer = await ask()
                if await watch.settle():
                    break
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(f"{self._who} does not say what it is: {error}") from error
        return answer, watch

    async def ask(self, method: str, wire: bytes, timeout_seconds: float) -> bytes:
        """Call a method that has one answer.

        Raises:
            EngineError: there is none.
        """
        with self.errors():
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._opened().unary_unary(self._service + method)
            return await call(wire, timeout=timeout_seconds, metadata=tuple(self._call_metadata()))

    def ask_for_stream(
        self, method: str, wire: bytes, metadata: Metadata, timeout_seconds: float | None = None
    ) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """Call a method that has one question and many answers; `metadata` is the caller's own."""
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._opened().unary_stream(self._service + method)
        return call(wire, timeout=timeout_seconds, metadata=(*metadata, *self._call_metadata()))

    def open_stream(self, method: str, metadata: Metadata) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        """Begin a call with many messages both ways; `metadata` is the caller's own."""
        call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._opened().stream_stream(self._service + method)
        return call(metadata=(*metadata, *self._call_metadata()))

    async def close(self) -> None:
        """Let go of it; every call then raises EngineUnavailable."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.forget()
        if self._channel is not None:
            await self._channel.close()

    async def _connect(self, timeout_seconds: float) -> None:
        """Wait until there is a connection, or until one could not be made: the next call then says why."""
        channel = self._opened()
        try:
            async with asyncio.timeout(timeout_seconds):
                while (state := channel.get_state(try_to_connect=True)) in _UNDECIDED_STATES:
                    await channel.wait_for_state_change(state)
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._who}: no connection within {timeout_seconds} s") from error

    def _closed_error(self) -> EngineUnavailable:
        return EngineUnavailable(f"the client of {self._who} is closed")

    def _opened(self) -> grpc.aio.Channel:
        """The channel, made on first use: it belongs to the event loop that is running then."""
        if self._is_closed:
            raise self._closed_error()
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, options=self._options)
            else:
                self._channel = grpc.aio.secure_channel(self._address, self._credentials, options=self._options)
        return self._channel
