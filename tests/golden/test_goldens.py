"""Our pipeline against goldens.json, exactly. Needs no torchvision: Hugging Face's answers are in the file."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.pipeline import pixel_tensor_name, plan, prepare
from preprocessor.types import PixelForm
from tests.golden.cases import GOLDENS, MEDIA, requests, with_form

GOLDEN: dict[str, Any] = json.loads(GOLDENS.read_text())
CASES: dict[str, Any] = GOLDEN["cases"]
FORMS = [PixelForm.UINT8, PixelForm.FP32, PixelForm.BF16, PixelForm.FP16]


def sha256(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()


def stamp_here(name: str) -> str:
    if name == "machine":
        return platform.machine()
    if name == "torch_cpu_capability":
        return torch.backends.cpu.get_cpu_capability()
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def differing_stamps() -> str:
    """What of the goldens' making is otherwise here: the likeliest cause of a difference, so every failure says it."""
    made_with = {n: v for n, v in GOLDEN["made_with"].items() if n != "torchvision"}  # ours never imports it
    differing = [
        f"{name} {made} → here {stamp_here(name)}" for name, made in made_with.items() if made != stamp_here(name)
    ]
    return f"made with other versions: {'; '.join(differing)}" if differing else "made with these very versions"


def check(case: str, what: str, ours: object, golden: object) -> None:
    if ours != golden:
        pytest.fail(f"{case}: {what} is {ours}, golden {golden} ({differing_stamps()})", pytrace=False)


def test_every_case_has_a_golden() -> None:
    assert list(CASES) == list(requests()), "run `make golden`"


@pytest.mark.parametrize("name", sorted(GOLDEN["media"]))
def test_a_medium_is_the_one_the_goldens_were_made_from(name: str) -> None:
    check(name, "SHA-256", hashlib.sha256((MEDIA / name).read_bytes()).hexdigest(), GOLDEN["media"][name])


@pytest.mark.parametrize("case", CASES)
def test_token_ids_are_hugging_faces(case: str, model: Model) -> None:
    ids = plan(model, requests()[case], Limits()).prompt.token_ids
    golden = CASES[case]["token_ids"]
    ours = {"length": len(ids), "first": ids[:8].tolist(), "last": ids[-8:].tolist(), "sha256": sha256(ids)}
    check(case, "token_ids", ours, golden)


@pytest.mark.parametrize("case", CASES)
def test_chosen_frames_are_hugging_faces(case: str, model: Model) -> None:
    items = plan(model, requests()[case], Limits()).items
    ours = [None if item.frames is None else item.frames.indices.tolist() for item in items]
    check(case, "frame_indices", ours, CASES[case]["frame_indices"])


@pytest.mark.parametrize("case", CASES)
def test_grids_are_hugging_faces(case: str, model: Model) -> None:
    items = plan(model, requests()[case], Limits()).items
    check(case, "grid_thw", [[i.grid.t, i.grid.h, i.grid.w] for i in items], CASES[case]["grid_thw"])


@pytest.mark.parametrize("case", CASES)
def test_rotary_positions_are_hugging_faces(case: str, model: Model) -> None:
    planned = plan(model, requests()[case], Limits())
    check(case, "mrope_position_delta", planned.mrope_position_delta, CASES[case]["mrope_position_delta"])
    check(case, "mrope_position_ids", sha256(planned.mrope_position_ids), CASES[case]["mrope_position_ids"])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.value)
@pytest.mark.parametrize("case", [name for name, golden in CASES.items() if golden["pixels"]])
def test_pixels_are_hugging_faces_bit_for_bit(case: str, form: PixelForm, model: Model) -> None:
    prepared = prepare(model, with_form(requests()[case], form))
    ours = sha256(prepared.tensors[pixel_tensor_name(form)])
    check(case, f"{form.value} pixels' SHA-256", ours, CASES[case]["pixels"][form.value])
