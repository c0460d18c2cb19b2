"""Prompts made by hand: synthetic pixels, the special tokens of Qwen3-VL, arbitrary text tokens between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

IMAGE, VIDEO = 1, 2
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 151655, 151656, 151652, 151653
MERGE, FEATURE_COUNT = 2, 3 * 2 * 16 * 16
# Not the checkpoint's 0.5: three different values show a channel taken for another.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass
class PromptBuilder:
    """Collects a prompt from left to right; `tensors()` gives it by the engine contract's names."""

    seed: int = 0
    _ids: list[int] = field(default_factory=list)
    _rows: list[np.ndarray] = field(default_factory=list)
    _grids: list[tuple[int, int, int]] = field(default_factory=list)
    _modality: list[int] = field(default_factory=list)
    _spans: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def text(self, *token_ids: int) -> PromptBuilder:
        self._ids += token_ids
        return self

    def image(self, h: int, w: int) -> PromptBuilder:
        return self._item(IMAGE, IMAGE_TOKEN, (1, h, w))

    def video(self, t: int, h: int, w: int) -> PromptBuilder:
        return self._item(VIDEO, VIDEO_TOKEN, (t, h, w))

    def _item(self, modality: int, token: int, grid: tuple[int, int, int]) -> PromptBuilder:
        t, h, w = grid
        length = h * w // MERGE**2
        for step in range(t):
            if modality == VIDEO:
                self.text(27, 15 + step, 6486, 29)  # a timestamp, more or less
            self.text(VISION_START)
            self._spans.append((len(self._grids), len(self._ids), length))
            self.text(*[token] * length, VISION_END)
        self._rows.append(self._random.integers(0, 256, (t * h * w, FEATURE_COUNT), np.uint8))
        self._grids.append(grid)
        self._modality.append(modality)
        return self

    def tensors(self) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {"input_ids": np.array(self._ids, np.int32)}
        if self._grids:
            tensors |= {
                "pixel_patches": np.concatenate(self._rows),
                "pixel_mean": MEAN,
                "pixel_std": STD,
                "grid_thw": np.array(self._grids, np.int64),
                "item_modality": np.array(self._modality, np.int32),
                "item_spans": np.array(self._spans, np.int32),
            }
        return tensors


def text_prompt() -> dict[str, np.ndarray]:
    return PromptBuilder().text(151644, 872, 198, 3838, 374, 419, 30, 151645).tensors()


def image_prompt(seed: int = 1) -> dict[str, np.ndarray]:
    return PromptBuilder(seed).text(151644, 872, 198).image(4, 6).text(3838, 151645).tensors()


def video_prompt(seed: int = 2) -> dict[str, np.ndarray]:
    return PromptBuilder(seed).text(151644, 872, 198).video(3, 4, 4).text(3838, 151645).tensors()


def mixed_prompt(seed: int = 3) -> dict[str, np.ndarray]:
    """Video between images, so that rows in prompt order are not rows by modality."""
    builder = PromptBuilder(seed).text(151644, 872, 198).image(4, 4).text(323).video(2, 6, 4).text(323).image(2, 8)
    return builder.text(3838, 151645).tensors()


TOKEN_COUNT = 24
"""Of each answer in `direct_answers`."""
PROMPTS = {"text": text_prompt(), "image": image_prompt(), "video": video_prompt(), "mixed": mixed_prompt()}
PROMPTS |= {f"video{seed}": video_prompt(seed) for seed in range(10, 18)}
PROMPTS |= {f"mixed{seed}": mixed_prompt(seed) for seed in range(30, 36)}
# 7 MB in 7 temporal steps of 1 MB: several pieces as they are really cut, not aligned with the steps.
PROMPTS["large"] = PromptBuilder(40).text(151644, 872).video(7, 26, 26).text(3838, 151645).tensors()
