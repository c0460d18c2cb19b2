"""Checks of the installed libraries and the codecs that they were built with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from preprocessor.cli.doctor.finding import Finding, failed, ok, warning

_DISTRIBUTION = "vlm-preprocessor"
_TESTED = Path(__file__).parents[1] / "constraints.txt"  # what `preprocessor constraints` prints
_INSTALL = "preprocessor constraints > tested.txt; pip install --constraint tested.txt 'vlm-preprocessor[serve]'"

# preprocessor/media/README.md, "Formats": any of these decoders of FFmpeg reads the codec.
EXPECTED_CODECS: Mapping[str, tuple[str, ...]] = {
    "H.264": ("h264",),
    "HEVC": ("hevc",),
    "VP8": ("vp8", "libvpx"),
    "VP9": ("vp9", "libvpx-vp9"),
    "AV1": ("libdav1d", "libaom-av1"),  # FFmpeg's own `av1` needs a GPU
    "MPEG-4": ("mpeg4",),
    "MJPEG": ("mjpeg",),
    "ProRes": ("prores",),
    "GIF": ("gif",),
    "APNG": ("apng",),
    "AAC": ("aac",),
    "MP3": ("mp3", "mp3float"),
    "FLAC": ("flac",),
    "Opus": ("opus", "libopus"),
    "Vorbis": ("vorbis", "libvorbis"),
    "PCM": ("pcm_s16le",),
}
# Pillow's names of optional formats.
IMAGE_FORMATS: Mapping[str, str] = {"JPEG": "jpg", "PNG": "zlib", "TIFF": "libtiff", "WebP": "webp", "AVIF": "avif"}


def tested_versions(constraints: str | None = None) -> dict[str, str]:
    """Version of each library that the project's tests ran with, by its name in lower case."""
    lines = (constraints if constraints is not None else _TESTED.read_text()).splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): pinned.strip() for name, pinned in pins}


def required_libraries() -> list[Requirement]:
    """What this package declares that `serve` needs on this platform; nothing where it is not installed."""
    try:
        declared = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    required = (Requirement(text) for text in declared)
    return [one for one in required if one.marker is None or one.marker.evaluate({"extra": "serve"})]


def installed_version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def check_libraries(
    required: Iterable[Requirement],
    tested: Mapping[str, str],
    installed: Callable[[str], str | None] = installed_version,
) -> Finding:
    """Compare what is installed with what is declared, and with what was tested."""
    wrong, untested = [], []
    required = list(required)
    for requirement in required:
        version = installed(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, must be {requirement.specifier}")
        # Without the local part: 2.13.0+cpu is the build that was tested as 2.13.0.
        elif Version(version).public != tested.get(requirement.name.lower(), Version(version).public):
            untested.append(f"{requirement.name} is {version}, tested is {tested[requirement.name.lower()]}")
    if wrong:
        return failed("libraries", "; ".join(wrong), _INSTALL)
    if untested:
        fix = f"{_INSTALL}; or run the tests with these: pixels were compared with the tested ones"
        return warning("libraries", "; ".join(untested), fix)
    if not required:
        return warning(
            "libraries",
            "the package is not installed, so nothing was compared",
            "pip install 'vlm-preprocessor[serve]'",
        )
    pinned_count = sum(requirement.name.lower() in tested for requirement in required)
    return ok(
        "libraries", f"{len(required)} as declared, {pinned_count} of them with a tested version, which they have"
    )


def check_decoders(available: Collection[str], ffmpeg: str) -> Finding:
    """Whether this FFmpeg reads the documented formats.

    Args:
        available: Names of its decoders.
        ffmpeg: Its version.
    """
    missing = [codec for codec, names in EXPECTED_CODECS.items() if not set(names) & set(available)]
    if missing:
        return failed(
            "decoders",
            f"PyAV's FFmpeg {ffmpeg} has no decoder for {', '.join(missing)}",
            "install PyAV's own wheel (pip install av): it carries them all; a system's FFmpeg may leave some out",
        )
    return ok("decoders", f"FFmpeg {ffmpeg}: {', '.join(EXPECTED_CODECS)}")


def check_images(available: Collection[str], has_heif: bool) -> Finding:
    """Whether Pillow reads the documented formats.

    Args:
        available: Those of `IMAGE_FORMATS`' features that it was built with.
        has_heif: Whether `pillow_heif`, which is optional, is installed.
    """
    missing = [name for name, feature in IMAGE_FORMATS.items() if feature not in available]
    if missing:
        return failed("images", f"Pillow was built without {', '.join(missing)}", "install Pillow's own wheel")
    heif = "" if has_heif else "; no HEIC, which needs vlm-preprocessor[heic]"
    return ok("images", ", ".join(IMAGE_FORMATS) + (", HEIC" if has_heif else heif))


def check_resize(variants: Sequence[str]) -> Finding:
    """Whether frames are resized by the native kernel.

    Args:
        variants: `preprocessor.vision.native.VARIANTS`.
    """
    if not variants:
        return warning(
            "resize",
            "torch resizes, with the same pixels: this installation has no native kernel",
            "install the wheel of this platform, or install with a C compiler: a video takes up to a third more CPU without",
        )
    others = f"; this CPU could also run {', '.join(variants[1:])}" if len(variants) > 1 else ""
    return ok("resize", f"native kernel, {variants[0]}{others}")


def decoders_here() -> tuple[set[str], str]:
    """The decoders of PyAV's FFmpeg, and its version."""
    import av

    names = {name for names in EXPECTED_CODECS.values() for name in names}
    return {name for name in names if name in av.codecs_available and _decodes(name)}, str(av.ffmpeg_version_info)


def images_here() -> tuple[set[str], bool]:
    """Pillow's features, and whether HEIC is read."""
    from importlib.util import find_spec

    from PIL import features

    return {one for one in IMAGE_FORMATS.values() if features.check(one)}, find_spec("pillow_heif") is not None


def _decodes(name: str) -> bool:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        return bool(Codec(name, "r").is_decoder)
    except UnknownCodecError:  # it only encodes
        return False
