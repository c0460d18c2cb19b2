"""A model's pixel settings, read from its own processor configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preprocessor.errors import ModelNotFound

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, as preprocessor_config.json spells it


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How one modality's pixels are cut and normalized.

    Attributes:
        patch_size: Side of a square patch, px.
        merge_size: Patches a side that the encoder merges into one token.
        temporal_patch_size: Frames a patch spans.
        min_pixels, max_pixels: Budget after resizing; of h*w for images, of t*h*w for videos.
        mean, std: Per RGB channel, on the 0 to 1 scale.
        rescale_factor: What a uint8 value is multiplied by to reach that scale.
        normalizes: Whether mean and std are applied at all; where they are not, they are 0 and 1.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    normalizes: bool = True

    @property
    def factor(self) -> int:
        """Every resized side is a multiple of this many px."""
        return self.patch_size * self.merge_size

    @property
    def feature_count(self) -> int:
        """Values in one patch row: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """A video's pixels, and how many of its frames to use when the caller does not say.

    Attributes:
        fps: Frames a second to sample.
        frame_count: Frames to sample instead, where the configuration has `num_frames` and the family uses it.
        min_frames, max_frames: Bounds on what `fps` yields.
        cap_pixels_per_frame: Whether the family's further cap on a frame's pixels holds.
        max_video_tokens: What that cap is derived from; a frame's tokens or a video's, by family.
        takes_every_frame: Whether the model's files turn sampling off (`do_sample_frames`), so that all frames are used instead.
    """

    pixels: PixelSpec
    fps: float
    min_frames: int
    max_frames: int
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768
    frame_count: int | None = None
    takes_every_frame: bool = False


def parse_pixel_spec(config: Mapping[str, Any], source: str) -> PixelSpec:
    """Settings from a `preprocessor_config.json` or `video_preprocessor_config.json`.

    Args:
        source: Where the configuration came from, for messages.
    Raises:
        ModelNotFound: `UNSUPPORTED_PROCESSOR` where a field is missing or asks for what the fast path does not do.
    """
    for switch in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not config.get(switch, True):
            raise unsupported(source, switch, config[switch], "true")
    if (resample := config.get("resample", _BICUBIC)) != _BICUBIC:
        raise unsupported(source, "resample", resample, f"{_BICUBIC} (bicubic)")
    size = config.get("size") or {}
    return PixelSpec(
        patch_size=whole_number(config, "patch_size", source),
        merge_size=whole_number(config, "merge_size", source),
        temporal_patch_size=whole_number(config, "temporal_patch_size", source),
        min_pixels=config.get("min_pixels") or whole_number(size, "shortest_edge", source),
        max_pixels=config.get("max_pixels") or whole_number(size, "longest_edge", source),
        mean=_channels(config, "image_mean", source),
        std=_channels(config, "image_std", source),
        rescale_factor=config.get("rescale_factor", 1 / 255),
    )


def parse_video_spec(config: Mapping[str, Any], source: str) -> VideoSpec:
    """Settings from a `video_preprocessor_config.json`, the family's defaults filled in.

    Raises:
        ModelNotFound: As `parse_pixel_spec`.
    """
    return VideoSpec(
        pixels=parse_pixel_spec(config, source),
        fps=config["fps"],
        min_frames=config["min_frames"],
        max_frames=config["max_frames"],
        cap_pixels_per_frame=bool(config.get("cap_pixels_per_frame")),
        max_video_tokens=config["max_video_tokens"],
        frame_count=config.get("num_frames"),
    )


def whole_number(config: Mapping[str, Any], name: str, source: str) -> int:
    """A setting that must be one of at least 1.

    Raises:
        ModelNotFound: `UNSUPPORTED_PROCESSOR`.
    """
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise unsupported(source, name, value, "a whole number of at least 1")
    return value


def _channels(config: Mapping[str, Any], name: str, source: str) -> tuple[float, float, float]:
    value = config.get(name)
    if not isinstance(value, list) or len(value) != 3:
        raise unsupported(source, name, value, "three numbers")
    red, green, blue = map(float, value)
    return red, green, blue


def parse_tile_spec(config: Mapping[str, Any], source: str, least: int, most: int) -> PixelSpec:
    """Settings of square tiles, each of which is one row, the family's defaults filled in.

    Args:
        least, most: Tiles that an image may be cut into.
    Raises:
        ModelNotFound: As `parse_pixel_spec`.
    """
    size = config.get("size") or {}
    side = whole_number(size, "height", source)
    if size.keys() - {"height", "width"} or size.get("width") != side:
        raise unsupported(source, "size", dict(size), "one height and width")
    pixels = {"min_pixels": least * side**2, "max_pixels": most * side**2}
    tile = {"patch_size": side, "merge_size": 1, "temporal_patch_size": 1}
    return parse_pixel_spec({**config, **tile, **pixels}, source)


def unsupported(source: str, name: str, value: object, accepted: str) -> ModelNotFound:
    """The error for a setting that asks for what the fast path does not do."""
    return ModelNotFound(f"{source}: {name} is {value!r}; {accepted} is needed", reason="UNSUPPORTED_PROCESSOR")
