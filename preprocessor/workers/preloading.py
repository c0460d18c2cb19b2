"""Loads, before workers are forked, what libraries load at first use: a worker can open no file."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import itertools
import logging
import pkgutil
import wave

from PIL import Image

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.models.loaded import LoadedModel
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    TextPart,
)

logger = logging.getLogger(__name__)

# A file's metadata may be in any encoding, and its streams of any kind; templates fail in modules of their own.
_LOADED_WHOLE = ("av", "encodings", "jinja2")
# libavformat/mpegts.c, getstr8: the character sets of names in a transport stream, by their names in iconv.
_CHARACTER_SETS = (
    "UTF-8", "UTF-16BE", "UCS-2BE", "ISO6937", "ISO_6937", "KSC_5601", "GB2312", "GBK", "BIG5",
    *(f"ISO-8859-{number}" for number in range(1, 17)),
)  # fmt: skip
# Floats too: what an example as uint8 may not need, torch reads at its first operation, such as what machine this is.
_FORMS = (None, PixelForm.BF16, PixelForm.FP16, PixelForm.FP32)
_SIDE_PX = 64
_SOUND_HZ = 16_000


def load_ahead(model: LoadedModel) -> None:
    """Load what tasks of the model will need, by preparing examples."""
    Image.init()
    for name in _LOADED_WHOLE:
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if module.name.endswith("__main__"):
                continue
            with contextlib.suppress(ImportError):  # of another platform
                importlib.import_module(module.name)
    _load_character_sets()
    for media, pixel_form in itertools.product(_examples(model.modalities), _FORMS):
        parts: tuple[TextPart | MediaPart, ...] = (
            *(MediaPart(medium.key) for medium in media),
            TextPart("a"),
            TextPart("<|b|>", is_literal=True),
        )
        request = PreparationRequest(ChatPrompt((Message("user", parts),)), media, pixel_form)
        try:
            pipeline.prepare(model, request, Limits())
        except PreprocessorError as error:
            logger.debug("an example of %s is not prepared: %s", [medium.modality.name for medium in media], error)


def _load_character_sets() -> None:
    """Have libc load what it converts these from: each is a library of its own, which stays as long as a converter is open."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "iconv_open"):
        return
    libc.iconv_open.restype = ctypes.c_void_p
    for name in _CHARACTER_SETS:
        libc.iconv_open(b"UTF-8", name.encode())


def _examples(modalities: frozenset[Modality]) -> list[tuple[Media, ...]]:
    """Media of a prompt each: none, then one of each modality."""
    files = {Modality.IMAGE: _picture("PNG", 1), Modality.VIDEO: _picture("GIF", 4), Modality.AUDIO: _sound()}
    return [(), *((Media("a", modality, data),) for modality, data in files.items() if modality in modalities)]


def _picture(file_format: str, frame_count: int) -> bytes:
    frames = [Image.new("RGB", (_SIDE_PX, _SIDE_PX), (number, 0, 0)) for number in range(frame_count)]
    file = io.BytesIO()
    frames[0].save(file, file_format, save_all=frame_count > 1, append_images=frames[1:])
    return file.getvalue()


def _sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_SOUND_HZ)
        sound.writeframes(bytes(2 * _SOUND_HZ))
    return file.getvalue()
