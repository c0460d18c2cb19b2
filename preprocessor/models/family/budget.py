"""Pixel budgets that a family cannot heed."""

from __future__ import annotations

from preprocessor.errors import InvalidRequest
from preprocessor.types.request import Media

_FIELDS = {
    "min_pixels": "min_pixel_count",
    "max_pixels": "max_pixel_count",
    "cap_pixels_per_frame": "cap_pixels_per_frame",
}

SIZE_BOUNDS = frozenset({"min_pixels", "max_pixels"})
CAPPED_BOUNDS = SIZE_BOUNDS | {"cap_pixels_per_frame"}
MOST_ALONE = frozenset({"max_pixels"})
NO_BOUNDS: frozenset[str] = frozenset()


def refuse_bounds(medium: Media, heeded: frozenset[str]) -> None:
    """Refuse what a caller asks of a medium's pixels where its family's rule has no place for it.

    Args:
        heeded: Attributes of `Media` that the family heeds; see `Family`.
    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET`.
    """
    for bound in _FIELDS:
        if bound not in heeded and getattr(medium, bound) is not None:
            what = f"this model takes no {_FIELDS[bound]} for its {medium.modality.name.lower()}s; leave it out"
            raise _refusal(medium, bound, what)


def refuse_most_below(medium: Media, least: int, what: str) -> None:
    """Refuse a `max_pixels` that even the family's smallest picture exceeds.

    Args:
        least: Pixels of that picture.
        what: It, as the error names it.
    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET`.
    """
    if medium.max_pixels is not None and medium.max_pixels < least:
        said = f"max_pixel_count {medium.max_pixels} is below {what}, which has {least} pixels"
        raise _refusal(medium, "max_pixels", said)


def _refusal(medium: Media, bound: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{medium.key}: {what}",
        reason="INVALID_PIXEL_BUDGET",
        field=f"media[].{_FIELDS[bound]}",
        media_key=medium.key,
    )
