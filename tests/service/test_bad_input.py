"""Every kind of bad input is refused at once with its status and reason, and the next request works."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from preprocessor.client import CallFailed
from preprocessor.config import Limits, WireSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz.dangerous_videos import samples_of_one_size
from tests.media import audio_only_clip, moving_shapes_clip, photo, truncated_clip
from tests.service.conftest import Caller, chat, image, in_flight, serving, video
from tests.service.refusals import refusal_of
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def sampled(**fields: object) -> pb.PrepareSpec:
    return chat(video("clip", CLIP, sampling=pb.Sampling(**fields)))  # type: ignore[arg-type]


HI = [pb.Message(role="user", parts=[pb.Part(text="hi")])]


def struct_of(value: float) -> pb.PrepareSpec:
    arguments: Any = {"x": value}
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=HI, template_arguments=arguments))


def json_of(text: str) -> pb.PrepareSpec:
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=HI, template_arguments_json=text))


BAD_SPECS = {
    "no media at all": (chat(video("clip", b"not a video, only words" * 50)), "NOT_MEDIA"),
    "an image that is no image": (chat(image("photo", b"no image" * 50)), "NOT_MEDIA"),
    "a truncated mp4": (chat(video("clip", truncated_clip())), "TRUNCATED_MEDIA"),
    "an mp4 cut before its index": (chat(video("clip", CLIP[: len(CLIP) // 2])), "TRUNCATED_MEDIA"),
    "a truncated image": (chat(image("photo", PHOTO[: len(PHOTO) // 2])), "CORRUPT_MEDIA"),
    "an empty video": (chat(video("clip", b"")), "EMPTY_MEDIA"),
    "an empty image": (chat(image("photo", b"")), "EMPTY_MEDIA"),
    "a video without a video stream": (chat(video("clip", audio_only_clip())), "NO_VIDEO_STREAM"),
    "more placeholders than media": (
        pb.PrepareSpec(text="<|image_pad|><|image_pad|>", media=[image("photo", PHOTO)]),
        "PLACEHOLDER_MISMATCH",
    ),
    "fewer placeholders than media": (
        pb.PrepareSpec(text="look", media=[image("photo", PHOTO)]),
        "PLACEHOLDER_MISMATCH",
    ),
    "a placeholder inside the user's text": (chat("<|image_pad|>", image("photo", PHOTO)), "PLACEHOLDER_MISMATCH"),
    "media that no message refers to": (
        pb.PrepareSpec(chat=chat("hello").chat, media=[image("photo", PHOTO)]),
        "PLACEHOLDER_MISMATCH",
    ),
    "a message that refers to no medium": (
        pb.PrepareSpec(chat=pb.ChatPrompt(messages=[pb.Message(role="user", parts=[pb.Part(media_key="ghost")])])),
        "UNKNOWN_MEDIA_KEY",
    ),
    "a key used twice": (chat(image("photo", PHOTO), image("photo", PHOTO)), "DUPLICATE_MEDIA_KEY"),
    "fps of zero": (sampled(fps=0.0), "INVALID_SAMPLING"),
    "fps below zero": (sampled(fps=-1.0), "INVALID_SAMPLING"),
    "fps that is no number": (sampled(fps=float("nan")), "INVALID_SAMPLING"),
    "no frames": (sampled(frame_count=0), "INVALID_SAMPLING"),
    "indices of no frame": (sampled(indices=pb.FrameIndices()), "INVALID_SAMPLING"),
    "times of no frame": (sampled(times_seconds=pb.FrameTimes()), "INVALID_SAMPLING"),
    "indices in a window": (sampled(indices=pb.FrameIndices(values=[1]), start_seconds=0.5), "SAMPLING_CONFLICT"),
    "an index beyond the clip": (sampled(indices=pb.FrameIndices(values=[60])), "FRAME_OUT_OF_RANGE"),
    "a time beyond the clip": (sampled(times_seconds=pb.FrameTimes(values=[2.5])), "FRAME_OUT_OF_RANGE"),
    "a window beyond the clip": (sampled(start_seconds=9), "NO_FRAMES_IN_RANGE"),
    "a window upside down": (sampled(start_seconds=1, end_seconds=0.5), "INVALID_SAMPLING"),
    "an image with sampling": (chat(image("photo", PHOTO, sampling=pb.Sampling(fps=1))), "INVALID_SAMPLING"),
    "a background that is no colour": (chat(image("photo", PHOTO, background="pink")), "INVALID_BACKGROUND"),
    "a video on a background": (chat(video("clip", CLIP, background="white")), "INVALID_BACKGROUND"),
    "a pixel budget upside down": (
        chat(image("photo", PHOTO, min_pixel_count=9, max_pixel_count=3)),
        "INVALID_PIXEL_BUDGET",
    ),
    "an extreme aspect ratio": (chat(image("photo", photo(2100, 10, "PNG"))), "EXTREME_ASPECT_RATIO"),
    "no prompt": (pb.PrepareSpec(), "EMPTY_PROMPT"),
    "an empty text": (pb.PrepareSpec(text=""), "EMPTY_PROMPT"),
    "no messages": (pb.PrepareSpec(chat=pb.ChatPrompt()), "EMPTY_PROMPT"),
    "a message without parts": (
        pb.PrepareSpec(chat=pb.ChatPrompt(messages=[pb.Message(role="user")])),
        "INVALID_MESSAGE",
    ),
    "a role that the template refuses": (
        pb.PrepareSpec(chat=pb.ChatPrompt(messages=[pb.Message(role="wizard", parts=[pb.Part(text="hi")])])),
        "CHAT_TEMPLATE_FAILED",
    ),
    "an argument that is no number": (struct_of(float("inf")), "NOT_FINITE_NUMBER"),
    "an argument in JSON that is no number": (json_of('{"x": 1e999}'), "NOT_FINITE_NUMBER"),
    "arguments that are no JSON": (json_of("{x: 1}"), "INVALID_JSON"),
    "a key twice in JSON": (json_of('{"x": 1, "x": 1}'), "DUPLICATE_JSON_KEY"),
    "JSON without end": (json_of('{"x": ' + "[" * 5000), "JSON_TOO_DEEP"),
    "arguments of both kinds": (
        pb.PrepareSpec(chat=pb.ChatPrompt(messages=HI, tools_json="[]", template_arguments_json='{"tools": []}')),
        "FIELD_CONFLICT",
    ),
    "a token id outside the vocabulary": (pb.PrepareSpec(token_ids=pb.TokenIds(ids=[1, 10**6])), "INVALID_TOKEN_ID"),
    "a negative token id": (pb.PrepareSpec(token_ids=pb.TokenIds(ids=[-1])), "INVALID_TOKEN_ID"),
    "a medium without a source": (
        pb.PrepareSpec(text="<|image_pad|>", media=[pb.Media(key="photo", modality=pb.MODALITY_IMAGE)]),
        "MEDIA_SOURCE_MISSING",
    ),
    "a file shared with nobody": (
        pb.PrepareSpec(text="x", media=[pb.Media(key="a", modality=pb.MODALITY_VIDEO, same_file_as="b")]),
        "UNKNOWN_MEDIA_KEY",
    ),
    "a file shared with itself": (
        pb.PrepareSpec(text="x", media=[pb.Media(key="a", modality=pb.MODALITY_VIDEO, same_file_as="a")]),
        "UNKNOWN_MEDIA_KEY",
    ),
    "a medium without a modality": (
        pb.PrepareSpec(text="x", media=[pb.Media(key="a", inline_data=b"x")]),
        "INVALID_ENUM",
    ),
    "audio": (
        pb.PrepareSpec(text="x", media=[pb.Media(key="a", modality=pb.MODALITY_AUDIO, inline_data=b"x")]),
        "UNSUPPORTED_MODALITY",
    ),
    "a medium without a key": (chat(image("", PHOTO)), "INVALID_MEDIA_KEY"),
    "arguments of a processor that does not run": (
        chat(image("photo", PHOTO), processor_arguments_json='{"max_pixels": 100}'),
        "INVALID_PROCESSOR_ARGUMENTS",
    ),
    "an inline file too large for a spec": (chat(image("photo", bytes((4 << 20) + 1))), "INLINE_TOO_LARGE"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
async def test_a_bad_request_is_refused_with_its_reason(caller: Caller, case: str) -> None:
    spec, reason = BAD_SPECS[case]
    error = await caller.refusal(spec)
    assert (error.code, error.reason) == (INVALID, reason), error.message
    assert len(error.message.split()) >= 4, "a sentence says what to do"


async def test_an_unknown_model_is_not_found(caller: Caller) -> None:
    error = await caller.refusal(chat("hello", model="gpt-none"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_generate_without_an_engine_says_so(caller: Caller) -> None:
    with pytest.raises(CallFailed) as caught:
        await caller.generate(chat("hello"))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")


def chunk(data: bytes, offset: int = 0, key: str = "photo", last: bool = False) -> pb.PrepareRequest:
    return pb.PrepareRequest(chunk=pb.MediaChunk(key=key, offset_bytes=offset, data=data, last=last))


SPEC = pb.PrepareRequest(spec=chat(image("photo")))
BAD_STREAMS = {
    "nothing": ([], "SPEC_MISSING"),
    "a chunk first": ([chunk(b"x")], "SPEC_MISSING"),
    "an empty message": ([pb.PrepareRequest()], "SPEC_MISSING"),
    "a second spec": ([SPEC, SPEC], "SPEC_REPEATED"),
    "a gap": ([SPEC, chunk(b"abc"), chunk(b"def", 4)], "CHUNK_OUT_OF_ORDER"),
    "an overlap": ([SPEC, chunk(b"abc"), chunk(b"def", 2)], "CHUNK_OUT_OF_ORDER"),
    "a negative offset": ([SPEC, chunk(b"abc", -1)], "CHUNK_OUT_OF_ORDER"),
    "a chunk too large": ([SPEC, chunk(bytes((1 << 20) + 1))], "CHUNK_TOO_LARGE"),
    "an empty chunk": ([SPEC, chunk(b"")], "EMPTY_CHUNK"),
    "an unannounced file": ([SPEC, chunk(b"abc", key="other")], "UNKNOWN_MEDIA_KEY"),
    "an upload that stops short": ([SPEC, chunk(b"abc")], "UPLOAD_INCOMPLETE"),
    "an empty upload": ([SPEC, chunk(b"", last=True)], "EMPTY_MEDIA"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
async def test_a_bad_upload_is_refused_with_its_reason(caller: Caller, case: str) -> None:
    requests, reason = BAD_STREAMS[case]
    found = await refusal_of(caller.send(requests))
    assert (found.code, found.reason) == (INVALID, reason)
    await caller.prepare(chat("still there?"))


@pytest.mark.parametrize(
    ("limits", "spec", "reason"),
    [
        (Limits(max_media_bytes=1000), chat(image("photo")), "MEDIA_TOO_LARGE"),
        (Limits(max_request_bytes=1000), chat(image("photo")), "REQUEST_TOO_LARGE"),
        (Limits(max_image_pixels=1000), chat(image("photo")), "IMAGE_TOO_LARGE"),
        (Limits(max_pixel_bytes=1000), chat(image("photo")), "PIXELS_TOO_LARGE"),
        (Limits(max_prompt_length=10), chat(image("photo")), "PROMPT_TOO_LONG"),
        (Limits(max_media_count=1), chat(image("photo"), image("again", PHOTO)), "LIMIT_EXCEEDED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_requests_beyond_a_limit_are_refused(
    model: Model, limits: Limits, spec: pb.PrepareSpec, reason: str
) -> None:
    async with serving(model, limits=limits) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.prepare(spec, {"photo": PHOTO})
    assert (caught.value.code, caught.value.reason) == (INVALID, reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_clip_frames=10), "TOO_MANY_FRAMES"),
        (Limits(max_frame_pixels=1000), "FRAME_TOO_LARGE"),
        (Limits(max_side_px=100), "SIDE_TOO_LONG"),
        (Limits(max_clip_seconds=1), "VIDEO_TOO_LONG"),
    ],
)
async def test_a_video_beyond_the_limits_is_refused(model: Model, limits: Limits, reason: str) -> None:
    async with serving(model, limits=limits) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.prepare(chat(video("clip", CLIP)))
    assert (caught.value.code, caught.value.reason) == (INVALID, reason)


async def test_the_header_memory_limit_does_not_limit_later_stages(model: Model) -> None:
    """FFmpeg builds an index of 180 MB from the file's 2 KB, and omits it if there is too little memory."""
    claims = samples_of_one_size(5_000_000)
    reasons = []
    for size_bytes in (1 << 30, 64 << 20):
        async with serving(model, limits=Limits(max_header_bytes=size_bytes), worker_count=1) as caller:
            with pytest.raises(CallFailed) as caught:
                await caller.prepare(chat(video("clip", claims)))
            reasons.append(caught.value.reason)
            every = pb.Sampling(every_frame=pb.EveryFrame())
            spec = chat(video("clip", sampling=every, min_pixel_count=1 << 24), pixel_form=pb.PIXEL_FORM_FP32)
            assert (await caller.prepare(spec, {"clip": CLIP})).tensors["pixel_values"].nbytes > 64 << 20
            ends = caller.server.metrics.registry.get_sample_value("preprocessor_worker_ends_total", {"reason": "lost"})
            assert not ends
    assert reasons == ["TRUNCATED_MEDIA", "CORRUPT_MEDIA"]


async def test_a_malformed_message_is_refused(caller: Caller) -> None:
    async with grpc.aio.insecure_channel(caller.server.address) as channel:
        method: Any = channel.stream_stream("/preprocessor.v1.Preprocessor/Prepare")
        call = method(iter([b"\xff\xff no message"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert (caught.value.code(), reason_of(caught.value)) == (INVALID, "MALFORMED_MESSAGE")


async def test_quoted_input_is_cut_so_that_the_status_fits_grpc_s_metadata_limit(caller: Caller) -> None:
    """gRPC drops a status of 16 KiB or more, and the reason with it."""
    spec = chat("hi", model="é" * 60_000)
    failure = await caller.refusal(spec)
    assert failure.reason == "MODEL_NOT_FOUND"
    assert failure.message.endswith("…")
    assert 400 < len(failure.message.encode()) <= 600


async def test_an_inline_file_over_the_limit_is_refused(model: Model) -> None:
    async with serving(model, limits=Limits(max_media_bytes=1000)) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.prepare(chat(image("photo", PHOTO)))
    assert caught.value.reason == "MEDIA_TOO_LARGE"


async def test_cancelling_during_the_upload_releases_everything(caller: Caller) -> None:
    call = caller.stub.Prepare()
    await call.write(SPEC)
    await call.write(chunk(PHOTO[:100]))
    call.cancel()
    await eventually(lambda: in_flight(caller) == 0)
    await caller.prepare(chat("still there?"))


async def test_cancelling_during_the_response_frees_the_worker(caller: Caller) -> None:
    call = caller.stub.Prepare(iter([pb.PrepareRequest(spec=chat(video("clip", moving_shapes_clip(seconds=10))))]))
    await anext(aiter(call))
    call.cancel()
    await eventually(lambda: in_flight(caller) == 0 and caller.server.pool.pending_count == 0)
    await caller.prepare(chat("still there?"))


@pytest.mark.usefixtures("refusals_at_once")
async def test_a_silent_upload_is_ended(model: Model) -> None:
    async with serving(model, wire=WireSettings(upload_idle_seconds=0.05, min_upload_rate=1)) as caller:
        call = caller.stub.Prepare()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.write(SPEC)
            await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(caught.value) == "UPLOAD_IDLE"


async def test_a_request_beyond_the_queue_is_refused_with_retry_info(model: Model) -> None:
    async with serving(model, worker_count=1, max_queued_count=1) as caller:
        counters = caller.server.pool.counters
        for _ in range(2):  # one running, one waiting
            counters.add_pending()
        with pytest.raises(CallFailed) as caught:
            await caller.prepare(chat("hello"))
        for _ in range(2):
            counters.remove_pending()
        await caller.prepare(chat("hello"))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert caught.value.retry_after_seconds == 1.0


async def test_an_internal_error_reveals_no_details(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("preprocessor.pipeline.plan", broken)
    async with serving(model, is_in_process=True) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.prepare(chat("hello"))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in caught.value.message


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """`ErrorInfo.reason` of an error as the asynchronous stub raises it."""
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason
