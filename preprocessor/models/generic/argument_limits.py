"""What a caller's arguments can make a processor allocate, bounded before it runs.

A processor's output is known only when it has run. A worker's memory is limited, and the finished tensors are counted; what is
refused here would not get that far, and would take its time first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.generic.arguments import FIELD, REASON, ProcessorArguments
from preprocessor.models.generic.media import refuse_above
from preprocessor.models.generic.processor import counts_pixels, part_of
from preprocessor.types.request import Modality

_BYTES_A_PIXEL = 12  # three channels of float32
_BYTES_A_SAMPLE = 4  # float32
_MOST_COUNT = 16_384  # of tokens, patches and whatever else is counted; above what any model is served with
_MOST_TILES = 256  # transformers tries all grids of so many tiles, in cubic time (get_all_supported_aspect_ratios)
_TILES = re.compile(r"tiles|(num|max|min)_crops|^(max|min)_patches$|dynamic_patch")
_SIZES = re.compile(r"size|pinpoints|_edge$|_height$|_width$")
_PIXEL_COUNTS = frozenset({"min_pixels", "max_pixels"})


def refuse_large(processor: Any, arguments: ProcessorArguments, limits: Limits) -> None:
    """Refuse sizes whose pixels alone exceed a request's, and counts that no model is served with.

    Raises:
        LimitExceeded: `PIXELS_TOO_LARGE`.
        InvalidRequest: `INVALID_PROCESSOR_ARGUMENTS` for a count.
    """
    for name, value in arguments.own.items():
        _refuse_counts(name, value)
    for name, value in arguments.of(Modality.AUDIO).items():
        for number in _whole_numbers(value):
            refuse_above(number * _BYTES_A_SAMPLE, limits, f"{name} {number}")
    for modality in (Modality.IMAGE, Modality.VIDEO):
        counts = counts_pixels(part_of(processor, modality))
        for name, value in arguments.of(modality).items():
            if name not in _PIXEL_COUNTS and not _SIZES.search(name):
                _refuse_counts(name, value)
                continue
            for pixels in _pixels(name, value, counts):
                refuse_above(pixels * _BYTES_A_PIXEL, limits, f"{name} {value!r}"[:200])


def _refuse_counts(name: str, value: Any) -> None:
    most = _MOST_TILES if _TILES.search(name) else _MOST_COUNT
    for number in _whole_numbers(value):
        if number > most:
            raise InvalidRequest(f"{name!r} is {number}; at most {most} is accepted", reason=REASON, field=FIELD)


def _pixels(name: str, value: Any, counts: bool) -> Iterator[int]:
    """The most pixels that each size in a value can mean: a product of two sides, a side squared, or a number of pixels."""
    match value:
        case {"height": int(height), "width": int(width)}:
            yield abs(height * width)
        case Mapping():
            for inner_name, inner in value.items():
                yield from _pixels(inner_name, inner, counts and inner_name in ("shortest_edge", "longest_edge"))
        case list() | tuple():
            for inner in value:
                yield from _pixels(name, inner, False)
        case int():
            yield value if counts or name in _PIXEL_COUNTS else value * value


def _whole_numbers(value: Any) -> Iterator[int]:
    """Every whole number in a JSON value, at every depth; booleans are none."""
    match value:
        case bool():
            return
        case int():
            yield value
        case Mapping():
            for inner in value.values():
                yield from _whole_numbers(inner)
        case list() | tuple():
            for inner in value:
                yield from _whole_numbers(inner)
