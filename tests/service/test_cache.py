"""Requests with the same media: their pixels are made once, as callers, operators and engines see it."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from engine_client.testing import FakeEngine
from preprocessor.client import AsyncClient, Cached, CallFailed, Client, Credentials, PrepareResult
from preprocessor.client import chat as chat_of
from preprocessor.client import video as video_of
from preprocessor.client.errors import failure_of
from preprocessor.config import AccessSettings, Limits
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import PATIENCE_SECONDS

CLIP = moving_shapes_clip(seconds=2, width=128, height=96)
PHOTO = photo(96, 64)
MIB = 1 << 20


def items(samples: dict[tuple[str, ...], float]) -> dict[str, float]:
    return {result: samples["preprocessor_cache_items_total", result] for result in ("hit", "joined", "miss")}


async def test_the_next_turn_of_a_chat_gets_the_same_pixels_without_decoding(model: Model) -> None:
    async with serving(model) as caller:
        first = await caller.prepare(chat(video("clip", CLIP), image("photo", PHOTO), "what is this?"))
        before = await caller.samples()
        second = await caller.prepare(chat(video("clip", CLIP), image("photo", PHOTO), "and what is that?"))
        after = await caller.samples()
    np.testing.assert_array_equal(first.tensors["pixel_patches"], second.tensors["pixel_patches"])
    np.testing.assert_array_equal(first.tensors["item_hash"], second.tensors["item_hash"])
    assert (first.report.cached_item_count, second.report.cached_item_count) == (0, 2)
    assert items(before) == {"hit": 0, "joined": 0, "miss": 2}
    assert items(after) == {"hit": 2, "joined": 0, "miss": 2}
    assert "decode" not in {stage.stage for stage in second.report.stages}
    assert after["preprocessor_cache_bytes",] >= first.tensors["pixel_patches"].nbytes
    assert after["preprocessor_cache_saved_seconds_total",] > 0
    assert after["preprocessor_budget_used_bytes",] == 0


async def test_callers_who_ask_at_once_get_what_one_of_them_began(model: Model) -> None:
    async with serving(model, worker_count=1) as caller:
        results = await asyncio.gather(*(caller.prepare(chat(video("clip", CLIP))) for _ in range(8)))
        found = items(await caller.samples())
    assert found["miss"] == 1
    assert found["hit"] + found["joined"] == 7
    for result in results:
        np.testing.assert_array_equal(result.tensors["pixel_patches"], results[0].tensors["pixel_patches"])


async def test_an_engine_gets_cached_pixels(model: Model) -> None:
    engine = FakeEngine(token_ids=(11, 12))
    async with serving(model, engine) as caller:
        for cached_items in (0, 1):
            answer = await caller.generate(chat(video("clip", CLIP), f"turn {cached_items}"))
            assert answer[-1].completion.report.cached_item_count == cached_items


async def test_nothing_is_kept_where_the_share_is_0(model: Model) -> None:
    async with serving(model, cache_share=0.0) as caller:
        for _ in range(2):
            assert (await caller.prepare(chat(video("clip", CLIP)))).report.cached_item_count == 0
        assert items(await caller.samples()) == {"hit": 0, "joined": 0, "miss": 0}


async def test_a_file_is_sent_once_and_named_afterwards(model: Model) -> None:
    large = moving_shapes_clip(seconds=4, width=320, height=240, options=(("crf", "1"),))
    assert len(large) > 1 << 16
    async with serving(model) as caller:

        def call() -> list[PrepareResult]:
            with Client(caller.server.address, Credentials(insecure=True), retry_seconds=0) as client:
                prompts = [chat_of([{"role": "user", "content": [video_of(large), text]}]) for text in ("a", "b")]
                return [client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS) for prompt in prompts]

        first, second = await asyncio.to_thread(call)
        samples = await caller.samples()
    np.testing.assert_array_equal(first.tensors["pixel_patches"], second.tensors["pixel_patches"])
    assert samples["preprocessor_file_cache_files_total", "hit"] == 1
    assert samples["preprocessor_received_bytes_total",] == len(large)


async def test_a_file_that_is_not_there_any_more_is_sent_again(model: Model) -> None:
    large = moving_shapes_clip(seconds=4, width=320, height=240, options=(("crf", "1"),))
    async with serving(model) as caller, AsyncClient(caller.server.address, Credentials(insecure=True)) as client:
        prompt = chat_of([{"role": "user", "content": [video_of(large), "what is this?"]}])
        first = await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
        caller.server.pool.file_cache.clear()
        second = await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
        samples = await caller.samples()
    np.testing.assert_array_equal(first.tensors["pixel_patches"], second.tensors["pixel_patches"])
    assert samples["preprocessor_file_cache_files_total", "miss"] == 1


async def test_a_file_that_is_only_named_is_refused_where_it_is_not_there(caller: Caller) -> None:
    named = pb.Media(key="clip", modality=pb.MODALITY_VIDEO, cached=pb.Cached(), content_sha256=bytes(32))
    refusal = await caller.refusal(chat(named))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MEDIA_NOT_CACHED")
    refusal = await caller.refusal(chat(pb.Media(key="clip", modality=pb.MODALITY_VIDEO, cached=pb.Cached())))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_DIGEST")


async def test_a_named_file_takes_its_memory_once_and_keeps_to_the_limits(model: Model) -> None:
    padding = 9 * MIB
    large = CLIP + padding.to_bytes(4, "big") + b"free" + bytes(padding - 8)
    named: dict[str, Any] = {"cached": pb.Cached(), "content_sha256": hashlib.sha256(large).digest()}
    limits = Limits(max_image_bytes=MIB)
    async with serving(model, limits=limits, memory_budget_bytes=64 * MIB, cache_share=0.7) as caller:
        await caller.prepare(chat(video("clip")), {"clip": large})
        assert len(caller.server.pool.file_cache) == 1
        again = await caller.prepare(chat(pb.Media(key="clip", modality=pb.MODALITY_VIDEO, **named)))
        assert again.report.cached_item_count == 1
        refusal = await caller.refusal(chat(pb.Media(key="photo", modality=pb.MODALITY_IMAGE, **named)))
        assert refusal.reason == "MEDIA_TOO_LARGE"
        # Files that arrive take the place of those that are kept, from the first byte on.
        await caller.refusal(chat(video("clip")), {"clip": bytes(15 * MIB)})
        assert len(caller.server.pool.file_cache) == 0


async def test_files_of_one_caller_are_not_there_for_another(model: Model, tmp_path: Path) -> None:
    async with serving(model, access=AccessSettings(is_insecure=True, caller_metadata="x-caller")) as caller:
        await asked_as(caller, "one")
        named = pb.Media(
            key="clip", modality=pb.MODALITY_VIDEO, cached=pb.Cached(), content_sha256=hashlib.sha256(CLIP).digest()
        )
        request = pb.PrepareRequest(spec=chat(named))
        assert (await caller.send([request], (("x-caller", "one"),)))[-1].report.cached_item_count == 1
        with pytest.raises(grpc.RpcError) as error:
            await caller.send([request], (("x-caller", "other"),))
        assert failure_of(error.value).reason == "MEDIA_NOT_CACHED"


@pytest.mark.parametrize("settings", ["token_file", "caller_metadata"])
async def test_named_callers_have_pixels_of_their_own(model: Model, tmp_path: Path, settings: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one a-token-of-sixteen-characters\nother b-token-of-sixteen-characters\n")
    given = {"token_file": str(tokens)} if settings == "token_file" else {"caller_metadata": "x-caller"}
    access = AccessSettings(is_insecure=True, **given)  # type: ignore[arg-type]
    async with serving(model, access=access) as caller:
        found = [await asked_as(caller, name) for name in ("one", "other", "one", "other")]
    assert found == [0, 0, 1, 1]


async def asked_as(caller: Caller, name: str) -> int:
    """How many items were cached for that caller."""
    token = {"one": "a", "other": "b"}[name] + "-token-of-sixteen-characters"
    spec = chat(video("clip", CLIP))
    responses = await caller.send(
        [pb.PrepareRequest(spec=spec)], (("authorization", f"Bearer {token}"), ("x-caller", name))
    )
    return responses[-1].report.cached_item_count


# -- a caller's own names ----------------------------------------------------------------------------------------------


def named(uuid: str, **fields: Any) -> pb.Media:
    """The medium of a file that was sent under that name."""
    return pb.Media(key="clip", modality=pb.MODALITY_VIDEO, cached=pb.Cached(), uuid=uuid, **fields)


async def test_a_file_is_found_by_the_name_that_its_caller_gave_it(model: Model) -> None:
    async with serving(model) as caller:
        first = await caller.prepare(chat(video("clip", CLIP, uuid="my clip")))
        second = await caller.prepare(chat(named("my clip"), "and now?"))
        samples = await caller.samples()
    np.testing.assert_array_equal(first.tensors["pixel_patches"], second.tensors["pixel_patches"])
    assert second.header.items[0].source.content_sha256 == hashlib.sha256(CLIP).digest()
    assert (second.report.cached_item_count, second.report.received_bytes) == (1, 0)
    assert samples["preprocessor_plan_cache_items_total", "hit"] == 1
    assert samples["preprocessor_plan_cache_items_total", "miss"] == 1
    assert samples["preprocessor_plan_cache_bytes",] > 0


async def test_a_name_means_the_bytes_that_came_last(model: Model) -> None:
    other = moving_shapes_clip(seconds=2, width=96, height=128)
    async with serving(model) as caller:
        for data in (CLIP, other):
            sent = await caller.prepare(chat(video("clip", data, uuid="my clip")))
            found = await caller.prepare(chat(named("my clip")))
            np.testing.assert_array_equal(sent.tensors["pixel_patches"], found.tensors["pixel_patches"])
        by_digest = await caller.prepare(chat(named("my clip", content_sha256=hashlib.sha256(CLIP).digest())))
        assert by_digest.header.items[0].source.video.width_px == 128
        again = await caller.prepare(chat(named("my clip")))
        assert again.header.items[0].source.video.width_px == 128  # a digest and a name together give the name anew


async def test_a_name_that_is_not_known_is_refused(model: Model) -> None:
    async with serving(model) as caller:
        await caller.prepare(chat(video("clip", CLIP, uuid="my clip"), cache_salt="salt"))
        for spec in (chat(named("another"), cache_salt="salt"), chat(named("my clip")), chat(named("my clip"))):
            refusal = await caller.refusal(spec)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MEDIA_NOT_CACHED")
        assert (await caller.prepare(chat(named("my clip"), cache_salt="salt"))).report.cached_item_count == 1


async def test_names_of_one_caller_mean_nothing_from_another(model: Model) -> None:
    async with serving(model, access=AccessSettings(is_insecure=True, caller_metadata="x-caller")) as caller:
        sent = pb.PrepareRequest(spec=chat(video("clip", CLIP, uuid="my clip")))
        await caller.send([sent], (("x-caller", "one"),))
        request = pb.PrepareRequest(spec=chat(named("my clip")))
        assert (await caller.send([request], (("x-caller", "one"),)))[-1].report.cached_item_count == 1
        with pytest.raises(grpc.RpcError) as error:
            await caller.send([request], (("x-caller", "other"),))
        assert failure_of(error.value).reason == "MEDIA_NOT_CACHED"


@pytest.mark.parametrize("uuid", ["", "x" * 129, "ä" * 65])
async def test_a_name_has_1_to_128_bytes(caller: Caller, uuid: str) -> None:
    refusal = await caller.refusal(chat(video("clip", CLIP, uuid=uuid)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_UUID")
    assert refusal.fields == ("media[0].uuid",)


async def test_no_name_is_remembered_where_the_share_is_0(model: Model) -> None:
    async with serving(model, cache_share=0.0) as caller:
        await caller.prepare(chat(video("clip", CLIP, uuid="my clip")))
        assert (await caller.refusal(chat(named("my clip")))).reason == "MEDIA_NOT_CACHED"
        assert (await caller.samples())["preprocessor_plan_cache_items_total", "miss"] == 0


# -- the client --------------------------------------------------------------------------------------------------------


async def test_a_client_names_files_by_uuid_and_digest(model: Model) -> None:
    async with serving(model) as caller, AsyncClient(caller.server.address, Credentials(insecure=True)) as client:
        for source in (CLIP, Cached(uuid="my clip"), Cached(content_sha256=hashlib.sha256(CLIP).digest())):
            uuid = "my clip" if isinstance(source, bytes) else ""
            prompt = chat_of([{"role": "user", "content": [video_of(source, uuid=uuid), "what is this?"]}])
            result = await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
            assert result.header.items[0].source.content_sha256 == hashlib.sha256(CLIP).digest()
        with pytest.raises(CallFailed, match="MEDIA_NOT_CACHED"):
            await client.prepare(chat_of([{"role": "user", "content": [video_of(Cached(uuid="another"))]}]))


async def test_a_digest_that_a_caller_states_wrongly_is_refused_each_time(model: Model) -> None:
    large = moving_shapes_clip(seconds=4, width=320, height=240, options=(("crf", "1"),))
    async with serving(model) as caller, AsyncClient(caller.server.address, Credentials(insecure=True)) as client:
        prompt = chat_of([{"role": "user", "content": [video_of(large), "what is this?"]}])
        await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
        prompt.spec.media[0].content_sha256 = bytes(32)
        for _ in range(2):
            with pytest.raises(CallFailed, match="DIGEST_MISMATCH"):
                await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)


async def test_a_file_that_is_sent_again_has_what_is_left_of_the_deadline(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = moving_shapes_clip(seconds=4, width=320, height=240, options=(("crf", "1"),))
    async with serving(model) as caller, AsyncClient(caller.server.address, Credentials(insecure=True)) as client:
        prompt = chat_of([{"role": "user", "content": [video_of(large), "what is this?"]}])
        await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
        caller.server.pool.file_cache.clear()
        prepare, timeouts = client._stub.Prepare, []

        def watched(requests: Any, *, timeout: float, metadata: Any) -> Any:
            timeouts.append(timeout)
            return prepare(requests, timeout=timeout, metadata=metadata)

        monkeypatch.setattr(client._stub, "Prepare", watched)
        await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)
    named_within, sent_within = timeouts
    assert sent_within < named_within <= PATIENCE_SECONDS
