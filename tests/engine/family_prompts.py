"""Prompts of the families in `tiny_families`, and what vLLM's side of a comparison needs of each."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.vllm.server import VllmServer, read_server
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.models.loaded import PlanMemory
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
from tests.engine.vllm_prompts import clip, picture
from tests.golden import oracle, tile_oracle  # first: imports torchvision
from tests.media import photo

TALL = Media("tall", Modality.IMAGE, photo(60, 110, "PNG"))
IMAGES: Mapping[str, tuple[Media, ...]] = {
    "text": (),
    "image": (picture(),),
    "two images": (picture("a"), picture("b")),
    "images that differ": (picture(), TALL),
}
VIDEOS: Mapping[str, tuple[Media, ...]] = {
    "video": (clip(),),
    "video and image": (clip(fps=1), picture()),
    "images and video": (picture("a"), clip(fps=2), picture("b")),
}
"""A pair of frames begins at a whole second: vLLM 0.32 cuts GLM-4.6V's stamps to these, where transformers writes tenths."""
ONE_SIZE = frozenset({"mistral3", "pixtral"})
"""Families whose images must have one size in a message of vLLM's gRPC service."""


def kinds_of(model: Model) -> dict[str, tuple[Media, ...]]:
    """Of prompts that a model takes; vLLM takes one video a prompt of GLM."""
    return {**IMAGES, **(VIDEOS if Modality.VIDEO in model.modalities else {})}


def request_of(media: tuple[Media, ...]) -> PreparationRequest:
    """As `vllm_prompts.tensors_of` makes it."""
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("What is this?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media)


def media_arrays(model: Model, folder: Path, media: tuple[Media, ...]) -> dict[str, Any]:
    """What `vllm_own_input.py` reads: the text and, decoded, what the model's own plan chooses."""
    processor = tile_oracle.processor_in(str(folder))
    request = request_of(media)
    text, _ = oracle.rendered(processor, request)
    bos = processor.tokenizer.bos_token
    arrays: dict[str, Any] = {"text": np.array(text), "adds_special_tokens": np.array(not text.startswith(bos or " "))}
    plan = model.plan(request, Limits(), lambda: None, PlanMemory())
    for number, (medium, item) in enumerate(zip(media, plan.items, strict=True)):
        if item.frames is None:
            arrays[f"image{number}"] = np.array(Image.open(io.BytesIO(medium.data)).convert("RGB"))
        else:
            chosen = dataclasses.replace(medium, sampling=Sampling(indices=tuple(item.frames.indices.tolist())))
            frames = oracle.sampled_clip(chosen, processor.video_processor)
            arrays |= {f"frames{number}": frames.frames, f"indices{number}": np.array(frames.indices)}
            arrays |= {f"rate{number}": np.array(frames.rate), f"total{number}": np.array(frames.total)}
    return arrays


def server_of(folder: Path, *, normalizes: bool, float_type: str = "float32") -> VllmServer:
    """What vLLM's service would say of a checkpoint."""
    bundle = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    config = bundle["config.json"]
    model = pb.GetModelInfoResponse(
        model_type=config["model_type"], vocab_size=config["text_config"]["vocab_size"], max_context_length=8192
    )
    server = pb.GetServerInfoResponse(mm_device_do_normalize=normalizes, multimodal_encoder_dtype=float_type)
    return read_server("engine", model, server, bundle)
