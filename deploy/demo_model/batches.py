"""Samples side by side, for training and for a quick look at accuracy.

Several questions share the clip before them: each sees the clip and itself, not the others. So a clip is encoded once, and each
question gets the scores that it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deploy.demo_model.samples import GRID, STEP_ROWS, STEP_TOKENS, Sample, color_ids, question_ids
from preprocessor.types.plan import Grid
from preprocessor.vision.positions import mrope_positions

VIDEO_TOKEN = 151656
IGNORED = -100
"""In `Batch.targets`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side. B samples of S tokens at most.

    Attributes:
        ids: int64 [B, S], rows of the small vocabulary; 0 after a sample's end.
        targets: int64 [B, S], the token that follows; `IGNORED` where it is not part of an answer.
        positions: int64 [3, B, S].
        mask: bool [B, 1, S, S], what each token sees.
        is_video: bool [B, S].
        rows: uint8 [R, 1536].
        grids: int64 [B, 3].
        shown: int64 [steps of all samples, 5], as in `Sample`.
        named: bool [B, S], tokens of questions that are a color; none in held-out clips.
        meant: int64 [tokens of `named`, 2], shape and direction of what has that color, as in `Sample.shown`.
        answers: int64 [B, S], number of the question whose answer is predicted here; -1 elsewhere.
        kinds: of each question.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    is_video: torch.Tensor
    rows: torch.Tensor
    grids: torch.Tensor
    shown: torch.Tensor
    named: torch.Tensor
    meant: torch.Tensor
    answers: torch.Tensor
    kinds: tuple[str, ...]


def collate(samples: Sequence[Sample], place_of: npt.NDArray[Any]) -> Batch:
    """Lay samples out.

    Args:
        place_of: int64 [vocabulary], the row of the small vocabulary for each token id.
    """
    laid_out = [[question_ids(question) for question in sample.questions] for sample in samples]
    lengths = [
        len(sample.prefix_ids) + sum(len(asked) + len(answer) for asked, answer in asks)
        for sample, asks in zip(samples, laid_out, strict=True)
    ]
    size, longest = len(samples), max(lengths)
    ids = np.zeros((size, longest), np.int64)
    targets = np.full((size, longest), IGNORED, np.int64)
    answers = np.full((size, longest), -1, np.int64)
    positions = np.zeros((3, size, longest), np.int64)
    branch = np.full((size, longest), -1, np.int64)
    is_video = np.zeros((size, longest), bool)
    named = np.zeros((size, longest), bool)
    meant: list[tuple[int, int]] = []
    kinds: list[str] = []
    for row, (sample, asks) in enumerate(zip(samples, laid_out, strict=True)):
        prefix = np.array(sample.prefix_ids)
        end = len(prefix)
        ids[row, :end], branch[row, :end] = place_of[prefix], 0
        is_video[row, :end] = prefix == VIDEO_TOKEN
        starts = np.flatnonzero(is_video[row, :end])[::STEP_TOKENS]
        spans = np.stack([np.zeros_like(starts), starts, np.full_like(starts, STEP_TOKENS)], 1).astype(np.int32)
        grid = Grid(t=1, h=GRID[0] // 2, w=GRID[1] // 2)
        positions[:, row, :end], delta = mrope_positions(end, spans, [grid] * len(spans))
        following = end + delta
        told = {color_ids()[color - 1]: (shape, way) for color, shape, way, *_ in sample.shown.tolist() if color}
        for number, (question, (asked, answer)) in enumerate(zip(sample.questions, asks, strict=True), 1):
            text = place_of[np.array(asked + answer)]
            stop = end + len(text)
            ids[row, end:stop], branch[row, end:stop] = text, number
            positions[:, row, end:stop] = np.arange(following, following + len(text))
            begin = end + len(asked) - 1
            targets[row, begin : stop - 1] = text[len(asked) :]
            for at, token_id in enumerate(asked, end):
                if token_id in told:
                    named[row, at] = True
                    meant.append(told[token_id])
            answers[row, begin : stop - 1] = len(kinds)
            kinds.append(question.kind)
            end = stop
    seen, seer = branch[:, None, :], branch[:, :, None]
    mask = ((seen == 0) | (seen == seer)) & np.tri(longest, dtype=bool)
    mask[:, range(longest), range(longest)] = True  # what follows a sample's end sees something, or it has no softmax
    rows = np.concatenate([sample.rows for sample in samples])
    grids = [[len(sample.rows) // STEP_ROWS, *GRID] for sample in samples]
    return Batch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask[:, None]),
        is_video=torch.from_numpy(is_video),
        rows=torch.from_numpy(rows),
        grids=torch.tensor(grids),
        shown=torch.from_numpy(np.concatenate([sample.shown for sample in samples])),
        named=torch.from_numpy(named),
        meant=torch.tensor(meant, dtype=torch.int64).reshape(-1, 2),
        answers=torch.from_numpy(answers),
        kinds=tuple(kinds),
    )
