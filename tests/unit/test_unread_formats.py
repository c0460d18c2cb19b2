"""What is not read is refused by the name of what it is, with what its sender can do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import pytest

from preprocessor.config import Limits
from preprocessor.errors import UnsupportedMedia
from preprocessor.media.audio import extract_audio
from preprocessor.media.image import probe_image
from preprocessor.media.video import probe_video
from tests.drawing import deep_animation, encoded, picture, psd
from tests.media import moving_shapes_clip, photo

IMAGES: Mapping[str, Callable[[], bytes]] = {
    "QOI": lambda: encoded(picture(), "QOI"),
    "DDS": lambda: encoded(picture(), "DDS"),
    "ICNS": lambda: encoded(picture(width=16, height=16), "ICNS"),
    "CUR": lambda: b"\0\0\2\0\1\0" + bytes(16) + bytes(100),
    "PCX": lambda: encoded(picture(), "PCX"),
    "SGI": lambda: encoded(picture(), "SGI"),
    "XBM": lambda: encoded(picture("1"), "XBM"),
    "DIB": lambda: encoded(picture(), "DIB"),
    "PDF": lambda: encoded(picture(), "PDF"),
    "EPS": lambda: b"\xc5\xd0\xd3\xc6" + bytes(30),
    "PostScript": lambda: encoded(picture(), "EPS"),
    "PAM": lambda: b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\nabc",
    "PSB": lambda: psd(picture(), head=struct.pack(">4sH6xHIIHH", b"8BPS", 2, 3, 31, 45, 8, 3)),
    "16 or 32 bits": lambda: psd(picture(), head=struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 31, 45, 16, 3)),
    "JPEG XL": lambda: b"\xff\x0a" + bytes(30),
    "OpenEXR": lambda: b"\x76\x2f\x31\x01" + bytes(30),
    "raw file": lambda: b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(30),
    "SVG": lambda: b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": lambda: b"<!DOCTYPE html><html><body>not found</body></html>",
    "video": moving_shapes_clip,
}
SOUNDS = {
    r"Monkey's Audio \(\.ape\)": lambda: b"MAC \x96\x0f\0\0" + bytes(200),
    "True Audio": lambda: b"TTA1" + bytes(200),
    "Musepack": lambda: b"MPCK" + bytes(200),
    "DSD": lambda: b"DSD " + bytes(200),
    "MIDI": lambda: b"MThd\0\0\0\6" + bytes(200),
}
VIDEOS: Mapping[str, Callable[[], bytes]] = {
    "RealMedia": lambda: b".RMF" + bytes(200),
    "Flash program": lambda: b"FWS\x05" + bytes(200),
    "y4m": lambda: b"YUV4MPEG2 W16 H16 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(384),
    "HTML": lambda: b"\n<html><body>not found</body></html>",
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_another_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{name}.*; .") as refused:
        probe_image(IMAGES[name](), Limits())
    assert refused.value.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_of_another_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{name}.*; .") as refused:
        extract_audio(SOUNDS[name](), 16_000, Limits(), "it", lambda: None)
    assert refused.value.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_of_another_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{name}.*; .") as refused:
        probe_video(VIDEOS[name](), Limits())
    assert refused.value.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("channel_count", [2, 4])
def test_frames_of_16_bits_that_are_blended_are_a_limit_of_the_decoder(channel_count: int) -> None:
    """FFmpeg decodes them and does not blend them: the file is not damaged."""
    with pytest.raises(UnsupportedMedia, match="16 bits a channel") as refused:
        probe_video(deep_animation(is_blended=True, channel_count=channel_count), Limits())
    assert refused.value.reason == "DECODER_LIMIT"


@pytest.mark.parametrize("channel_count", [1, 2, 3, 4])
def test_frames_of_16_bits_that_replace_one_another_are_read(channel_count: int) -> None:
    assert probe_video(deep_animation(is_blended=False, channel_count=channel_count), Limits()).frame_count == 2


def test_frames_of_16_bits_without_alpha_are_read_however_they_are_to_be_painted() -> None:
    assert probe_video(deep_animation(is_blended=True, channel_count=3), Limits()).frame_count == 2


def test_what_is_read_and_damaged_is_not_called_another_format() -> None:
    for data in (photo(64, 48)[:20], b"\x89PNG\r\n\x1a\n" + bytes(20), b"\0\0\0\x1cftypavif" + bytes(60)):
        with pytest.raises(UnsupportedMedia) as refused:
            probe_image(data, Limits())
        assert refused.value.reason == "NOT_MEDIA"
