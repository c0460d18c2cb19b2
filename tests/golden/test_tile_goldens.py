"""Our pipeline against tile_goldens.json, exactly. Needs no torchvision: Hugging Face's answers are in the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocessor.models.family import Model
from preprocessor.pipeline import prepare
from preprocessor.types.request import PixelForm
from tests.golden.cases import with_form
from tests.golden.test_goldens import FORMS, check, sha256
from tests.golden.tile_cases import MODELS, TILE_GOLDENS, model_directories, requests

CASES: dict[str, Any] = json.loads(TILE_GOLDENS.read_text())["cases"]
LoadModel = Callable[[str], Model]


def test_every_case_has_a_golden(load: LoadModel) -> None:
    models = [load(directory) for directory in model_directories()]
    asked = [f"{Path(model.name).name}: {name}" for model in models for name in requests(model)]
    assert list(CASES) == asked, "run `make golden`"


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_and_its_pixels_are_hugging_faces(case: str, load: LoadModel) -> None:
    name, _, kind = case.partition(": ")
    model, golden = load(str(MODELS / name)), CASES[case]
    request = dataclasses.replace(requests(model)[kind], with_token_types=True)
    for form in FORMS if golden["pixels"] else [PixelForm.NONE]:
        prepared = prepare(model, with_form(request, form))
        tensors = prepared.tensors
        ids = {"length": len(tensors["input_ids"]), "sha256": sha256(tensors["input_ids"])}
        check(case, "token_ids", ids, golden["token_ids"])
        check(case, "mm_token_type_ids", sha256(tensors["mm_token_type_ids"]), golden["mm_token_type_ids"])
        check(case, "tensors", {name: tensors[name].tolist() for name in golden["tensors"]}, golden["tensors"])
        frames = [None if item.frames is None else item.frames.indices.tolist() for item in prepared.plan.items]
        check(case, "frame_indices", frames, golden["frame_indices"])
        if prepared.plan.pixels is not None:
            pixels = sha256(tensors[prepared.plan.pixels.name])
            check(case, f"{form.value} pixels' SHA-256", pixels, golden["pixels"][form.value])
