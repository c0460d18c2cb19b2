"""One prompt on one `ModelStreamInfer` stream: written, read, and ended early without harm to the server.

A stream that is cancelled while replies are on their way can end the whole server: Triton up to 25.01 frees the same
state twice (server issue 8034). With 2.51 and a model that replies several times at once, prompts left at the first
reply by cancelling had killed it before the 300th; ended as below, it survived 3,000. So a prompt that is left early is
stopped by a message on the same stream, where the engine's model knows that message, and the stream then ends as any
other. Where the model does not know it, or does not end in time, the stream is cancelled.

In grpc.aio a call is cancelled, too, by cancelling a read or a write that waits. So only this file's own tasks read and
write, and a write is shielded from them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from engine_client.errors import EngineError, EngineFailed, EngineUnavailable
from engine_client.release import Release
from engine_client.triton import kserve
from engine_client.triton.kserve import InferReply
from engine_client.triton.messages import EngineMessage, RequestMessages
from engine_client.triton.outputs import CONTRACT_OUTPUTS, Outputs
from engine_client.triton.status import grpc_errors, reply_error

Call = grpc.aio.StreamStreamCall[bytes, bytes]

# Pieces that the engine has not confirmed: enough to keep the connection busy, and a bound on what is buffered.
MAX_UNREAD_PIECES = 4
# Replies that nobody has fetched; beyond this, reading pauses and flow control slows the engine down.
MAX_WAITING_REPLIES = 64
# How long an engine may take to end a prompt that it was told to stop.
SHUTDOWN_SECONDS = 5.0
# A stream that broke leaves open whether the engine is about to read shared memory. Triton drops the requests of a
# broken stream at once; this is far beyond the time to copy what it has begun.
UNCERTAIN_SECONDS = 10.0

# What a write raises on a stream that ended, which the engine may do at any time. Reading says how it ended.
_STREAM_IS_OVER = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError)


class PromptStream:
    """Sends a prompt's messages and collects the replies; begins at once.

    Args:
        call: The stream, unused.
        engine_name: For messages.
        messages: To send.
        outputs: Where the engine's answer says what.
        release: Held as long as the request's arrays are needed: until the last message is made, and until shared
            memory that a message refers to has been read.
        max_silence_seconds: How long the engine may send nothing when it is its turn, and how long it may take to read one
            message; None is for ever.
    """

    def __init__(
        self,
        call: Call,
        engine_name: str,
        messages: RequestMessages,
        *,
        outputs: Outputs = CONTRACT_OUTPUTS,
        release: Release,
        max_silence_seconds: float | None,
    ) -> None:
        self._call = call
        self._engine_name = engine_name
        self._stop = messages.stop
        self._outputs = outputs
        self._max_silence_seconds = max_silence_seconds
        self._release_made = release.hold()
        self._release_read = release.hold()
        self._unanswered: set[str] = set()  # ids of messages whose final reply has not come
        self._unread: set[str] = set()  # of those that refer to shared memory and have no reply at all
        self._pieces: set[str] = set()  # of pieces not replied to
        self._piece_slots = asyncio.Semaphore(MAX_UNREAD_PIECES)
        self._replies: deque[InferReply] = deque()
        self._changed = asyncio.Event()
        self._fetched = asyncio.Event()
        self._error: Exception | None = None
        self._sent_message_count = 0
        self._is_all_sent = False
        self._is_left = False
        self._operation: asyncio.Task[None] | None = None  # the write or half-close that is under way, or was the last
        self._receiver = asyncio.create_task(self._receive())
        self._sender = asyncio.create_task(self._send_all(messages))

    @property
    def is_answered(self) -> bool:
        """Every message was sent and has its last reply."""
        return self._is_all_sent and not self._unanswered

    @property
    def sent_message_count(self) -> int:
        """Messages that were written."""
        return self._sent_message_count

    @property
    def unanswered_message_count(self) -> int:
        """Those of them whose last reply has not come; the opening's comes with the end of the answer."""
        return len(self._unanswered)

    async def next_reply(self) -> InferReply | None:
        """The next reply other than the confirmation of a piece; None after the last.

        Raises:
            EngineError: the stream broke, the engine refused the prompt, or it sent nothing for too long.
            Exception: what `RowProgress.fail` was given.
        """
        while not self._replies:
            if self._error is not None:
                raise self._error
            if self.is_answered:
                return None
            if self._receiver.done():
                raise EngineUnavailable(f"{self._engine_name} broke off before the end of its answer")
            self._changed.clear()
            if self._is_all_sent:
                async with self._limited("sent nothing"):
                    await self._changed.wait()
            else:  # it is not the engine's turn while rows are made; what waits for the engine to read has its own limit
                await self._changed.wait()
        self._fetched.set()
        return self._replies.popleft()

    def fail(self, error: Exception) -> None:
        """Raise this for whoever waits for a reply, unless there is an error already."""
        self._error = self._error or error
        self._changed.set()

    async def leave(self) -> None:
        """End the stream, after its answer or in the middle of it; `SHUTDOWN_SECONDS` at most."""
        self._is_left = True
        self._replies.clear()
        self._fetched.set()
        self._sender.cancel()
        try:
            await asyncio.wait((self._sender,))
            # Past these the call is cancelled: the stream broke, or the engine does not end it.
            with contextlib.suppress(TimeoutError, *_STREAM_IS_OVER):
                async with asyncio.timeout(SHUTDOWN_SECONDS):
                    await self._end()
            self._call.cancel()  # nothing to a call that is over
            await asyncio.wait((self._receiver,))
            if self._operation is not None:
                await asyncio.wait((self._operation,))
                if not self._operation.cancelled():  # as gRPC does to a write that flow control holds back
                    self._operation.exception()  # whatever it says, it is of a stream that is over
        finally:
            if self._unread:
                asyncio.get_running_loop().call_later(UNCERTAIN_SECONDS, self._release_read)
            else:
                self._release_read()

    async def _end(self) -> None:
        if self._operation is not None:
            await asyncio.wait((self._operation,))
            if self._operation.cancelled():
                return
            self._operation.result()
        if not self.is_answered and not self._receiver.done():
            if self._stop is None:
                return
            await self._write(self._stop)
        await self._half_close()
        await asyncio.wait((self._receiver,))

    async def _send_all(self, messages: RequestMessages) -> None:
        try:
            async with aclosing(aiter(messages)) as each:
                async for message in each:
                    await self._send(message)
            self._is_all_sent = True
            self._changed.set()
            if self._stop is None:  # one that can be stopped stays open for that
                await self._half_close()
        except _STREAM_IS_OVER:
            pass  # and the receiver knows why
        except Exception as error:  # whatever RowProgress.fail was given too
            self.fail(error)
        finally:
            self._release_made()
            self._settle()
            self._changed.set()

    async def _send(self, message: EngineMessage) -> None:
        """Write one message, as soon as the engine has read enough of those before."""
        if message.is_piece:
            async with self._limited("sent nothing"):
                await self._piece_slots.acquire()
            self._pieces.add(message.request_id)
        self._unanswered.add(message.request_id)
        if message.refers:
            self._unread.add(message.request_id)
        async with self._limited("read nothing"):  # gRPC does not say how much of a message was read
            await self._write(message.wire)
        self._sent_message_count += 1

    async def _receive(self) -> None:
        """Take in replies until the stream ends; never cancelled, never raises."""
        try:
            with grpc_errors(self._engine_name):
                while isinstance(answer := await self._call.read(), bytes):
                    self._take(answer)
                    while len(self._replies) >= MAX_WAITING_REPLIES and not self._is_left:
                        self._fetched.clear()
                        await self._fetched.wait()
        except EngineError as error:
            self.fail(error)
        except asyncio.CancelledError:  # the call was: by `leave`, or by a channel that closes
            self.fail(EngineUnavailable(f"the stream to {self._engine_name} was cancelled"))
        else:
            self._unread.clear()  # ended by the engine itself, which has nothing left to read
        self._changed.set()

    def _take(self, answer: bytes) -> None:
        try:
            reply = kserve.decode_infer_reply(answer, self._outputs)
        except ValueError as error:
            failure = EngineFailed(f"{self._engine_name} answered against the contract: {error}")
            failure.__cause__ = error
            self.fail(failure)
            return
        self._unread.discard(reply.request_id)
        if reply.is_final or reply.error_message:
            self._unanswered.discard(reply.request_id)
        if reply.request_id in self._pieces:
            self._pieces.discard(reply.request_id)
            self._piece_slots.release()
        self._settle()
        if reply.error_message:
            self.fail(reply_error(self._engine_name, reply.error_message))
        elif not self._is_left and (reply.token_ids or reply.finish_reason is not None):
            self._replies.append(reply)
        self._changed.set()

    def _settle(self) -> None:
        if self._is_all_sent and not self._unread:
            self._release_read()

    async def _write(self, wire: bytes) -> None:
        await self._operate(self._call.write(wire))

    async def _half_close(self) -> None:
        await self._operate(self._call.done_writing())

    async def _operate(self, operation: Coroutine[Any, Any, None]) -> None:
        self._operation = asyncio.create_task(operation)
        await asyncio.shield(self._operation)

    @contextlib.asynccontextmanager
    async def _limited(self, failing: str) -> AsyncIterator[None]:
        """Bear no longer silence than may be.

        Raises:
            EngineUnavailable: it took longer; `failing` says what the engine did not do.
        """
        seconds = self._max_silence_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._engine_name} {failing} for {seconds} s") from error
