"""Model directories with the settings that transformers' classes have by default, and a tokenizer of one token a byte.

The families' special tokens are the real ones; their vocabularies cannot be had here. Each directory is written as plain files,
which needs none of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny_processors import byte_tokenizer


@dataclass(frozen=True, slots=True)
class SmallModel:
    """What is in a directory.

    Attributes:
        processor: transformers' classes begin with this, such as Glm4v in Glm4vProcessor.
        image, video: Settings of the two processors.
        placeholders: What stands for an image and for a video.
        surroundings: What the template writes around these.
        tokens: Further special tokens.
        start, role: What a prompt and each message begin with; `{}` stands for the message's role.
        named: Tokens that the tokenizer has under names.
        parts: Settings of further parts of the processor.
    """

    model_type: str
    processor: str
    image: Mapping[str, Any]
    video: Mapping[str, Any]
    placeholders: tuple[str, str]
    surroundings: tuple[tuple[str, str], tuple[str, str]]
    tokens: tuple[str, ...]
    start: str = ""
    role: str = "{}: "
    end: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        tokenizer = byte_tokenizer(*self.placeholders, *self.tokens, named=self.named)
        tokenizer.save_pretrained(directory)
        image, video = map(tokenizer.convert_tokens_to_ids, self.placeholders)
        processors = {
            "processor_class": f"{self.processor}Processor",
            "image_processor": {"image_processor_type": f"{self.processor}ImageProcessor", **self.image},
            "video_processor": {"video_processor_type": f"{self.processor}VideoProcessor", **self.video},
            **self.parts,
        }
        config = {"model_type": self.model_type, "image_token_id": image, "video_token_id": video, **self.config}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "processor_config.json").write_text(json.dumps(processors))
        (directory / "chat_template.jinja").write_text(self._template())

    def _template(self) -> str:
        pictures = {
            modality: placeholder.join(around)
            for modality, placeholder, around in zip(
                ("image", "video"), self.placeholders, self.surroundings, strict=True
            )
        }
        return (
            f"{{%- set pictures = {json.dumps(pictures)} -%}}{self.start}"
            f"{{% for message in messages %}}{self.role.replace('{}', '{{ message.role }}')}"
            "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
            "{% if part.type == 'text' %}{{ part.text }}{% else %}{{ pictures[part.type] }}{% endif %}{% endfor %}{% endif %}"
            f"{self.end}{{% endfor %}}{{% if add_generation_prompt %}}{self.role.replace('{}', 'assistant')}{{% endif %}}"
        )


_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


def _glm(model_type: str, processor: str, image: Mapping[str, Any], video: Mapping[str, Any]) -> SmallModel:
    return SmallModel(
        model_type=model_type,
        processor=processor,
        image={**_CLIP, **_PATCHES, **image},
        video={**_CLIP, **_PATCHES, **video},
        placeholders=("<|image|>", "<|video|>"),
        surroundings=(("<|begin_of_image|>", "<|end_of_image|>"), ("<|begin_of_video|>", "<|end_of_video|>")),
        tokens=(
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
            *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
            *("<think>", "</think>", "/nothink"),
        ),
        start="[gMASK]<sop>",
        role="<|{}|>\n",
    )


def _omni(
    model_type: str,
    processor: str,
    pads: tuple[str, str, str],
    ends: tuple[str, ...],
    pixels: Mapping[str, Any],
    seconds: int,
) -> SmallModel:
    """
    Args:
        pads: Placeholders of an image, a video and a sound.
        ends: Tokens before and after a picture, and before and after a sound.
        seconds: Positions in a second.
    """
    names = ("image_token", "video_token", "audio_token")
    end_names = ("vision_bos_token", "vision_eos_token", "audio_bos_token", "audio_eos_token")
    around = (ends[0], ends[1])
    return SmallModel(
        model_type=model_type,
        processor=processor,
        image={
            **pixels,
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 3_136,
            "max_pixels": 12_845_056,
        },
        video={
            **pixels,
            "video_processor_type": "Qwen2VLVideoProcessor",
            "min_pixels": 3_136,
            "max_pixels": 12_845_056,
        },
        placeholders=pads[:2],
        surroundings=(around, around),
        tokens=("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", pads[2], *ends),
        role="<|im_start|>{}\n",
        end="<|im_end|>\n",
        config={"thinker_config": {"position_id_per_seconds": seconds}},
        named=dict(zip((*names, *end_names), (*pads, *ends), strict=True)),
        parts={"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128}},
    )


_GLM_SIZES = (
    {"size": {"shortest_edge": 12_544, "longest_edge": 11_760_000}},
    {"size": {"shortest_edge": 12_544, "longest_edge": 47_040_000}},
)

SMALL_MODELS: Mapping[str, SmallModel] = {
    "glm-4.1v": _glm("glm4v", "Glm4v", *_GLM_SIZES),
    "glm-4.6v": _glm("glm4v_moe", "Glm46V", *_GLM_SIZES),  # its repository has GLM-4.5V's type
    "glm-5.3": _glm(
        "glm5_next",
        "Glm5Next",
        {"min_image_tokens": 16, "max_image_tokens": 8_000, "patch_expand_factor": 1},
        {"min_image_tokens": 16, "max_image_tokens": 240_000, "patch_expand_factor": 1, "fps": 2, "max_duration": 0},
    ),
    "kimi-k2.5": SmallModel(
        model_type="kimi_k25",
        processor="Kimi_K25",
        image={"size": {"max_height": 512, "max_width": 512}, "max_patches": 16_384},
        video={"size": {"max_height": 512, "max_width": 512}, "max_patches": 4_096},
        placeholders=("<|media_pad|>", "<|kimi_k25_video_placeholder|>"),
        surroundings=(("<|media_begin|>image<|media_content|>", "<|media_end|>"), ("", "")),
        tokens=(
            *("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
            *("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<think>", "</think>"),
        ),
        role="<|im_{}|>{}<|im_middle|>",
        end="<|im_end|>",
    ),
    "minimax-m3": SmallModel(
        model_type="minimax_m3_vl",
        processor="MiniMaxM3VL",
        image={**_CLIP, **_PATCHES, "size": [672, 672]},
        video={**_CLIP, **_PATCHES, "min_pixels": 3_136, "max_pixels": 602_112, "vision_segment_max_frames": 4},
        placeholders=("]<]image[>[", "]<]video[>["),
        surroundings=(("", ""), ("", "")),
        tokens=("]<]start of image[>[", "]<]end of image[>[", "]~!b[", "]~b]", "[e~[", "<think>", "</think>"),
        start="]~!b[",
        role="]~b]{}\n",
        end="[e~[\n",
    ),
    "qwen3-omni": _omni(
        "qwen3_omni_moe",
        "Qwen3OmniMoe",
        ("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>"),
        ("<|vision_start|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>"),
        {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        13,
    ),
    "qwen2.5-omni": _omni(
        "qwen2_5_omni",
        "Qwen2_5Omni",
        ("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>"),
        ("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"),
        {**_CLIP, **_PATCHES},
        25,
    ),
}
