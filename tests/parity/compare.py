"""Our answer beside Hugging Face's: every value equal, none merely close."""

from __future__ import annotations

import dataclasses
import faulthandler
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from preprocessor.errors import InvalidRequest
from preprocessor.models.family import Model
from preprocessor.pipeline import prepare
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import PixelForm, PreparationRequest, SamplingBasis
from preprocessor.types.source import FrameListInfo
from tests.golden import oracle
from tests.golden.tile_oracle import TileAnswer
from tests.parity.cases import case, make_request
from tests.parity.directories import model_named

_CASE_LIMIT_SECONDS = 150


def differences(model: Model, request: PreparationRequest, processor: Any = None) -> list[str]:
    """One sentence for each value that differs; none where all are equal, or where both refuse the budget of pixels.

    Args:
        processor: See `oracle.answer`.
    """
    try:
        ours = prepare(model, dataclasses.replace(request, with_token_types=True))
    except InvalidRequest as refusal:
        if refusal.reason != "INVALID_PIXEL_BUDGET":
            raise
        try:
            oracle.answer(model, request, processor)
        except ValueError:  # both refuse
            return []
        return [f"refused here alone: {refusal}"]
    theirs = oracle.answer(model, request, processor)
    tensors = ours.tensors
    pairs: dict[str, tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]] = {
        "input_ids": (tensors["input_ids"], theirs.token_ids),
        "mm_token_type_ids": (tensors["mm_token_type_ids"], theirs.token_types),
        "mrope_position_ids": (tensors.get("mrope_position_ids"), theirs.positions),
        "mrope_position_delta": (tensors.get("mrope_position_delta"), theirs.delta),
        "second_per_grid_ts": (tensors.get("second_per_grid_ts"), theirs.seconds_per_grid),
    }
    if request.media:
        assert ours.plan.pixels is not None
        name = ours.plan.pixels.name
        pairs["grid_thw"] = (tensors.get("chunk_grid_thw", tensors["grid_thw"]), theirs.grid_thw)
        pairs[name] = (bits_of(tensors[name]), bits_of(pixels_in_form(theirs, request.pixel_form or PixelForm.UINT8)))
    found = [f"{name} {told}" for name, pair in pairs.items() if (told := difference(*pair))]
    frames = [_frames_of(item) for item in ours.plan.items]
    if frames != theirs.frame_indices:
        found.append(f"frame indices: ours {frames}, theirs {theirs.frame_indices}")
    return found


def _frames_of(item: ItemPlan) -> list[Any] | None:
    """As `oracle.Answer.frame_indices`."""
    if item.frames is None:
        return None
    is_timed = isinstance(item.source, FrameListInfo) and item.frames.basis is SamplingBasis.TIME
    times: list[Any] = (item.frames.prompt_times_seconds if is_timed else item.frames.indices).tolist()
    return times


def run_case(number: int, folder: Path) -> list[str]:
    """What differs in this case; one that raises differs too.

    Args:
        folder: Where `save_models` wrote.
    """
    torch.set_num_threads(1)  # a process a core
    asked = case(number)
    faulthandler.dump_traceback_later(_CASE_LIMIT_SECONDS, exit=True)  # an encoder may hang beyond Python's reach
    try:
        model = model_named(asked.model, folder)
        return differences(model, make_request(asked, model))
    except Exception as error:
        return [f"raised {type(error).__name__}: {error}"]
    finally:
        faulthandler.cancel_dump_traceback_later()


def pixels_in_form(theirs: oracle.Answer | TileAnswer, form: PixelForm) -> npt.NDArray[Any]:
    """Hugging Face's pixels as the caller asked for them; torch casts what an engine would have cast."""
    if form is PixelForm.UINT8:
        return theirs.patches
    fp32 = torch.from_numpy(theirs.pixels)
    if form is PixelForm.BF16:
        bits: npt.NDArray[np.int16] = fp32.to(torch.bfloat16).view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    return fp32.to(torch.float16).numpy() if form is PixelForm.FP16 else theirs.pixels


def bits_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as integers of its width: -0.0 is not 0.0 here."""
    return array.view(f"u{array.dtype.itemsize}")


def difference(ours: npt.NDArray[Any] | None, theirs: npt.NDArray[Any] | None) -> str:
    if ours is None or theirs is None:
        return "" if ours is theirs else f"is {'absent' if ours is None else 'only'} here"
    if ours.shape != theirs.shape:
        return f"has shape {ours.shape}, theirs {theirs.shape}"
    if np.array_equal(ours, theirs):
        return ""
    places = np.argwhere(ours != theirs)
    first = tuple(places[0].tolist())
    return f"differs in {len(places)} of {ours.size}, first at {first}: ours {ours[first]}, theirs {theirs[first]}"
