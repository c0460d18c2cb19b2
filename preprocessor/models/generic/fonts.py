"""A font that a video processor draws with, read when its model is loaded: a worker opens no file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessor.models.generic.processor import part_of
from preprocessor.types.request import Modality


@dataclass(frozen=True, slots=True)
class FontFile:
    """What Pillow takes in place of a path; it may be read any number of times."""

    content: bytes = field(repr=False)

    def read(self) -> bytes:
        return self.content


def keep_font(processor: Any) -> None:
    """Put the font's bytes where a video processor has the path of its font: Ernie 4.5 VL draws times into frames.

    Source: transformers 5.23, Ernie4_5_VLMoeVideoProcessor._render_image_with_timestamp.
    """
    part = part_of(processor, Modality.VIDEO)
    path = getattr(part, "font", None)
    if isinstance(path, str) and Path(path).is_file():
        part.font = FontFile(Path(path).read_bytes())
