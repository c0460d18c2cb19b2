"""The longest side that a picture may have, moving or not."""

from __future__ import annotations

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded


def check_sides(width: int, height: int, limits: Limits, key: str) -> None:
    """Raises:
    LimitExceeded: `SIDE_TOO_LONG`.
    """
    if max(width, height) > limits.max_side_px:
        raise LimitExceeded(
            f"{key}: the picture is {width}x{height}; at most {limits.max_side_px} pixels a side are accepted",
            reason="SIDE_TOO_LONG",
            media_key=key,
        )
