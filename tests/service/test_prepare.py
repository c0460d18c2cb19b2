"""The responses of `Prepare`, `CountTokens` and `GetModel`, from a real server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping

import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.types.request import PixelForm
from preprocessor.types.result import Prepared
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_ROWS_BYTES, write_rows
from tests.drawing import encoded, picture
from tests.media import damaged, keyframe_packets, moving_shapes_clip, photo, truncated_clip
from tests.service.conftest import Caller, chat, image, serving, video

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
GRAINY = moving_shapes_clip(1, 30, 96, 64, grain=30, options=(("g", "10"),))
FORMS = {
    PixelForm.UINT8: pb.PIXEL_FORM_UINT8,
    PixelForm.BF16: pb.PIXEL_FORM_BF16,
    PixelForm.FP16: pb.PIXEL_FORM_FP16,
    PixelForm.FP32: pb.PIXEL_FORM_FP32,
}


def in_process(model: Model, spec: pb.PrepareSpec) -> Prepared:
    """The same request by the pipeline alone; every medium is inline."""
    return pipeline.prepare(model, read_spec(spec)[0])


def assert_same_tensors(received: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        assert received[name].dtype == array.dtype, name
        np.testing.assert_array_equal(received[name].view(np.uint8), array.view(np.uint8), err_msg=name)


async def test_a_prompt_with_a_video_and_two_images_equals_the_pipeline_s_result(caller: Caller, model: Model) -> None:
    spec = chat(
        "Compare", image("a", PHOTO), "with", video("b", CLIP), "and", image("c", photo(90, 400, "PNG")), "briefly."
    )
    result = await caller.prepare(spec)
    assert_same_tensors(result.tensors, dict(in_process(model, spec).tensors))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.value)
async def test_every_form_of_the_pixels_arrives_bit_for_bit(caller: Caller, model: Model, form: PixelForm) -> None:
    spec = chat(image("a", PHOTO), video("b", CLIP), pixel_form=FORMS[form])
    result = await caller.prepare(spec)
    assert_same_tensors(result.tensors, dict(in_process(model, spec).tensors))


async def test_a_file_in_chunks_gives_the_same_result_as_inline(caller: Caller, model: Model) -> None:
    large = photo(1400, 1000, "BMP")
    assert len(large) > 4 << 20, "the file must need several chunks"
    chunked = await caller.prepare(chat(image("large"), image("small"), "?"), {"large": large, "small": PHOTO})
    inline = await caller.prepare(chat(image("large", photo(1400, 1000, "PNG")), image("small", PHOTO), "?"))
    assert_same_tensors(
        {name: array for name, array in chunked.tensors.items() if name != "item_hash"},
        {name: array for name, array in inline.tensors.items() if name != "item_hash"},
    )


async def test_the_configured_background_applies_to_images_without_their_own(model: Model) -> None:
    clear = encoded(picture("RGBA"), "PNG")
    async with serving(model, background="white") as caller:
        spec = chat(image("a", clear), image("b", clear, background="#102030"), image("c", clear, background="none"))
        result = await caller.prepare(spec)
    spec.media[0].background = "#FFFFFF"
    assert_same_tensors(result.tensors, dict(in_process(model, spec).tensors))
    assert len({digest.tobytes() for digest in result.tensors["item_hash"]}) == 3


async def test_files_may_interleave(caller: Caller) -> None:
    half = len(PHOTO) // 2

    async def messages() -> AsyncIterator[pb.PrepareRequest]:
        yield pb.PrepareRequest(spec=chat(image("a"), image("b")))
        for key in ("a", "b"):
            yield pb.PrepareRequest(chunk=pb.MediaChunk(key=key, data=PHOTO[:half]))
        for key in ("b", "a"):
            yield pb.PrepareRequest(chunk=pb.MediaChunk(key=key, offset_bytes=half, data=PHOTO[half:], last=True))

    header = await anext(aiter(caller.stub.Prepare(messages())))
    assert header.header.items[0].source.content_sha256 == header.header.items[1].source.content_sha256


@pytest.mark.parametrize(
    ("part_seconds", "most_threads"), [(100.0, 1), (0.0, 1), (100.0, 2)], ids=["whole", "in parts", "in threads"]
)
async def test_the_header_comes_first_then_rows_in_order_then_the_report(
    model: Model, monkeypatch: pytest.MonkeyPatch, part_seconds: float, most_threads: int
) -> None:
    """12 MB of rows, of a clip that is worked on as a whole, cut over two workers, or by two threads of one."""
    monkeypatch.setattr("preprocessor.pipeline.division._PART_SECONDS", part_seconds)
    monkeypatch.setattr("preprocessor.workers.pool.MOST_THREADS", most_threads)
    clip = moving_shapes_clip(seconds=4, width=320, height=240, options=(("g", "15"),))
    spec = chat(video("clip", clip, sampling=pb.Sampling(fps=13)))
    async with serving(model) as caller:
        responses = [one async for one in caller.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))]
    kinds = [response.WhichOneof("message") for response in responses]
    assert kinds == ["header", *["rows"] * (len(kinds) - 2), "report"]
    rows = [response.rows for response in responses[1:-1]]
    assert len(rows) >= 6
    assert [one.first_row for one in rows] == list(
        itertools.accumulate((one.row_count for one in rows[:-1]), initial=0)
    )
    assert all(0 < len(one.data) <= MAX_ROWS_BYTES for one in rows)
    expected = in_process(model, spec).tensors["pixel_patches"]
    assert b"".join(one.data for one in rows) == expected.tobytes()


async def test_a_large_tensor_is_sent_in_rows_before_the_pixels(caller: Caller, model: Model) -> None:
    """12 bytes of positions for each token: 1.08 MB."""
    ids = [*[9] * 90_000, model.tokenizer.convert_tokens_to_ids("<|image_pad|>")]
    spec = pb.PrepareSpec(token_ids=pb.TokenIds(ids=ids), media=[image("photo", PHOTO)])
    responses = [one async for one in caller.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))]
    names = [tensor.name for tensor in responses[0].header.tensors]
    sent = [names[response.rows.tensor_index] for response in responses[1:-1]]
    assert list(dict.fromkeys(sent)) == ["mrope_position_ids", "pixel_patches"]
    assert_same_tensors((await caller.prepare(spec)).tensors, in_process(model, spec).tensors)


def test_a_message_of_rows_is_at_most_half_of_grpc_s_default_limit() -> None:
    rows = np.zeros((4000, 1536), np.uint8)
    sizes = [len(message) for message in write_rows(0, rows, 0, len(rows))]
    assert max(sizes) <= (4 << 20) // 2 + 1000
    assert len(sizes) == -(-rows.nbytes // (MAX_ROWS_BYTES // 1536 * 1536)) > 2


async def test_a_rendered_prompt_and_token_ids_give_the_same_result_as_the_chat(caller: Caller, model: Model) -> None:
    media = [video("clip", CLIP), image("photo", PHOTO)]
    text = (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>And <|vision_start|><|image_pad|><|vision_end|>?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = model.tokenizer.backend_tokenizer.encode(text).ids
    by_chat = await caller.prepare(chat(media[0], "And ", media[1], "?"))
    by_text = await caller.prepare(pb.PrepareSpec(text=text, media=media))
    by_ids = await caller.prepare(pb.PrepareSpec(token_ids=pb.TokenIds(ids=ids), media=media))
    assert_same_tensors(by_text.tensors, by_chat.tensors)
    assert_same_tensors(by_ids.tensors, by_chat.tensors)


async def test_a_system_prompt_and_history_are_rendered_in_order(caller: Caller, model: Model) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    spec = pb.PrepareSpec(
        chat=pb.ChatPrompt(messages=[pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in turns])
    )
    ids = (await caller.prepare(spec)).tensors["input_ids"].tolist()
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    assert model.tokenizer.decode(ids) == expected


async def test_the_response_names_the_frames_used(caller: Caller) -> None:
    result = await caller.prepare(chat(video("clip", CLIP, sampling=pb.Sampling(frame_count=5))))
    item = result.header.items[0]
    assert list(item.frame_indices) == [0, 15, 30, 44, 59]
    assert item.times_seconds == pytest.approx([index / 30 for index in item.frame_indices])
    assert item.patches.padded_frame_count == 1
    source = item.source.video
    assert (source.codec, source.frame_count, source.average_fps) == ("h264", 60, 30.0)


async def test_without_pixels_all_other_results_are_the_same(caller: Caller) -> None:
    whole = await caller.prepare(chat(video("clip", CLIP)))
    bare = await caller.prepare(chat(video("clip", CLIP), pixel_form=pb.PIXEL_FORM_NONE))
    pixels = {"pixel_patches", "pixel_mean", "pixel_std"}
    assert_same_tensors(bare.tensors, {name: array for name, array in whole.tensors.items() if name not in pixels})


async def test_counting_tokens_agrees_with_preparing_and_decodes_nothing(caller: Caller) -> None:
    spec = chat(video("clip", CLIP), image("photo", PHOTO))

    async def messages() -> AsyncIterator[pb.CountTokensRequest]:
        yield pb.CountTokensRequest(spec=spec)

    counted = await caller.stub.CountTokens(messages())
    prepared = await caller.prepare(spec)
    assert counted.token_count == prepared.header.token_count
    assert counted.items == prepared.header.items
    assert counted.pixel_bytes == prepared.tensors["pixel_patches"].nbytes


async def test_another_tenant_s_salt_changes_the_digest_and_nothing_else(caller: Caller) -> None:
    one = await caller.prepare(chat(image("photo", PHOTO), cache_salt="one"))
    two = await caller.prepare(chat(image("photo", PHOTO), cache_salt="two"))
    assert (one.tensors.pop("item_hash") != two.tensors.pop("item_hash")).any()
    assert_same_tensors(one.tensors, two.tensors)


async def test_the_model_describes_itself(caller: Caller, model: Model) -> None:
    answer = await caller.stub.GetModel(pb.GetModelRequest())
    assert (answer.name, answer.family, answer.path) == ("qwen3-vl", "qwen3_vl", pb.PREPROCESSING_PATH_FAST)
    assert answer.fingerprint == model.fingerprint
    assert answer.video_markers == pb.VIDEO_MARKERS_KEEP
    assert (answer.image.min_pixel_count, answer.image.max_pixel_count) == (65_536, 16_777_216)
    assert (answer.video.min_pixel_count, answer.video.max_pixel_count) == (4_096, 25_165_824)
    assert answer.placeholders == {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    assert not answer.serves_generate
    assert "ffmpeg" in answer.versions


async def test_frames_can_be_named_by_time_within_a_file(caller: Caller) -> None:
    spec = chat(video("clip", CLIP, sampling=pb.Sampling(times_seconds=pb.FrameTimes(values=[0.0, 0.51, 1.99]))))
    item = (await caller.prepare(spec)).header.items[0]
    assert list(item.frame_indices) == [0, 15, 59]
    assert list(item.prompt_times_seconds) == [0.0, 0.51, 1.99]
    assert item.basis == pb.SAMPLING_BASIS_TIME


async def test_a_time_window_gives_frames_within_it(caller: Caller) -> None:
    sampling = pb.Sampling(fps=10, start_seconds=0.5, end_seconds=1.0)
    item = (await caller.prepare(chat(video("clip", CLIP, sampling=sampling)))).header.items[0]
    assert list(item.frame_indices) == [15, 19, 22, 25, 29]
    assert item.source.video.frame_count == 60


async def test_token_types_are_returned_if_requested(caller: Caller) -> None:
    spec = chat(image("photo", PHOTO), video("clip", CLIP), with_token_types=True)
    result = await caller.prepare(spec)
    types = result.tensors["mm_token_type_ids"]
    for item, offset, length in result.tensors["item_spans"].tolist():
        assert (types[offset : offset + length] == item + 1).all()
    assert (types > 0).sum() == result.tensors["item_spans"][:, 2].sum()


async def test_one_upload_may_be_used_by_two_media(caller: Caller) -> None:
    spec = pb.PrepareSpec(
        text="<|video_pad|><|video_pad|>",
        media=[
            video("whole", sampling=pb.Sampling(frame_count=2)),
            pb.Media(
                key="again", modality=pb.MODALITY_VIDEO, same_file_as="whole", sampling=pb.Sampling(frame_count=4)
            ),
        ],
    )
    items = (await caller.prepare(spec, {"whole": CLIP})).header.items
    assert [len(item.frame_indices) for item in items] == [2, 4]
    assert items[0].source.content_sha256 == items[1].source.content_sha256


async def test_a_prompt_too_long_for_one_message_arrives_completely(caller: Caller, model: Model) -> None:
    spec = pb.PrepareSpec(text="word " * 300_000)
    result = await caller.prepare(spec)
    assert result.tensors["input_ids"].nbytes > 1 << 20
    assert_same_tensors(result.tensors, dict(in_process(model, spec).tensors))


async def test_a_damaged_frame_is_replaced_and_reported_if_requested(caller: Caller) -> None:
    frames = keyframe_packets(GRAINY)[1]
    sampling = pb.Sampling(frame_count=30)
    spoiled = damaged(GRAINY, *range(frames, frames + 5))
    strict = chat(video("clip", spoiled, sampling=sampling))
    error = await caller.refusal(strict)
    assert error.reason == "UNDECODABLE_FRAME"
    tolerant = chat(video("clip", spoiled, sampling=sampling, damage_policy=pb.DAMAGE_POLICY_TOLERANT))
    result = await caller.prepare(tolerant)
    assert result.report.substitutions
    assert all(one.frame_index not in (0, one.used_frame_index) for one in result.report.substitutions)
    assert list(result.header.items[0].frame_indices) == list(range(30)), "no time is shifted"


async def test_a_truncated_file_gives_its_complete_frames_if_requested(caller: Caller) -> None:
    cut = chat(video("clip", truncated_clip(), damage_policy=pb.DAMAGE_POLICY_TOLERANT))
    source = (await caller.prepare(cut)).header.items[0].source.video
    assert source.truncated
    assert 0 < source.frame_count < source.stated_frame_count


async def test_the_other_decoder_gives_the_same_pixels(caller: Caller, model: Model) -> None:
    spec = chat(video("clip", CLIP))
    async with serving(model, video_decoder="opencv") as other:
        ours, theirs = await caller.prepare(spec), await other.prepare(spec)
    sources = [result.header.items[0].source.decoder.partition(" ")[0] for result in (ours, theirs)]
    assert sources == ["FFmpeg", "OpenCV"]
    digests = [result.tensors.pop("item_hash").tobytes() for result in (ours, theirs)]
    assert digests[0] != digests[1]
    assert_same_tensors(theirs.tensors, ours.tensors)
