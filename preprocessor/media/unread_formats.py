"""What a file is that is not read here, by its first bytes, and what its sender can do: a refusal is to name it."""

from __future__ import annotations

_TO_PNG = "convert it to PNG"
_TO_PHOTO = "convert it to JPEG or PNG"
_TO_VIDEO = "declare it as MODALITY_VIDEO"
_TO_RASTER = "draw it, and send a PNG"
_TO_PAGES = "send its pages as images"
_TO_8_BIT = "its values can be shown in many ways: choose one, and send a PNG"
_TO_FLAC = "convert it to FLAC"
_TO_MP4 = "re-encode it as H.264 in mp4"
_DEVELOP = "develop it, and send a JPEG or PNG"

_Mark = tuple[int, bytes, str, str]  # offset, bytes there, what that is, what to do

_IMAGES: tuple[_Mark, ...] = (
    (0, b"qoif", "a QOI image", f"it would be decoded in Python, a hundred times slower than a PNG: {_TO_PNG}"),
    (0, b"DDS ", "a DDS texture", _TO_PNG),
    (0, b"BLP", "a BLP texture", _TO_PNG),
    (0, b"icns", "an Apple icon (ICNS)", _TO_PNG),
    (0, b"\0\0\2\0", "a Windows cursor (CUR)", _TO_PNG),
    (0, b"\x0a\5\1", "a PCX image", _TO_PNG),
    (0, b"\xb1\x68\xde\x3a", "a DCX fax", _TO_PAGES),
    (0, b"\x01\xda", "an SGI image", _TO_PNG),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster image", _TO_PNG),
    (0, b"/* XPM */", "an XPM image", _TO_PNG),
    (0, b"#define ", "an XBM image", _TO_PNG),
    (0, b"P7", "a PAM image", "convert it to PNG or PPM"),
    (0, b"\x28\0\0\0", "a bitmap without its file header (DIB)", "send it with its header, or convert it to PNG"),
    (0, b"8BPS\0\2", "a large Photoshop document (PSB)", "save it as PSD or PNG"),
    (0, b"gimp xcf", "a GIMP document (XCF)", _TO_PNG),
    (0, b"\xff\x0a", "a JPEG XL image", _TO_PHOTO),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image", _TO_PHOTO),
    (0, b"II\xbc", "a JPEG XR image", _TO_PHOTO),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", _TO_8_BIT),
    (0, b"#?R", "a Radiance HDR image", _TO_8_BIT),
    (0, b"SIMPLE  =", "a FITS image", _TO_8_BIT),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", _DEVELOP),
    (0, b"IIRO", "a camera's raw file (ORF)", _DEVELOP),
    (0, b"IIU\0", "a camera's raw file (RW2)", _DEVELOP),
    (0, b"%PDF", "a PDF", _TO_PAGES),
    (0, b"AT&TFORM", "a DjVu document", _TO_PAGES),
    (0, b"%!PS", "a PostScript file", _TO_RASTER),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS file", _TO_RASTER),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", _TO_RASTER),
    (40, b" EMF", "a Windows metafile (EMF)", _TO_RASTER),
    (4, b"\x11\xaf", "an FLI animation", _TO_MP4),
    (4, b"\x12\xaf", "an FLC animation", _TO_MP4),
    (0, b"\x1a\x45\xdf\xa3", "a video (mkv or webm)", _TO_VIDEO),
    (8, b"AVI ", "a video (avi)", _TO_VIDEO),
)
_CONTAINERS: tuple[_Mark, ...] = (
    (0, b"MAC ", "Monkey's Audio (.ape)", _TO_FLAC),
    (0, b"TTA", "True Audio (.tta)", _TO_FLAC),
    (0, b"tBaK", "TAK audio", _TO_FLAC),
    (0, b"OFR ", "OptimFROG audio", _TO_FLAC),
    (0, b"MP+", "Musepack audio", _TO_FLAC),
    (0, b"MPCK", "Musepack audio", _TO_FLAC),
    (0, b"DSD ", "a DSD recording (.dsf)", _TO_FLAC),
    (0, b"FRM8", "a DSD recording (.dff)", _TO_FLAC),
    (0, b"MThd", "MIDI, which holds notes and no sound", "render it, and send a FLAC"),
    (0, b".RMF", "RealMedia", _TO_MP4),
    (0, b"FWS", "a Flash program (SWF)", "record it, and send an mp4"),
    (0, b"CWS", "a Flash program (SWF)", "record it, and send an mp4"),
    (0, b"YUV4MPEG2", "raw video (y4m)", _TO_MP4),
    (0, b"BIK", "Bink video", _TO_MP4),
    (0, b"KB2", "Bink video", _TO_MP4),
    (0, b"nut/multimedia", "the NUT container", "put it into mkv or mp4"),
)
_MISREAD_SOUNDS: tuple[_Mark, ...] = (
    # FFmpeg 8.1, wavdec.c: the header is read as big-endian, the samples are not.
    (0, b"RIFX", "a big-endian WAV (RIFX)", _TO_FLAC),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})  # ISO 23008-12
_VIDEO_BRANDS = frozenset(
    {b"iso", b"mp4", b"avc", b"qt ", b"M4V", b"3gp", b"3g2", b"das", b"MSN", b"f4v"}
)  # as they begin
HEAD_BYTES = 1024
"""In which a file shows what it is, an SVG or an HTML page too."""


def unread_image(data: bytes, readable: tuple[str, ...]) -> tuple[str, str] | None:
    """What a file is that could not be opened as an image, and what to do about it; None where nothing is known of it.

    Args:
        readable: Pillow's names of the formats that can be read: a file of one of these is damaged.
    """
    if data[4:8] == b"ftyp":
        return _unread_brand(data[8:12], readable)
    if data[:6] == b"8BPS\0\1" and data[22:24] in (b"\0\x10", b"\0\x20"):
        return "a Photoshop document of 16 or 32 bits a channel", "save it with 8, or as PNG"
    return _marked(data, _IMAGES) or _text(data)


def misread_sound(head: bytes) -> tuple[str, str] | None:
    """The same of a file that FFmpeg opens, and of which it makes other sound than it holds."""
    return _marked(head, _MISREAD_SOUNDS)


def unread_container(head: bytes) -> tuple[str, str] | None:
    """The same of what could not be opened as sound or video; `head` are its first bytes."""
    return _marked(head, _CONTAINERS) or _text(head)


def _marked(data: bytes, marks: tuple[_Mark, ...]) -> tuple[str, str] | None:
    return next(((what, advice) for offset, mark, what, advice in marks if data.startswith(mark, offset)), None)


def _text(data: bytes) -> tuple[str, str] | None:
    start = bytes(data[:HEAD_BYTES]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page", "send the file itself"
    if start.startswith(b"<") and b"<svg" in start:
        return "an SVG drawing", _TO_RASTER
    return None


def _unread_brand(brand: bytes, readable: tuple[str, ...]) -> tuple[str, str] | None:
    """Of a file of boxes; ISO 14496-12, 4.3."""
    if brand.startswith(b"avi"):
        return None if "AVIF" in readable else ("an AVIF image", _TO_PHOTO)
    if brand in _HEIF_BRANDS:
        return None if "HEIF" in readable else ("a HEIC image", "convert it to JPEG, or install the extra heic")
    if brand == b"crx ":
        return "a camera's raw file (CR3)", _DEVELOP
    return ("a video (mp4 or mov)", _TO_VIDEO) if brand[:3] in _VIDEO_BRANDS else None
