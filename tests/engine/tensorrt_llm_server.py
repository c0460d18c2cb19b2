"""A real Triton with `vlm_tensorrt_llm` and the stand-in where it looks for TensorRT-LLM."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.triton.local_server import TritonServer
from tests.engine.tensorrt_llm_model import FOLDER, LAYOUT, STAND_IN, write_checkpoint


@contextmanager
def serving_stand_in(
    tmp_path_factory: pytest.TempPathFactory, layout: Any = LAYOUT, **parameters: str
) -> Iterator[TritonServer]:
    """The deployed model with some parameters changed, for a checkpoint of that layout."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(FOLDER, folder / FOLDER.name)  # follows links, as copying into a container must
    shutil.copytree(STAND_IN, folder / FOLDER.name, dirs_exist_ok=True)  # a model's folder is on its Python's path
    config = folder / FOLDER.name / "config.pbtxt"
    text = config.read_text()
    for name, value in ({"pixel_device": "cpu"} | parameters).items():
        text, count = re.subn(rf'(key: "{name}" +value: \{{ string_value: )"[^"]*"', rf'\g<1>"{value}"', text)
        assert count == 1, name
    config.write_text(text)
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), layout=layout)
    with TritonServer([FOLDER.name], repository=folder, environment={"VLM_CHECKPOINT": str(checkpoint)}) as running:
        try:
            yield running
        finally:
            running.kill()
