"""Our pipeline against goldens.json, exactly. Needs no torchvision: Hugging Face's answers are in the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.pipeline import plan, prepare
from preprocessor.types.plan import Plan
from preprocessor.types.request import PixelForm
from tests.golden.cases import GOLDENS, MEDIA, cases, with_form
from tests.parity.directories import model_named
from tests.plans import grid_of, pixels_of

GOLDEN: dict[str, Any] = json.loads(GOLDENS.read_text())
CASES: dict[str, Any] = GOLDEN["cases"]
LoadModel = Callable[[str], Model]
FORMS = [PixelForm.UINT8, PixelForm.FP32, PixelForm.BF16, PixelForm.FP16]


def sha256(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


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
    assert list(CASES) == list(cases()), "run `make golden`"


@pytest.mark.parametrize("name", sorted(GOLDEN["media"]))
def test_a_medium_is_the_one_the_goldens_were_made_from(name: str) -> None:
    check(name, "SHA-256", hashlib.sha256((MEDIA / name).read_bytes()).hexdigest(), GOLDEN["media"][name])


@pytest.fixture(scope="module")
def load(model_folder: Path) -> LoadModel:
    return lambda name: model_named(name, model_folder)


@pytest.fixture(scope="module", params=CASES)
def planned(request: pytest.FixtureRequest, load: LoadModel) -> tuple[str, Plan]:
    """A case's name and our plan of it."""
    name, asked = cases()[request.param]
    return request.param, plan(load(name), asked, Limits())


def test_token_ids_are_hugging_faces(planned: tuple[str, Plan]) -> None:
    case, ours = planned
    ids = ours.token_ids
    digest = {"length": len(ids), "first": ids[:8].tolist(), "last": ids[-8:].tolist(), "sha256": sha256(ids)}
    check(case, "token_ids", digest, CASES[case]["token_ids"])


def test_chosen_frames_are_hugging_faces(planned: tuple[str, Plan]) -> None:
    case, ours = planned
    indices = [None if item.frames is None else item.frames.indices.tolist() for item in ours.items]
    check(case, "frame_indices", indices, CASES[case]["frame_indices"])


def test_grids_are_hugging_faces(planned: tuple[str, Plan]) -> None:
    case, ours = planned
    grids = [[grid.t, grid.h, grid.w] for grid in map(grid_of, ours.items)]
    chunks = ours.tensors.get("chunk_grid_thw")
    check(case, "grid_thw", grids if chunks is None else chunks.tolist(), CASES[case]["grid_thw"])


def test_rotary_positions_are_hugging_faces(planned: tuple[str, Plan]) -> None:
    case, ours = planned
    positions, delta = (ours.tensors.get(name) for name in ("mrope_position_ids", "mrope_position_delta"))
    check(case, "mrope_position_delta", None if delta is None else delta.item(), CASES[case]["mrope_position_delta"])
    check(
        case, "mrope_position_ids", None if positions is None else sha256(positions), CASES[case]["mrope_position_ids"]
    )


@pytest.mark.parametrize("case", CASES)
def test_token_types_and_seconds_are_hugging_faces(case: str, load: LoadModel) -> None:
    name, asked = cases()[case]
    wanted = dataclasses.replace(asked, with_token_types=True, pixel_form=PixelForm.NONE)
    tensors = prepare(load(name), wanted).tensors
    seconds = tensors.get("second_per_grid_ts")
    check(case, "mm_token_type_ids", sha256(tensors["mm_token_type_ids"]), CASES[case]["mm_token_type_ids"])
    check(
        case, "second_per_grid_ts", seconds if seconds is None else seconds.tolist(), CASES[case]["second_per_grid_ts"]
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.value)
@pytest.mark.parametrize("case", [name for name, golden in CASES.items() if golden["pixels"]])
def test_pixels_are_hugging_faces_bit_for_bit(case: str, form: PixelForm, load: LoadModel) -> None:
    name, asked = cases()[case]
    prepared = prepare(load(name), with_form(asked, form))
    ours = sha256(prepared.tensors[pixels_of(prepared.plan).name])
    check(case, f"{form.value} pixels' SHA-256", ours, CASES[case]["pixels"][form.value])
