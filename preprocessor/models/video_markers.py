"""Whether the vision markers that a template writes around a video stay in the prompt.

A Qwen3-VL video is written frame pair by frame pair, each between vision markers of its own. A template writes the same markers
around the video's placeholder. The model was published with processors that replace them together with the placeholder.
transformers 5.10 and newer replace the placeholder alone. Both prompts work, but tokens and positions differ, so the prompt must
be the one that the engine would make itself.

    keep       <|vision_start|><0.2 seconds><|vision_start|>…<|vision_end|><1.2 seconds>…<|vision_end|><|vision_end|>
    replace                    <0.2 seconds><|vision_start|>…<|vision_end|><1.2 seconds>…<|vision_end|>
"""

from __future__ import annotations

from enum import StrEnum


class VideoMarkers(StrEnum):
    """What becomes of the markers around a video."""

    KEEP = "keep"
    """They stay: transformers 5.23, Qwen3VLProcessor.replace_video_token."""
    REPLACE = "replace"
    """They go with the placeholder where they stand directly around it: transformers 5.9, Qwen3VLProcessor.__call__."""


def choose_video_markers(asked: str) -> VideoMarkers:
    """The markers of a setting: "auto" is as in the transformers installed here, which `pyproject.toml` holds above 5.10."""
    return VideoMarkers.KEEP if asked == "auto" else VideoMarkers(asked)
