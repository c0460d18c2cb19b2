"""A clip with a known content, and what the demo's model says of it through a service, whatever the engine behind it.

No digest and no other implementation gives the expected values: the clip was drawn from them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from deploy.demo_model.story import CLIP_RATE, COLORS, Event, Story, draw_all, make_clip, pixel_budget
from preprocessor.client import AsyncClient, Medium, chat, video
from preprocessor.media.spreads import spread_evenly
from tests.service.conftest import Caller
from tests.waiting import PATIENCE_SECONDS

WHAT = "What happens?"
WHEN_FIRST, WHEN_LAST = "When does the first shape appear?", "When does the last shape appear?"


def _event(color: str, shape: str, direction: str, start_seconds: int) -> Event:
    return Event(color, shape, direction, start_seconds, lane=0.45, reach=0.28, radius=0.15, rgb=COLORS[color])


STORY = Story(
    (_event("red", "circle", "right", 1), _event("blue", "square", "down", 4)),
    seconds=6,
    shades=((40, 40, 40), (60, 60, 60), (50, 50, 50), (30, 30, 30)),
)
SAID = "A red circle moves right, then a blue square moves down."
BACKWARDS = "A blue square moves up, then a red circle moves left."
SWAPPED = "A blue circle moves right, then a red square moves down."


@cache
def pictures() -> list[npt.NDArray[np.uint8]]:
    """Of `STORY`: RGB, uint8 [288, 288, 3], 30 a second."""
    return draw_all(STORY)


@cache
def forwards() -> bytes:
    return make_clip(pictures())


@cache
def backwards() -> bytes:
    return make_clip(pictures()[::-1])


@cache
def swapped() -> bytes:
    """With red and blue exchanged in every picture."""
    return make_clip([picture[..., ::-1].copy() for picture in pictures()])


def seen(clip: bytes, *, fps: int = 2, seconds: int = STORY.seconds, **sampling: float) -> Medium:
    """The clip in the size that the model knows.

    Args:
        seconds: That are sampled.
        sampling: More of `client.video`.
    """
    return video(clip, fps=fps, max_pixels=pixel_budget(seconds, fps), **sampling)  # type: ignore[arg-type]


def listed(first_seconds: float) -> Medium:
    """The pictures that the service samples of the clip, said to be shown so much later."""
    indices = spread_evenly(len(pictures()), 2 * STORY.seconds)
    chosen = [pictures()[index] for index in indices.tolist()]
    times = (first_seconds + indices / CLIP_RATE).tolist()
    return video(frames=chosen, times_seconds=times, max_pixels=pixel_budget(STORY.seconds))


async def told(caller: Caller, medium: Medium, question: str, salt: str = "") -> str:
    """The answer, greedy."""
    prompt = chat([{"role": "user", "content": [medium, question]}], cache_salt=salt)
    async with (
        AsyncClient(caller.server.address, retry_seconds=PATIENCE_SECONDS) as client,
        client.generate(prompt, max_tokens=48) as reply,
    ):
        await reply.read()
    return reply.text
