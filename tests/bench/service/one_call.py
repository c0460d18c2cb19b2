"""One call of Prepare by itself: when its rows begin to arrive, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from preprocessor.client.channel import CHANNEL_OPTIONS

_PREPARE = "/preprocessor.v1.Preprocessor/Prepare"


@dataclass(frozen=True, slots=True)
class OneCall:
    """Milliseconds of one call.

    Attributes:
        wall_ms: From the first byte sent to the last received.
        first_rows_ms: From the last byte sent to the first rows received.
    """

    wall_ms: float
    first_rows_ms: float


def one_call(address: str, messages: Sequence[bytes]) -> OneCall:
    """Call Prepare on a channel of its own. Answers are counted and not read.

    Args:
        messages: Of the request, serialized.
    """
    sent_at = 0.0

    def sending() -> Iterator[bytes]:
        nonlocal sent_at
        for message in messages:
            sent_at = time.perf_counter()
            yield message

    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_PREPARE, None, None)
        began_at = time.perf_counter()
        arrived_at = [time.perf_counter() for _ in call(sending(), timeout=120)]
    assert len(arrived_at) > 2, "a header, rows, and a report"
    return OneCall((arrived_at[-1] - began_at) * 1e3, (arrived_at[1] - sent_at) * 1e3)
