"""The description of a load, and the outcome of one request."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import grpc.aio
from google.protobuf.message import Message

from preprocessor.client.requests import Parameters, Prompt, count_requests, generate_requests, prepare_requests
from preprocessor.client.routing import routing_metadata
from preprocessor.v1 import preprocessor_pb2 as pb

_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['Preprocessor'].full_name}"
PREPARE, GENERATE, COUNT_TOKENS = (f"{_SERVICE}/{method}" for method in ("Prepare", "Generate", "CountTokens"))

ANSWERED = "answered, not read"
LEFT = "the caller went away"
WRONG = "not the right answer"
NOT_SENT = "not sent before its deadline"
STATUS_LOST = "refused, the reason lost by gRPC"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready for the wire.

    Attributes:
        messages: Serialized requests of `method`, the spec first.
        right_outcome: The `Check.result` of the right response, or the reason of the right refusal; empty if unknown.
        metadata: Sent with the request, beside that of the load: names its first medium to a proxy.
    """

    name: str
    messages: tuple[bytes, ...]
    method: str = PREPARE
    right_outcome: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


class Check(Protocol):
    """Reads one response, to compare it with the right one."""

    def add(self, message: bytes) -> None:
        """Take the response's next message."""

    def result(self) -> str:
        """A value that equals `Ask.right_outcome` if the response is right."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load, which runs for `seconds` or for `count` requests; open requests are then completed.

    Attributes:
        asks: Requests, sent in turn by all callers together.
        concurrency: Closed loop: number of callers, each with one open request. Open loop: the largest number of open requests;
            one that is due beyond it is sent late.
        rate_per_second: Rate of an open loop; 0 for a closed loop.
        arrivals_seed: See `schedule.due_times`.
        share, of: This load sends every `of`-th request of an open loop, beginning with number `share`.
        warm_up_seconds: The same load before `seconds` begin.
        beside: Each is sent repeatedly by its own caller, from before the first of `asks` until after the last.
        check: Makes a reader for a response to compare; the share `check_share` of them is compared, and always the first.
        is_counted: Whether rows, tokens and items of responses are counted, which requires parsing.
        cancel_share: Share of requests that are cancelled at a random time within `cancel_within_seconds`.
        timeout_seconds: Timeout of a request, from when it was due.
        metadata: Sent with each request.
        is_by_shared_memory: Whether rows of Prepare go to shared memory of the callers.
        new_media_share: Share of requests whose media are new to the service: the others may be answered from its cache.
    """

    asks: tuple[Ask, ...]
    concurrency: int
    seconds: float = math.inf
    count: float = math.inf
    rate_per_second: float = 0.0
    arrivals_seed: int | None = None
    share: int = 0
    of: int = 1
    warm_up_seconds: float = 0.0
    beside: tuple[Ask, ...] = ()
    check: Callable[[], Check] | None = None
    check_share: float = 0.0
    is_counted: bool = False
    cancel_share: float = 0.0
    cancel_within_seconds: float = 0.0
    timeout_seconds: float = 300.0
    metadata: tuple[tuple[str, str], ...] = ()
    new_media_share: float = 0.0
    is_by_shared_memory: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended. Times are on the machine's monotonic clock.

    Attributes:
        due_at_seconds: When it should have been sent; in a closed loop, when it was sent.
        first_at_seconds: When the response's first message arrived; 0 if none did.
        outcome: ANSWERED, the right one, LEFT, WRONG, NOT_SENT, STATUS_LOST, or a refusal's reason (the status code's name
            where there is none).
        code: Name of the gRPC status; empty if the caller cancelled.
        received_bytes: Of all messages of the response.
        item_count, cached_item_count: Media in the response, and those whose pixels the service did not make for it. Counted, as
            rows and tokens are, if `Load.is_counted`.
    """

    ask: Ask
    due_at_seconds: float
    began_at_seconds: float
    first_at_seconds: float
    ended_at_seconds: float
    outcome: str
    code: str
    received_bytes: int
    row_count: int
    token_count: int
    item_count: int = 0
    cached_item_count: int = 0

    @property
    def is_answered(self) -> bool:
        return self.outcome == ANSWERED or (bool(self.outcome) and self.outcome == self.ask.right_outcome)

    @property
    def seconds(self) -> float:
        """Latency, from when it was due."""
        return self.ended_at_seconds - self.due_at_seconds


Connect = Callable[[], grpc.aio.Channel]
"""Opens a channel to the service; called on the event loop, and in the process, that uses it."""


def ask_prepare(name: str, prompt: Prompt) -> Ask:
    """A request to Prepare."""
    return _ask(name, prompt, prepare_requests(prompt), PREPARE)


def ask_count_tokens(name: str, prompt: Prompt) -> Ask:
    """A request to CountTokens."""
    return _ask(name, prompt, count_requests(prompt), COUNT_TOKENS)


def ask_generate(name: str, prompt: Prompt, parameters: Parameters) -> Ask:
    """A request to Generate."""
    return _ask(name, prompt, generate_requests(prompt, parameters), GENERATE)


def with_salt(ask: Ask, cache_salt: str) -> Ask:
    """The same request with a `cache_salt` of its own, to which nothing is cached.

    To a proxy it names another medium, as it stands for a request with new media: all with one name would meet one replica.
    """
    spec = pb.PrepareSpec(cache_salt=cache_salt)
    request: Message
    if ask.method == GENERATE:
        request = pb.GenerateRequest(spec=pb.GenerateSpec(prompt=spec))
    elif ask.method == COUNT_TOKENS:
        request = pb.CountTokensRequest(spec=spec)
    else:
        request = pb.PrepareRequest(spec=spec)
    first, *others = ask.messages
    messages = (first + request.SerializeToString(), *others)  # Protobuf merges messages in a row
    metadata = tuple(
        (key, hashlib.sha256(f"{value}/{cache_salt}".encode()).hexdigest()[: len(value)]) for key, value in ask.metadata
    )
    return replace(ask, messages=messages, metadata=metadata)


def with_region(ask: Ask, rows_region: pb.RowsRegion) -> Ask:
    """The same request to Prepare, whose rows go to shared memory."""
    first, *others = ask.messages
    region = pb.PrepareRequest(spec=pb.PrepareSpec(rows_region=rows_region)).SerializeToString()
    return replace(ask, messages=(first + region, *others))  # as `with_salt`


def _ask(name: str, prompt: Prompt, requests: Iterable[Message], method: str) -> Ask:
    messages = tuple(request.SerializeToString() for request in requests)
    return Ask(name, messages, method, metadata=routing_metadata(prompt, {}))


def shares(load: Load, of: int) -> list[Load]:
    """The load divided into so many, or fewer where there are fewer callers; together they do what it says."""
    of = min(of, load.concurrency)
    return [
        replace(
            load,
            asks=load.asks[share % len(load.asks) :] + load.asks[: share % len(load.asks)],
            concurrency=int(_share(load.concurrency, share, of)),
            count=_share(load.count, share, of),
            share=share,
            of=of,
            beside=load.beside[share::of],
            seed=load.seed + share,
        )
        for share in range(of)
    ]


def _share(whole: float, share: int, of: int) -> float:
    return whole if whole == math.inf else whole // of + (share < whole % of)
