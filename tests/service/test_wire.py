"""Hostile and broken callers, in content and in timing: each call ends with its reason, and other callers are unaffected."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_client import EngineStep
from engine_client.testing import FakeEngine
from preprocessor.client import CallFailed
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import Limits, WireSettings
from preprocessor.models.family import Model
from preprocessor.service import servicer
from preprocessor.service.upload_stream import UploadStream
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, eventually_answered, image, in_flight, serving, video
from tests.service.refusals import refusal_of
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LATE = grpc.StatusCode.DEADLINE_EXCEEDED
MIB = 1 << 20
CLIP = moving_shapes_clip(seconds=4, width=374, height=374)
PHOTO = photo(90, 60)
SPEC = pb.PrepareRequest(spec=chat(image("photo")))


def chunk(data: bytes, offset: int = 0, key: str = "photo", last: bool = False) -> pb.PrepareRequest:
    return pb.PrepareRequest(chunk=pb.MediaChunk(key=key, offset_bytes=offset, data=data, last=last))


async def refused(caller: Caller, messages: Iterable[pb.PrepareRequest | bytes]) -> CallFailed:
    """The error of a stream of messages, sent as they are; the next request must succeed."""
    found = await refusal_of(caller.send(messages))
    await caller.prepare(chat("still there?"))
    return found


# -- malformed messages ------------------------------------------------------------------------------------------------

NO_TEXT = (
    pb.PrepareRequest(spec=pb.PrepareSpec(text="(text)")).SerializeToString().replace(b"(text)", b"\xff\xfe\xc0ab")
)
MALFORMED: dict[str, list[pb.PrepareRequest | bytes]] = {
    "text that is not UTF-8": [NO_TEXT],
    "random bytes": [bytes(range(256)) * 4],
    "a message cut off": [SPEC.SerializeToString()[:-1]],
    "a length beyond the end": [b"\x0a\xff\xff\xff\x7f"],
    "a later message that is none": [SPEC, b"\xff" * 100],
    "a key that is not UTF-8": [
        SPEC,
        chunk(b"x", key="(key)").SerializeToString().replace(b"(key)", b"\xff\xfe\xc0ab"),
    ],
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_malformed_messages_are_invalid_arguments(caller: Caller, case: str) -> None:
    found = await refused(caller, MALFORMED[case])
    assert (found.code, found.reason) == (INVALID, "MALFORMED_MESSAGE")


async def test_a_message_nested_too_deep_is_refused(caller: Caller) -> None:
    found = await refused(caller, [deep_bytes(5000)])
    assert (found.code, found.reason) == (INVALID, "MALFORMED_MESSAGE")


def deep_bytes(depth: int) -> bytes:
    """A spec whose template argument is a list in a list in a list; protobuf itself would not write it."""
    value = b"\x08\x00"  # Value.null_value
    for _ in range(depth):
        value = field(6, field(1, value))  # Value.list_value, ListValue.values
    entry = field(1, b"deep") + field(2, value)
    arguments = field(3, field(1, entry))  # ChatPrompt.template_arguments, Struct.fields
    return field(1, field(2, arguments))  # PrepareRequest.spec, PrepareSpec.chat


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    length, head = len(data), bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*head, length]) + data


async def test_unary_methods_refuse_malformed_messages_too(caller: Caller) -> None:
    method: Any = caller.channel.unary_unary("/preprocessor.v1.Preprocessor/GetModel")
    found = await refusal_of(method(b"\xff\xff"))
    assert (found.code, found.reason) == (INVALID, "MALFORMED_MESSAGE")


async def test_health_and_reflection_refuse_malformed_messages_too(caller: Caller) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    method: Any = caller.channel.stream_stream(path)
    found = await refusal_of(method(iter([b"\xff\xff"])))
    assert (found.code, found.reason) == (INVALID, "MALFORMED_MESSAGE")


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_message_above_the_limit_is_refused_by_grpc(model: Model) -> None:
    async with serving(model, wire=WireSettings(max_message_bytes=2 * MIB)) as caller:
        found = await refused(caller, [pb.PrepareRequest(spec=pb.PrepareSpec(text="x" * (2 * MIB)))])
        assert found.code is EXHAUSTED
        assert "larger than max" in found.message


async def test_metadata_above_the_limit_is_refused_by_grpc(model: Model) -> None:
    async with serving(model, wire=WireSettings(max_metadata_bytes=4096)) as caller:
        call = caller.stub.GetModel(pb.GetModelRequest(), metadata=(("x-long", "a" * 8000),))
        assert (await refusal_of(call)).code is EXHAUSTED
        stream = caller.stub.Prepare(metadata=(("x-long", "a" * 8000),))
        assert (await refusal_of(stream)).code is EXHAUSTED
        await caller.prepare(chat("still there?"))


def parts(count: int) -> pb.PrepareSpec:
    spec = chat("hi")
    spec.chat.messages[0].parts.extend([pb.Part(text="x")] * count)
    return spec


def arguments(count: int) -> pb.PrepareSpec:
    spec = chat("hi")
    for number in range(count // 100):
        spec.chat.template_arguments[f"list {number}"] = list(range(100))
    return spec


def extras(count: int) -> pb.PrepareSpec:
    spec = chat("hi")
    spec.chat.messages[0].extra["tool_calls"] = [{"a": number} for number in range(count // 2)]
    return spec


def in_json(text: str) -> pb.PrepareSpec:
    spec = chat("hi")
    spec.chat.messages[0].tool_calls_json = text
    return spec


TOO_MUCH = {
    "media": (pb.PrepareSpec(text="x", media=[pb.Media(key=str(n)) for n in range(50_000)]), "LIMIT_EXCEEDED"),
    "parts": (parts(200_000), "SPEC_TOO_LARGE"),
    "messages": (pb.PrepareSpec(chat=pb.ChatPrompt(messages=[pb.Message(role="user")] * 200_000)), "SPEC_TOO_LARGE"),
    "template arguments": (arguments(50_000), "SPEC_TOO_LARGE"),
    "extra fields": (extras(50_000), "SPEC_TOO_LARGE"),
    "values in JSON": (in_json("[" + "1," * 50_000 + "1]"), "SPEC_TOO_LARGE"),
    "arrays in JSON": (in_json("[" * 1_000_000), "SPEC_TOO_LARGE"),
    "token ids": (pb.PrepareSpec(token_ids=pb.TokenIds(ids=[1] * 4_000_001)), "PROMPT_TOO_LONG"),
    "frames": (
        chat(video("clip", CLIP, sampling=pb.Sampling(indices=pb.FrameIndices(values=[1] * 1_000_001)))),
        "SPEC_TOO_LARGE",
    ),
    "times": (
        chat(video("clip", CLIP, sampling=pb.Sampling(times_seconds=pb.FrameTimes(values=[0.5] * 1_000_001)))),
        "SPEC_TOO_LARGE",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
async def test_a_spec_of_very_many_parts_is_refused_before_it_is_read(caller: Caller, case: str) -> None:
    spec, reason = TOO_MUCH[case]
    found = await refused(caller, [pb.PrepareRequest(spec=spec)])
    assert (found.code, found.reason) == (INVALID, reason), found.message


async def test_how_many_parts_a_spec_may_have_is_a_setting(model: Model) -> None:
    async with serving(model, wire=WireSettings(max_spec_parts=9)) as caller:
        await caller.prepare(parts(7))  # beside these the message and the first part
        found = await refused(caller, [pb.PrepareRequest(spec=parts(8))])
    assert (found.code, found.reason) == (INVALID, "SPEC_TOO_LARGE")


@pytest.mark.parametrize("letter", ["x", "é", "\n", '"'])
async def test_error_messages_quote_only_a_part_of_long_input(caller: Caller, letter: str) -> None:
    """Callers do not receive trailers of a megabyte: they get another error, or none."""
    long = letter * 1_000_000
    named = await refused(caller, [pb.PrepareRequest(spec=chat("hi", model=long))])
    assert (named.code, named.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    keyed = await refused(caller, [SPEC, chunk(b"x", key=long)])
    assert (keyed.code, keyed.reason) == (INVALID, "UNKNOWN_MEDIA_KEY")
    shared = pb.Media(key="a", modality=pb.MODALITY_IMAGE, same_file_as=long)
    owned = await refused(caller, [pb.PrepareRequest(spec=pb.PrepareSpec(text="x", media=[shared]))])
    assert (owned.code, owned.reason) == (INVALID, "UNKNOWN_MEDIA_KEY")
    assert max(len(found.message) for found in (named, keyed, owned)) <= 600


async def test_more_than_some_stop_tokens_are_refused(model: Model) -> None:
    async with serving(model, FakeEngine()) as caller:
        parameters = pb.GenerationParameters(stop_token_ids=[1] * 100_000)
        request = pb.GenerateRequest(spec=pb.GenerateSpec(prompt=chat("hi"), parameters=parameters))
        found = await refusal_of(caller.stub.Generate(iter([request])))
    assert (found.code, found.reason) == (INVALID, "INVALID_GENERATION_PARAMETERS")


# -- chunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("refusals_at_once")
async def test_an_image_in_chunks_is_refused_once_it_is_too_large(model: Model) -> None:
    async with serving(model, limits=Limits(max_image_bytes=MIB)) as caller:
        call = caller.stub.Prepare()
        await call.write(SPEC)
        await call.write(chunk(bytes(MIB)))
        await call.write(chunk(b"x", MIB))
        found = await refusal_of(call)  # the file has no end yet, and the stream neither
        assert (found.code, found.reason) == (INVALID, "MEDIA_TOO_LARGE")
        assert caller.server.pool.used_bytes == 0


async def test_a_chunk_after_a_file_s_last_is_refused_while_others_come(caller: Caller) -> None:
    spec = pb.PrepareRequest(spec=chat(image("photo"), image("other")))
    found = await refused(caller, [spec, chunk(PHOTO, last=True), chunk(b"x", len(PHOTO))])
    assert (found.code, found.reason) == (INVALID, "CHUNK_OUT_OF_ORDER")
    again = await refused(caller, [spec, chunk(PHOTO, last=True), chunk(PHOTO, last=True)])
    assert again.reason == "CHUNK_OUT_OF_ORDER"


async def test_messages_after_the_last_chunk_are_not_read(caller: Caller) -> None:
    messages = [SPEC, chunk(PHOTO, last=True), *(chunk(b"x" * 1000, key="noise") for _ in range(100))]
    kinds = [one.WhichOneof("message") for one in await caller.send(messages)]
    assert kinds[-1] == "report"


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("refusals_at_once")
async def test_a_caller_that_sends_no_spec_is_ended(model: Model) -> None:
    async with serving(model, wire=WireSettings(upload_idle_seconds=0.1)) as caller:
        found = await refusal_of(caller.stub.Prepare())
        assert (found.code, found.reason) == (LATE, "UPLOAD_IDLE")


async def test_an_upload_below_the_minimum_rate_is_ended(model: Model) -> None:
    for seconds in GROWING_SECONDS:
        async with serving(model, wire=WireSettings(upload_idle_seconds=seconds, min_upload_rate=MIB)) as caller:
            found = await refusal_of(caller.send(dripping()))
            assert caller.server.pool.used_bytes == 0
        if found.reason != "UPLOAD_IDLE":  # where not even the first message came in that time
            break
    assert (found.code, found.reason) == (LATE, "UPLOAD_TOO_SLOW")


def dripping() -> Iterator[pb.PrepareRequest]:
    """A spec, then one byte at a time without end."""
    yield SPEC
    for offset in itertools.count():
        time.sleep(0.02)
        yield chunk(b"x", offset)


async def test_concurrent_uploads_are_limited_and_others_wait(model: Model) -> None:
    async with serving(model, wire=WireSettings(max_upload_count=1)) as caller:
        first = caller.stub.Prepare()
        await first.write(SPEC)
        await eventually(lambda: caller.server.metrics.in_flight.labels("Prepare")._value.get() == 1)
        second = asyncio.create_task(caller.prepare(chat("hi")))
        await eventually(lambda: caller.server.metrics.in_flight.labels("Prepare")._value.get() == 2)
        assert caller.server.pool.pending_count == 0
        await first.write(chunk(PHOTO, last=True))
        assert (await second).header.token_count > 0
        assert [one.WhichOneof("message") async for one in first][-1] == "report"


async def test_a_caller_that_waits_too_long_to_upload_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = WireSettings(max_upload_count=1, upload_idle_seconds=0.4)
    uploads = UploadStream(wire)
    monkeypatch.setattr(servicer, "UploadStream", lambda _: uploads)
    async with serving(model, wire=wire) as caller:
        await uploads._acquire_slot("a peer")  # as an upload does that goes on
        try:
            found = await refusal_of(caller.stub.Prepare(iter([pb.PrepareRequest(spec=chat("hi"))])))
        finally:
            uploads._release_slot()
        assert (found.code, found.reason) == (EXHAUSTED, "UPLOADS_FULL")
        assert found.retry_after_seconds == 1.0
        await eventually_answered(
            lambda: caller.prepare(chat("still there?")), LATE
        )  # a busy machine may be silent so long


async def test_a_caller_that_does_not_read_is_ended_with_the_reason(model: Model) -> None:
    async with serving(model, wire=WireSettings(answer_idle_seconds=0.3)) as caller:
        spec = chat(video("clip", CLIP, sampling=pb.Sampling(fps=8)))  # more than a connection holds unread
        call: Any = caller.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))
        assert (await call.read()).WhichOneof("message") == "header"
        await eventually(lambda: in_flight(caller) == 0 and caller.server.pool.used_bytes == 0)
        found = await refusal_of(call)
        assert (found.code, found.reason) == (LATE, "ANSWER_IDLE")


async def test_a_caller_that_does_not_read_tokens_stops_the_engine(model: Model) -> None:
    is_closed = asyncio.Event()

    class Talkative(FakeEngine):
        async def generate(self, *given: Any, **more: Any) -> AsyncGenerator[EngineStep, None]:
            try:
                async for step in super().generate(*given, **more):
                    yield step
            finally:
                is_closed.set()

    token_count = 50_000
    small_window = (*CHANNEL_OPTIONS, ("grpc.http2.bdp_probe", 0))
    async with (
        serving(model, Talkative(token_ids=(11,) * token_count), wire=WireSettings(answer_idle_seconds=0.3)) as caller,
        grpc.aio.insecure_channel(caller.server.address, options=small_window) as channel,
    ):
        parameters = pb.GenerationParameters(max_tokens=token_count)
        request = pb.GenerateRequest(spec=pb.GenerateSpec(prompt=chat("hi"), parameters=parameters))
        call: Any = pb_grpc.PreprocessorStub(channel).Generate(iter([request]))
        assert (await call.read()).WhichOneof("message") == "header"
        await asyncio.wait_for(is_closed.wait(), PATIENCE_SECONDS)
        assert (await refusal_of(call)).reason == "ANSWER_IDLE"


@pytest.mark.usefixtures("refusals_at_once")
@pytest.mark.parametrize(
    ("wire", "timeout_seconds"),
    [
        (WireSettings(max_timeout_seconds=0.3, upload_idle_seconds=20), 1e6),
        (WireSettings(default_timeout_seconds=0.3, upload_idle_seconds=20), None),
    ],
    ids=["longer than the longest", "none"],
)
async def test_a_call_has_a_deadline_whatever_it_brings(
    model: Model, wire: WireSettings, timeout_seconds: float | None
) -> None:
    async with serving(model, wire=wire) as caller:
        # A spec and no more: what is refused while it sends does not always learn why from gRPC's client.
        found = await refusal_of(sent_and_waiting(caller.stub.Prepare(timeout=timeout_seconds)))
        assert (found.code, found.reason) == (LATE, "DEADLINE_EXCEEDED")


async def sent_and_waiting(call: grpc.aio.StreamStreamCall[pb.PrepareRequest, pb.PrepareResponse]) -> None:
    """A call that sends a spec with a file to follow, and waits; it may end at any time."""
    await call.write(SPEC)
    await call.read()


# -- concurrency -------------------------------------------------------------------------------------------------------


async def test_calls_beyond_the_open_call_limit_are_refused_and_health_checks_are_not(model: Model) -> None:
    async with serving(model, wire=WireSettings(max_open_calls=3)) as caller:
        idle = [caller.stub.Prepare() for _ in range(3)]
        for call in idle:
            await call.write(SPEC)
        await eventually(lambda: caller.server.auth_interceptor.open_count == 3)
        found = await refusal_of(caller.stub.GetModel(pb.GetModelRequest()))
        assert (found.code, found.reason, found.retry_after_seconds) == (EXHAUSTED, "TOO_MANY_CALLS", 1.0)
        check: Any = caller.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"  # SERVING
        for call in idle:
            call.cancel()
        await eventually(lambda: caller.server.auth_interceptor.open_count == 0)
        await caller.prepare(chat("still there?"))
