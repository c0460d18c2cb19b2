"""Prompts to be inspected, as the command line makes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from preprocessor.cli.inspect.origins import subject_of
from preprocessor.cli.options import build_parser
from preprocessor.prompt_page.build import Subject
from tests.media import moving_shapes_clip, photo

CLIP = moving_shapes_clip(seconds=4, width=160, height=120, options=(("g", "30"),))
PHOTO = photo(100, 80, "PNG")

HOSTILE = "\"'></style></script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>\u202e\x01&amp;"
"""Text that would take over a page, or turn its reading direction, if it were not escaped."""


def write_media(folder: Path) -> tuple[Path, Path]:
    """A clip of 4 s with a keyframe a second, and a photo."""
    clip, picture = folder / "clip.mp4", folder / "photo.png"
    clip.write_bytes(CLIP)
    picture.write_bytes(PHOTO)
    return clip, picture


def subject(*arguments: str | Path) -> Subject:
    """What `preprocessor inspect` with these arguments shows."""
    return subject_of(build_parser().parse_args(["inspect", *map(str, arguments)]))


@cache
def clip_and_photo(folder: Path) -> Subject:
    """Five frames of the clip, so that the last is repeated, and a photo."""
    clip, picture = write_media(folder)
    return subject("--video", clip, "--num-frames", "5", "--image", picture, "--text", "What happens?")
