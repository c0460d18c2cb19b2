"""Pixels to the features that the language model reads, some temporal steps at a time.

Encoding a prompt in several runs gives what encoding it at once gives, up to the order in which a matrix product of
another height adds up its terms: equal numbers on paper, the last bits of a float in practice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """What the encoder makes of rows; T merged patches in prompt order."""

    embeddings: torch.Tensor
    """[T, hidden]."""
    deepstack: tuple[torch.Tensor, ...]
    """[T, hidden] for each layer of the language model that gets features of its own."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.embeddings, *self.deepstack))

    def split(self, lengths: Sequence[int]) -> Iterator[Features]:
        """Parts of so many merged patches each; views."""
        layers = [layer.split(lengths) for layer in self.deepstack]
        for index, embeddings in enumerate(self.embeddings.split(lengths)):
            yield Features(embeddings, tuple(layer[index] for layer in layers))

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """One after another, in memory of their own."""
        layers = zip(*(part.deepstack for part in parts), strict=True)
        return cls(torch.cat([part.embeddings for part in parts]), tuple(torch.cat(layer) for layer in layers))


class VisionEncoding:
    """The features of one prompt, made as its rows come.

    Args:
        model: From `load_checkpoint`.
        prompt: Whose rows they are.
        rows: Those that have come.
        held: Features that there are already, by item; its rows are not read, if they come at all.
    """

    def __init__(self, model: Any, prompt: Prompt, rows: RowBuffer, held: Mapping[int, Features]) -> None:
        self._model = model
        self._prompt = prompt
        self._rows = rows
        self._plan = StepPlan(prompt.grids, held.keys())
        self._encoded_row_count = 0
        self._parts: list[list[Features]] = [[held[item]] if item in held else [] for item in range(len(prompt.grids))]

    def take_rows(self) -> None:
        """Encode the whole temporal steps that have come since the last call."""
        while (run := self._plan.run(self._encoded_row_count, self._rows.row_count)) is not None:
            rows = self._rows.between(run.start, run.stop)
            features = _encode_run(self._model, rows, run, self._prompt)
            merged = self._model.config.vision_config.spatial_merge_size**2
            lengths = [t * h * w // merged for t, h, w in run.grids]
            for item, part in zip(run.items, features.split(lengths), strict=True):
                self._parts[item].append(part)
            self._encoded_row_count = run.stop

    def take_features(self) -> list[Features]:
        """Of each item, when all rows have been taken; then they are gone here."""
        parts, self._parts = self._parts, []
        return [each[0] if len(each) == 1 else Features.joined(each) for each in parts]


def encoder_outputs(
    features: Sequence[Features], modality: Sequence[int]
) -> dict[str, BaseModelOutputWithDeepstackFeatures]:
    """Deal the features of a prompt's items out by modality, as `generate` takes them in `mm_encoder_outputs`."""
    outputs = {}
    for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
        chosen = [each for each, own in zip(features, modality, strict=True) if own == kind]
        if chosen:
            # Placeholders stand in the order of the items, one a merged patch: `engine_client.contract.prompt` has checked it.
            joined = Features.joined(chosen)
            outputs[name] = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[joined.embeddings], deepstack_features=[[layer] for layer in joined.deepstack]
            )
    return outputs


def own_memory(features: Features) -> Features:
    """The same features, in memory that nothing else lies in, so that keeping them keeps no more."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    return Features(own(features.embeddings), tuple(own(layer) for layer in features.deepstack))


def _encode_run(model: Any, rows: torch.Tensor, run: Run, prompt: Prompt) -> Features:
    """Run the vision encoder over `rows`, which are those of `run`; uint8 [P, F], on the model's device."""
    grids = torch.tensor(run.grids, dtype=torch.int64, device=rows.device)
    with torch.inference_mode():
        pixels = normalize_patches(rows, *prompt.normalization).to(model.dtype)
        # It does the same for images and for videos (transformers 5.23: get_video_features calls it).
        output = model.get_image_features(pixels, grids, return_dict=True)
        deepstack = tuple(torch.cat(features) for features in output.deepstack_features)
        return Features(torch.cat(output.pooler_output), deepstack)
