"""Prompts for a real vLLM, what transformers answers to them, and a client's call as the tests make it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engine_client import EngineClient, EngineMismatch, EngineRequest, EngineUnavailable, SamplingParameters
from engine_client.contract.tensors import Array
from engine_client.types import FinishReason
from preprocessor import pipeline
from preprocessor.client import AsyncClient
from preprocessor.client import chat as client_chat
from preprocessor.client import image as client_image
from preprocessor.client import video as client_video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import chat, serving

_Answer = TypeVar("_Answer")

CLIP, PHOTO = moving_shapes_clip(seconds=3, width=160, height=120), photo()
TOKEN_COUNT = 8
QUESTION = "What is this?"
PATIENCE_SECONDS = 600.0
"""For what takes a second where nothing else runs: a busy machine may need minutes."""


def tensors_of(model: Model, media: tuple[Media, ...], text: str = QUESTION) -> dict[str, Array]:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart(text))
    return dict(pipeline.prepare(model, PreparationRequest(ChatPrompt((Message("user", parts),)), media)).tensors)


def clip(key: str = "clip", fps: float = 2.0) -> Media:
    return Media(key, Modality.VIDEO, CLIP, Sampling(fps=fps))


def picture(key: str = "photo") -> Media:
    return Media(key, Modality.IMAGE, PHOTO)


KINDS: Mapping[str, tuple[Media, ...]] = {
    "text": (),
    "image": (picture(),),
    "video": (clip(),),
    "two images": (picture("a"), picture("b")),
    "video and image": (clip(), picture()),
    "image, video, image, video": (picture("a"), clip("b"), picture("c"), clip("d", fps=1)),
}


async def answer(
    engine: EngineClient,
    tensors: Mapping[str, Array],
    max_tokens: int = TOKEN_COUNT,
    *,
    on_tokens: Callable[[Sequence[int]], object] = lambda token_ids: None,
    **sampling: Any,
) -> tuple[list[int], FinishReason | None]:
    """The whole answer, and why it ended; `on_tokens` gets the tokens of each step when they come."""
    request = EngineRequest(f"test-{random.getrandbits(64):x}", tensors, SamplingParameters(max_tokens, **sampling))
    token_ids: list[int] = []
    reason = None
    async with aclosing(engine.generate(request, timeout_seconds=PATIENCE_SECONDS)) as steps:
        async for step in steps:
            token_ids += step.token_ids
            on_tokens(step.token_ids)
            reason = step.finish_reason
    return token_ids, reason


async def tokens_through_service(model: Model, settings: EngineSettings) -> list[int]:
    """The answer to KINDS' "video and image", by a service in front of that engine and the client library."""
    async with serving(model, engine_settings=settings) as caller, AsyncClient(caller.server.address) as client:
        content = [client_video(CLIP, fps=2), client_image(PHOTO), QUESTION]
        prompt = client_chat([{"role": "user", "content": content}])
        async with client.generate(prompt, max_tokens=TOKEN_COUNT) as reply:
            await reply.read()
    return list(reply.token_ids)


async def once_connected(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Ask a server that was started anew until the client is connected to it.

    The old connection may be found broken only by a first question, and gRPC pauses between its attempts.

    Raises:
        EngineMismatch: It is one that does not fit.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await ask()
            except EngineMismatch:
                raise
            except EngineUnavailable:
                await asyncio.sleep(0.2)


async def until_ready(engine: EngineClient) -> None:
    """Wait until a server that was started anew is connected.

    Raises:
        EngineMismatch: It is one that does not fit.
    """
    await once_connected(engine.check_ready)


SMALL_AND_LARGE: Mapping[str, tuple[Media, ...]] = {
    **{name: KINDS[name] for name in ("text", "image", "video")},
    "large": (Media("clip", Modality.VIDEO, moving_shapes_clip(), Sampling(fps=2)),),  # 26 MB of pixels
}
"""For a server with little shared memory."""


def spec_of(media: tuple[Media, ...]) -> pb.PrepareSpec:
    """The prompt of `tensors_of`, as a caller of the service asks for it."""
    parts = [
        pb.Media(
            key=medium.key,
            modality=pb.MODALITY_VIDEO if medium.modality is Modality.VIDEO else pb.MODALITY_IMAGE,
            inline_data=bytes(medium.data),
            sampling=pb.Sampling(fps=medium.sampling.fps) if medium.sampling.fps else None,
        )
        for medium in media
    ]
    return chat(*parts, QUESTION)


def ask_transformers(
    checkpoint: Path, model: Model, folder: Path, kinds: Mapping[str, tuple[Media, ...]] = KINDS
) -> dict[str, list[int]]:
    """What transformers itself answers to prompts of each kind, in float32, from the same tensors.

    Args:
        folder: Where the prompts are written.
    """
    for name, media in kinds.items():
        np.savez(folder / f"{name}.npz", **dict[str, Any](tensors_of(model, media)))
    answers: dict[str, list[int]] = _told_by("saved_answers.py", checkpoint, folder)
    return answers


def ask_transformers_to_sample(checkpoint: Path, model: Model, folder: Path) -> dict[str, Any]:
    """What transformers itself answers to a prompt of text, under penalties too, and how likely it finds each token.

    Args:
        folder: Where the prompt is written.
    """
    prompt = folder / "text.npz"
    np.savez(prompt, **dict[str, Any](tensors_of(model, ())))
    told: dict[str, Any] = _told_by("direct_sampling.py", checkpoint, prompt)
    return told


def _told_by(script: str, checkpoint: Path, prompts: Path) -> Any:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), str(checkpoint), str(prompts), str(TOKEN_COUNT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def broken(tensors: Mapping[str, Array], chance: random.Random) -> dict[str, Array]:
    """The tensors with one thing changed."""
    made = {name: array.copy() for name, array in tensors.items()}
    name = chance.choice(sorted(made))
    array = made[name]
    match chance.randrange(6):
        case 0:
            del made[name]
        case 1:
            made[name] = array[: len(array) // 2]
        case 2 if array.size and array.dtype != np.uint8:
            array.reshape(-1)[chance.randrange(array.size)] = chance.choice([-1, 0, 1, 7, 151655, 151656, 2**31 - 1])
        case 3 if array.size and array.dtype != np.uint8:
            array.reshape(-1)[chance.randrange(array.size)] += chance.choice([-1, 1])
        case 4:
            made[name] = np.concatenate([array, array])
        case _:
            made["input_ids"] = made["input_ids"][chance.randrange(4) :] if "input_ids" in made else array
    made.setdefault("input_ids", np.array([1], np.int32))
    return made
