"""The workload's request to `Generate`, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from preprocessor.client.requests import Parameters, Prompt, generate_requests
from preprocessor.traffic.seed import TEXT
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.device.clips import SEED, clip

TIMEOUT_SECONDS = 120.0


def question(
    fps: float, max_tokens: int, name: str = SEED, *, file: bytes | None = None, turn: int = 1
) -> tuple[pb.GenerateRequest, ...]:
    """A clip, by default the workload's, and 50 tokens of text; the answer is greedy.

    Args:
        file: Sent in place of the clip of that name.
        turn: Of a chat about the clip, the first is 1.
    """
    medium = pb.Media(key="clip", modality=pb.MODALITY_VIDEO, chunked=pb.Chunked(), sampling=pb.Sampling(fps=fps))
    messages = [pb.Message(role="user", parts=[pb.Part(media_key="clip"), pb.Part(text=TEXT)])]
    messages += [pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in later_messages(turn)]
    prompt = pb.PrepareSpec(chat=pb.ChatPrompt(messages=messages), media=[medium])
    parameters = Parameters(max_tokens=max_tokens, temperature=0)
    return tuple(generate_requests(Prompt(prompt, {"clip": clip(name) if file is None else file}), parameters))


def later_messages(turn: int) -> list[tuple[str, str]]:
    """Roles and texts that follow the first message in that turn of a chat."""
    return [
        message
        for number in range(1, turn)
        for message in (("assistant", f"Answer {number}."), ("user", f"{TEXT} {number}"))
    ]


def same_for_the_pipeline(fps: float, name: str = SEED, form: PixelForm = PixelForm.UINT8) -> PreparationRequest:
    """What `question` asks, as `pipeline.prepare` and Hugging Face's oracle take it."""
    media = (Media("clip", Modality.VIDEO, clip(name), Sampling(fps=fps)),)
    return PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"), TextPart(TEXT))),)), media, form)


@dataclass(frozen=True, slots=True)
class Answer:
    """Times from the first byte sent."""

    first_token_seconds: float
    whole_seconds: float
    token_ids: tuple[int, ...]
    stages_ms: dict[str, float]
    """Wall time by stage, as the service reports it."""
    prompt_token_count: int


async def ask(stub: Any, messages: tuple[pb.GenerateRequest, ...]) -> Answer:
    """Ask, and wait for the whole answer."""
    began, first_token_seconds = time.perf_counter(), 0.0
    token_ids: list[int] = []
    stages_ms: dict[str, float] = {}
    prompt_token_count = 0
    async for response in stub.Generate(iter(messages), timeout=TIMEOUT_SECONDS):
        if response.delta.token_ids:
            first_token_seconds = first_token_seconds or time.perf_counter() - began
            token_ids += response.delta.token_ids
        prompt_token_count = response.completion.prompt_token_count or prompt_token_count
        for stage in response.completion.report.stages:
            stages_ms[stage.stage] = stages_ms.get(stage.stage, 0.0) + stage.wall_ms
    return Answer(first_token_seconds, time.perf_counter() - began, tuple(token_ids), stages_ms, prompt_token_count)
