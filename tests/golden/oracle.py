"""Hugging Face's own answer to one of our requests: the oracle that parity is measured against.

Everything is transformers' own: template rendering, image loading, frame sampling, resize, patches, normalization,
placeholder text, tokenization and rotary positions. Ours are only the request, the tokenizer (nothing can be downloaded
here) and a plain decode of every frame.

Where a caller names the frames, Hugging Face is given those frames with their indices, as its users would.
"""

from __future__ import annotations

import base64
import io
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    FileData,
    FrameEncoding,
    FrameList,
    Media,
    MediaPart,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
    TextPrompt,
)
from tests.golden.huggingface import (  # first: torchvision is imported there
    CLASSES,
    FamilyClasses,
    is_omni,
    processor_of,
    rope_model_of,
    sample_frames,
)

from transformers.image_utils import load_image  # isort: skip
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # isort: skip
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video  # isort: skip
from transformers.video_utils import VideoMetadata  # isort: skip

fit_image, fit_video = smart_resize, smart_resize_video

STAMPED_LIBRARIES = ("transformers", "torch", "torchvision", "av", "pillow", "numpy", "tokenizers")

# Qwen/Qwen3-VL, video_preprocessor_config.json.
_QWEN3_VL_VIDEO = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 4_096, "longest_edge": 25_165_824},
    "cap_pixels_per_frame": False,
}


@dataclass(frozen=True, eq=False)
class Answer:
    """What Hugging Face makes of a request; items are in prompt order.

    Attributes:
        token_ids, token_types: int64 [L].
        pixels: fp32 [P, F], normalized.
        patches: uint8 [P, F], the same before normalization.
        grid_thw: int64 [M, 3]; of a video several rows where its family cuts it in chunks.
        frame_indices: For each item its frames, or their times where the caller has chosen both; None for an image.
        seconds_per_grid: For each item, as its family's processor says it: float32 [M], 0 for an image; None from a
            processor that says nothing.
        positions, delta: int64 [3, L] and [1], float32 from Qwen3-Omni; None from a family whose tokens have plain positions.
    """

    token_ids: npt.NDArray[np.int64]
    token_types: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.float32]
    patches: npt.NDArray[np.uint8]
    grid_thw: npt.NDArray[np.int64]
    frame_indices: list[list[int] | None]
    seconds_per_grid: npt.NDArray[np.float32] | None
    positions: npt.NDArray[np.int64] | None
    delta: npt.NDArray[np.int64] | None


def stamp() -> dict[str, str]:
    """What exact pixels may depend on: library versions, and the instructions that libraries choose code by."""
    return {name: version(name) for name in STAMPED_LIBRARIES} | {
        "machine": platform.machine(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def answer(model: Model, request: PreparationRequest, processor: Any = None) -> Answer:
    """Process `request` with Hugging Face.

    A pixel budget or cap of one medium holds for all of its modality: to Hugging Face they are arguments of the call.

    Args:
        processor: One that transformers itself set up; else it gets the settings that `model` read.
    """
    processor, classes = processor or processor_of(model), CLASSES[model.family.name]
    text, media = rendered(processor, request)
    images = [medium for medium in media if medium.modality is Modality.IMAGE]
    videos = [medium for medium in media if medium.modality is Modality.VIDEO]
    clips = [sampled_clip(medium, processor.video_processor) for medium in videos]

    def run(**pixel_options: bool) -> Any:
        videos_kwargs = {
            **_budget(videos, processor.video_processor, classes),
            "do_sample_frames": False,
            "video_metadata": [metadata_of(clip) for clip in clips],
            **({"fps": metadata_of(clips[0]).sampled_fps} if clips and is_omni(model) else {}),
            **pixel_options,
        }
        return processor(
            text=[text],
            images=[load_image(data_url(medium.data)) for medium in images] or None,
            videos=[clip.frames for clip in clips] or None,
            return_tensors="pt",
            return_mm_token_type_ids=True,
            images_kwargs={**_budget(images, processor.image_processor, classes), **pixel_options},
            videos_kwargs=videos_kwargs,
        )

    normalized, raw = run(), run(do_rescale=False, do_normalize=False)
    if clips and is_omni(model):
        normalized["video_second_per_grid"] = _omni_seconds(processor, clips, normalized)
    positions, delta = _positions(model, normalized)
    indices = [clip.indices for clip in clips]
    chunks = [classes.chunk_count(processor.video_processor, len(clip.indices)) for clip in clips]
    image_grids, video_grids = normalized.get("image_grid_thw"), normalized.get("video_grid_thw")
    grids = merged(
        media,
        None if image_grids is None else image_grids.split(1),
        None if video_grids is None else video_grids.split(chunks),
    )
    return Answer(
        token_ids=normalized["input_ids"][0].numpy(),
        token_types=normalized["mm_token_type_ids"][0].numpy(),
        pixels=_pixels(media, grids, normalized, np.float32),
        patches=_pixels(media, grids, raw, np.uint8),
        grid_thw=np.array([row for grid in grids for row in grid.tolist()], np.int64).reshape(-1, 3),
        frame_indices=merged(media, [None] * len(images), indices),
        seconds_per_grid=_seconds(model, media, normalized),
        positions=positions,
        delta=delta,
    )


def chosen_indices(processor: Any, total: int, rate: float, sampling: Sampling) -> npt.NDArray[np.int64]:
    """The frames that Hugging Face samples, or that the caller named.

    Raises:
        ValueError, ZeroDivisionError: Hugging Face refuses, or names a frame beyond the clip.
    """
    if sampling.indices is not None:
        return np.array(sampling.indices, np.int64)
    is_sampled = processor.do_sample_frames or not type(processor).do_sample_frames  # or the model's own files say no
    if sampling.every_frame or not (is_sampled or sampling.fps or sampling.frame_count):
        return np.arange(total)
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    indices = np.asarray(sample_frames(processor, metadata, sampling), np.int64)
    if not len(indices) or indices[-1] >= total:
        raise ValueError(f"frames {indices} of {total}")
    return indices


def video_processor(**settings: Any) -> Any:
    """Qwen3-VL's, set up as its repository says but for `settings`."""
    return CLASSES["qwen3_vl"].video_processor(**_QWEN3_VL_VIDEO | settings)


@dataclass(frozen=True, eq=False)
class _Clip:
    """Frames uint8 [n, H, W, 3] at `indices` of a file with `total` frames."""

    frames: npt.NDArray[np.uint8]
    indices: list[Any]
    total: float
    rate: float


def rendered(processor: Any, request: PreparationRequest) -> tuple[str, list[Media]]:
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
        conversation.append({**message.extra, "role": message.role, "content": content})
    text = processor.apply_chat_template(
        conversation,
        tokenize=False,
        add_generation_prompt=request.prompt.add_generation_prompt,
        **request.prompt.template_arguments,
    )
    return text, media


def sampled_clip(medium: Media, processor: Any) -> _Clip:
    """Every frame decoded, then Hugging Face's choice of them."""
    if medium.frames is not None:
        return _listed(medium, medium.frames)
    with av.open(io.BytesIO(medium.data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = float(stream.average_rate or 0)
    indices = chosen_indices(processor, len(frames), rate, medium.sampling).tolist()
    chosen = np.stack([frames[index] for index in indices])
    return _Clip(frames=chosen, indices=indices, total=len(frames), rate=rate)


def _listed(medium: Media, frames: FrameList) -> _Clip:
    """Frames that the caller has chosen, as `load_image` reads them. Their times are stated as numbers at one frame a second."""
    ends = np.cumsum(frames.sizes_bytes).tolist()
    pieces = [bytes(medium.data[end - size : end]) for end, size in zip(ends, frames.sizes_bytes, strict=True)]
    if frames.encoding is FrameEncoding.RGB24:
        size = (frames.height_px, frames.width_px, 3)
        pictures = [np.frombuffer(piece, np.uint8).reshape(size) for piece in pieces]
    else:
        pictures = [np.asarray(load_image(data_url(piece))) for piece in pieces]
    count = len(pictures)
    if frames.fps is not None:
        return _Clip(np.stack(pictures), list(range(count)), count, frames.fps)
    times = list(frames.times_seconds or ())
    seconds = frames.duration_seconds or count * (times[-1] - times[0]) / (count - 1)
    return _Clip(np.stack(pictures), times, seconds, 1.0)


def metadata_of(clip: _Clip) -> VideoMetadata:
    """A fresh one for each call: the processor appends to an odd list of indices."""
    return VideoMetadata(
        total_num_frames=clip.total, fps=clip.rate, duration=clip.total / clip.rate, frames_indices=list(clip.indices)
    )


def _budget(media: list[Media], processor: Any, classes: FamilyClasses) -> dict[str, Any]:
    """The call's arguments for what the caller asked of all media of one modality."""
    asked = {(medium.min_pixels, medium.max_pixels, medium.cap_pixels_per_frame) for medium in media}
    ((least, most, cap),) = asked or {(None, None, None)}  # one for all, or Hugging Face cannot say it
    arguments = classes.budget(processor, least, most)
    if hasattr(processor, "cap_pixels_per_frame"):
        arguments["cap_pixels_per_frame"] = bool(processor.cap_pixels_per_frame if cap is None else cap)
    return arguments


def _positions(model: Model, output: Any) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
    if (rope_model := rope_model_of(model)) is None:
        return None, None
    inputs = {name: output.get(name) for name in ("input_ids", "image_grid_thw", "video_grid_thw")}
    if is_omni(model):
        seconds, mask = output.get("video_second_per_grid"), torch.ones_like(output["input_ids"])
        positions, delta = rope_model.get_rope_index(**inputs, attention_mask=mask, second_per_grids=seconds)
    else:
        positions, delta = rope_model.get_rope_index(
            **inputs, mm_token_type_ids=output["mm_token_type_ids"], second_per_grid_ts=output.get("second_per_grid_ts")
        )
    return positions[:, 0].numpy(), delta.numpy().reshape(1)


def _omni_seconds(processor: Any, clips: list[_Clip], output: Any) -> torch.Tensor:
    """Of each clip what the processor says of the first: a call takes one rate for all."""
    patch = processor.video_processor.temporal_patch_size
    seconds = torch.tensor([patch / metadata_of(clip).sampled_fps for clip in clips])
    assert output["video_second_per_grid"][0] == seconds[0]
    return seconds


def data_url(data: FileData) -> str:
    return "data:image/any;base64," + base64.b64encode(data).decode()


def _seconds(model: Model, media: list[Media], output: Any) -> npt.NDArray[np.float32] | None:
    """Hugging Face lists videos alone."""
    name = "video_second_per_grid" if is_omni(model) else "second_per_grid_ts"
    if not (is_omni(model) or model.family.name == "qwen2_5_vl") or not media:
        return None
    videos = output[name].numpy() if name in output else []
    return np.array(merged(media, [0] * len(media), videos), np.float32)


def _pixels(media: list[Media], grids: list[Any], output: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Rows of all items in prompt order; Hugging Face keeps images and videos apart."""
    if not media:
        return np.empty((0, 0), dtype)
    counts: dict[Modality, list[int]] = {Modality.IMAGE: [], Modality.VIDEO: []}
    for medium, grid in zip(media, grids, strict=True):
        counts[medium.modality].append(int(grid.prod(dim=1).sum()))
    images, videos = (
        output[name].flatten(1).split(counts[modality]) if counts[modality] else []
        for name, modality in (("pixel_values", Modality.IMAGE), ("pixel_values_videos", Modality.VIDEO))
    )
    joined = torch.cat(merged(media, images, videos)).numpy()
    cast: npt.NDArray[Any] = joined.astype(dtype)
    assert (cast == joined).all(), "values do not fit the dtype exactly"
    return cast


def merged(media: list[Media], of_images: Any, of_videos: Any) -> list[Any]:
    """Values of images and of videos as one list in prompt order."""
    remaining = {
        Modality.IMAGE: iter(() if of_images is None else of_images),
        Modality.VIDEO: iter(() if of_videos is None else of_videos),
    }
    return [next(remaining[medium.modality]) for medium in media]
