"""A loaded model of a known family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.family.plan import plan_from_headers
from preprocessor.models.family.rules import ModelSettings
from preprocessor.models.loaded import (
    CancelCheck,
    ModelDescription,
    ModelPath,
    PlanMemory,
    RowWriter,
    header_workload,
)
from preprocessor.types.plan import ItemPlan, Plan, Workload
from preprocessor.types.request import Modality, PixelForm, PreparationRequest
from preprocessor.vision.patches import normalization_table


class Model(ModelSettings):
    """A `LoadedModel` that plans from headers alone."""

    __slots__ = ()

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the model takes beside text."""
        return frozenset(self.placeholders.ids)

    def plans_from_headers(self, request: PreparationRequest) -> bool:
        """See `LoadedModel`."""
        return True

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """See `LoadedModel`."""
        if arguments:
            raise InvalidRequest(
                f"{self.name} is prepared by this service's own pipeline, which takes no arguments of transformers' processor "
                f"({', '.join(sorted(arguments))}); frames and pixel budgets are said in each medium",
                reason="INVALID_PROCESSOR_ARGUMENTS",
                field="processor_arguments_json",
            )

    def plan(
        self,
        request: PreparationRequest,
        limits: Limits,
        check: CancelCheck,
        memory: PlanMemory,
    ) -> Plan:
        """See `LoadedModel`."""
        return plan_from_headers(self, request, limits, check, memory)

    def planning_workload(self, request: PreparationRequest, most_bytes: int) -> Workload:
        """See `LoadedModel`."""
        return header_workload(request)

    def row_writer(self, item: ItemPlan, form: PixelForm) -> RowWriter:
        """See `LoadedModel`."""
        table = None if form is PixelForm.UINT8 else normalization_table(self.pixels_of(item.modality), form)
        return RowWriter(self.family.frame_writer(item, self), table)

    def describe(self) -> ModelDescription:
        """See `LoadedModel`."""
        video = self.video if Modality.VIDEO in self.modalities else None
        return ModelDescription(
            ModelPath.FAST, self.family.name, self.placeholders.tokens, self.image, video, self.video_markers
        )
