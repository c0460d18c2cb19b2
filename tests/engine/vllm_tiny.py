"""Tiny models of random weights for a real vLLM, and what transformers answers with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.vllm.tiny_checkpoint import write_folder
from engine_client import Fingerprint
from engine_client.vllm import VllmEngine
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.types.request import Media
from tests.engine.vllm_prompts import KINDS, ask_transformers
from tests.loading import load_family_model


@dataclass(frozen=True)
class Tiny:
    """Attributes:
    expected: transformers' tokens for each kind of prompt.
    """

    checkpoint: Path
    model: Model
    expected: Mapping[str, list[int]]

    def client(self, address: str) -> VllmEngine:
        """Of a server that should have this checkpoint."""
        return VllmEngine(address, fingerprint=Fingerprint(fingerprint_parts(self.model)))


def make_tiny(name: str, paths: pytest.TempPathFactory, prompts: Mapping[str, tuple[Media, ...]] = KINDS) -> Tiny:
    """Write a checkpoint of `deploy.vllm.tiny_checkpoint`, and ask transformers."""
    checkpoint = paths.mktemp(name)
    write_folder(checkpoint, name)
    model = load_family_model(str(checkpoint))
    return Tiny(checkpoint, model, ask_transformers(checkpoint, model, paths.mktemp("prompts"), prompts))
