"""The libraries that pixels and ids depend on, and which of a medium's settings decide its pixels."""

from __future__ import annotations

import dataclasses
import functools
import platform
from importlib.metadata import version

from preprocessor import __version__
from preprocessor.types.request import Media, Modality, PixelForm

_LIBRARIES = ("av", "pillow", "torch", "numpy", "tokenizers", "transformers", "opencv-python-headless")


@functools.cache
def library_versions() -> dict[str, str]:
    """Version of every library that pixels and ids depend on, read once. Do not modify the result."""
    return {library: version(library) for library in _LIBRARIES}


def pixel_settings(medium: Media, decoder: str, form: PixelForm | None) -> str:
    """What decides a medium's pixels beside the model, the file, the chosen frames and their size, for its digest.

    A new field of `Media` that can change a pixel must be added here (`tests/unit/test_digests.py` checks). UINT8, FP32 and NONE
    count as equal: float32 represents every normalized uint8 value. BF16 and FP16 round it.

    Args:
        decoder: The libraries that decode the file, with versions.
    """
    rounded_to = form.value if form in (PixelForm.BF16, PixelForm.FP16) else ""
    on_damage = medium.on_damage.value if medium.modality is Modality.VIDEO else ""  # images and sounds have no policy
    frames = None if medium.frames is None else dataclasses.astuple(medium.frames)
    # FFmpeg's conversion to RGB differs by up to 2 levels from one architecture to another.
    return repr((__version__, platform.machine(), decoder, rounded_to, on_damage, medium.background, frames))
