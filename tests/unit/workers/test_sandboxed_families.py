"""A sandboxed worker whose first task is an image or a video prepares it, whatever the family: nothing is left to be opened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from preprocessor.models.names import builtin_names
from tests.parity.small_models import SMALL_MODELS

GOLDEN_MODELS = Path(__file__).parents[2] / "golden/models"
FORMS = ["uint8", "bf16", "fp16", "fp32"]
BOTH = ["IMAGE", "VIDEO"]
WITHOUT_VIDEO = ["mistral3", "gemma3"]
ALIKE = {"glm-4.1v", "qwen2.5-omni"}  # to their pixels the same is done as to another model's


def ends(names: Iterable[str | Path]) -> dict[tuple[str, str, str], str]:
    """(last part of the name, modality, form) → how its process ended, as the program prints it."""
    command = [sys.executable, "-m", "tests.unit.workers.sandboxed", *map(str, names)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return {(Path(name).name, modality, form): end for name, modality, form, end in rows}


@pytest.fixture(scope="module")
def small_ends(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], str]:
    """Of a model of each family, whose tokenizers load in no time."""
    folder = tmp_path_factory.mktemp("families")
    for name in SMALL_MODELS.keys() - ALIKE:
        SMALL_MODELS[name].save(folder / name)
    # Small enough a bound that load_ahead's examples are not enlarged: torch then does nothing before the sandbox.
    bounded = Path(shutil.copytree(small, folder / "small-bounds"))
    path = bounded / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"size": settings["size"] | {"shortest_edge": 3136}}))
    return ends([*sorted(folder.iterdir()), *sorted(GOLDEN_MODELS.iterdir())])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *(
            (name, modality)
            for name in ["small-bounds", *SMALL_MODELS, "internvl", "gemma4"]
            if name not in ALIKE
            for modality in BOTH
        ),
        *((name, "IMAGE") for name in WITHOUT_VIDEO),
    ],
)
def test_a_first_task_needs_no_file(
    small_ends: dict[tuple[str, str, str], str], name: str, modality: str, form: str
) -> None:
    assert small_ends[name, modality, form] == "0"


@pytest.mark.slow
def test_a_first_task_of_any_other_model_needs_no_file(model_folder: Path) -> None:
    names = [*builtin_names(), *sorted(ALIKE), "qwen3.5", "qwen3.8"]
    found = ends(name if name in builtin_names() else model_folder / name for name in names)
    assert found.keys() == {(name, modality, form) for name in names for modality in BOTH for form in FORMS}
    assert set(found.values()) == {"0"}
