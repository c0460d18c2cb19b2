"""What a request must be before any file is looked into."""

from __future__ import annotations

from collections.abc import Collection

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, UnsupportedMedia
from preprocessor.media.frame_list import check_frame_list
from preprocessor.media.sampling_checks import check_sampling
from preprocessor.types.request import Media, Modality, PreparationRequest, Sampling


def check_request(request: PreparationRequest, modalities: Collection[Modality], limits: Limits) -> None:
    """Refuse what needs no look into any file; a service calls this before it takes the upload.

    Args:
        modalities: What the model takes.
    Raises:
        InvalidRequest, UnsupportedMedia, LimitExceeded: As `plan`.
    """
    limits.check_media_count(len(request.media))
    keys = [medium.key for medium in request.media]
    for place, medium in enumerate(request.media):
        if keys.count(medium.key) > 1:
            raise InvalidRequest(
                f"the media key {medium.key!r} is used twice",
                reason="DUPLICATE_MEDIA_KEY",
                field=f"media[{keys.index(medium.key, place + 1)}].key",
                media_key=medium.key,
            )
        most_bytes = limits.max_file_bytes(medium.modality)
        if len(medium.data) > most_bytes:
            raise LimitExceeded(
                f"{medium.key}: {len(medium.data)} bytes; at most {most_bytes} are accepted",
                reason="MEDIA_TOO_LARGE",
                media_key=medium.key,
            )
        if medium.modality not in modalities:
            taken = ", ".join(modality.name.lower() for modality in sorted(modalities))
            raise UnsupportedMedia(
                f"{medium.key}: this model takes no {medium.modality.name.lower()}; it takes {taken}",
                reason="UNSUPPORTED_MODALITY",
                field="media[].modality",
                media_key=medium.key,
            )
        if medium.modality is not Modality.VIDEO and medium.sampling != Sampling():
            raise InvalidRequest(
                f"{medium.key}: only a video takes sampling",
                reason="INVALID_SAMPLING",
                field="media[].sampling",
                media_key=medium.key,
            )
        if medium.modality is not Modality.IMAGE and medium.background is not None:
            raise InvalidRequest(
                f"{medium.key}: only an image takes a background",
                reason="INVALID_BACKGROUND",
                field="media[].background",
                media_key=medium.key,
            )
        check_sampling(medium.sampling, medium.key)
        if medium.frames is not None:
            check_frame_list(medium, medium.frames, limits)
        _check_pixel_budget(medium)


def _check_pixel_budget(medium: Media) -> None:
    """Check the caller's bounds against each other, not against the model's."""
    least, most = medium.min_pixels, medium.max_pixels
    wrong = field = ""
    for name, value in (("min_pixel_count", least), ("max_pixel_count", most)):
        if value is not None and value <= 0:
            wrong, field = f"{name} is {value}; give a number above 0", f"media[].{name}"
    if not wrong and least is not None and most is not None and least > most:
        wrong, field = f"min_pixel_count {least} is above max_pixel_count {most}", "media[].min_pixel_count"
    if wrong:
        raise InvalidRequest(f"{medium.key}: {wrong}", reason="INVALID_PIXEL_BUDGET", field=field, media_key=medium.key)
