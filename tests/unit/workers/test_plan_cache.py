"""Requests with files that were planned before: their plans equal those made anew, and what could change one is in its key."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.family import Model
from preprocessor.models.versions import library_versions
from preprocessor.text.encoded_text import EncodedText
from preprocessor.types.plan import Plan
from preprocessor.types.request import (
    ChatPrompt,
    FrameList,
    Media,
    MediaPart,
    Message,
    Modality,
    OnDamage,
    PixelForm,
    PreparationRequest,
    Sampling,
    SamplingBasis,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from preprocessor.types.timing import Timings
from preprocessor.workers import plan_cache
from preprocessor.workers.claims import Violation, check_plan
from preprocessor.workers.known_uuids import KnownUuids
from preprocessor.workers.plan_cache import PlanCache, plan_key
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.media import moving_shapes_clip, photo
from tests.unit.workers.conftest import MIB, open_pool
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = Media("clip", Modality.VIDEO, moving_shapes_clip(seconds=4, width=128, height=96), sampling=Sampling(fps=2))
PHOTO = Media("photo", Modality.IMAGE, photo(96, 64))
KEY = bytes(32)


@pytest_asyncio.fixture
async def pool(model: Model) -> AsyncIterator[WorkerPool]:
    async with open_pool(model=model, cache_bytes=64 * MIB) as one:
        yield one
        await eventually(lambda: not one.used_bytes)


def chat(*media: Media, text: str = "What is this?", **options: Any) -> PreparationRequest:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart(text))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, **options)


async def ask(pool: WorkerPool, request: PreparationRequest, scope: str = "") -> tuple[Plan, dict[str, Any]]:
    """The plan, and all tensors, of a request whose files come anew."""
    async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings(), scope) as resources:
        media = []
        for medium in request.media:
            buffer = UploadBuffer(resources)
            await buffer.write(medium.data)
            media.append(dataclasses.replace(medium, data=await buffer.finish()))
        return await _finished(resources, dataclasses.replace(request, media=tuple(media)))


async def _finished(resources: RequestResources, request: PreparationRequest) -> tuple[Plan, dict[str, Any]]:
    plan = await resources.plan(request, Limits())
    resources.keep_files(request)
    tensors = {name: array.copy() for name, array in plan.tensors.items()}
    if plan.pixels is not None:
        run = resources.pixels(request.media, plan.pixels)
        array = await run.begun()
        await run.report()
        tensors[plan.pixels.name] = array.copy()
    return plan, tensors


def assert_equal(model: Model, request: PreparationRequest, plan: Plan, tensors: Mapping[str, Any]) -> None:
    """The answer is that of `pipeline.prepare`, down to the last byte and field."""
    right = pipeline.prepare(model, request)
    assert list(tensors) == list(right.tensors)
    for name, array in right.tensors.items():
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        assert array.tobytes() == tensors[name].tobytes(), name
    assert [_values(item) for item in plan.items] == [_values(item) for item in right.plan.items]


def _values(value: Any) -> Any:
    """A data class as something that compares by value, arrays included."""
    if dataclasses.is_dataclass(value):
        return [(field.name, _values(getattr(value, field.name))) for field in dataclasses.fields(value)]
    return value.tolist() if isinstance(value, np.ndarray) else value


def prompts(model: Model) -> dict[str, PreparationRequest]:
    placeholders = model.placeholders
    before, after = model.vision_markers
    text = f"{before}{placeholders.tokens[Modality.IMAGE]}{after} beside {before}{placeholders.tokens[Modality.VIDEO]}{after}"
    ids = tuple(model.tokenizer.backend_tokenizer.encode(text).ids)
    return {
        "an image": chat(PHOTO),
        "a video": chat(CLIP),
        "both, and one of them twice": chat(CLIP, PHOTO, dataclasses.replace(PHOTO, key="again")),
        "text": PreparationRequest(TextPrompt(text), (PHOTO, CLIP), with_token_types=True),
        "token ids": PreparationRequest(TokenPrompt(ids), (PHOTO, CLIP)),
    }


@pytest.mark.parametrize("form", [None, *PixelForm])
@pytest.mark.parametrize("name", ["an image", "a video", "both, and one of them twice", "text", "token ids"])
async def test_a_later_turn_equals_the_first(pool: WorkerPool, model: Model, name: str, form: PixelForm | None) -> None:
    request = dataclasses.replace(prompts(model)[name], pixel_form=form)
    assert_equal(model, request, *await ask(pool, request))
    misses = pool.plan_cache.miss_count
    assert (pool.plan_cache.hit_count, misses) == (0, len(request.media))
    assert_equal(model, request, *await ask(pool, request))
    assert (pool.plan_cache.hit_count, pool.plan_cache.miss_count) == (len(request.media), misses)


async def test_known_items_stand_beside_new_ones_under_other_keys_and_in_another_order(
    pool: WorkerPool, model: Model
) -> None:
    await ask(pool, chat(PHOTO, CLIP))
    renamed = [dataclasses.replace(CLIP, key="film"), dataclasses.replace(PHOTO, key="still")]
    other = Media("other", Modality.IMAGE, photo(64, 96))
    request = chat(renamed[0], other, renamed[1], text="And now?")
    assert_equal(model, request, *await ask(pool, request))
    assert pool.plan_cache.hit_count == 2


async def test_nothing_is_read_of_a_file_whose_plan_and_pixels_are_known(pool: WorkerPool, model: Model) -> None:
    request = chat(CLIP, PHOTO)
    _, first = await ask(pool, request)
    async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as resources:
        media = []
        for item in pipeline.plan(model, request, Limits()).items:
            view = resources.cached_file(item.content_sha256)
            assert view is not None
            pool.arena.write(pool.arena.offset_of(view), bytes(len(view)))  # nobody could plan or decode that
            given = next(medium for medium in request.media if medium.key == item.key)
            media.append(dataclasses.replace(given, data=view))
        plan, second = await _finished(resources, dataclasses.replace(request, media=tuple(media)))
    assert_equal(model, request, plan, second)
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in second.items()
    }


async def test_requests_that_wait_for_a_worker_know_what_those_before_them_found_out(
    pool: WorkerPool, model: Model
) -> None:
    answers = await asyncio.gather(*(ask(pool, chat(CLIP)) for _ in range(8)))
    assert (pool.plan_cache.miss_count, pool.plan_cache.hit_count) == (1, 7)
    for answer in answers:
        assert_equal(model, chat(CLIP), *answer)


async def test_a_digest_that_the_caller_states_wrongly_is_refused_though_the_file_is_known(pool: WorkerPool) -> None:
    await ask(pool, chat(PHOTO))
    with pytest.raises(InvalidRequest) as caught:
        await ask(pool, chat(dataclasses.replace(PHOTO, content_sha256=bytes(32))))
    assert caught.value.reason == "DIGEST_MISMATCH"


async def test_scopes_do_not_share(pool: WorkerPool) -> None:
    for scope in ("one", "other", "one"):
        await ask(pool, chat(PHOTO), scope)
    assert (pool.plan_cache.hit_count, pool.plan_cache.miss_count) == (1, 2)


# -- the text of a chat ------------------------------------------------------------------------------------------------

LONG = "some words about it, 12 of them; " * 100


def turns(count: int, first: str = LONG, **options: Any) -> PreparationRequest:
    """A chat about a clip with so many turns of the user, long ones."""
    messages = [Message("user", (MediaPart("clip"), TextPart(first)))]
    for number in range(1, count):
        messages.append(Message("assistant", (TextPart(f"Answer {number}."),)))
        messages.append(Message("user", (TextPart(f"{number}: {LONG}"),)))
    return PreparationRequest(ChatPrompt(tuple(messages)), (CLIP,), **options)


async def reused(pool: WorkerPool, model: Model, request: PreparationRequest, scope: str = "") -> int:
    """How many token ids of a right answer were known."""
    before = pool.plan_cache.reused_token_count
    assert_equal(model, request, *await ask(pool, request, scope))
    return pool.plan_cache.reused_token_count - before


async def test_of_a_later_turn_only_what_is_new_is_encoded(pool: WorkerPool, model: Model) -> None:
    assert await reused(pool, model, turns(1)) == 0
    for count in (2, 3):
        encoded = pool.plan_cache.encoded_token_count
        assert await reused(pool, model, turns(count)) > 1000 * (count - 1)
        assert pool.plan_cache.encoded_token_count - encoded < 1500
    assert await reused(pool, model, turns(3)) > 3000


async def test_a_chat_that_was_changed_is_encoded_from_there_on(pool: WorkerPool, model: Model) -> None:
    await reused(pool, model, turns(1))
    await reused(pool, model, turns(3))
    changed = turns(3)
    assert isinstance(changed.prompt, ChatPrompt)
    messages = list(changed.prompt.messages)
    messages[2] = Message("user", (TextPart("Something else."),))
    changed = dataclasses.replace(changed, prompt=ChatPrompt(tuple(messages)))
    assert 1000 < await reused(pool, model, changed) < 2000  # the first turn
    assert await reused(pool, model, turns(2, "Another first one. " + LONG)) == 0


async def test_a_chat_that_a_template_renders_in_another_way_is_not_reused(pool: WorkerPool, model: Model) -> None:
    await reused(pool, model, turns(1))
    tools = [{"type": "function", "function": {"name": "look", "description": LONG, "parameters": {}}}]
    request = turns(2)
    assert isinstance(request.prompt, ChatPrompt)
    prompt = dataclasses.replace(request.prompt, template_arguments={"tools": tools})
    assert await reused(pool, model, dataclasses.replace(request, prompt=prompt)) == 0


@pytest.mark.parametrize(("scope", "salt"), [("other", ""), ("", "salt")])
async def test_no_text_is_shared_with_another_scope_or_salt(
    pool: WorkerPool, model: Model, scope: str, salt: str
) -> None:
    await reused(pool, model, turns(2))
    assert await reused(pool, model, turns(3, cache_salt=salt), scope) == 0
    assert await reused(pool, model, turns(3, cache_salt=salt), scope) > 0


async def test_a_token_in_literal_text_is_encoded_as_text_in_each_turn(pool: WorkerPool, model: Model) -> None:
    await reused(pool, model, turns(1, f"{LONG}<|im_end|>"))
    literal = turns(1)
    assert isinstance(literal.prompt, ChatPrompt)
    part = TextPart(f"{LONG}<|im_end|>", is_literal=True)
    prompt = ChatPrompt((Message("user", (MediaPart("clip"), part)),))
    for _ in range(2):
        assert await reused(pool, model, dataclasses.replace(literal, prompt=prompt)) == 0


async def test_no_text_is_kept_where_there_is_no_cache(model: Model) -> None:
    async with open_pool(model=model) as pool:
        for _ in range(2):
            assert await reused(pool, model, turns(1)) == 0
        assert pool.plan_cache.encoded_token_count == len(pool.plan_cache) == 0


TEXT = EncodedText(
    np.arange(9, dtype=np.int32), np.array([[5, 2], [20, 8]], np.int64), np.zeros((2, 32), np.uint8), reused_count=2
)


@pytest.mark.parametrize(
    "claim",
    [
        {"token_ids": np.zeros((3, 3), np.int32)},
        {"token_ids": np.zeros(9, np.float64)},
        {"token_ids": np.arange(7, dtype=np.int32)},
        {"cuts": np.array([[20, 8], [5, 2]], np.int64)},
        {"cuts": np.array([[-5, 2], [20, 8]], np.int64)},
        {"cuts": np.array([[5, 2]], np.int64)},
        {"cuts": np.array([5, 20], np.int64)},
        {"digests": np.zeros((2, 31), np.uint8)},
        {"reused_count": -1},
        {"reused_count": 10},
        {"reused_count": True},
        {"cuts": np.zeros((99, 2), np.int64), "digests": np.zeros((99, 32), np.uint8)},
    ],
    ids=repr,
)
def test_a_text_that_a_worker_made_up_is_refused(model: Model, claim: Mapping[str, Any]) -> None:
    plan = pipeline.plan(model, chat(PHOTO), Limits())
    check_plan((plan, {}, TEXT), chat(PHOTO), Limits())
    with pytest.raises(Violation):
        check_plan((plan, {}, dataclasses.replace(TEXT, **claim)), chat(PHOTO), Limits())


async def test_answers_are_right_while_plans_are_dropped(model: Model) -> None:
    photos = [Media("photo", Modality.IMAGE, photo(64 + 16 * number, 64)) for number in range(4)]
    async with open_pool(model=model, cache_bytes=64 * MIB) as pool:
        pool.plan_cache = PlanCache(4 << 10)
        for _ in range(3):
            for one in photos:
                assert_equal(model, chat(one), *await ask(pool, chat(one)))
        assert pool.plan_cache.eviction_count > 0
        assert pool.plan_cache.size_bytes <= 4 << 10


async def test_a_killed_worker_costs_nobody_his_plan(model: Model) -> None:
    """The text makes planning take a while, so that a worker is killed in it sooner or later."""
    request = chat(CLIP, text="some words " * 5000)
    async with open_pool(model=model, cache_bytes=64 * MIB) as pool:
        await ask(pool, request)
        for _ in range(20):
            answer = asyncio.create_task(ask(pool, request))
            await eventually(lambda answer=answer: bool(pool.running_count) or answer.done())  # type: ignore[misc]
            for task in list(pool._running):
                assert task._worker is not None
                task._worker.kill()
            assert_equal(model, request, *await answer)
            if "lost" in pool.ends:
                break
        assert "lost" in pool.ends
        assert pool.plan_cache.miss_count == 1


async def test_nothing_is_kept_where_there_is_no_cache(model: Model) -> None:
    async with open_pool(model=model) as pool:
        for _ in range(2):
            assert_equal(model, chat(PHOTO), *await ask(pool, chat(PHOTO)))
        assert (len(pool.plan_cache), pool.plan_cache.hit_count, pool.plan_cache.miss_count) == (0, 0, 0)


# -- what is in a key --------------------------------------------------------------------------------------------------

MEDIA: Mapping[str, Any] = {  # field → another value
    "frames": FrameList((1,), fps=5.0),
    "modality": Modality.IMAGE,
    "sampling": Sampling(fps=3),
    "min_pixels": 1000,
    "max_pixels": 100_000,
    "cap_pixels_per_frame": True,
    "on_damage": OnDamage.REPEAT,
    "background": "#ffffff",
}
NOT_IN_MEDIA: Mapping[str, Any] = {  # the content is in the key by its digest
    "key": "another",
    "data": b"another",
    "content_sha256": bytes(32),
    "file_sha256": bytes(32),
    "uuid": "a name",
}
SAMPLING: Mapping[str, Any] = {
    "fps": 3.0,
    "frame_count": 3,
    "indices": (1, 2),
    "times_seconds": (0.5,),
    "every_frame": True,
    "start_seconds": 0.5,
    "end_seconds": 0.5,
    "basis": SamplingBasis.TIME,
}
REQUEST: Mapping[str, Any] = {
    "pixel_form": PixelForm.BF16,
    "cache_salt": "salt",
    "video_decoder": "opencv",
    "processor_arguments": {"do_pan_and_scan": True},
}
NOT_IN_REQUEST: Mapping[str, Any] = {"prompt": TextPrompt("?"), "media": (), "with_token_types": True}


def key_of(
    medium: Media = CLIP,
    request: PreparationRequest | None = None,
    *,
    scope: str = "",
    fingerprint: str = "model",
    content: bytes = KEY,
    limits: Limits | None = None,
) -> bytes:
    return plan_key(scope, fingerprint, request or chat(medium), medium, content, limits or Limits())


def fields_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@dataclasses.dataclass(frozen=True, slots=True)
class LaterMedia(Media):
    """With a field that somebody might add."""

    hidden: str = dataclasses.field(default="", repr=False)


def test_of_every_field_it_is_said_whether_a_plan_could_depend_on_it() -> None:
    assert fields_of(Media) == MEDIA.keys() | NOT_IN_MEDIA.keys()
    assert fields_of(Sampling) == SAMPLING.keys()
    assert fields_of(PreparationRequest) == REQUEST.keys() | NOT_IN_REQUEST.keys()


@pytest.mark.parametrize("name", MEDIA)
def test_another_setting_of_a_medium_is_another_key(name: str) -> None:
    assert key_of(dataclasses.replace(CLIP, **{name: MEDIA[name]})) != key_of()


@pytest.mark.parametrize("name", SAMPLING)
def test_another_sampling_is_another_key(name: str) -> None:
    sampling = dataclasses.replace(CLIP.sampling, **{name: SAMPLING[name]})
    assert key_of(dataclasses.replace(CLIP, sampling=sampling)) != key_of()


@pytest.mark.parametrize("name", REQUEST)
def test_another_setting_of_a_request_is_another_key(name: str) -> None:
    assert key_of(request=chat(CLIP, **{name: REQUEST[name]})) != key_of()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_another_limit_is_another_key(name: str) -> None:
    assert key_of(limits=dataclasses.replace(Limits(), **{name: getattr(Limits(), name) * 2})) != key_of()


@pytest.mark.parametrize("other", [{"scope": "x"}, {"fingerprint": "x"}, {"content": bytes(31) + b"x"}])
def test_another_caller_model_or_file_is_another_key(other: Mapping[str, Any]) -> None:
    assert key_of(**other) != key_of()


def test_another_release_or_library_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of()}
    with monkeypatch.context() as patch:
        patch.setattr(plan_cache, "__version__", "another")
        keys.add(key_of())
    for library, version in library_versions().items():
        versions = {**library_versions(), library: f"{version}.1"}
        with monkeypatch.context() as patch:
            patch.setattr(plan_cache, "library_versions", lambda versions=versions: versions)
            keys.add(key_of())
    assert len(keys) == 2 + len(library_versions())


def test_what_no_plan_depends_on_is_not_in_it() -> None:
    assert key_of(dataclasses.replace(CLIP, **NOT_IN_MEDIA)) == key_of()
    assert key_of(request=dataclasses.replace(chat(CLIP), **NOT_IN_REQUEST)) == key_of()


def test_a_field_that_no_repr_shows_is_in_it() -> None:
    one, other = (LaterMedia("clip", Modality.VIDEO, b"", hidden=hidden) for hidden in ("a", "b"))
    assert key_of(one) != key_of(other)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_plan_goes_first() -> None:
    cache = PlanCache(4000)
    for key in (b"a", b"b", b"c"):
        cache.add(key, bytes(500))
    assert cache.find(b"a") == bytes(500)
    cache.add(b"d", bytes(500))
    assert [cache.find(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert (len(cache), cache.eviction_count) == (3, 1)
    assert 1500 < cache.size_bytes <= 4000


def test_a_plan_that_is_too_large_is_not_kept() -> None:
    cache = PlanCache(4000)
    cache.add(b"a", bytes(500))
    cache.add(b"b", bytes(4000))
    assert (cache.find(b"a"), cache.find(b"b")) == (bytes(500), None)


def test_a_uuid_means_the_file_that_came_last_within_its_scope_and_salt() -> None:
    uuids = KnownUuids(is_on=True)
    uuids.add("one", "salt", "name", b"first")
    uuids.add("one", "salt", "name", b"second")
    assert uuids.find("one", "salt", "name") == b"second"
    for other in (("other", "salt", "name"), ("one", "", "name"), ("one", "salt", "another"), ("onesalt", "", "name")):
        assert uuids.find(*other) is None
    off = KnownUuids(is_on=False)
    off.add("one", "salt", "name", b"first")
    assert off.find("one", "salt", "name") is None


def test_uuids_are_bounded_in_number() -> None:
    uuids = KnownUuids(is_on=True)
    for number in range((1 << 14) + 10):
        uuids.add("", "", str(number), b"digest")
    assert len(uuids) == 1 << 14
    assert (uuids.find("", "", "9"), uuids.find("", "", "10")) == (None, b"digest")
