"""A request → its plan, from headers alone; the pixels are written later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.models.family.item import plan_item
from preprocessor.models.family.prompt import render_prompt
from preprocessor.models.family.rules import ItemLayout, ModelSettings
from preprocessor.models.loaded import CancelCheck, PlanMemory, PlannedItem
from preprocessor.text.placeholders import expand_text, expand_token_ids
from preprocessor.types.plan import ExpandedPrompt, ItemPlan, PixelPlan, Plan
from preprocessor.types.request import PixelForm, PreparationRequest, TokenPrompt
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES


def plan_from_headers(
    model: ModelSettings,
    request: PreparationRequest,
    limits: Limits,
    check: CancelCheck,
    memory: PlanMemory,
) -> Plan:
    """See `LoadedModel.plan`."""
    timings = Timings()
    with timings.stage("plan"):
        text, media = render_prompt(model, request, limits)
        items: list[ItemPlan] = []
        layouts: list[ItemLayout] = []
        row_count = 0
        for medium in media:
            known = memory.items.get(medium.key)
            if known is None:
                item, layout = plan_item(model, request, medium, row_count, limits, check)
                memory.items[medium.key] = PlannedItem(item, layout)
            else:
                item, layout = dataclasses.replace(known.item, key=medium.key, row_start=row_count), known.layout
            items.append(item)
            layouts.append(layout)
            row_count += item.rows.row_count
        pixels = _pixel_plan(model, tuple(items), row_count, request, limits)
    with timings.stage("tokenize"):
        spans = [layout.spans for layout in layouts]
        if isinstance(request.prompt, TokenPrompt):
            prompt = expand_token_ids(model.tokenizer, model.placeholders, request.prompt.token_ids, spans)
        else:
            prompt = expand_text(
                model.tokenizer, model.placeholders, text.text, spans, text.literals, limits, memory.text
            )
        tensors = {
            "input_ids": prompt.token_ids,
            **model.family.prompt_tensors(prompt, items, model),
            **_item_tensors(model, items, layouts, prompt, request),
        }
    return Plan(tuple(items), tensors, timings, pixels, 0 if pixels is None else pixels.size_bytes)


def _pixel_plan(
    model: ModelSettings, items: tuple[ItemPlan, ...], row_count: int, request: PreparationRequest, limits: Limits
) -> PixelPlan | None:
    form = request.pixel_form or PixelForm.UINT8
    if form is PixelForm.NONE or not row_count:
        return None
    feature_count = model.image.feature_count
    size_bytes = row_count * feature_count * PIXEL_DTYPES[form].itemsize
    if size_bytes > limits.max_pixel_bytes:
        raise LimitExceeded(
            f"the pixel tensor would take {size_bytes} bytes; at most {limits.max_pixel_bytes} are accepted: "
            "ask for fewer frames or a smaller max_pixels",
            reason="PIXELS_TOO_LARGE",
        )
    return PixelPlan(
        items, row_count, feature_count, form, size_bytes, request.video_decoder, limits.max_file_cpu_seconds
    )


def _item_tensors(
    model: ModelSettings,
    items: Sequence[ItemPlan],
    layouts: Sequence[ItemLayout],
    prompt: ExpandedPrompt,
    request: PreparationRequest,
) -> dict[str, npt.NDArray[Any]]:
    """The contract's tensors that describe media; those that would be empty are left out."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    if items:
        tensors = {
            **_joined([layout.tensors for layout in layouts]),
            "item_modality": np.array([item.modality for item in items], np.int32),
            "item_spans": prompt.spans,
            "item_hash": np.frombuffer(b"".join(item.digest for item in items), np.uint8).reshape(-1, 32),
        }
    if request.with_token_types:
        tensors["mm_token_type_ids"] = model.family.token_types(prompt, items, model)
    if items and request.pixel_form in (None, PixelForm.UINT8):
        tensors["pixel_mean"] = np.array(model.image.mean, np.float32)
        tensors["pixel_std"] = np.array(model.image.std, np.float32)
    return tensors


def _joined(tensors: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """The items' tensors, each name's joined along the first axis."""
    return {name: np.concatenate([one[name] for one in tensors]) for name in tensors[0]}
