"""Pixel budgets that a family cannot heed."""

from __future__ import annotations

from preprocessor.errors import InvalidRequest
from preprocessor.types.request import Media

_FIELDS = {
    "min_pixels": "min_pixel_count",
    "max_pixels": "max_pixel_count",
    "cap_pixels_per_frame": "cap_pixels_per_frame",
}


def refuse_bounds(medium: Media, *bounds: str) -> None:
    """Refuse what a caller asks of a medium's pixels where its family's rule has no place for it.

    Args:
        bounds: Attributes of `Media` that must be None.
    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET`.
    """
    for bound in bounds:
        if getattr(medium, bound) is not None:
            name = _FIELDS[bound]
            raise InvalidRequest(
                f"{medium.key}: this model takes no {name} for its {medium.modality.name.lower()}s; leave it out",
                reason="INVALID_PIXEL_BUDGET",
                field=f"media[].{name}",
                media_key=medium.key,
            )
