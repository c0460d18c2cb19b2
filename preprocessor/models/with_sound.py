"""A model of a known family that also takes sound: prompts with sound run through transformers' processor, all others do not.

Both ways choose the same frames and give the same token ids; the tensors of a prompt with sound have the processor's names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.models.family.item import frames_by_family
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.models.loaded import CancelCheck, ModelDescription, PlanMemory, RowWriter
from preprocessor.types.plan import ItemPlan, Plan, Workload
from preprocessor.types.request import Modality, PixelForm, PreparationRequest


@dataclass(frozen=True, slots=True, eq=False)
class WithSound:
    """A `LoadedModel`.

    Attributes:
        pictures: Prepares prompts of text, images and videos. It knows the token of a sound, to refuse one without a sound.
        sounds: Prepares prompts with sound, and those with arguments of the processor, which may ask for a video's sound.
    """

    pictures: Model
    sounds: GenericModel

    @property
    def name(self) -> str:
        return self.pictures.name

    @property
    def tokenizer(self) -> TokenizersBackend:
        return self.pictures.tokenizer

    @property
    def modalities(self) -> frozenset[Modality]:
        return self.sounds.modalities

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self.pictures.stop_token_ids

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.pictures.fingerprint} {self.sounds.fingerprint}".encode()).hexdigest()

    def plans_from_headers(self, request: PreparationRequest) -> bool:
        """See `LoadedModel`."""
        has_sound = any(medium.modality is Modality.AUDIO for medium in request.media)
        return not has_sound and not request.processor_arguments

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """See `LoadedModel`."""
        self.sounds.check_arguments(arguments)

    def plan(
        self,
        request: PreparationRequest,
        limits: Limits,
        check: CancelCheck,
        memory: PlanMemory,
    ) -> Plan:
        """See `LoadedModel`."""
        if self.plans_from_headers(request):
            return self.pictures.plan(request, limits, check, memory)
        return prepare_generic(self.sounds, request, limits, check, frames_by_family(self.pictures))

    def planning_workload(self, request: PreparationRequest, most_bytes: int) -> Workload:
        """See `LoadedModel`."""
        model = self.pictures if self.plans_from_headers(request) else self.sounds
        return model.planning_workload(request, most_bytes)

    def row_writer(self, item: ItemPlan, form: PixelForm) -> RowWriter:
        """See `LoadedModel`."""
        return self.pictures.row_writer(item, form)

    def describe(self) -> ModelDescription:
        """See `LoadedModel`."""
        return self.pictures.describe()
