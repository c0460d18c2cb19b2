"""Checks of how a caller asks for frames that no clip could pass, made before the file is looked at."""

from __future__ import annotations

import itertools
import math

from preprocessor.errors import InvalidRequest
from preprocessor.types.request import Sampling


def check_sampling(sampling: Sampling, key: str) -> None:
    """Refuse what no clip could satisfy, before the file is looked at.

    Raises:
        InvalidRequest: `SAMPLING_CONFLICT` where several ways are asked at once; `INVALID_SAMPLING` for a bad value.
    """
    ways = {
        "fps": sampling.fps is not None,
        "frame_count": sampling.frame_count is not None,
        "indices": sampling.indices is not None,
        "times_seconds": sampling.times_seconds is not None,
        "every_frame": sampling.every_frame,
    }
    asked = [way for way, is_asked in ways.items() if is_asked]
    if len(asked) > 1:
        raise InvalidRequest(
            f"{key}: {' and '.join(asked)} are given together; choose one",
            reason="SAMPLING_CONFLICT",
            field="media[].sampling",
            media_key=key,
        )
    bounds = (sampling.start_seconds, sampling.end_seconds)
    if (sampling.indices is not None or sampling.times_seconds is not None) and bounds != (None, None):
        raise InvalidRequest(
            f"{key}: {asked[0]} name the frames; start_seconds and end_seconds do not go with them",
            reason="SAMPLING_CONFLICT",
            field=f"media[].sampling.{'end_seconds' if bounds[0] is None else 'start_seconds'}",
            media_key=key,
        )
    for name, value in (("fps", sampling.fps), ("frame_count", sampling.frame_count)):
        _require(value is None or (math.isfinite(value) and value > 0), name, value, "a number above 0", key)
    for name, value in zip(("start_seconds", "end_seconds"), bounds, strict=True):
        _require(value is None or (math.isfinite(value) and value >= 0), name, value, "a number of at least 0", key)
    start, end = bounds
    _require(start is None or end is None or start < end, "end_seconds", end, f"more than start_seconds ({start})", key)
    if sampling.indices is not None:
        is_ascending = all(a <= b for a, b in itertools.pairwise(sampling.indices))
        is_sound = bool(sampling.indices) and sampling.indices[0] >= 0 and is_ascending
        _require(is_sound, "indices", _shown(sampling.indices), "at least one, ascending, from 0", key)
    if sampling.times_seconds is not None:
        times = sampling.times_seconds
        is_ascending = all(a <= b for a, b in itertools.pairwise(times))
        is_sound = bool(times) and all(map(math.isfinite, times)) and times[0] >= 0 and is_ascending
        _require(is_sound, "times_seconds", _shown(times), "at least one, ascending, from 0", key)


def _require(holds: bool, name: str, value: object, accepted: str, key: str) -> None:
    if not holds:
        raise InvalidRequest(
            f"{key}: {name} is {value}; give {accepted}",
            reason="INVALID_SAMPLING",
            field=f"media[].sampling.{name}",
            media_key=key,
        )


def _shown(values: tuple[object, ...], most: int = 8) -> str:
    """A list for a message, cut where it is long."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "") or "empty"
