"""A loaded model that no family is known for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preprocessor.config import Limits
from preprocessor.models.generic.arguments import read_arguments
from preprocessor.models.generic.prepare import prepare_generic
from preprocessor.models.generic.processor import ProcessorSettings
from preprocessor.models.loaded import (
    CancelCheck,
    ModelDescription,
    ModelPath,
    PlanMemory,
    RowWriter,
    header_workload,
)
from preprocessor.types.plan import ItemPlan, Plan, Workload
from preprocessor.types.request import PixelForm, PreparationRequest

# What a processor makes of a file shows only when it has run: taken to be large, and slow.
_SECONDS = 1.0
_BYTES_A_FILE_BYTE = 40
_BYTES = 256 << 20


class GenericModel(ProcessorSettings):
    """A `LoadedModel` whose plans hold its pixels: its processor runs while it plans."""

    __slots__ = ()

    def plans_from_headers(self, request: PreparationRequest) -> bool:
        """See `LoadedModel`."""
        return False

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """See `LoadedModel`."""
        read_arguments(self.processor, arguments)

    def plan(
        self,
        request: PreparationRequest,
        limits: Limits,
        check: CancelCheck,
        memory: PlanMemory,
    ) -> Plan:
        """See `LoadedModel`."""
        return prepare_generic(self, request, limits, check)

    def planning_workload(self, request: PreparationRequest, most_bytes: int) -> Workload:
        """See `LoadedModel`."""
        if not request.media:
            return header_workload(request)
        file_bytes = sum(len(medium.data) for medium in request.media)
        return Workload(_SECONDS, min(file_bytes * _BYTES_A_FILE_BYTE + _BYTES, most_bytes))

    def row_writer(self, item: ItemPlan, form: PixelForm) -> RowWriter:
        """Never called: no plan of this model has `pixels`."""
        raise AssertionError(f"{self.name}: its plans hold their pixels")

    def describe(self) -> ModelDescription:
        """See `LoadedModel`."""
        return ModelDescription(ModelPath.GENERIC, type(self.processor).__name__, self.placeholders)
