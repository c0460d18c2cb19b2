"""Multimodal rotary positions: where each token stands in time, height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.types.plan import Grid


def mrope_tensors(
    length: int,
    spans: npt.NDArray[np.int32],
    span_grids: Sequence[Grid],
    time_intervals: Sequence[float | np.floating[Any]] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """`mrope_position_ids` int32 [3, L] and `mrope_position_delta` int32 [1]; see `mrope_positions`."""
    positions, delta = mrope_positions(length, spans, span_grids, time_intervals)
    return {"mrope_position_ids": positions, "mrope_position_delta": np.array([delta], np.int32)}


def mrope_positions(
    length: int,
    spans: npt.NDArray[np.int32],
    span_grids: Sequence[Grid],
    time_intervals: Sequence[float | np.floating[Any]] | None = None,
) -> tuple[npt.NDArray[np.int32], int]:
    """Positions of a prompt whose media stand in `spans`.

    Text advances all three axes together. A span starts one past everything before it, spreads over its grid, and is
    followed by text one past its larger side.

    Args:
        length: Tokens in the prompt, L.
        spans: int32 [S, 3], ascending: item index, offset, token count.
        span_grids: For each span its grid in merged tokens; t*h*w is the span's token count.
        time_intervals: For each span how far apart its time steps are, in positions; 1 where None. Multiplied in float32 and
            truncated, as the source does.
    Returns:
        int32 [3, L], and the delta: the next text position minus L.
    Source: transformers 5.23, get_rope_index of Qwen2VLModel, Qwen2_5_VLModel and Qwen3VLModel.
    """
    positions = np.empty((3, length), dtype=np.int32)
    cursor = following = 0
    axes_of: dict[Grid, npt.NDArray[np.int32]] = {}  # a clip's frames have one grid, mostly
    intervals = [1.0] * len(spans) if time_intervals is None else time_intervals
    for (_, offset, count), grid, interval in zip(spans.tolist(), span_grids, intervals, strict=True):
        positions[:, cursor:offset] = np.arange(following, following + offset - cursor, dtype=np.int32)
        following += offset - cursor
        axes = axes_of.get(grid)
        if axes is None:
            axes = axes_of[grid] = np.indices((grid.t, grid.h, grid.w), dtype=np.int32).reshape(3, count)
        if interval != 1:
            axes = axes.copy()
            axes[0] = axes[0].astype(np.float32) * np.float32(interval)
        positions[:, offset : offset + count] = axes + following
        following += max(grid.h, grid.w)
        cursor = offset + count
    positions[:, cursor:] = np.arange(following, following + length - cursor, dtype=np.int32)
    delta = int(positions.max()) + 1 - length if length else 0
    return positions, delta


def clock_mrope_tensors(
    length: int,
    spans: npt.NDArray[np.int32],
    span_grids: Sequence[Grid],
    span_steps: Sequence[npt.NDArray[Any]],
    dtype: type[np.float32] | type[np.int32] = np.float32,
) -> dict[str, npt.NDArray[Any]]:
    """`mrope_position_ids` [3, L] and `mrope_position_delta` [1] of a model whose time steps may be fractions.

    As `mrope_positions`, but the text behind a span is one past the largest position on any axis. Sums are rounded where the
    source rounds them: the tokens next to a span (the markers around it) are placed one by one, the text between them at once.

    Args:
        span_steps: For each span the temporal positions of its grid's steps, relative to its first: [t].
        dtype: Of the result, and of every sum.
    Source: transformers 5.23, get_rope_index of Qwen3-Omni's and Qwen2.5-Omni's thinkers.
    """
    positions: npt.NDArray[Any] = np.empty((3, length), dtype)
    cursor = 0
    one: Any = dtype(1)
    following: Any = dtype(0)

    def place_text(count: int) -> None:
        nonlocal cursor, following
        positions[:, cursor : cursor + count] = np.arange(count).astype(dtype) + following
        cursor, following = cursor + count, following + dtype(count)

    for number, ((_, offset, count), grid, steps) in enumerate(
        zip(spans.tolist(), span_grids, span_steps, strict=True)
    ):
        if number and cursor < offset:
            place_text(1)
        if cursor < offset:
            place_text(offset - cursor - 1)
            place_text(1)
        axes = np.indices((grid.t, grid.h, grid.w)).reshape(3, count).astype(dtype)
        axes[0] = np.repeat(steps.astype(dtype), grid.h * grid.w)
        axes += following
        positions[:, offset : offset + count] = axes
        cursor, following = offset + count, dtype(axes.max() + one)
    if len(spans) and cursor < length:
        place_text(1)
    place_text(length - cursor)
    delta = dtype(positions.max() + one - dtype(length)) if length else dtype(0)
    return {"mrope_position_ids": positions, "mrope_position_delta": np.array([delta], dtype)}
