"""A refusal names the field of the request that is at fault: `google.rpc.BadRequest` beside `ErrorInfo`."""

from __future__ import annotations

import re

import grpc
import pytest
from google.protobuf.descriptor import Descriptor

from engine_client.testing import FakeEngine
from preprocessor.client import CallFailed
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.service.refusals import refusal_of
from tests.service.test_bad_input import BAD_SPECS

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(90, 60)
HI = pb.Message(role="user", parts=[pb.Part(text="hi")])

FIELDS = {
    "media[1].sampling.fps": chat(image("photo", PHOTO), video("clip", CLIP, sampling=pb.Sampling(fps=-1))),
    "media[0].sampling.frame_count": chat(video("clip", CLIP, sampling=pb.Sampling(frame_count=0))),
    # Only the file tells, which a worker reads.
    "media[0].sampling.indices": chat(video("clip", CLIP, sampling=pb.Sampling(indices=pb.FrameIndices(values=[60])))),
    "media[0].sampling.start_seconds": chat(video("clip", CLIP, sampling=pb.Sampling(start_seconds=9))),
    "media[0].sampling": chat(image("photo", PHOTO, sampling=pb.Sampling(fps=1))),
    "media[0].sampling.basis": chat(video("clip", CLIP, sampling=pb.Sampling(basis=9))),  # type: ignore[arg-type]
    "media[0].min_pixel_count": chat(image("photo", PHOTO, min_pixel_count=9, max_pixel_count=3)),
    "media[0].max_pixel_count": chat(image("photo", PHOTO, max_pixel_count=0)),
    "media[0].background": chat(image("photo", PHOTO, background="pink")),
    "media[0].modality": chat(pb.Media(key="photo", inline_data=PHOTO)),
    "media[0].key": chat(image("", PHOTO)),
    "media[1].key": chat(image("photo", PHOTO), image("photo", PHOTO)),
    "media[0].frames.times_seconds": chat(
        video("clip", frames=pb.FrameList(sizes_bytes=[1], times_seconds=pb.FrameTimes(values=[-1])))
    ),
    "media[0].frames": chat(video("clip", inline_frames=pb.InlineFrames(pictures=[b"x"]))),
    "media[0].frames.encoding": chat(video("clip", frames=pb.FrameList(encoding=9))),  # type: ignore[arg-type]
    "media[0].frames.sizes_bytes": chat(
        video(
            "clip",
            CLIP,
            frames=pb.FrameList(fps=1, encoding=pb.FRAME_ENCODING_RGB24, width_px=1, height_px=1, sizes_bytes=[4]),
        )
    ),
    "media[0].url": chat(pb.Media(key="photo", modality=pb.MODALITY_IMAGE, url="ftp://host/photo.jpg")),
    "media[0].size_bytes": chat(image("photo", PHOTO, size_bytes=1)),
    "media[0]": chat(image("photo", b"no picture")),
    "pixel_form": chat("hi", pixel_form=99),
    "processor_arguments_json": chat("hi", processor_arguments_json='{"device": "cuda"}'),
    "token_ids.ids": pb.PrepareSpec(token_ids=pb.TokenIds(ids=[-1])),
    "chat.messages": pb.PrepareSpec(chat=pb.ChatPrompt()),
    "chat.messages[1].role": pb.PrepareSpec(chat=pb.ChatPrompt(messages=[HI, pb.Message()])),
    "chat.messages[0].parts[1]": pb.PrepareSpec(
        chat=pb.ChatPrompt(messages=[pb.Message(role="user", parts=[pb.Part(text="hi"), pb.Part()])])
    ),
    "chat.messages[1].extra_json": pb.PrepareSpec(
        chat=pb.ChatPrompt(messages=[HI, pb.Message(role="user", extra_json="{")])
    ),
    "chat.tools_json": pb.PrepareSpec(chat=pb.ChatPrompt(messages=[HI], tools_json="{}")),
}


@pytest.mark.parametrize("path", FIELDS)
async def test_the_field_at_fault_is_named_by_its_path(caller: Caller, path: str) -> None:
    assert (await caller.refusal(FIELDS[path])).fields == (path,)


@pytest.mark.parametrize("case", BAD_SPECS)
async def test_every_path_leads_to_a_field_of_the_spec(caller: Caller, case: str) -> None:
    for path in (await caller.refusal(BAD_SPECS[case][0])).fields:
        assert leads_to_a_field(pb.PrepareSpec.DESCRIPTOR, path), path


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", 0), ("temperature", -1.0), ("top_p", 2.0), ("top_k", -1), ("stop_strings", [""])]
)
async def test_a_parameter_at_fault_is_named(model: Model, name: str, value: object) -> None:
    async with serving(model, FakeEngine()) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.generate(chat("hi"), **{name: value})  # type: ignore[arg-type]
    assert caught.value.fields == (f"parameters.{name}",)


async def test_a_chunk_s_field_is_named_from_its_message_on(caller: Caller) -> None:
    spec = pb.PrepareRequest(spec=chat(image("photo")))
    late = pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", offset_bytes=9, data=b"x"))
    found = await refusal_of(caller.send([spec, late]))
    assert (found.reason, found.fields) == ("CHUNK_OUT_OF_ORDER", ("chunk.offset_bytes",))
    assert leads_to_a_field(pb.PrepareRequest.DESCRIPTOR, "chunk.offset_bytes")


async def test_what_is_no_field_s_fault_names_none(caller: Caller) -> None:
    error = await caller.refusal(chat("hi", model="gpt-none"))
    assert (error.code, error.fields) == (grpc.StatusCode.NOT_FOUND, ())


def leads_to_a_field(message: Descriptor, path: str) -> bool:
    """Whether a path such as `media[0].key` stands for a field below this message; only a list has an index."""
    name, _, rest = path.partition(".")
    match = re.fullmatch(r"([a-z0-9_]+)(\[\d+\])?", name)
    field = match and message.fields_by_name.get(match[1])
    if not field or not match or (match[2] and not field.is_repeated):
        return False
    return not rest or (field.message_type is not None and leads_to_a_field(field.message_type, rest))
