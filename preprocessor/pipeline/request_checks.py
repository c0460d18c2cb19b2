"""What a request must be before any file is looked into."""

from __future__ import annotations

from collections.abc import Collection

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, UnsupportedMedia
from preprocessor.media.sampling import check_sampling
from preprocessor.types.request import Media, Modality, PreparationRequest, Sampling


def check_request(request: PreparationRequest, modalities: Collection[Modality], limits: Limits) -> None:
    """Refuse what needs no look into any file; a service calls this before it takes the upload.

    Args:
        modalities: What the model takes.
    Raises:
        InvalidRequest, UnsupportedMedia, LimitExceeded: As `plan`.
    """
    if len(request.media) > limits.max_media_count:
        raise LimitExceeded(f"{len(request.media)} media in one request; at most {limits.max_media_count} are accepted")
    keys = [medium.key for medium in request.media]
    for medium in request.media:
        if keys.count(medium.key) > 1:
            raise InvalidRequest(
                f"the media key {medium.key!r} is used twice", reason="DUPLICATE_MEDIA_KEY", media_key=medium.key
            )
        most_bytes = limits.max_media_bytes
        if medium.modality is Modality.IMAGE:
            most_bytes = min(most_bytes, limits.max_image_bytes)
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
                media_key=medium.key,
            )
        if medium.modality is not Modality.VIDEO and medium.sampling != Sampling():
            raise InvalidRequest(f"{medium.key}: only a video takes sampling", reason="INVALID_SAMPLING")
        if medium.modality is not Modality.IMAGE and medium.background is not None:
            raise InvalidRequest(f"{medium.key}: only an image takes a background", reason="INVALID_BACKGROUND")
        check_sampling(medium.sampling, medium.key)
        _check_pixel_budget(medium)


def _check_pixel_budget(medium: Media) -> None:
    """What the caller gave, held against nothing but itself."""
    least, most = medium.min_pixels, medium.max_pixels
    wrong = ""
    for name, value in (("min_pixels", least), ("max_pixels", most)):
        if value is not None and value <= 0:
            wrong = f"{name} is {value}; give a number above 0"
    if not wrong and least is not None and most is not None and least > most:
        wrong = f"min_pixels {least} is above max_pixels {most}"
    if wrong:
        raise InvalidRequest(f"{medium.key}: {wrong}", reason="INVALID_PIXEL_BUDGET", media_key=medium.key)
