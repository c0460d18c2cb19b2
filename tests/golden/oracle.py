"""Hugging Face's own answer to one of our requests: the oracle that parity is measured against.

Everything is transformers' own: template rendering, image loading, frame sampling, resize, patches, normalization,
placeholder text, tokenization and rotary positions. Ours are only the request, the tokenizer (nothing can be downloaded
here) and a plain decode of every frame.

The processors need torchvision, of which only the resize is used, and that is plain torch. The package index's build
finds no compiled operators beside a CPU-only torch; `_import_torchvision` lets it be imported all the same:

    pip install --no-deps torchvision==0.28.0      # beside torch 2.13.0
"""

from __future__ import annotations

import base64
import io
import logging
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

from preprocessor.models.family import Model
from preprocessor.types import ChatPrompt, Media, MediaPart, Modality, PreparationRequest, TextPart, TextPrompt

STAMPED_LIBRARIES = ("transformers", "torch", "torchvision", "av", "pillow", "numpy", "tokenizers")


def _import_torchvision() -> None:
    """Import torchvision although torch knows none of its operators."""
    register_fake = torch.library.register_fake

    def skip_missing_operators(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register_fake(op, *args, **kwargs)

    torch.library.register_fake = skip_missing_operators
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the oracle needs torchvision: pip install --no-deps torchvision==0.28.0 (beside torch 2.13.0)"
        ) from error
    finally:
        torch.library.register_fake = register_fake


_import_torchvision()

from transformers import Qwen3VLConfig, Qwen3VLModel  # noqa: E402
from transformers.image_utils import load_image  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as fit_image  # noqa: E402,F401
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor  # noqa: E402
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor  # noqa: E402
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as fit_video  # noqa: E402,F401
from transformers.video_utils import VideoMetadata  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)

# Qwen/Qwen3-VL, preprocessor_config.json and video_preprocessor_config.json.
_COMMON = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGE_SIZE = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
VIDEO_SIZE = {"shortest_edge": 4_096, "longest_edge": 25_165_824}


@dataclass(frozen=True, eq=False)
class Answer:
    """What Hugging Face makes of a request; items are in prompt order.

    Attributes:
        token_ids: int64 [L].
        pixels: fp32 [P, F], normalized.
        patches: uint8 [P, F], the same before normalization.
        grid_thw: int64 [M, 3].
        frame_indices: For each item its frames; None for an image.
        positions: int64 [3, L], with the delta.
    """

    token_ids: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.float32]
    patches: npt.NDArray[np.uint8]
    grid_thw: npt.NDArray[np.int64]
    frame_indices: list[list[int] | None]
    positions: npt.NDArray[np.int64]
    delta: int


def stamp() -> dict[str, str]:
    """What exact pixels may depend on: library versions, and the instructions that libraries choose code by."""
    return {name: version(name) for name in STAMPED_LIBRARIES} | {
        "machine": platform.machine(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def answer(model: Model, request: PreparationRequest) -> Answer:
    """Process `request` with Hugging Face.

    A pixel budget of one medium holds for all of its modality: Hugging Face's `size` is an argument of the call.
    """
    processor = _processor(model)
    text, media = _rendered(processor, request)
    images = [medium for medium in media if medium.modality is Modality.IMAGE]
    videos = [medium for medium in media if medium.modality is Modality.VIDEO]
    clips = [_sampled_clip(medium, processor.video_processor) for medium in videos]

    def run(**pixel_options: bool) -> Any:
        images_kwargs = {"size": _size(images, IMAGE_SIZE), **pixel_options}
        videos_kwargs = {
            "size": _size(videos, VIDEO_SIZE),
            "do_sample_frames": False,
            "cap_pixels_per_frame": False,
            "video_metadata": [_metadata(clip) for clip in clips],
            **pixel_options,
        }
        return processor(
            text=[text],
            images=[load_image(_data_url(medium)) for medium in images] or None,
            videos=[clip.frames for clip in clips] or None,
            return_tensors="pt",
            images_kwargs=images_kwargs,
            videos_kwargs=videos_kwargs,
        )

    normalized, raw = run(), run(do_rescale=False, do_normalize=False)
    grids = _in_prompt_order(media, normalized, "image_grid_thw", "video_grid_thw")
    positions, delta = _rope_model().get_rope_index(
        normalized["input_ids"],
        mm_token_type_ids=normalized["mm_token_type_ids"],
        image_grid_thw=normalized.get("image_grid_thw"),
        video_grid_thw=normalized.get("video_grid_thw"),
    )
    indices = iter([clip.indices for clip in clips])
    return Answer(
        token_ids=normalized["input_ids"][0].numpy(),
        pixels=_pixels(media, normalized, np.float32),
        patches=_pixels(media, raw, np.uint8),
        grid_thw=np.array(grids, np.int64).reshape(-1, 3),
        frame_indices=[None if medium.modality is Modality.IMAGE else next(indices) for medium in media],
        positions=positions[:, 0].numpy(),
        delta=int(delta),
    )


def video_processor(**settings: Any) -> Qwen3VLVideoProcessor:
    return Qwen3VLVideoProcessor(**{**_COMMON, "size": VIDEO_SIZE, "cap_pixels_per_frame": False, **settings})


@dataclass(frozen=True, eq=False)
class _Clip:
    """Frames uint8 [n, H, W, 3] at `indices` of a file with `total` frames."""

    frames: npt.NDArray[np.uint8]
    indices: list[int]
    total: int
    rate: float


@cache
def _processor(model: Model) -> Qwen3VLProcessor:
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_COMMON, size=IMAGE_SIZE),
        tokenizer=model.tokenizer,
        video_processor=video_processor(),
        chat_template=model.chat_template,
    )


@cache
def _rope_model() -> Qwen3VLModel:
    """A model without weights: only its position code is called."""
    text = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    with torch.device("meta"):
        return Qwen3VLModel(
            Qwen3VLConfig(text_config=text, vision_config=vision | {"spatial_merge_size": _COMMON["merge_size"]})
        )


def _rendered(processor: Qwen3VLProcessor, request: PreparationRequest) -> tuple[str, list[Media]]:
    """The text with one placeholder a medium, and the media in its order."""
    if isinstance(request.prompt, TextPrompt):
        return request.prompt.text, list(request.media)
    assert isinstance(request.prompt, ChatPrompt)
    by_key = {medium.key: medium for medium in request.media}
    conversation, media = [], []
    for message in request.prompt.messages:
        content = []
        for part in message.parts:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            else:
                assert isinstance(part, MediaPart)
                media.append(by_key[part.key])
                content.append({"type": by_key[part.key].modality.name.lower()})
        conversation.append({"role": message.role, "content": content})
    text = processor.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=request.prompt.add_generation_prompt
    )
    return text, media


def _sampled_clip(medium: Media, processor: Qwen3VLVideoProcessor) -> _Clip:
    """Every frame decoded, then Hugging Face's choice of them."""
    with av.open(io.BytesIO(medium.data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        rate = float(stream.average_rate)
    metadata = VideoMetadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate)
    sampling = medium.sampling
    indices = processor.sample_frames(metadata, num_frames=sampling.frame_count, fps=sampling.fps)
    return _Clip(frames=frames[indices], indices=indices.tolist(), total=len(frames), rate=rate)


def _metadata(clip: _Clip) -> VideoMetadata:
    """A fresh one for each call: the processor appends to an odd list of indices."""
    return VideoMetadata(
        total_num_frames=clip.total, fps=clip.rate, duration=clip.total / clip.rate, frames_indices=list(clip.indices)
    )


def _size(media: list[Media], default: dict[str, int]) -> dict[str, int]:
    budgets = {(medium.min_pixels, medium.max_pixels) for medium in media} or {(None, None)}
    ((least, most),) = budgets  # one for all, or Hugging Face cannot say it
    return {
        "shortest_edge": default["shortest_edge"] if least is None else least,
        "longest_edge": default["longest_edge"] if most is None else most,
    }


def _data_url(medium: Media) -> str:
    return "data:image/any;base64," + base64.b64encode(medium.data).decode()


def _pixels(media: list[Media], output: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Rows of all items in prompt order; Hugging Face keeps images and videos apart."""
    grids = _in_prompt_order(media, output, "image_grid_thw", "video_grid_thw")
    tensors = {Modality.IMAGE: output.get("pixel_values"), Modality.VIDEO: output.get("pixel_values_videos")}
    starts = dict.fromkeys(tensors, 0)
    rows = []
    for medium, grid in zip(media, grids, strict=True):
        start, count = starts[medium.modality], int(np.prod(grid))
        rows.append(tensors[medium.modality][start : start + count].numpy())
        starts[medium.modality] += count
    if not rows:
        return np.empty((0, 1536), dtype)
    joined = np.concatenate(rows)
    cast = joined.astype(dtype)
    assert (cast == joined).all(), "values do not fit the dtype exactly"
    return cast


def _in_prompt_order(media: list[Media], output: Any, image_name: str, video_name: str) -> list[Any]:
    by_modality = {
        Modality.IMAGE: iter(output[image_name].tolist() if image_name in output else []),
        Modality.VIDEO: iter(output[video_name].tolist() if video_name in output else []),
    }
    return [next(by_modality[medium.modality]) for medium in media]
