"""Once-dangerous files, each read in a moment or refused for its reason, in a service that goes on as before."""

from __future__ import annotations

import pytest

from preprocessor.client import CallFailed
from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.media.audio import extract_audio
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz.corpus import DANGERS, MAX_CLIP_FRAMES, SOUND, VIDEO
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import eventually

LIMITS = Limits(max_clip_frames=MAX_CLIP_FRAMES, max_header_bytes=128 << 20, max_file_cpu_seconds=10)
SIGHTS = [name for name, danger in DANGERS.items() if danger.modality != SOUND]
SOUNDS = [name for name, danger in DANGERS.items() if danger.modality == SOUND]


async def test_a_service_survives_them_all(model: Model) -> None:
    """By real workers, whose memory the kernel bounds: one that took a gigabyte for a header would not come through."""
    async with serving(model, limits=LIMITS, memory_budget_bytes=1 << 30, max_cpu_seconds=20.0) as caller:
        outcomes = {name: await outcome(caller, name) for name in SIGHTS}
        await eventually(lambda: caller.server.pool.used_bytes == 0)
        ends = caller.server.metrics.registry.get_sample_value("preprocessor_worker_ends_total", {"reason": "lost"})
    wrong = {name: end for name, end in outcomes.items() if end not in (DANGERS[name].reasons or {"read"})}
    assert wrong == {}
    assert not ends, "a worker died of one"


async def outcome(caller: Caller, name: str) -> str:
    """ "read", or the reason why not."""
    danger = DANGERS[name]
    data = danger.make()
    medium = video("it", sampling=pb.Sampling(frame_count=64)) if danger.modality == VIDEO else image("it")
    try:
        await caller.prepare(chat(medium), {"it": data})
    except CallFailed as failure:
        return failure.reason
    return "read"


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_that_ask_for_much_are_refused(name: str) -> None:
    with pytest.raises(PreprocessorError) as caught:
        extract_audio(DANGERS[name].make(), 16_000, LIMITS)
    assert caught.value.reason in DANGERS[name].reasons
