"""The built-in qwen3-vl as a directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from preprocessor.models import registry
from preprocessor.models.family import Model
from tests.loading import load_family_model

BUILTIN = Path(registry.__file__).parent / "builtin" / "qwen3-vl"


@pytest.fixture(scope="session")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as a directory, the way it would lie on a disk."""
    directory = tmp_path_factory.mktemp("models") / "qwen3-vl-saved"
    model.tokenizer.save_pretrained(directory)
    for path in BUILTIN.iterdir():
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="session")
def small(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer of bytes and added tokens alone, which loads in no time; these keep their ids."""
    directory = Path(shutil.copytree(saved, tmp_path_factory.mktemp("models") / "small"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = {token: token_id for token, token_id in tokenizer["model"]["vocab"].items() if len(token) == 1}
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["model"] |= {"vocab": vocabulary, "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.fixture(scope="session")
def written(saved: Path) -> Model:
    """The model of that directory."""
    return load_family_model(str(saved))
