"""Pixels to the features that the language model reads, some temporal steps at a time.

Encoding a prompt in several runs gives what encoding it at once gives, up to the order in which a matrix product of
another height adds up its terms: equal numbers on paper, the last bits of a float in practice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from engine_client.contract.prompt import Prompt
from engine_client.contract.rows import RowBuffer
from engine_client.contract.tensors import IMAGE, VIDEO
from engine_client.triton.backend.rows import normalize_patches

from .steps import Run, StepPlan


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the encoder makes of a run of rows; T merged patches in prompt order."""

    embeddings: torch.Tensor
    """[T, hidden]."""
    deepstack: tuple[torch.Tensor, ...]
    """[T, hidden] for each layer of the language model that gets features of its own."""


class VisionEncoding:
    """The features of one prompt, made as its rows come.

    Args:
        model: From `load_checkpoint`.
        prompt: Whose rows they are.
        rows: Those that have come.
    """

    def __init__(self, model: Any, prompt: Prompt, rows: RowBuffer) -> None:
        self._model = model
        self._prompt = prompt
        self._rows = rows
        self._plan = StepPlan(prompt.grids)
        self._encoded_row_count = 0
        self._features: list[Features] = []

    def take_rows(self) -> None:
        """Encode the whole temporal steps that have come since the last call."""
        run = self._plan.run(self._encoded_row_count, self._rows.row_count)
        if run is not None:
            rows = self._rows.between(run.start, run.stop)
            self._features.append(_encode_run(self._model, rows, run, self._prompt))
            self._encoded_row_count = run.stop

    def take_outputs(self) -> dict[str, BaseModelOutputWithDeepstackFeatures]:
        """Deal the features out by modality, as `generate` takes them in `mm_encoder_outputs`; then they are gone here."""
        runs, self._features = self._features, []
        if not runs:
            return {}
        embeddings = torch.cat([run.embeddings for run in runs])
        deepstack = [torch.cat(layers) for layers in zip(*(run.deepstack for run in runs), strict=True)]
        # Placeholders stand in the order of the items, one a merged patch: `engine_client.contract.prompt` has checked it.
        types = self._prompt.token_types
        kinds = torch.from_numpy(types[types != 0]).to(embeddings.device)
        return {
            name: BaseModelOutputWithDeepstackFeatures(
                pooler_output=[embeddings[kinds == kind]],
                deepstack_features=[[layer[kinds == kind]] for layer in deepstack],
            )
            for kind, name in ((IMAGE, "image"), (VIDEO, "video"))
            if kind in self._prompt.modality
        }


def _encode_run(model: Any, rows: torch.Tensor, run: Run, prompt: Prompt) -> Features:
    """Run the vision encoder over `rows`, which are those of `run`; uint8 [P, F], on the model's device."""
    grids = torch.tensor(run.grids, dtype=torch.int64, device=rows.device)
    with torch.inference_mode():
        pixels = normalize_patches(rows, *prompt.normalization).to(model.dtype)
        # It does the same for images and for videos (transformers 5.23: get_video_features calls it).
        output = model.get_image_features(pixels, grids, return_dict=True)
        deepstack = tuple(torch.cat(features) for features in output.deepstack_features)
        return Features(torch.cat(output.pooler_output), deepstack)
