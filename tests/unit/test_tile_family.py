"""A family whose rows are tiles, which no family here is: one `Family` value is all that it takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.config import Limits
from preprocessor.media.image import decode_image
from preprocessor.models.family import Model
from preprocessor.pipeline import allocate_pixels, plan, prepare, write_pixels
from preprocessor.pipeline.cost import estimate
from preprocessor.pipeline.division import cut
from preprocessor.service.writing import write_header
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.vision.patches import normalization_table, normalize_rows
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.media import moving_shapes_clip, photo
from tests.unit.tiles import TILES, TOKENS_A_TILE

TILE_PX = 32
TILE = PixelSpec(TILE_PX, 1, 1, 1, 1 << 20, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
PHOTO = photo(100, 60, "PNG")
IMAGE = Media("i", Modality.IMAGE, PHOTO)
VIDEO = Media("v", Modality.VIDEO, moving_shapes_clip(2, 10, 96, 64, options=(("g", "5"),)), Sampling(frame_count=6))


@pytest.fixture(scope="module")
def tiles(model: Model) -> Model:
    video = VideoSpec(TILE, fps=2, min_frames=1, max_frames=8)
    return dataclasses.replace(model, family=TILES, image=TILE, video=video)


def ask(*media: Media, form: PixelForm = PixelForm.UINT8) -> PreparationRequest:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("Well?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, form)


def resized(frame: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """uint8 [3, side, side], by torch alone."""
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None]
    made: Any = torch.nn.functional.interpolate(planes, size=(side, side), mode="bicubic", antialias=True)
    return made[0].numpy()


def expected_rows() -> npt.NDArray[np.uint8]:
    """The rows of `IMAGE`: tiles line by line, then the thumbnail."""
    frame = decode_image(PHOTO)
    planes = resized(frame, 2 * TILE_PX)
    tiles = [planes[:, y : y + TILE_PX, x : x + TILE_PX].reshape(-1) for y in (0, TILE_PX) for x in (0, TILE_PX)]
    return np.stack([*tiles, resized(frame, TILE_PX).reshape(-1)])


def test_the_rows_of_an_image_are_its_tiles_and_a_thumbnail(tiles: Model) -> None:
    pixels = prepare(tiles, ask(IMAGE)).tensors["pixel_patches"]
    assert np.array_equal(pixels, expected_rows())


def test_floats_are_the_tiles_normalized(tiles: Model) -> None:
    pixels = prepare(tiles, ask(IMAGE, form=PixelForm.FP32)).tensors["pixel_values"]
    expected = np.empty_like(pixels)
    normalize_rows(expected_rows(), normalization_table(TILE, PixelForm.FP32), expected)
    assert np.array_equal(pixels, expected)


def test_the_tensors_are_the_familys_own_without_rotary_positions_or_grids(tiles: Model) -> None:
    tensors = prepare(tiles, ask(IMAGE, VIDEO)).tensors
    length = len(tensors["input_ids"])
    assert {name: (str(array.dtype), array.shape) for name, array in tensors.items()} == {
        "input_ids": ("int32", (length,)),
        "tile_counts": ("int32", (2,)),
        "item_modality": ("int32", (2,)),
        "item_spans": ("int32", (11, 3)),
        "item_hash": ("uint8", (2, 32)),
        "pixel_mean": ("float32", (3,)),
        "pixel_std": ("float32", (3,)),
        "pixel_patches": ("uint8", (11, TILE.feature_count)),
    }
    assert tensors["tile_counts"].tolist() == [5, 6]


def test_each_tile_has_a_span_of_its_own(tiles: Model) -> None:
    planned = plan(tiles, ask(IMAGE), Limits())
    spans = planned.tensors["item_spans"]
    assert spans[:, 2].tolist() == [TOKENS_A_TILE] * 5
    pad = tiles.placeholders.ids[Modality.IMAGE]
    assert all((planned.token_ids[start : start + count] == pad).all() for _, start, count in spans.tolist())
    assert "tile 3: " in tiles.tokenizer.decode(planned.token_ids)


def test_a_video_is_written_frame_by_frame_and_in_parts(tiles: Model) -> None:
    request = ask(IMAGE, VIDEO)
    planned = plan(tiles, request, Limits())
    assert planned.pixels is not None
    whole = allocate_pixels(planned.pixels)
    announced: list[tuple[int, int]] = []
    write_pixels(tiles, request.media, planned.pixels, whole, lambda *rows: announced.append(rows))
    assert announced == [(0, 5), *((row, 1) for row in range(5, 11))]
    pieces = np.zeros_like(whole)
    parts = cut(planned.pixels, request.media, 3)
    assert len(parts) > 1
    for part in parts:
        write_pixels(tiles, request.media, planned.pixels, pieces, rows=part)
    assert np.array_equal(pieces, whole)
    assert estimate(planned.pixels, request.media).cpu_seconds > 0


def test_an_answers_header_tells_of_such_items(tiles: Model) -> None:
    planned = plan(tiles, ask(IMAGE), Limits())
    (item,) = write_header(tiles, planned, {"i": len(PHOTO)}, "request").items
    assert (item.token_count, item.WhichOneof("layout")) == (5 * TOKENS_A_TILE, None)
